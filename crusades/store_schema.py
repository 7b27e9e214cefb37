"""The database file: tables, numbered migrations, and the checks before anything uses it.

`PRAGMA user_version` is the number of migrations applied. Each runs in a transaction of its own, after a backup of the
file as it was. A database newer than this program is refused, and a damaged one is refused with the backup to restore.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import aiosqlite

from crusades.errors import StoreError

DATABASE = "crusades.db"
LOCK = "lock"
BACKUPS = "backups"

BUSY_TIMEOUT_MS = 5_000
"""How long we wait for another process (a `crusades store backup`) that holds the file for a moment."""

Migration = tuple[str, ...]

MIGRATIONS: tuple[Migration, ...] = (
    (
        # Facts with one value each: the cursor, the last event number, which chain this state belongs to.
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE submissions (
            n INTEGER PRIMARY KEY,              -- order of arrival; ends ties in pages
            id TEXT NOT NULL UNIQUE,
            netuid INTEGER NOT NULL,
            hotkey TEXT NOT NULL,
            uid INTEGER,
            status TEXT NOT NULL,
            verdict TEXT,
            commit_block INTEGER NOT NULL,
            commit_block_exact INTEGER NOT NULL,
            reveal_block INTEGER,
            reveal_round INTEGER,
            provisional INTEGER NOT NULL,
            payload TEXT,                       -- records.Payload as committed
            raw TEXT NOT NULL DEFAULT '',
            url TEXT NOT NULL DEFAULT '',
            sha256 TEXT NOT NULL DEFAULT '',    -- as committed, then as fetched
            fingerprint TEXT NOT NULL DEFAULT '',
            score_mfu REAL,
            reason TEXT,                        -- records.Reason
            attempts INTEGER NOT NULL DEFAULT 0,
            evaluation INTEGER NOT NULL DEFAULT 0,  -- counts anew when kept runs no longer count
            slot TEXT NOT NULL DEFAULT '',
            faults INTEGER NOT NULL DEFAULT 0,  -- evaluations that ended in a fault of ours, interruptions aside
            rules_version TEXT NOT NULL DEFAULT '',
            device TEXT NOT NULL DEFAULT '',
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL)""",
        "CREATE INDEX submissions_page ON submissions (commit_block, n)",
        "CREATE INDEX submissions_hotkey ON submissions (hotkey, commit_block, n)",
        "CREATE INDEX submissions_status ON submissions (status, commit_block, n)",
        "CREATE INDEX submissions_sha256 ON submissions (sha256) WHERE sha256 != ''",
        "CREATE INDEX submissions_fingerprint ON submissions (fingerprint) WHERE fingerprint != ''",
        "CREATE INDEX submissions_provisional ON submissions (commit_block) WHERE provisional",
        """CREATE TABLE transitions (
            n INTEGER PRIMARY KEY,
            submission TEXT NOT NULL REFERENCES submissions (id),
            status TEXT NOT NULL,
            at REAL NOT NULL,
            block INTEGER,
            reason TEXT,
            note TEXT NOT NULL DEFAULT '')""",
        "CREATE INDEX transitions_submission ON transitions (submission, n)",
        # Files are kept once however often they were committed; zlib.
        "CREATE TABLE files (sha256 TEXT PRIMARY KEY, content BLOB NOT NULL)",
        """CREATE TABLE sources (
            submission TEXT PRIMARY KEY REFERENCES submissions (id),
            sha256 TEXT NOT NULL REFERENCES files (sha256),
            url TEXT NOT NULL,
            fetched_at REAL NOT NULL) WITHOUT ROWID""",
        # Runs and verdicts are zlib-compressed MessagePack: their audits are long and repeat themselves.
        """CREATE TABLE runs (
            n INTEGER PRIMARY KEY,
            submission TEXT NOT NULL REFERENCES submissions (id),
            evaluation INTEGER NOT NULL,
            run BLOB NOT NULL)""",
        "CREATE INDEX runs_submission ON runs (submission, evaluation, n)",
        "CREATE TABLE verdicts (submission TEXT PRIMARY KEY REFERENCES submissions (id), at REAL NOT NULL, verdict BLOB NOT NULL)",
        """CREATE TABLE receipts (
            receipt TEXT PRIMARY KEY,
            submission TEXT NOT NULL REFERENCES submissions (id),
            spent INTEGER NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE weights (
            n INTEGER PRIMARY KEY,
            first INTEGER NOT NULL,             -- the extrinsic can only be in a block of [first, last]
            last INTEGER NOT NULL,
            view TEXT NOT NULL)                 -- records.WeightsView""",
        "CREATE TABLE events (seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, submission TEXT, data TEXT NOT NULL)",
    ),
)


