"""Every question to the store: one function a question, each over one connection inside one read transaction."""

from __future__ import annotations

import zlib
from typing import Any

import aiosqlite
import msgspec

from crusades.records import Commitment, Event, Page, Payload, Run, Source, Status, Submission, SubmissionDetail, Transition, WeightsView
from crusades.store_chain import commitment_of
from crusades.store_tx import (
    QUEUE_ORDER,
    SERVICE_ORDER,
    decode_payload,
    decode_reason,
    fetch_all,
    fetch_rows,
    queue_positions,
    submission_of,
    unpack_run,
    unpack_verdict,
)

MAX_PAGE = 500

_view_decoder = msgspec.json.Decoder(WeightsView)


async def in_state(db: aiosqlite.Connection, statuses: tuple[Status, ...]) -> list[Submission]:
    """Submissions in these states, in the order of service; in the queue, what was begun before comes first."""
    only_queue = statuses == (Status.QUEUED,)
    order = QUEUE_ORDER if only_queue else f"CASE WHEN status = 'queued' THEN attempts = 0 ELSE 0 END, {SERVICE_ORDER}"
    rows = await fetch_rows(db, f"status IN ({', '.join('?' * len(statuses))}) ORDER BY {order}", [status.value for status in statuses])
    places = {row.id: place for place, row in enumerate(rows, start=1)} if only_queue else await queue_positions(db) if Status.QUEUED in statuses else {}
    return [submission_of(row, places.get(row.id)) for row in rows]


async def submissions(db: aiosqlite.Connection, *, status: Status | None, hotkey: str | None, sha256: str | None, cursor: str | None, limit: int) -> Page:
    """A page, newest commit first."""
    limit = max(1, min(limit, MAX_PAGE))
    where, parameters = ["1"], []
    for column, value in (("status", status and status.value), ("hotkey", hotkey)):
        if value:
            where.append(f"{column} = ?")
            parameters.append(value)
    if sha256:
        where.append("sha256 IN (?, substr(?, 1, 32)) AND sha256 != ''")  # the older payload names the first half only
        parameters += [sha256, sha256]
    if cursor:
        where.append("(commit_block, n) < (?, ?)")
        parameters += read_cursor(cursor)
    rows = await fetch_rows(db, f"{' AND '.join(where)} ORDER BY commit_block DESC, n DESC LIMIT ?", [*parameters, limit + 1])
    places = await queue_positions(db) if any(row.status == Status.QUEUED for row in rows[:limit]) else {}
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(items=tuple(submission_of(row, places.get(row.id)) for row in rows[:limit]), next_cursor=f"{last.commit_block}.{last.n}" if last else None)


def read_cursor(cursor: str) -> list[Any]:
    """The place a page's cursor names. ValueError for anything that is not one."""
    block, _, number = cursor.partition(".")
    if not all(part.isascii() and part.isdigit() and len(part) <= 18 for part in (block, number)):
        raise ValueError("the cursor is not one that a page gave out")
    return [int(block), int(number)]


async def submission(db: aiosqlite.Connection, id_: str) -> SubmissionDetail | None:
    """One submission with its history and verdict."""
    rows = await fetch_rows(db, "id = ?", (id_,))
    if not rows:
        return None
    steps = await fetch_all(db, "SELECT status, at, block, reason, note FROM transitions WHERE submission = ? ORDER BY n", (id_,))
    verdicts = await fetch_all(db, "SELECT verdict FROM verdicts WHERE submission = ?", (id_,))
    places = await queue_positions(db) if rows[0].status == Status.QUEUED else {}
    return SubmissionDetail(
        submission=submission_of(rows[0], places.get(id_)), verdict=unpack_verdict(verdicts[0][0]) if verdicts else None,
        transitions=tuple(Transition(status=Status(status), at=at, block=block, reason=None if reason is None else decode_reason(reason), note=note)
                          for status, at, block, reason, note in steps))


async def source(db: aiosqlite.Connection, id_: str) -> Source | None:
    """The fetched file."""
    rows = await fetch_all(db, "SELECT sources.sha256, content, url, fetched_at FROM sources JOIN files USING (sha256) WHERE submission = ?", (id_,))
    if not rows:
        return None
    sha256, content, url, fetched_at = rows[0]
    return Source(sha256=sha256, content=zlib.decompress(content), url=url, fetched_at=fetched_at)


