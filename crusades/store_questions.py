"""The questions that a store answers, as its callers see them; `store_reads` has the queries. A part of `store.Store`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import aiosqlite

from crusades import store_reads
from crusades.records import Commitment, Event, Page, Payload, Run, Source, Status, Submission, SubmissionDetail, WeightsView

T = TypeVar("T")


class Questions:
    """Each is one read transaction: what it answers was true at one moment."""

    async def _read(self, question: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T:
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------- submissions

    async def in_state(self, *statuses: Status) -> list[Submission]:
        """Submissions in these states by (commit block, uid); in the queue, what was begun before comes first."""
        return await self._read(lambda db: store_reads.in_state(db, statuses))

    async def submissions(self, *, status: Status | None = None, hotkey: str | None = None, sha256: str | None = None, cursor: str | None = None,
                          limit: int = 50) -> Page:
        """A page, newest commit first. ValueError for a cursor that no page gave out."""
        return await self._read(partial(store_reads.submissions, status=status, hotkey=hotkey, sha256=sha256, cursor=cursor, limit=limit))

    async def submission(self, id_: str) -> SubmissionDetail | None:
        """One submission with history and verdict."""
        return await self._read(lambda db: store_reads.submission(db, id_))

    async def source(self, id_: str) -> Source | None:
        """Its file, once fetched."""
        return await self._read(lambda db: store_reads.source(db, id_))

    async def payload(self, id_: str) -> Payload | None:
        """What was committed, fee receipt included; None while sealed."""
        return await self._read(lambda db: store_reads.payload(db, id_))

    async def runs(self, id_: str) -> tuple[Run, ...]:
        """Runs that count: of the verdict, or made so far in the current evaluation."""
        return await self._read(lambda db: store_reads.runs(db, id_))

    async def kept_on(self) -> dict[str, str]:
        """id → slot of everything queued whose finished runs are kept."""
        return await self._read(store_reads.kept_on)

    async def counts(self) -> dict[str, int]:
        """state → number of submissions."""
        return await self._read(store_reads.counts)

    # ---------------------------------------------------------------------------------------- chain, weights, facts, events

    async def cursor(self) -> int | None:
        """The last block whose commitments are recorded for good; None before the first."""
        value = await self._read(lambda db: store_reads.fact(db, "cursor"))
        return None if value is None else int(value)

    async def commitments(self) -> list[Commitment]:
        """What is known from the chain, oldest first, for `Chain.learn` after a start."""
        return await self._read(store_reads.commitments)

    async def weights_history(self, limit: int = 50) -> list[WeightsView]:
        """Weights that were asked for, newest first."""
        return await self._read(lambda db: store_reads.weights_history(db, limit))

    async def weights_journal(self) -> list[tuple[int, int]]:
        """Block windows [first, last] in which extrinsics of ours may be."""
        return await self._read(store_reads.weights_journal)

    async def receipt_holder(self, receipt: str) -> str | None:
        """The submission that holds or has spent a fee receipt."""
        return await self._read(lambda db: store_reads.receipt_holder(db, receipt))

    async def fact(self, name: str) -> Any:
        """What `set_fact` kept; None when nothing."""
        return await self._read(lambda db: store_reads.fact(db, f"own.{name}"))

    async def events_since(self, seq: int, limit: int) -> list[Event]:
        """Stored events after `seq`, oldest first; the oldest are deleted beyond `keep_events`."""
        return await self._read(lambda db: store_reads.events_since(db, seq, limit))
