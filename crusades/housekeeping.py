"""Housekeeping: backups on time, and disk use that is bounded. Runs beside everything else and never stops anybody.

What grows: the database (only by submissions), backups (`store.keep_backups` are kept), logs of referees and folders of
contestants under `slots/` (emptied whenever a slot is opened; what a slot that stays open for months writes is cut at
`MOST_LOG` here, and the folders of slots that no longer exist go after `LITTER_AGE`).
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import trio

from crusades.context import Context
from crusades.errors import StoreError
from crusades.store_schema import sound_backups

log = logging.getLogger("crusades.housekeeping")

LOOK = 300.0
"""Seconds between looks."""
PATIENCE = 1800.0
"""Seconds that a backup and the sweep after it may take."""
LITTER_AGE = 7 * 86_400.0
"""Seconds that the folder of a slot that is gone is kept, for whoever wants to read its logs."""


MOST_LOG = 16 << 20
"""Bytes on the disk at which a log is emptied. A referee writes a few lines in its life; this is for one that does not."""


async def keep_house(ctx: Context) -> None:
    """For ever: back up when the newest backup is old enough, sweep, and show sizes."""
    ctx.backup_at = await trio.to_thread.run_sync(newest_backup, ctx.state_dir)
    ctx.health.expect("housekeeping", LOOK + PATIENCE)
    while True:
        ctx.health.progress("housekeeping")
        # A backup of the future was made before the clock went back: nobody knows how old it is.
        if ctx.backup_at is None or not 0 <= ctx.now() - ctx.backup_at < ctx.hparams.store.backup_hours * 3600:
            await _back_up(ctx)
        if ctx.backup_at is not None:
            ctx.metrics.happened("backup_age_seconds", ctx.backup_at)
        try:
            await _tidy(ctx)
            ctx.problem("housekeeping")
        except OSError as error:  # it never stops anybody; the next look tries again
            log.error("housekeeping: %s", error)
            ctx.problem("housekeeping", f"{error.filename}: {error.strerror}")
        await trio.sleep(LOOK)


async def _tidy(ctx: Context) -> None:
    ctx.metrics.store_bytes.set(await trio.to_thread.run_sync(database_bytes, ctx.state_dir))
    await trio.to_thread.run_sync(sweep, ctx.state_dir / "slots", frozenset(name.replace(":", "-") for name in ctx.seats))
    await trio.to_thread.run_sync(cut_logs, ctx.state_dir / "slots")


async def _back_up(ctx: Context) -> None:
    try:
        path = await ctx.store.backup()
    except StoreError as error:  # a full disk: the alert about the old backup says so too
        log.error("no backup was made: %s", error)
        ctx.problem("backup", str(error))
        return
    ctx.backup_at = ctx.now()
    ctx.problem("backup")
    log.info("backed up to %s", path)


def newest_backup(state_dir: Path) -> float | None:
    """When the newest backup was written; None when there is none. Copies made before a migration count: they are whole."""
    return max((path.stat().st_mtime for path in sound_backups(state_dir)), default=None)


def database_bytes(state_dir: Path) -> int:
    """Size of the database with its write-ahead log."""
    total = 0
    for path in state_dir.glob("crusades.db*"):
        with suppress(FileNotFoundError):  # SQLite comes and goes with its logs
            total += path.stat().st_size
    return total


def sweep(slots: Path, live: frozenset[str], older_than: float = LITTER_AGE) -> list[str]:
    """Remove folders of slots that are gone; the names removed."""
    removed = []
    for folder in slots.iterdir() if slots.is_dir() else ():
        with suppress(FileNotFoundError):
            if folder.name not in live and folder.is_dir() and time.time() - folder.stat().st_mtime > older_than:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
    return removed


def cut_logs(slots: Path, most: int = MOST_LOG) -> list[Path]:
    """Empty logs that have grown too long; which. Whoever writes one goes on behind a hole, which takes no disk."""
    cut = []
    for log_file in slots.glob("*/*.log"):
        with suppress(FileNotFoundError):  # its slot is being opened anew
            if log_file.stat().st_blocks * 512 > most:
                os.truncate(log_file, 0)
                log.warning("%s had grown beyond %d MiB and was emptied", log_file, most >> 20)
                cut.append(log_file)
    return cut
