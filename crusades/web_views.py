"""What the API says: every document of `/api/v1`, composed from store, board and scoring. Pure reader.

Each document is a method of `Views` that returns an encoded `Answer`; the websocket sends the very same documents as
sections of its snapshot, so a client needs one decoder. Shapes are those of `crusades.records`; lists come as
`{"items": [...]}` like the cursor pages.

What is never served: the output of a submission (`output_tail`), the code of one that has not been judged, and the
code of a copy, which would publish the original's before its time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import trio

from crusades import __version__
from crusades.board import Board
from crusades.faults import FAULTS, fault
from crusades.records import (
    Event,
    HistoryPoint,
    Overview,
    Page,
    Record,
    Run,
    Source,
    Standing,
    Status,
    Submission,
    SubmissionDetail,
    WeightsView,
)
from crusades.web_cache import Answer, Answers, Changes, EventSource, Memo, Topic
from crusades.web_errors import Refused

LIVE_HISTORY = 300
"""Points of the history in a live snapshot (about 60 kB); `/api/v1/history` serves more."""

RANK_IN_THREAD = 500
"""From this many scored submissions on they are ranked in a thread, so that no step of the event loop gets long."""

WAITING = (Status.QUEUED, Status.RUNNING)
EARLIER = (Status.SEALED, Status.REVEALED, Status.FETCHED, Status.CHECKED)


class Ranking(Protocol):
    """`crusades.scoring.Standings`, as far as it is shown."""

    @property
    def rows(self) -> Sequence[Standing]: ...
    @property
    def history(self) -> Sequence[HistoryPoint]: ...


Rank = Callable[[Sequence[Submission]], Ranking]


class Reader(EventSource, Protocol):
    """What the web server asks of the store."""

    async def submissions(self, *, status: Status | None, hotkey: str | None, sha256: str | None, cursor: str | None, limit: int) -> Page: ...
    async def submission(self, id_: str) -> SubmissionDetail | None: ...
    async def in_state(self, *statuses: Status) -> list[Submission]: ...
    async def source(self, id_: str) -> Source | None: ...
    async def runs(self, id_: str) -> Sequence[Run]: ...
    async def scored(self) -> list[Submission]: ...
    async def counts(self) -> dict[str, int]: ...
    async def weights(self) -> WeightsView: ...


class Items(Record, frozen=True, kw_only=True):
    """A list, in the same wrapping as a page."""

    items: tuple[Any, ...]


class Queue(Record, frozen=True, kw_only=True):
    """Who is being judged, who waits, and how many are on the way there."""

    items: tuple[Submission, ...]
    """Running first, then waiting in the order of service."""
    earlier: dict[str, int]
    """status → number of submissions that are not yet in the queue."""


class Code(Record, frozen=True, kw_only=True):
    """A judged submission's file."""

    text: str
    sha256: str


