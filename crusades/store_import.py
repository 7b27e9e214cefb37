"""Reading an export back: what is missing is added, what has gone further replaces what is here, nothing goes backwards.

Two rows of one submission are compared by their histories. When one history begins with the whole of the other, the longer
one knows more and wins. Histories that parted (two validators went on from the same export) are not merged: one that has its
verdict beats one that has not, and of two alike the one that was written last stands. Equal rows are left alone, so importing
twice changes nothing, and importing two exports of one validator gives the same in either order.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from crusades.errors import StoreError
from crusades.records import Record, Run, Status, Transition, Verdict, WeightsView
from crusades.store_export import LONGEST_LINE, VERSION, Document, End, Exported, Fact, Header, Receipt, Weights
from crusades.store_tx import Row, encode, pack


class Imported(Record, frozen=True, kw_only=True):
    """What an import did, in submissions."""

    added: int
    updated: int
    """The export was further."""
    kept: int
    """As far as the export, or further."""


@dataclass
class _Counts:
    added: int = 0
    updated: int = 0
    kept: int = 0


_decoder = msgspec.json.Decoder(Document)
_view_decoder = msgspec.json.Decoder(WeightsView)


def import_lines(db: sqlite3.Connection, lines: Iterable[bytes]) -> Imported:
    """Take an export in, inside the caller's transaction. StoreError names the line that cannot be read."""
    counts = _Counts()
    weights: list[Weights] = []
    ended = False
    for number, raw in enumerate(lines, start=1):
        document = _document(number, raw)
        if (number == 1) != isinstance(document, Header) or ended:
            raise StoreError(f"line {number} of the export is out of place")
        match document:
            case Header() if document.version > VERSION:
                raise StoreError(f"the export has version {document.version}; this program reads up to {VERSION}")
            case Fact():
                _take_fact(db, document)
            case Exported():
                _take_submission(db, number, document, counts)
            case Receipt():
                # Spent is for good; a receipt that is only held stays with whoever holds it here.
                db.execute("INSERT INTO receipts VALUES (?, ?, ?) ON CONFLICT (receipt) DO UPDATE SET submission = excluded.submission, spent = 1 "
                           "WHERE excluded.spent AND NOT spent", (document.receipt, document.submission, document.spent))
            case Weights():
                weights.append(document)
            case End():
                ended = True
                if document.submissions != (here := counts.added + counts.updated + counts.kept):
                    raise StoreError(f"the export says {document.submissions} submissions and holds {here}")
    if not ended:
        raise StoreError("the export is cut off: its last line is missing")
    _take_weights(db, weights)
    return Imported(added=counts.added, updated=counts.updated, kept=counts.kept)


def _document(number: int, raw: bytes) -> Document:
    if len(raw) > LONGEST_LINE:
        raise StoreError(f"line {number} of the export is longer than any export writes")
    try:
        document: Document = _decoder.decode(raw)
        return document
    except msgspec.MsgspecError as error:
        raise StoreError(f"line {number} of the export cannot be read: {error}") from error


def _take_fact(db: sqlite3.Connection, fact: Fact) -> None:
    known = db.execute("SELECT value FROM facts WHERE name = ?", (fact.name,)).fetchone()
    if known is None:
        db.execute("INSERT INTO facts VALUES (?, ?)", (fact.name, encode(fact.value)))
    elif fact.name == "identity" and msgspec.json.decode(known[0]) != fact.value:
        raise StoreError(f"the export is of another validator: {fact.value}, here: {known[0]}")
    elif fact.name == "cursor" and fact.value > msgspec.json.decode(known[0]):
        db.execute("UPDATE facts SET value = ? WHERE name = 'cursor'", (encode(fact.value),))


# ------------------------------------------------------------------------------------------------ submissions


def _take_submission(db: sqlite3.Connection, number: int, it: Exported, counts: _Counts) -> None:
    here = db.execute("SELECT status, updated_at FROM submissions WHERE id = ?", (it.id,)).fetchone()
    if here is None:
        counts.added += 1
        _insert(db, it)
    elif further(it, Status(here[0]), here[1], _history(db, it.id)):
        counts.updated += 1
        _replace(db, it)
    else:
        counts.kept += 1
        return
    _add_parts(db, number, it)


