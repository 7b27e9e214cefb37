"""The store: every fact that must survive a restart, in one SQLite file, written by one writer, told to all who listen.

    async with open_store(state_dir, bridge, settings) as store: ...       # StateLocked, StoreError (damaged, newer)

What holds:

* A write method is one transaction. When it has returned, it is on the disk; when it has raised or was cancelled, nothing
  of it is, with one exception: once COMMIT was sent it is finished, and the method returns although its scope is
  cancelled (trio delivers the cancellation at the next checkpoint).
* Events are numbered without gaps, stored in the transaction that causes them, and published after its commit, in order.
* Only transitions of `store_life` are possible; anything else raises StoreError and changes nothing.
* A submission that the chain rejected meanwhile, or that turned out to be a copy, is nobody's work any more: methods that
  would write to it write nothing and return False (None where they return a value).

Writes (each one transaction; `block` is the head, for the history)
    record_commitments(rows, head=, finalized=) -> Recorded     one read of the chain; see `store_chain`
    transition(id, status, *, block, reason=None, note="") -> bool
    save_source(id, source, *, rules_version="") -> bool        before the transition to FETCHED
    same_program(id, sha256, fingerprint) -> list[Submission]   notes the fingerprint; others with the same file or fingerprint
    begin_attempt(id, *, slot="", block=None) -> tuple[Run, ...] | None     QUEUED → RUNNING; the runs that are kept
    add_run(id, run) -> bool
    finish(id, verdict, *, block=None) -> bool                  RUNNING → SCORED | REJECTED; fee receipt spent or freed
    requeue(id, reason, *, block=None, max_attempts=None) -> Status | None  RUNNING → QUEUED in front, or FAULTED
    recover() -> list[str]                                      after a start: RUNNING → QUEUED in front, runs kept
    claim_receipt(id, receipt) -> str | None                    who else holds or has spent it
    record_weights(asked=, block=, first=, last=)               before they are sent; record_on_chain(...) after each read
    set_cursor(block) · set_fact(name, value) · identify(**facts) · emit(kind, data, submission_id=None)
Reads: in_state, submissions, submission, source, payload, runs, scored, counts, commitments, cursor, fact, weights,
    weights_history, weights_journal, receipt_holder, events_since, last_seq
Others: subscribe(buffer) -> Subscription · backup(out=None) -> Path
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import msgspec
import trio

from crusades import hparams, store_chain, store_reads
from crusades import store_writes as writes
from crusades.asyncio_bridge import Bridge
from crusades.errors import StoreError
from crusades.records import Commitment, Payload, Reason, Run, Source, Status, Submission, Verdict, WeightsView
from crusades.store_chain import Recorded, Seen
from crusades.store_events import Publisher, Subscription
from crusades.store_lock import locked
from crusades.store_questions import Questions
from crusades.store_schema import DATABASE, connect, damaged, is_damage, prepare
from crusades.store_tx import Tx, Withdrawn, database_words

T = TypeVar("T")
log = logging.getLogger(__name__)

CLOSE_WITHIN = 20.0
"""Seconds that closing waits for a write under way and for the checkpoint."""


class Store(Questions):
    """One state directory. All methods on the trio thread; get one from `open_store`."""

    def __init__(self, state_dir: Path, bridge: Bridge, settings: hparams.Store) -> None:
        self.state_dir, self.settings = state_dir, settings
        self._bridge = bridge
        self._token = trio.lowlevel.current_trio_token()
        self._publisher = Publisher(0)
        self._seen = Seen()
        self._seq = 0  # asyncio thread; the publisher has its own, behind by what is on the way
        self._cursor: int | None = None
        self._read_back: dict[str, Any] = {}
        self._scored: dict[str, Submission] | None = None  # asyncio thread; read once, then kept up by every commit
        self._open = False
        self._db: aiosqlite.Connection
        self._reader: aiosqlite.Connection
        self._writing: asyncio.Lock
        self._reading: asyncio.Lock

    def __repr__(self) -> str:
        return f"<Store {self.state_dir} {'open' if self._open else 'closed'}, event {self.last_seq}>"

    # ---------------------------------------------------------------------------------------- opening, closing

    async def _start(self) -> None:
        """On the asyncio thread."""
        path = self.state_dir / DATABASE
        self._writing, self._reading = asyncio.Lock(), asyncio.Lock()
        try:
            self._db = await connect(path)
        except sqlite3.DatabaseError as error:
            raise damaged(self.state_dir, str(error)) if is_damage(error) else error from error
        try:
            await prepare(self._db, self.state_dir)
            self._seq = await store_reads.fact(self._db, "last_seq") or 0
            self._cursor = await store_reads.fact(self._db, "cursor")
            self._reader = await connect(path, read_only=True)
        except BaseException:
            await _to_the_end(self._db.close())
            raise

    async def _stop(self) -> None:
        """On the asyncio thread. Waits for a write under way."""
        async with self._writing, self._reading:
            await self._reader.close()
            await self._db.close()

    async def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        if not self._open:
            raise StoreError("the store is closed")
        try:
            return await self._bridge.run(work, finish_if_done=True)
        except sqlite3.Error as error:
            raise StoreError(f"{self.state_dir / DATABASE}: {database_words(error)}") from error

    # ---------------------------------------------------------------------------------------- one write, one read

    async def _write(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        return await self._run(lambda: self._transaction(work))

    async def _transaction(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        async with self._writing:
            tx = Tx(self._db, self._seq)
            try:
                await self._db.execute_fetchall("BEGIN IMMEDIATE")
                value = await work(tx)
                events = await tx.finish(self.settings.keep_events)
            except BaseException:
                await _to_the_end(self._db.rollback())
                raise
            try:
                await _to_the_end(self._db.commit())
            except BaseException:
                await _to_the_end(self._db.rollback())
                raise
            self._seq += len(events)
            self._note_scored(tx.changed)
            if events:
                with contextlib.suppress(trio.RunFinishedError):  # the process is ending; the events are stored
                    self._token.run_sync_soon(self._publisher.publish, events)
            return value

    def _note_scored(self, changed: Sequence[Submission]) -> None:
        if self._scored is not None:
            for row in changed:
                self._scored.pop(row.id, None)
                if row.status is Status.SCORED:
                    self._scored[row.id] = row

    async def _all_scored(self) -> list[Submission]:
        async with self._writing:  # no commit between reading and keeping
            if self._scored is None:
                self._scored = {row.id: row for row in await self._snapshot(store_reads.scored)}
            return list(self._scored.values())

    async def _write_live(self, work: Callable[[Tx], Awaitable[T]]) -> T | None:
        """A write to a submission that may have been withdrawn meanwhile: then None, and nothing is written."""
        try:
            return await self._write(work)
        except Withdrawn:
            return None

    async def _read(self, question: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T:
        return await self._run(lambda: self._snapshot(question))

    async def _snapshot(self, question: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T:
        async with self._reading:
            try:
                await self._reader.execute_fetchall("BEGIN")
                return await question(self._reader)
            finally:
                await _to_the_end(self._reader.rollback())

    # ---------------------------------------------------------------------------------------- the chain

    async def record_commitments(self, rows: Sequence[Commitment], head: int, finalized: int) -> Recorded:
        """Merge one read of the chain: all commitments, those of finalised state not `provisional`, others as seen at
        the best head `head`. Confirms, withdraws, and advances the cursor, in one transaction. Idempotent.

        Give it whole reads only: a provisional row that is missing although its blocks are final gets withdrawn.
        """
        changed = self._seen.changed(rows)
        cursor = self._cursor

        async def work(tx: Tx) -> Recorded:
            return await store_chain.record(tx, rows, changed, self._seen, head=head, finalized=finalized, cursor=cursor)

        recorded = await self._write(work)
        self._seen.remember(changed)
        self._cursor = max(min(head, finalized), -1 if cursor is None else cursor)
        return recorded

    async def set_cursor(self, block: int) -> None:
        """The last block whose commitments are recorded for good."""
        await self._write(lambda tx: tx.set_fact("cursor", block))
        self._cursor = block

    # ---------------------------------------------------------------------------------------- the life of a submission

    async def transition(self, id_: str, status: Status, *, block: int | None = None, reason: Reason | None = None, note: str = "",
                         was: Status | None = None) -> bool:
        """One legal step; False where it is not `was` any more. A submission that ends without having been run gives its fee receipt back."""
        return bool(await self._write_live(partial(writes.transition, id_=id_, status=status, block=block, reason=reason, note=note, was=was)))

    async def save_source(self, id_: str, source: Source, *, rules_version: str = "", asked: Payload | None = None) -> bool:
        """Keep the fetched file, and by which rules it will be judged; False when the submission names another than was `asked` for
        by now. A file is stored once however many submissions name it."""
        return bool(await self._write_live(partial(writes.save_source, id_=id_, source=source, rules_version=rules_version, asked=asked)))

    async def same_program(self, id_: str, sha256: str, fingerprint: str) -> list[Submission]:
        """Note a submission's fingerprint; every other submission whose file was fetched and is the same file, or has
        the same fingerprint. Who copied whom is the caller's question (`copies`).

        Left out: what was withdrawn, and faulted ones of the same hotkey, whose miner may try again.
        """
        return await self._write_live(partial(writes.same_program, id_=id_, sha256=sha256, fingerprint=fingerprint)) or []

    async def begin_attempt(self, id_: str, *, slot: str = "", block: int | None = None, keep_runs: bool = True) -> tuple[Run, ...] | None:
        """QUEUED → RUNNING, before the judge sees it. Returns the finished runs that are kept: those of an attempt that
        was cut short on the same slot, unless not `keep_runs`."""
        return await self._write_live(partial(writes.begin_attempt, id_=id_, slot=slot, block=block, keep_runs=keep_runs))

    async def add_run(self, id_: str, run: Run) -> bool:
        """Keep one run of the evaluation under way."""
        return bool(await self._write_live(partial(writes.add_run, id_=id_, run=run)))

    async def finish(self, id_: str, verdict: Verdict, *, block: int | None = None) -> bool:
        """The verdict, once: RUNNING → SCORED or REJECTED. A fault is no verdict: `requeue` it."""
        return bool(await self._write_live(partial(writes.finish, id_=id_, verdict=verdict, block=block)))

    async def requeue(self, id_: str, reason: Reason, *, block: int | None = None, max_attempts: int | None = None) -> Status | None:
        """After a fault of ours: back in front of the queue. With `max_attempts`, FAULTED once so many evaluations have
        ended in one; an interruption does not count. Also takes a FAULTED one back in, by hand. Returns the new state."""
        return await self._write_live(partial(writes.requeue, id_=id_, reason=reason, block=block, max_attempts=max_attempts))

    async def recover(self) -> list[str]:
        """After a start: whatever was running when the last process ended is queued again, in front, its runs kept."""
        return await self._write(writes.recover)

    async def claim_receipt(self, id_: str, receipt: str) -> str | None:
        """Hold a fee receipt for a submission. None when it now does; else the submission that holds or has spent it."""
        return await self._write_live(partial(writes.claim_receipt, id_=id_, receipt=receipt))

    # ---------------------------------------------------------------------------------------- weights, facts, events

    async def record_weights(self, *, asked: Mapping[int, float], block: int, first: int, last: int) -> None:
        """Journal weights before they are sent: {uid: share}, asked at `block`, to be found in a block of [first, last]."""
        await self._write(partial(writes.record_weights, asked=asked, block=block, first=first, last=last))

    async def record_on_chain(self, *, on_chain: Mapping[int, float], equal: bool | None, block: int, age_blocks: int | None = None) -> None:
        """What the chain holds for us, as read at `block`. Written when it differs from what is known."""
        self._read_back = {"age_blocks": age_blocks}
        old = await self._read(store_reads.weights)
        if old.asked_block is None:  # somebody else's, or of a life that the store does not know: shown, not kept
            self._read_back["on_chain"] = dict(on_chain)
        elif writes.read_back(old, on_chain, equal, block) != old:
            await self._write(partial(writes.record_on_chain, on_chain=on_chain, equal=equal, block=block))

    async def weights(self) -> WeightsView:
        """The last weights asked for, and what the chain was last seen to hold."""
        return msgspec.structs.replace(await self._read(store_reads.weights), **self._read_back)

    async def scored(self) -> list[Submission]:
        """Everything that counts for the leaderboard, in no particular order. From memory after the first time."""
        return await self._run(self._all_scored)

    async def identify(self, **facts: str | int) -> None:
        """Tie the state to its chain (`genesis=…, netuid=…`): noted at the first call, StoreError when they differ later."""

        await self._write(partial(writes.identify, facts=facts, state_dir=self.state_dir))

    async def set_fact(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name of the caller's."""
        await self._write(lambda tx: tx.set_fact(f"own.{name}", value))

    async def emit(self, kind: str, data: Any, submission_id: str | None = None) -> None:
        """Store and publish an event of the caller's ("slot", "block"); `data` is a record or builtins."""

        await self._write(partial(writes.emit, kind=kind, data=data, submission_id=submission_id))

    @property
    def last_seq(self) -> int:
        """Number of the last published event; 0 in an empty store."""
        return self._publisher.last_seq

    def subscribe(self, buffer: int) -> contextlib.AbstractContextManager[Subscription]:
        """Events from now on, for the length of a `with` block; ends with the reason "fell behind" when `buffer` wait unread."""
        return self._publisher.subscribe(buffer)

    async def backup(self, out: Path | None = None) -> Path:
        """A consistent, checked copy of the database, without stopping anybody (by default in `backups/`, where
        `keep_backups` are kept). Runs in a worker thread on a connection of its own."""
        from crusades.store_tools import run_backup

        return await trio.to_thread.run_sync(partial(run_backup, self.state_dir, out, keep=self.settings.keep_backups))


