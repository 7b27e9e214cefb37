"""Is a database sound? SQLite's own checks, and every rule that the store keeps. Reads only; stdlib SQLite."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterator

import msgspec

from crusades.store_schema import MIGRATIONS
from crusades.store_tx import decode_payload, decode_reason, unpack_run, unpack_verdict

SHOWN = 20
"""Rows named for each kind of problem."""

RULES: tuple[tuple[str, str], ...] = (
    ("submission {} is not in the state that its history says",
     "SELECT id FROM submissions WHERE status IS NOT (SELECT status FROM transitions WHERE submission = id ORDER BY n DESC LIMIT 1)"),
    ("submission {} is scored without an accepted verdict and a score",
     "SELECT id FROM submissions WHERE status = 'scored' AND (verdict IS NOT 'accepted' OR score_mfu IS NULL OR NOT EXISTS (SELECT 1 FROM verdicts WHERE submission = id))"),
    ("submission {} is in a state that it reaches only with a file, and has none",
     "SELECT id FROM submissions WHERE status IN ('fetched', 'checked', 'queued', 'running', 'scored') AND NOT EXISTS (SELECT 1 FROM sources WHERE submission = id)"),
    ("submission {} was rejected or faulted without a reason", "SELECT id FROM submissions WHERE status IN ('rejected', 'faulted') AND reason IS NULL"),
    ("submission {} has a verdict that is not its state's",
     "SELECT id FROM submissions WHERE verdict IS NOT CASE status WHEN 'scored' THEN 'accepted' WHEN 'rejected' THEN 'rejected' WHEN 'faulted' THEN 'fault' END"),
    ("event {} follows a gap", "SELECT seq FROM (SELECT seq, lag(seq) OVER (ORDER BY seq) AS before FROM events) WHERE seq != before + 1"),
    ("the last event is {}, which is not the number that was noted",
     "SELECT max(seq) FROM events HAVING max(seq) IS NOT (SELECT CAST(value AS INTEGER) FROM facts WHERE name = 'last_seq') AND max(seq) IS NOT NULL"),
)


def problems_of(db: sqlite3.Connection) -> list[str]:
    """Everything that is wrong, in words."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not 0 < version <= len(MIGRATIONS):
        return [f"version {version} of the database is not one that this program knows (1 to {len(MIGRATIONS)})"]
    found = [row[0] for row in db.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
    if found:
        return found  # what stands in a damaged file means nothing
    found += [f"table {table}, row {row}: refers to a row of {parent} that is missing" for table, row, parent, _ in db.execute("PRAGMA foreign_key_check")]
    for words, query in RULES:
        found += [words.format(value) for (value,) in db.execute(f"{query} LIMIT {SHOWN}")]
    return [*found, *_undecodable(db), *_wrong_files(db)]


def _undecodable(db: sqlite3.Connection) -> Iterator[str]:
    for table, column, decode in (("submissions", "reason", decode_reason), ("submissions", "payload", decode_payload), ("transitions", "reason", decode_reason),
                                  ("runs", "run", unpack_run), ("verdicts", "verdict", unpack_verdict)):
        for row, value in db.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL"):
            try:
                decode(value)
            except (msgspec.MsgspecError, zlib.error) as error:
                yield f"table {table}, row {row}: the {column} cannot be read ({error})"


def _wrong_files(db: sqlite3.Connection) -> Iterator[str]:
    for sha256, content in db.execute("SELECT sha256, content FROM files"):
        try:
            actual = hashlib.sha256(zlib.decompress(content)).hexdigest()
        except zlib.error as error:
            actual = str(error)
        if actual != sha256:
            yield f"the file {sha256[:16]}… is not what its hash says ({actual[:16]}…)"
