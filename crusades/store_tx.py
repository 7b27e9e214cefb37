"""One write transaction: rows in, rows out, and the events that tell the world, all on the asyncio side.

Everything here runs between BEGIN IMMEDIATE and COMMIT of `store.Store`; a cancellation at any await rolls all of it back.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import aiosqlite
import msgspec

from crusades.errors import StoreError
from crusades.payload import round_time
from crusades.records import Event, Outcome, Payload, Reason, Run, Status, Submission, Verdict, to_builtins
from crusades.store_life import BEHIND_A_BACK, WITHDRAWN, Hand, check
from crusades.store_schema import is_damage

PRUNE_EVERY = 500
"""Old events are deleted at every so-manyth event, not at each."""


class Row(NamedTuple):
    """One row of `submissions`; the fields are its columns."""

    n: int
    id: str
    netuid: int
    hotkey: str
    uid: int | None
    status: str
    verdict: str | None
    commit_block: int
    commit_block_exact: int
    reveal_block: int | None
    reveal_round: int | None
    provisional: int
    payload: str | None
    raw: str
    url: str
    sha256: str
    fingerprint: str
    score_mfu: float | None
    reason: str | None
    attempts: int
    evaluation: int
    slot: str
    faults: int
    rules_version: str
    device: str
    created_at: float
    updated_at: float

    @property
    def last_block(self) -> int:
        """The block that must be final before the row is."""
        return max(self.commit_block, self.reveal_block or 0)

    @property
    def reason_code(self) -> int:
        """Of the fault table; 0 without a reason."""
        return 0 if self.reason is None else decode_reason(self.reason).code

    @property
    def withdrawn(self) -> bool:
        """Rejected because finality did not confirm it."""
        return self.status == Status.REJECTED and self.reason_code == WITHDRAWN

    @property
    def taken(self) -> bool:
        """Rejected by the chain or as a copy, perhaps under the hands of a task that is at work on it."""
        return self.status == Status.REJECTED and self.reason_code in BEHIND_A_BACK


SELECT = f"SELECT {', '.join(Row._fields)} FROM submissions"

SERVICE_ORDER = "commit_block, uid IS NULL, uid, n"
"""Of service (design.md §4): commit block, then uid; unregistered last."""
QUEUE_ORDER = f"attempts = 0, {SERVICE_ORDER}"
"""What was begun before goes in front."""

_reason_decoder = msgspec.json.Decoder(Reason)
_payload_decoder = msgspec.json.Decoder(Payload)
_run_decoder = msgspec.msgpack.Decoder(Run)
_verdict_decoder = msgspec.msgpack.Decoder(Verdict)


def decode_reason(text: str) -> Reason:
    """A stored reason."""
    return _reason_decoder.decode(text)


def decode_payload(text: str) -> Payload:
    """A stored payload."""
    return _payload_decoder.decode(text)


def encode(value: Any) -> str:
    """A record as JSON text."""
    return msgspec.json.encode(value).decode()


def pack(value: Any) -> bytes:
    """A record as compressed MessagePack, which unlike JSON keeps NaN: what is stored can always be read back."""
    return zlib.compress(msgspec.msgpack.encode(value), 6)


def unpack_run(blob: bytes) -> Run:
    """A stored run."""
    return _run_decoder.decode(zlib.decompress(blob))


def unpack_verdict(blob: bytes) -> Verdict:
    """A stored verdict."""
    return _verdict_decoder.decode(zlib.decompress(blob))


def submission_of(row: Row, queue_position: int | None = None) -> Submission:
    """The public face of a row."""
    return Submission(
        id=row.id, netuid=row.netuid, hotkey=row.hotkey, uid=row.uid, status=Status(row.status),
        verdict=None if row.verdict is None else Outcome(row.verdict), commit_block=row.commit_block, commit_block_exact=bool(row.commit_block_exact),
        reveal_block=row.reveal_block, reveal_round=row.reveal_round, reveal_expected_at=_expected(row), url=row.url, sha256=row.sha256, score_mfu=row.score_mfu,
        reason=None if row.reason is None else decode_reason(row.reason), created_at=row.created_at, updated_at=row.updated_at,
        attempts=row.attempts, provisional=bool(row.provisional), rules_version=row.rules_version, device=row.device, queue_position=queue_position)


def _expected(row: Row) -> float | None:
    at = None if row.reveal_round is None else round_time(row.reveal_round)
    return at if at is not None and at > row.created_at else None


async def fetch_all(db: aiosqlite.Connection, sql: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of one statement, in one hop to the connection's thread."""
    return cast("list[tuple[Any, ...]]", await db.execute_fetchall(sql, parameters))


async def fetch_rows(db: aiosqlite.Connection, where: str, parameters: Iterable[Any] = ()) -> list[Row]:
    """Submissions by a WHERE (and ORDER BY) clause."""
    return [Row._make(row) for row in await fetch_all(db, f"{SELECT} WHERE {where}", parameters)]