async def connect(path: Path, *, read_only: bool = False) -> aiosqlite.Connection:
    """A connection of ours: autocommit (transactions are explicit), WAL, foreign keys, durable commits."""
    _make_private(path)
    connection = aiosqlite.connect(path, isolation_level=None)
    connection._thread.daemon = True  # a process that must end may not wait for a disk that hangs
    db = await connection
    try:
        await db.execute_fetchall(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        if read_only:
            await db.execute_fetchall("PRAGMA query_only = ON")
        else:
            await db.execute_fetchall("PRAGMA journal_mode = WAL")
            # FULL: a transition that was told to the world is on the disk, also after a power cut.
            await db.execute_fetchall("PRAGMA synchronous = FULL")
            await db.execute_fetchall("PRAGMA foreign_keys = ON")
    except BaseException:
        await db.close()
        raise
    return db


def _make_private(path: Path) -> None:
    if not path.exists():
        path.touch(mode=0o600)  # SQLite would ask the umask; its log files take the mode of this one


async def prepare(db: aiosqlite.Connection, state_dir: Path, migrations: Sequence[Migration] | None = None) -> None:
    """Check the file and bring it to the newest version. StoreError says what to do."""
    steps = MIGRATIONS if migrations is None else migrations
    try:
        version = int(next(iter(await db.execute_fetchall("PRAGMA user_version")))[0])
        problems = [row[0] for row in await db.execute_fetchall("PRAGMA quick_check(5)") if row[0] != "ok"]
    except sqlite3.DatabaseError as error:
        raise damaged(state_dir, str(error)) if is_damage(error) else error from error
    if problems:
        raise damaged(state_dir, "; ".join(problems))
    if version > len(steps):
        raise StoreError(f"{state_dir / DATABASE} was written by a newer program (version {version}; this program knows {len(steps)}): "
                         "install that version again, or restore a backup made before the upgrade")
    for number, step in enumerate(steps[version:], start=version + 1):
        kept = await _backup_before(state_dir, number) if number > 1 else None
        await _migrate(db, number, step, kept)


def prepare_sync(state_dir: Path) -> None:
    """The same for programs without a loop; the caller holds the lock."""

    async def work() -> None:
        db = await connect(state_dir / DATABASE)
        try:
            await prepare(db, state_dir)
        finally:
            await db.close()

    try:
        asyncio.run(work())
    except sqlite3.DatabaseError as error:
        raise damaged(state_dir, str(error)) if is_damage(error) else StoreError(f"{state_dir / DATABASE}: {error}") from error


async def _migrate(db: aiosqlite.Connection, number: int, step: Migration, kept: Path | None) -> None:
    await db.execute_fetchall("BEGIN IMMEDIATE")
    try:
        for statement in step:
            await db.execute_fetchall(statement)
        await db.execute_fetchall(f"PRAGMA user_version = {number}")  # part of the transaction
        await db.commit()
    except BaseException as error:
        await db.rollback()
        if isinstance(error, sqlite3.Error):
            words = f"; the database is as it was, and a copy is {kept}" if kept else ""
            raise StoreError(f"migration {number} of the database failed: {error}{words}") from error
        raise


async def _backup_before(state_dir: Path, number: int) -> Path:
    from crusades.store_tools import run_backup  # which needs this module

    target = new_backup_path(state_dir, f"before-migration-{number}")
    target.unlink(missing_ok=True)
    return await asyncio.to_thread(run_backup, state_dir, target)  # checked and on the disk before it has its name


def new_backup_path(state_dir: Path, what: str) -> Path:
    """Where a backup of this moment goes; the folder exists afterwards. Names sort by time (UTC)."""
    folder = state_dir / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{what}.db"


def backups(state_dir: Path) -> list[Path]:
    """Backups in the state directory, oldest first, by when they were written."""
    try:
        found = [entry for entry in os.scandir(state_dir / BACKUPS) if entry.name.endswith(".db") and entry.is_file()]
    except FileNotFoundError:
        return []
    return [Path(entry.path) for entry in sorted(found, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]


def sound_backups(state_dir: Path) -> list[Path]:
    """Those that a person may restore, oldest first: not the databases that a restore has set aside, damaged or not."""
    return [path for path in backups(state_dir) if not path.name.endswith("-before-restore.db")]


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is broken."""
    return "malformed" in str(error) or "not a database" in str(error)


def damaged(state_dir: Path, what: str) -> StoreError:
    """The error for a database that cannot be trusted, with the way out."""
    found = sound_backups(state_dir)
    way_out = (f"restore the newest backup with `crusades store restore {found[-1]} --state-dir {state_dir}`" if found
               else "there is no backup in its backups folder; restore one from elsewhere, or move the file away to start empty (the chain is read again)")
    return StoreError(f"{state_dir / DATABASE} is damaged ({what}): {way_out}")
