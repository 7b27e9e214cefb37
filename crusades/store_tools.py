"""`crusades store backup | restore | export | import | verify | requeue`: what an operator does to a state directory.

`backup`, `export` and `verify` may run beside a validator: they read one consistent snapshot. The others take the lock and
are refused while one runs. These are one-shot programs, so they use SQLite directly, without the bridge.

    run_backup(state_dir, out=None, keep=None) -> Path            run_export(state_dir, out) -> int (submissions)
    run_restore(backup, state_dir) -> Path | None (what was there) run_import(file, state_dir) -> Imported
    run_verify(state_dir) -> list[str] (problems)                  main(argv) -> exit code
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from crusades.errors import StoreError, UsageError
from crusades.store_check import problems_of
from crusades.store_export import export_lines
from crusades.store_import import Imported, import_lines
from crusades.store_lock import locked
from crusades.store_schema import BACKUPS, BUSY_TIMEOUT_MS, DATABASE, MIGRATIONS, backups, damaged, is_damage, new_backup_path, prepare_sync
from crusades.store_tx import database_words

PARTIAL = ".partial"
HALF_MADE_AGE = 86_400.0
"""Seconds after which nobody works on a half-made backup any more."""

# ------------------------------------------------------------------------------------------------ backup, restore


def run_backup(state_dir: Path, out: Path | None = None, *, keep: int | None = None) -> Path:
    """A consistent copy of the database, also while a validator writes to it; checked before it gets its name.

    Without `out` it goes into the state directory's backups folder, where `keep` of these are kept. StoreError when it
    cannot be made; then there is no half-made file under its name.
    """
    try:
        target = out if out is not None else new_backup_path(state_dir, "backup")
        if target.is_dir():
            target = target / new_backup_path(state_dir, "backup").name
        if out is not None and target.exists():
            raise StoreError(f"{target} exists already; a backup never overwrites")
    except OSError as error:
        raise StoreError(f"no backup of {state_dir}: {error.strerror}") from error
    partial = target.with_name(target.name + PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        with _database(state_dir / DATABASE) as db:
            db.execute("VACUUM INTO ?", (str(partial),))
        partial.chmod(0o600)
        with _database(partial) as copy:
            _must_be_sound(copy, partial)
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise StoreError(f"no backup at {target}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    if keep is not None and out is None:
        try:
            prune(state_dir, keep, spare=target)
        except OSError as error:
            raise StoreError(f"{target} was made, but old backups cannot be deleted: {error.strerror}") from error
    return target


def prune(state_dir: Path, keep: int, spare: Path | None = None) -> None:
    """Delete the oldest routine backups beyond `keep`, and what a killed backup left half made. Those made before a migration
    or a restore are kept for a person. `spare` was made just now, whatever a clock that went back says of it."""
    routine = [path for path in backups(state_dir) if path.name.endswith("-backup.db") and path != spare]
    for path in routine[:max(0, len(routine) + (spare is not None) - keep)]:
        path.unlink(missing_ok=True)
    for path in (state_dir / BACKUPS).glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):  # another backup has just ended
            if time.time() - path.stat().st_mtime > HALF_MADE_AGE:
                path.unlink()


def run_restore(backup: Path, state_dir: Path) -> Path | None:
    """Put a backup in the database's place. Returns where the database that was there is kept; None when there was none.

    StateLocked while a validator runs. The backup is checked first, so a bad one changes nothing.
    """
    if not backup.is_file():
        raise StoreError(f"there is no backup {backup}")
    with locked(state_dir):
        with _database(backup) as copy:
            _must_be_sound(copy, backup)
            version = copy.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise StoreError(f"{backup} was made by a newer program (version {version}; this program knows {len(MIGRATIONS)}): install that version")
        if version == 0:
            raise StoreError(f"{backup} is no backup of a validator's database")
        path, fresh = state_dir / DATABASE, state_dir / (DATABASE + ".restoring")
        try:
            shutil.copyfile(backup, fresh)
            fresh.chmod(0o600)
            _sync(fresh)
            replaced = _set_aside(state_dir) if path.exists() else None
            fresh.replace(path)
            _sync(state_dir)
        except OSError as error:
            raise StoreError(f"{backup} was not restored: {error.strerror}") from error
        return replaced


def _set_aside(state_dir: Path) -> Path:
    """Move the database and its log away, damaged or not: a log that stays would be played into the restored file."""
    kept = new_backup_path(state_dir, "before-restore")
    for suffix in ("", "-wal", "-shm"):
        file = state_dir / (DATABASE + suffix)
        if file.exists():
            file.replace(kept.with_name(kept.name + suffix))
    return kept


# ------------------------------------------------------------------------------------------------ export, import, verify


def run_export(state_dir: Path, out: Path) -> int:
    """Write everything but events as JSON Lines (see `store_export`); the number of submissions."""
    partial = out.with_name(out.name + PARTIAL)
    try:
        with _database(state_dir / DATABASE) as db, partial.open("wb") as file:
            count = 0
            db.execute("BEGIN")
            for line in export_lines(db):
                count += line.startswith(b'{"kind":"submission"')
                file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as error:
        raise StoreError(f"nothing was exported to {out}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return count


def run_import(file: Path, state_dir: Path) -> Imported:
    """Add what an export holds and the state directory (made when missing) does not, and replace what the export knows
    further (`store_import`). Importing twice changes nothing. All or nothing; StateLocked while a validator runs."""
    try:
        lines = file.open("rb")
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error
    with lines, locked(state_dir):
        prepare_sync(state_dir)
        with _database(state_dir / DATABASE) as db:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE")
            try:
                imported = import_lines(db, lines)
                db.commit()
            except BaseException:
                db.rollback()
                raise
    return imported


def run_verify(state_dir: Path) -> list[str]:
    """Everything that is wrong with a state directory's database (or with a database file), in words; empty when sound."""
    path = state_dir / DATABASE if state_dir.is_dir() else state_dir
    with _database(path) as db:
        return problems_of(db)