class Views:
    """All documents. One per application."""

    def __init__(self, store: Reader, board: Board, rules_version: str, rank: Rank, rules: Callable[[], Mapping[str, Any]]) -> None:
        self.changes = Changes(store)
        self._store, self._board, self._rules_version, self._rank, self._rules = store, board, rules_version, rank, rules
        self._answers = Answers()
        self._ranking: Memo[Ranking] = Memo()
        self._counts: Memo[dict[str, int]] = Memo()
        self._weights: Memo[WeightsView] = Memo()
        self._queue: Memo[list[Submission]] = Memo()

    async def _answer(self, key: Hashable, version: Callable[[], Hashable], make: Callable[[], Awaitable[Any]]) -> Answer:
        await self.changes.catch_up()
        return await self._answers.get(key, version, make)

    def _at(self, *topics: str) -> Callable[[], Hashable]:
        return lambda: self.changes.version(*topics)

    # -- parts, each made once per commit that touches it -------------------------------------------------

    def _scores_version(self) -> Hashable:
        return (self.changes.version(Topic.SCORES), self._board.neurons, self._board.owner_uid)

    async def ranking(self) -> Ranking:
        """Standings and history of everything scored so far."""

        async def make() -> Ranking:
            scored = await self._store.scored()
            if len(scored) < RANK_IN_THREAD:
                return self._rank(scored)
            return await trio.to_thread.run_sync(self._rank, scored)

        return await self._ranking.get(self._scores_version, make)

    def _live(self, submission: Submission) -> Submission:
        """With what only the board knows: the progress of a run."""
        if submission.status is Status.RUNNING and submission.id in self._board.progress:
            return msgspec.structs.replace(submission, progress=self._board.progress[submission.id])
        return submission

    async def _waiting(self) -> list[Submission]:
        """Running and queued submissions in the order of service."""

        async def make() -> list[Submission]:
            rows = await self._store.in_state(*WAITING)
            return sorted(rows, key=lambda row: row.status is not Status.RUNNING)

        return await self._queue.get(self._at(Topic.SUBMISSIONS), make)

    def _progress(self) -> Hashable:
        return tuple(self._board.progress.items())

    def _board_version(self) -> Hashable:
        b = self._board
        return (b.network, b.netuid, b.hotkey, b.uid, b.block, b.finalized_block, b.notice, b.profile, b.model,
                tuple(b.slots.values()), tuple(b.ready.items()), tuple(b.problems.items()))

    # -- documents ----------------------------------------------------------------------------------------

    async def overview(self) -> Answer:
        """One look at the validator; at most a second old."""
        return await self._answer(
            "overview", lambda: (self.changes.version(Topic.ANY), self._scores_version(), self._board_version(), int(time.time())), self.make_overview)

    def overview_version(self) -> Hashable:
        """Changes when the overview does, but for its clock."""
        return (self.changes.version(Topic.SUBMISSIONS, Topic.WEIGHTS), self._scores_version(), self._board_version())

    async def make_overview(self) -> Overview:
        """The overview as a record."""
        b = self._board
        rows = (await self.ranking()).rows
        return Overview(
            version=__version__, network=b.network, netuid=b.netuid, hotkey=b.hotkey, uid=b.uid, block=b.block, finalized_block=b.finalized_block,
            started_at=b.started_at, now=time.time(), rules_version=b.rules_version or self._rules_version, profile=b.profile, model=b.model,
            counts=await self._counts.get(self._at(Topic.SUBMISSIONS), self._store.counts),
            leader=rows[0] if rows else None, slots=self._slot_views(), weights=await self._weights_view(), ready=b.is_ready,
            problems=tuple(f"{name}: {words}" for name, words in sorted(b.problems.items())), notice=b.notice)

    async def _weights_view(self) -> WeightsView:
        view = await self._weights.get(self._at(Topic.WEIGHTS), self._store.weights)
        if view.age_blocks is None and view.applied_block is not None and self._board.block is not None:
            return msgspec.structs.replace(view, age_blocks=max(0, self._board.block - view.applied_block))
        return view

    def _slot_views(self) -> tuple[Any, ...]:
        views = []
        for slot in sorted(self._board.slots.values(), key=lambda s: s.name):
            words = self._board.progress.get(slot.submission_id or "", "")
            views.append(msgspec.structs.replace(slot, detail=words) if words and not slot.detail else slot)
        return tuple(views)

    async def leaderboard(self, limit: int) -> Answer:
        """The best of each hotkey, best first."""

        async def make() -> Items:
            return Items(items=tuple((await self.ranking()).rows[:limit]))

        return await self._answer(("leaderboard", limit), self._scores_version, make)

    async def history(self, limit: int) -> Answer:
        """Scored submissions in the order they were counted; when there are more than `limit`, every change of leader and the newest others."""

        async def make() -> Items:
            return Items(items=thin((await self.ranking()).history, limit))

        return await self._answer(("history", limit), self._scores_version, make)

    async def submissions(self, *, status: Status | None, hotkey: str | None, sha256: str | None, cursor: str | None, limit: int) -> Answer:
        """A page, newest first."""

        async def make() -> Page:
            page = await self._store.submissions(status=status, hotkey=hotkey, sha256=sha256, cursor=cursor, limit=limit)
            return msgspec.structs.replace(page, items=tuple(map(self._live, page.items)))

        key = ("submissions", status, hotkey, sha256, cursor, limit)
        return await self._answer(key, lambda: (self.changes.version(Topic.SUBMISSIONS), self._progress()), make)

    async def queue(self) -> Answer:
        """What is being judged and what waits."""

        async def make() -> Queue:
            counts = await self._counts.get(self._at(Topic.SUBMISSIONS), self._store.counts)
            earlier = {status.value: counts.get(status.value, 0) for status in EARLIER}
            return Queue(items=tuple(map(self._live, await self._waiting())), earlier=earlier)

        return await self._answer("queue", lambda: (self.changes.version(Topic.SUBMISSIONS), self._progress()), make)

    async def slots(self) -> Answer:
        """Devices and what they are doing."""

        async def make() -> Items:
            return Items(items=self._slot_views())

        return await self._answer("slots", lambda: (tuple(self._board.slots.values()), self._progress()), make)

    async def weights(self) -> Answer:
        """Asked and on chain."""
        return await self._answer("weights", lambda: (self.changes.version(Topic.WEIGHTS), self._board.block), self._weights_view)

    async def detail(self, id: str) -> Answer:  # noqa: A002 - the API's own name
        """One submission with its history and verdict."""

        async def make() -> SubmissionDetail:
            found = await self._found(id)
            verdict = found.verdict and msgspec.structs.replace(found.verdict, output_tail="")
            return msgspec.structs.replace(found, submission=self._live(found.submission), verdict=verdict)

        return await self._answer(("detail", id), lambda: (self.changes.version(Topic.ANY), self._board.progress.get(id)), make)

    async def runs(self, id: str) -> Answer:  # noqa: A002
        """The runs of the current or last attempt, as they come."""

        async def make() -> Items:
            await self._found(id)
            return Items(items=tuple(await self._store.runs(id)))

        return await self._answer(("runs", id), self._at(Topic.ANY), make)

    async def code(self, id: str) -> Code:  # noqa: A002
        """The file of a judged submission. Refused before, for copies, and for what a fork took back."""
        submission = (await self._found(id)).submission
        if submission.status not in (Status.SCORED, Status.REJECTED):
            raise Refused(409, "not_judged_yet", f"Submission {id} is {submission.status.value}. Its code is shown once it has been judged.")
        if submission.reason is not None and submission.reason.code == fault("copy").code:
            raise Refused(404, "no_code", "This submission is a copy; its code is shown with the original, once that has been judged.")
        if submission.reason is not None and submission.reason.code == fault("withdrawn").code:
            raise Refused(404, "no_code", "The block of this submission was not finalised, so the same file may wait in another one; its code is shown once that has been judged.")
        source = await self._store.source(id)
        if source is None:
            raise Refused(404, "no_code", "The file of this submission was never fetched, so there is no code to show.")
        return Code(text=source.text, sha256=source.sha256)

    async def _found(self, id: str) -> SubmissionDetail:  # noqa: A002
        found = await self._store.submission(id)
        if found is None:
            raise Refused(404, "not_found", f"There is no submission {id}.")
        return found

    async def rules(self) -> Answer:
        """What a submission must follow, and the workload it is judged on."""

        async def make() -> Mapping[str, Any]:
            return self._rules()

        return await self._answer("rules", lambda: self._board.profile, make)

    async def faults(self) -> Answer:
        """The fault table."""

        async def make() -> dict[str, Any]:
            rows = [{"code": f.code, "name": f.name, "whose": f.whose.value, "title": f.title, "advice": f.advice, "terminal": f.terminal} for f in FAULTS.values()]
            return {"items": rows}

        return await self._answer("faults", lambda: 0, make)


def thin(points: Sequence[HistoryPoint], limit: int) -> tuple[HistoryPoint, ...]:
    """At most `limit` points in order: changes of leader before others, newer before older, and the last one always."""
    if len(points) <= limit:
        return tuple(points)
    order = sorted(range(len(points)), key=lambda i: (i != len(points) - 1, not points[i].took_lead, -i))
    return tuple(points[i] for i in sorted(order[:limit]))


SHOWN_KINDS = ("submission", "run", "leaderboard", "weights", "slot", "block")


def shown_event(event: Event) -> Event:
    """An event as clients may see it: the number always (they count without gaps), the data only of known kinds, and no output of a submission."""
    if event.kind not in SHOWN_KINDS:
        return msgspec.structs.replace(event, data={})
    if "output_tail" in event.data:
        return msgspec.structs.replace(event, data={k: v for k, v in event.data.items() if k != "output_tail"})
    return event