async def runs(db: aiosqlite.Connection, id_: str) -> tuple[Run, ...]:
    """Runs that count: those of the verdict, else those made so far, void ones left out, the newest of each index."""
    verdicts = await fetch_all(db, "SELECT verdict FROM verdicts WHERE submission = ?", (id_,))
    if verdicts and (judged := unpack_verdict(verdicts[0][0]).runs):
        return judged
    return await made_runs(db, id_)


async def made_runs(db: aiosqlite.Connection, id_: str) -> tuple[Run, ...]:
    """Runs of the evaluation under way, void ones left out, the newest of each index."""
    stored = await fetch_all(db, "SELECT run FROM runs JOIN submissions ON id = submission WHERE submission = ? AND runs.evaluation = submissions.evaluation "
                                 "ORDER BY runs.n", (id_,))
    made = (unpack_run(blob) for (blob,) in stored)
    return tuple(sorted({run.index: run for run in made if not run.void}.values(), key=lambda run: run.index))


async def kept_on(db: aiosqlite.Connection) -> dict[str, str]:
    """id → slot of everything queued whose finished runs are kept: they count only there."""
    return dict(await fetch_all(db, "SELECT id, slot FROM submissions WHERE status = 'queued' AND slot != '' AND EXISTS "
                                    "(SELECT 1 FROM runs WHERE submission = id AND runs.evaluation = submissions.evaluation)"))


async def scored(db: aiosqlite.Connection) -> list[Submission]:
    """Everything that counts for the leaderboard."""
    return [submission_of(row) for row in await fetch_rows(db, "status = 'scored'")]


async def counts(db: aiosqlite.Connection) -> dict[str, int]:
    """state → number of submissions, every state named."""
    found = dict(await fetch_all(db, "SELECT status, count(*) FROM submissions GROUP BY status"))
    return {status.value: found.get(status.value, 0) for status in Status}


async def commitments(db: aiosqlite.Connection) -> list[Commitment]:
    """What is known from the chain, for `Chain.learn` after a start; withdrawn ones are left out."""
    return [commitment_of(row) for row in await fetch_rows(db, "1 ORDER BY commit_block, n") if not row.withdrawn]


async def payload(db: aiosqlite.Connection, id_: str) -> Payload | None:
    """What was committed, fee receipt included; None while it is sealed."""
    rows = await fetch_all(db, "SELECT payload FROM submissions WHERE id = ? AND payload IS NOT NULL", (id_,))
    return decode_payload(rows[0][0]) if rows else None


async def events_since(db: aiosqlite.Connection, seq: int, limit: int) -> list[Event]:
    """Events after `seq`, oldest first."""
    rows = await fetch_all(db, "SELECT seq, at, kind, submission, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))
    return [Event(seq=seq, at=at, kind=kind, submission_id=id_, data=msgspec.json.decode(data)) for seq, at, kind, id_, data in rows]


async def weights(db: aiosqlite.Connection) -> WeightsView:
    """The newest weights."""
    rows = await fetch_all(db, "SELECT view FROM weights ORDER BY n DESC LIMIT 1")
    return _view_decoder.decode(rows[0][0]) if rows else WeightsView()


async def weights_history(db: aiosqlite.Connection, limit: int) -> list[WeightsView]:
    """Weights that were asked for, newest first."""
    return [_view_decoder.decode(view) for (view,) in await fetch_all(db, "SELECT view FROM weights ORDER BY n DESC LIMIT ?", (limit,))]


async def weights_journal(db: aiosqlite.Connection) -> list[tuple[int, int]]:
    """The block windows in which extrinsics of ours may be, oldest first."""
    return [(first, last) for first, last in await fetch_all(db, "SELECT first, last FROM weights ORDER BY n")]


async def fact(db: aiosqlite.Connection, name: str) -> Any:
    """A fact with one value, decoded; None when it was never set."""
    rows = await fetch_all(db, "SELECT value FROM facts WHERE name = ?", (name,))
    return msgspec.json.decode(rows[0][0]) if rows else None


async def receipt_holder(db: aiosqlite.Connection, receipt: str) -> str | None:
    """The submission that has spent or holds a fee receipt."""
    rows = await fetch_all(db, "SELECT submission FROM receipts WHERE receipt = ?", (receipt,))
    return rows[0][0] if rows else None