# ------------------------------------------------------------------------------------------------ parts


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """An existing database file; SQLite's errors become ours."""
    if not path.is_file():
        raise StoreError(f"there is no database {path}")
    try:
        db = sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {database_words(error)}") from error
    try:
        db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        yield db
    except sqlite3.DatabaseError as error:
        if is_damage(error) and path.name == DATABASE:
            raise damaged(path.parent, str(error)) from error
        raise StoreError(f"{path}: {database_words(error)}") from error
    finally:
        db.close()


def _must_be_sound(db: sqlite3.Connection, path: Path) -> None:
    try:
        found = [row[0] for row in db.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    if found:
        raise StoreError(f"{path} is damaged ({'; '.join(found)})")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------ the command


def main(argv: Sequence[str] | None = None) -> int:
    """`crusades store …`: 0 done, 1 problems found by `verify`. Errors are raised as CrusadesErrors."""
    arguments = _parser().parse_args(argv)
    named = arguments.file if arguments.what == "verify" else None
    state_dir = arguments.state_dir or named or default_state_dir()
    words, details = _do(arguments, state_dir)
    print(json.dumps(details, indent=2) if arguments.json else words)
    return 1 if details.get("problems") else 0


def _do(arguments: argparse.Namespace, state_dir: Path) -> tuple[str, dict[str, object]]:
    match arguments.what:
        case "backup":
            path = run_backup(state_dir, arguments.out)
            return f"backed up to {path} ({path.stat().st_size:,} bytes)", {"backup": str(path), "bytes": path.stat().st_size}
        case "restore":
            replaced = run_restore(arguments.backup, state_dir)
            kept = f"; what was there is kept in {replaced}" if replaced else ""
            return f"restored {arguments.backup} into {state_dir}{kept}", {"restored": str(arguments.backup), "replaced": replaced and str(replaced)}
        case "export":
            count = run_export(state_dir, arguments.out)
            return f"exported {count} submissions to {arguments.out}", {"exported": count, "file": str(arguments.out)}
        case "import":
            got = run_import(arguments.file, state_dir)
            words = f"imported into {state_dir}: {got.added} submissions added, {got.updated} brought further, {got.kept} left as they are"
            return words, {"added": got.added, "updated": got.updated, "kept": got.kept}
        case "requeue":
            from crusades.store_requeue import run_requeue  # here: the others need no event loop

            run_requeue(state_dir, arguments.id)
            return f"submission {arguments.id} is queued again, in front; start the validator", {"requeued": arguments.id}
        case _:
            path = arguments.file or state_dir
            found = run_verify(path)
            return "\n".join(found) or f"{path} is sound", {"problems": found}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crusades store", description="Back up, restore, export, import or verify a validator's state; queue a faulted submission again.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--state-dir", type=Path, metavar="DIR", help="the validator's state directory (default: systemd's, else the only one there is)")
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    backup = commands.add_parser("backup", parents=[common], help="copy the database, also while the validator runs")
    backup.add_argument("out", type=Path, nargs="?", help=f"file or folder (default: {BACKUPS}/ in the state directory)")
    restore = commands.add_parser("restore", parents=[common], help="put a backup in the database's place; the validator must be stopped")
    restore.add_argument("backup", type=Path)
    export = commands.add_parser("export", parents=[common], help="write portable JSON Lines")
    export.add_argument("out", type=Path)
    import_ = commands.add_parser("import", parents=[common], help="take in what an export holds and knows further; the validator must be stopped")
    import_.add_argument("file", type=Path)
    verify = commands.add_parser("verify", parents=[common], help="check the file and every rule that the store keeps")
    verify.add_argument("file", type=Path, nargs="?", help="a backup to check instead of the state directory")
    requeue = commands.add_parser("requeue", parents=[common], help="judge a faulted submission again, once the fault is mended; the validator must be stopped")
    requeue.add_argument("id", metavar="ID", help="the submission's")
    return parser


def default_state_dir() -> Path:
    """The state directory that is meant when none is named: systemd's, else the only one of this user."""
    if named := os.environ.get("STATE_DIRECTORY", ""):
        return Path(named.split(":")[0])
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "crusades"
    found = sorted(path.parent for path in [*base.glob(DATABASE), *base.glob(f"*/{DATABASE}"), *base.glob(f"*/*/{DATABASE}")])
    if len(found) != 1:
        seen = f"there are several below {base}: {', '.join(map(str, found))}" if found else f"there is none below {base}"
        raise UsageError(f"name the state directory with --state-dir; {seen}")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