Step = tuple[str, float]


def further(it: Exported, status: Status, updated_at: float, history: list[Step]) -> bool:
    """Whether the export's row knows more than the one that is here."""
    theirs = [_step(step) for step in it.transitions]
    if theirs[:len(history)] == history and len(theirs) > len(history):
        return True
    if history[:len(theirs)] == theirs and len(history) > len(theirs):
        return False
    if theirs == history:  # no step between them, but perhaps a run, a confirmation or a uid
        return it.updated_at > updated_at
    return (Status(it.status).final, it.updated_at) > (status.final, updated_at)


def _step(step: Transition) -> Step:
    return step.status.value, step.at


def _history(db: sqlite3.Connection, id_: str) -> list[Step]:
    return db.execute("SELECT status, at FROM transitions WHERE submission = ? ORDER BY n", (id_,)).fetchall()


def _columns(it: Exported) -> dict[str, object]:
    columns: dict[str, object] = {name: getattr(it, name) for name in Row._fields if name not in ("n", "verdict", "payload", "reason")}
    return columns | {"verdict": it.verdict_word, "payload": it.payload and encode(it.payload), "reason": it.reason and encode(it.reason)}


def _insert(db: sqlite3.Connection, it: Exported) -> None:
    columns = _columns(it)
    db.execute(f"INSERT INTO submissions ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", list(columns.values()))


def _replace(db: sqlite3.Connection, it: Exported) -> None:
    columns = _columns(it)
    db.execute(f"UPDATE submissions SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ?", [*columns.values(), it.id])
    for table in ("transitions", "sources", "runs", "verdicts"):
        db.execute(f"DELETE FROM {table} WHERE submission = ?", (it.id,))
    db.execute("DELETE FROM receipts WHERE submission = ? AND NOT spent", (it.id,))  # the export says what it holds now


def _add_parts(db: sqlite3.Connection, number: int, it: Exported) -> None:
    db.executemany("INSERT INTO transitions (submission, status, at, block, reason, note) VALUES (?, ?, ?, ?, ?, ?)",
                   [(it.id, step.status.value, step.at, step.block, step.reason and encode(step.reason), step.note) for step in it.transitions])
    if it.source is not None:
        db.execute("INSERT OR IGNORE INTO files VALUES (?, ?)", (it.source.sha256, zlib.compress(it.source.content, 6)))
        db.execute("INSERT INTO sources VALUES (?, ?, ?, ?)", (it.id, it.source.sha256, it.source.url, it.source.fetched_at))
    try:
        db.executemany("INSERT INTO runs (submission, evaluation, run) VALUES (?, ?, ?)",
                       [(it.id, kept.evaluation, pack(msgspec.convert(kept.run, Run, strict=False))) for kept in it.runs])
        if it.judged is not None:
            db.execute("INSERT INTO verdicts VALUES (?, ?, ?)", (it.id, it.judged.at, pack(msgspec.convert(it.judged.verdict, Verdict, strict=False))))
    except msgspec.ValidationError as error:
        raise StoreError(f"line {number} of the export cannot be read: {error}") from error


# ------------------------------------------------------------------------------------------------ weights


def _take_weights(db: sqlite3.Connection, theirs: list[Weights]) -> None:
    """The journals of both, each window once, in the order in which they were asked for: the last row is the newest."""
    here = [(first, last, _view_decoder.decode(view)) for first, last, view in db.execute("SELECT first, last, view FROM weights ORDER BY n")]
    merged = {(first, last): view for first, last, view in here}
    for row in theirs:
        known = merged.get((row.first, row.last))
        if known is None or (known.applied_block is None and row.view.applied_block is not None):
            merged[row.first, row.last] = row.view
    ordered = sorted(((first, last, view) for (first, last), view in merged.items()), key=lambda row: (row[2].asked_block or 0, row[0], row[1]))
    if ordered != here:
        db.execute("DELETE FROM weights")
        db.executemany("INSERT INTO weights (first, last, view) VALUES (?, ?, ?)", [(first, last, encode(view)) for first, last, view in ordered])
