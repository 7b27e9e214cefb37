"""The portable form of a store: JSON Lines, one typed document a line, versioned, without SQLite.

    {"kind":"header","format":"crusades-store","version":1}
    {"kind":"fact","name":…,"value":…}
    {"kind":"submission","id":…, … ,"transitions":[…],"source":{…},"runs":[…],"verdict":{…}}      files in base64
    {"kind":"receipt",…}   {"kind":"weights",…}
    {"kind":"end","submissions":N}                                                                 so that a cut file shows

Numbers that JSON has no words for stand as "nan", "inf" and "-inf". Events are not exported: they tell of changes, and
whoever imports takes a new snapshot. `store_import` reads it back.
"""

from __future__ import annotations

import math
import sqlite3
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from crusades.records import Payload, Reason, Record, Source, Transition, WeightsView, to_builtins
from crusades.store_tx import SELECT, Row, decode_payload, decode_reason, unpack_run, unpack_verdict

VERSION = 1
LONGEST_LINE = 64 << 20
"""Bytes; a submission with its file and runs is far below."""


class Header(Record, frozen=True, kw_only=True, tag_field="kind", tag="header"):
    """First line."""

    format: Literal["crusades-store"]
    version: int


class Fact(Record, frozen=True, kw_only=True, tag_field="kind", tag="fact"):
    """A fact with one value."""

    name: str
    value: Any


class KeptRun(Record, frozen=True, kw_only=True):
    """One run; which evaluation made it."""

    evaluation: int
    run: Any


class Judged(Record, frozen=True, kw_only=True):
    """A verdict."""

    at: float
    verdict: Any


class Exported(Record, frozen=True, kw_only=True, tag_field="kind", tag="submission"):
    """One submission whole."""

    id: str
    netuid: int
    hotkey: str
    uid: int | None
    status: str
    verdict_word: str | None
    commit_block: int
    commit_block_exact: bool
    reveal_block: int | None
    reveal_round: int | None
    provisional: bool
    payload: Payload | None
    raw: str
    url: str
    sha256: str
    fingerprint: str
    score_mfu: float | None
    reason: Reason | None
    attempts: int
    evaluation: int
    slot: str
    faults: int
    rules_version: str
    device: str
    created_at: float
    updated_at: float
    transitions: tuple[Transition, ...]
    source: Source | None
    runs: tuple[KeptRun, ...]
    judged: Judged | None


class Receipt(Record, frozen=True, kw_only=True, tag_field="kind", tag="receipt"):
    """A fee receipt in use."""

    receipt: str
    submission: str
    spent: bool


class Weights(Record, frozen=True, kw_only=True, tag_field="kind", tag="weights"):
    """Weights that were asked for."""

    first: int
    last: int
    view: WeightsView


class End(Record, frozen=True, kw_only=True, tag_field="kind", tag="end"):
    """Last line."""

    submissions: int


Document = Header | Fact | Exported | Receipt | Weights | End

# ------------------------------------------------------------------------------------------------ out


def export_lines(db: sqlite3.Connection) -> Iterator[bytes]:
    """The lines of an export; the caller holds a read transaction."""
    line = msgspec.json.encode
    yield line(Header(format="crusades-store", version=VERSION))
    for name, value in db.execute("SELECT name, value FROM facts WHERE name != 'last_seq' ORDER BY name"):
        yield line(Fact(name=name, value=msgspec.json.decode(value)))
    count = 0
    for row in db.execute(f"{SELECT} ORDER BY n"):
        count += 1
        yield line(_exported(db, Row._make(row)))
    for receipt, submission, spent in db.execute("SELECT receipt, submission, spent FROM receipts ORDER BY receipt"):
        yield line(Receipt(receipt=receipt, submission=submission, spent=bool(spent)))
    for first, last, view in db.execute("SELECT first, last, view FROM weights ORDER BY n"):
        yield line(Weights(first=first, last=last, view=msgspec.json.decode(view, type=WeightsView)))
    yield line(End(submissions=count))


def _exported(db: sqlite3.Connection, row: Row) -> Exported:
    columns = row._asdict()
    del columns["n"]
    columns |= {"verdict_word": columns.pop("verdict"), "commit_block_exact": bool(row.commit_block_exact), "provisional": bool(row.provisional),
                "payload": decode_payload(row.payload) if row.payload else None, "reason": decode_reason(row.reason) if row.reason else None}
    steps = db.execute("SELECT status, at, block, reason, note FROM transitions WHERE submission = ? ORDER BY n", (row.id,))
    runs = db.execute("SELECT evaluation, run FROM runs WHERE submission = ? ORDER BY n", (row.id,))
    verdict = db.execute("SELECT at, verdict FROM verdicts WHERE submission = ?", (row.id,)).fetchone()
    return Exported(
        **columns, source=_source(db, row.id),
        transitions=tuple(msgspec.convert({"status": status, "at": at, "block": block, "note": note, "reason": reason and msgspec.json.decode(reason)}, Transition)
                          for status, at, block, reason, note in steps),
        runs=tuple(KeptRun(evaluation=evaluation, run=_spell(to_builtins(unpack_run(blob)))) for evaluation, blob in runs),
        judged=None if verdict is None else Judged(at=verdict[0], verdict=_spell(to_builtins(unpack_verdict(verdict[1])))))


def _source(db: sqlite3.Connection, id_: str) -> Source | None:
    found = db.execute("SELECT sha256, content, url, fetched_at FROM sources JOIN files USING (sha256) WHERE submission = ?", (id_,)).fetchone()
    return None if found is None else Source(sha256=found[0], content=zlib.decompress(found[1]), url=found[2], fetched_at=found[3])


def _spell(value: Any) -> Any:
    """Builtins with NaN and infinities in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _spell(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell(item) for item in value]
    return value