# ------------------------------------------------------------------------------------------------ opening


@contextlib.asynccontextmanager
async def open_store(state_dir: Path, bridge: Bridge, settings: hparams.Store) -> AsyncIterator[Store]:
    """Lock the state directory (made when missing), migrate and check the database, and serve it until the block ends.

    Raises StateLocked when another process holds it, StoreError when it cannot be used; the message says what to do.
    """
    with locked(state_dir):
        store = Store(state_dir, bridge, settings)
        try:
            await bridge.run(store._start, finish_if_done=True)
        except sqlite3.Error as error:
            raise StoreError(f"{state_dir / DATABASE}: {database_words(error)}") from error
        except OSError as error:
            raise StoreError(f"{state_dir / DATABASE} cannot be used ({error.strerror}): check its owner and its mount") from error
        store._publisher.last_seq = store._seq
        store._open = True
        try:
            yield store
        finally:
            store._open = False
            with trio.move_on_after(CLOSE_WITHIN, shield=True) as scope:
                await bridge.run(store._stop)
            store._publisher.close()
            if scope.cancelled_caught:
                log.error("the database did not close within %.0f s; what was committed is safe", CLOSE_WITHIN)


async def _to_the_end(work: Awaitable[T]) -> T:
    """Await something that must not be left half done, however often this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()