class Withdrawn(Exception):
    """The submission was rejected by the chain, or as a copy, while somebody worked on it: there is nothing to write."""


class Tx:
    """A transaction under way. `touch` what changed; one event per submission is made when it commits."""

    def __init__(self, db: aiosqlite.Connection, seq: int) -> None:
        self.db, self.seq, self.at = db, seq, time.time()
        self.changed: list[Submission] = []
        """What was touched, as it is at the end; filled by `finish`."""
        self._touched: dict[str, None] = {}
        self._events: list[tuple[str, str | None, Any]] = []

    async def all(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement; its rows."""
        return await fetch_all(self.db, sql, parameters)

    async def row(self, id_: str) -> Row:
        """One submission. StoreError when there is none."""
        rows = await fetch_rows(self.db, "id = ?", (id_,))
        if not rows:
            raise StoreError(f"there is no submission {id_}")
        return rows[0]

    async def live(self, id_: str) -> Row:
        """One submission that is still wanted. Raises Withdrawn when the chain took it back, or it turned out to be a copy."""
        row = await self.row(id_)
        if row.taken:
            raise Withdrawn
        return row

    async def update(self, id_: str, **columns: Any) -> None:
        """Set columns of a submission."""
        names = ", ".join(f"{name} = ?" for name in columns)
        await self.all(f"UPDATE submissions SET {names}, updated_at = ? WHERE id = ?", *columns.values(), self.at, id_)
        self.touch(id_)

    async def move(self, row: Row, status: Status, *, block: int | None, reason: Reason | None = None, note: str = "",
                   hand: Hand = Hand.DAEMON, columns: Mapping[str, Any] | None = None) -> None:
        """A legal transition with its history. StoreError when it is not legal."""
        check(row.id, Status(row.status), status, reason, hand)
        verdict = {Status.SCORED: Outcome.ACCEPTED, Status.REJECTED: Outcome.REJECTED, Status.FAULTED: Outcome.FAULT}.get(status)
        await self.note(row.id, status, block=block, reason=reason, note=note)
        await self.update(row.id, **{"status": status.value, "verdict": verdict and verdict.value, "reason": reason and encode(reason), **(columns or {})})
        if Status.SCORED in (status, row.status):
            self.emit("leaderboard", row.id, {})

    async def note(self, id_: str, status: Status, *, block: int | None, reason: Reason | None = None, note: str = "") -> None:
        """A line of a submission's history."""
        await self.all("INSERT INTO transitions (submission, status, at, block, reason, note) VALUES (?, ?, ?, ?, ?, ?)",
                       id_, status.value, self.at, block, reason and encode(reason), note)

    def touch(self, id_: str) -> None:
        """Publish this submission as it is when the transaction commits."""
        self._touched[id_] = None

    def emit(self, kind: str, id_: str | None, data: Any) -> None:
        """Publish something else; `data` is a record or builtins."""
        self._events.append((kind, id_, data))

    async def set_fact(self, name: str, value: Any) -> None:
        """A fact with one value, as JSON."""
        await self.all("INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, encode(value))

    async def finish(self, keep_events: int) -> list[Event]:
        """Number and store the events: the last act before COMMIT."""
        rows = [await self.row(id_) for id_ in self._touched]
        places = await queue_positions(self.db) if any(row.status == Status.QUEUED for row in rows) else {}
        self.changed = [submission_of(row, places.get(row.id)) for row in rows]
        changed: list[tuple[str, str | None, Any]] = [("submission", one.id, one) for one in self.changed]
        numbered = [Event(seq=self.seq + i, at=self.at, kind=kind, submission_id=id_, data=to_builtins(data))
                    for i, (kind, id_, data) in enumerate([*changed, *self._events], start=1)]
        if numbered:
            await self.db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                                      [(e.seq, e.at, e.kind, e.submission_id, encode(e.data)) for e in numbered])
            last = numbered[-1].seq
            await self.set_fact("last_seq", last)
            if last // PRUNE_EVERY > self.seq // PRUNE_EVERY:
                await self.all("DELETE FROM events WHERE seq <= ?", last - keep_events)
        return numbered


async def queue_positions(db: aiosqlite.Connection) -> dict[str, int]:
    """The place of every queued submission."""
    rows = await fetch_all(db, f"SELECT id FROM submissions WHERE status = 'queued' ORDER BY {QUEUE_ORDER}")
    return {id_: place for place, (id_,) in enumerate(rows, start=1)}


def database_words(error: sqlite3.Error) -> str:
    """What SQLite complains about, and what to do, for people."""
    text = str(error)
    if "full" in text:
        return f"the disk of the state directory is full ({text}): free space; nothing was written"
    if "readonly" in text or "read-only" in text:
        return f"the state directory cannot be written ({text}): check its owner and its mount; nothing was written"
    if is_damage(error):
        return f"the database is damaged ({text}): stop, then run `crusades store verify`"
    if "locked" in text:
        return f"another process holds the database ({text}): stop it, then try again; nothing was written"
    return f"the database failed ({text}); nothing was written"
