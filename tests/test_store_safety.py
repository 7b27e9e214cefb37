"""What must never happen: half a write, a second writer, a damaged file in use, a lost row after a kill."""

import asyncio
import calendar
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import aiosqlite
import pytest
import trio
import trio.testing
from store_kit import SETTINGS, accepted, at_stage, opened, reason, record, revealed, run, sealed, source, statuses

from crusades import logs, store_schema
from crusades import store as store_module
from crusades.errors import StateLocked, StoreError
from crusades.records import Stage, Status, to_json

S = Status

# ------------------------------------------------------------------------------------------------ cancelled at every point


class Cutter:
    """Cancels a trio scope at the n-th hop to SQLite, before or after the hop's statement, and waits there to be cut."""

    def __init__(self, monkeypatch, at, after):
        self.hops, self.at, self.after, self.scope = 0, at, after, trio.CancelScope()
        self.token = trio.lowlevel.current_trio_token()
        self.armed = False
        real = aiosqlite.Connection._execute

        async def execute(connection, fn, *args, **kwargs):
            if not self.armed:
                return await real(connection, fn, *args, **kwargs)
            self.hops += 1
            if self.hops != self.at:
                return await real(connection, fn, *args, **kwargs)
            value = await real(connection, fn, *args, **kwargs) if self.after else None
            self.token.run_sync_soon(self.scope.cancel)
            await asyncio.sleep(0.02)  # the cut comes here, unless this hop may not be cut
            return value if self.after else await real(connection, fn, *args, **kwargs)

        monkeypatch.setattr(aiosqlite.Connection, "_execute", execute)


WRITES = {
    "record": lambda store, id_: record(store, revealed("5New", 50), sealed("5Seal", 60), revealed("5Fork", 80, reveal=85), head=95, finalized=88),
    "save_source": lambda store, id_: store.save_source(id_, source("new bytes")),
    "transition": lambda store, id_: store.transition(id_, S.FAULTED, reason=reason("sandbox")),
    "add_run": lambda store, id_: store.add_run(id_, run(0)),
    "finish": lambda store, id_: store.finish(id_, accepted(44.0, [run(0), run(1)])),
    "requeue": lambda store, id_: store.requeue(id_, reason("referee")),
    "recover": lambda store, id_: store.recover(),
    "claim_receipt": lambda store, id_: store.claim_receipt(id_, "9-1"),
    "record_weights": lambda store, id_: store.record_weights(asked={1: 1.0}, block=5, first=6, last=7),
    "same_program": lambda store, id_: store.same_program(id_, "ab", "cd"),
}


async def picture(store):
    details = [to_json(await store.submission(row.id)) for row in (await store.submissions(limit=500)).items]
    rest = [to_json([await store.runs(row.id) for row in (await store.submissions(limit=500)).items]), await store.cursor(), await store.weights_journal(),
            await store.receipt_holder("9-1"), (await store._read(lambda db: db.execute_fetchall("SELECT fingerprint FROM submissions ORDER BY n")))]
    return [without_times(text) for text in details], rest


def without_times(text):
    import re

    return re.sub(rb'"(at|created_at|updated_at)":[0-9.e+]+', b"", text)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", WRITES)
async def test_a_write_that_is_cancelled_anywhere_happened_wholly_or_not_at_all(tmp_path, monkeypatch, write, after):
    outcomes = set()
    for at in range(1, 60):
        with monkeypatch.context() as patch:
            async with opened(tmp_path / f"{at}") as store:
                id_ = await at_stage(store, S.RUNNING, revealed("5A", 10))
                await record(store, revealed("5Fork", 80, reveal=85, text="lost", final=False), head=86, finalized=70)
                before, seq = await picture(store), store.last_seq
                cutter = Cutter(patch, at, after)
                done = False
                with store.subscribe(100) as events:
                    with cutter.scope:
                        cutter.armed = True
                        await WRITES[write](store, id_)
                        done = True
                    cutter.armed = False
                    heard = events._receive.statistics().current_buffer_used
                assert not store._db.in_transaction
                after_picture = await picture(store)
                assert (after_picture != before) is done, f"cut at hop {at}: reported {'done' if done else 'cancelled'}"
                assert store.last_seq - seq == heard
                assert [event.seq for event in await store.events_since(0, 1000)] == list(range(1, store.last_seq + 1))
                if not done:  # nothing is in the way of the next attempt
                    assert heard == 0
                    await WRITES[write](store, id_)
                    assert await picture(store) != before
                outcomes.add(done)
                if cutter.hops < at:
                    break
    assert outcomes == {True, False}, "the cuts reached both sides of the commit"
    assert at > 4


async def test_a_read_that_is_cancelled_leaves_the_reader_usable(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, S.SCORED)
        for at in range(1, 7):
            with monkeypatch.context() as patch:
                cutter = Cutter(patch, at, after=False)
                with cutter.scope:
                    cutter.armed = True
                    await store.submission(id_)
                cutter.armed = False
            assert not store._reader.in_transaction
            assert (await store.submission(id_)).submission.status is S.SCORED


async def test_writers_wait_for_each_other(tmp_path):
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(record, store, revealed(f"5{number}", 10 + number))
    async with opened(tmp_path) as store:
        assert (await store.counts())["revealed"] == 50


# ------------------------------------------------------------------------------------------------ the state directory


async def test_a_second_store_on_the_same_directory_is_refused_and_says_who_holds_it(tmp_path):
    async with opened(tmp_path):
        with pytest.raises(StateLocked, match=f"process {os.getpid()}"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path):
        pass


async def test_the_directory_and_what_is_in_it_are_the_owners_alone(tmp_path):
    async with opened(tmp_path / "new" / "state") as store:
        await store.backup()
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "new" / "state").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_a_directory_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        async with opened(tmp_path / "file"):
            pass


@pytest.mark.parametrize("damage", ["garbage", "middle", "truncated"])
async def test_a_damaged_database_is_refused_with_the_backup_to_restore(tmp_path, damage):
    async with opened(tmp_path) as store:
        for number in range(200):
            await record(store, revealed(f"5{number}", 10 + number, text=str(number)))
        backup = await store.backup()
    path = tmp_path / "crusades.db"
    raw = bytearray(path.read_bytes())
    if damage == "garbage":
        raw[:] = b"x" * len(raw)
    elif damage == "middle":
        raw[4096:len(raw) // 2] = b"\xff" * (len(raw) // 2 - 4096)
    else:
        del raw[len(raw) // 2:]
    path.write_bytes(raw)
    # What a restore has set aside is newer, and may be the very file that is damaged.
    store_schema.new_backup_path(tmp_path, "before-restore").write_bytes(b"x")
    with pytest.raises(StoreError, match=f"damaged.*store restore {backup}"):
        async with opened(tmp_path):
            pass


async def test_a_database_of_a_newer_program_is_refused(tmp_path):
    async with opened(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "crusades.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer program"):
        async with opened(tmp_path):
            pass


async def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(tmp_path):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, S.RUNNING)

        async def limit(pages):
            async def work(tx):
                await tx.all(f"PRAGMA max_page_count = {pages}")
            await store._write(work)

        await limit(1)  # SQLite says the same when the disk is full
        with pytest.raises(StoreError, match=r"full.*free space"):
            await store.save_source(id_, source(os.urandom(200_000).hex()))
        await limit(1_000_000)
        assert (await store.submission(id_)).submission.status is S.RUNNING
        assert await store.finish(id_, accepted())


async def test_a_database_that_may_not_be_written_is_a_clear_error(tmp_path):
    async with opened(tmp_path) as store:
        await store._bridge.run(lambda: store._db.execute_fetchall("PRAGMA query_only = ON"))
        with pytest.raises(StoreError, match="cannot be written"):
            await store.emit("block", {})


async def test_the_clock_may_jump_back(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, S.QUEUED)
        monkeypatch.setattr("time.time", lambda: 5.0)
        await store.begin_attempt(id_)
        await store.finish(id_, accepted())
        detail = await store.submission(id_)
        assert [step.status for step in detail.transitions][-2:] == [S.RUNNING, S.SCORED]
        assert [event.seq for event in await store.events_since(0, 100)] == list(range(1, store.last_seq + 1))


# ------------------------------------------------------------------------------------------------ migrations


NEXT = ("ALTER TABLE submissions ADD COLUMN colour TEXT", "CREATE TABLE extra (x)")


async def test_a_migration_makes_a_backup_first_and_keeps_the_data(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, S.SCORED)
    monkeypatch.setattr(store_schema, "MIGRATIONS", (*store_schema.MIGRATIONS, NEXT))
    async with opened(tmp_path) as store:
        assert await statuses(store) == {id_: S.SCORED}
        (backup,) = store_schema.backups(tmp_path)
        assert "before-migration-2" in backup.name
    with sqlite3.connect(backup) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
    async with opened(tmp_path):
        assert len(store_schema.backups(tmp_path)) == 1, "a migration runs once"


async def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path, monkeypatch):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, S.SCORED)
    with monkeypatch.context() as patch:
        patch.setattr(store_schema, "MIGRATIONS", (*store_schema.MIGRATIONS, (*NEXT, "CREATE TABLE extra (x)")))
        with pytest.raises(StoreError, match=r"migration 2 .* failed: .*; the database is as it was, and a copy is"):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path) as store:
        assert await statuses(store) == {id_: S.SCORED}


# ------------------------------------------------------------------------------------------------ killed


VICTIM = """
import sys, trio
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from store_kit import *

async def main():
    async with opened(Path(sys.argv[1])) as store:
        print("open", flush=True)
        number = 0
        while True:
            id_ = await at_stage(store, Status.RUNNING, revealed(f"5{number}", 10 + number, text=str(number)))
            await store.add_run(id_, run(0))
            print("ran", id_, flush=True)
            await store.finish(id_, accepted(40.0, [run(0)]))
            print("scored", id_, flush=True)
            number += 1

trio.run(main)
"""


@pytest.mark.parametrize("after_lines", [2, 5, 10])
async def test_after_sigkill_everything_that_was_told_is_there(tmp_path, after_lines):
    here = Path(__file__).parent
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(tmp_path), str(here)], stdout=subprocess.PIPE, text=True,  # noqa: ASYNC220
                              env={**os.environ, "PYTHONPATH": str(here.parent)})
    told = []
    try:
        for line in victim.stdout:
            told.append(line.split())
            if len(told) > after_lines:
                break
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
    async with opened(tmp_path) as store:
        recovered = await store.recover()
        now = await statuses(store)
        for what, *rest in told:
            for id_ in rest:
                assert (now[id_] is S.SCORED) if what == "scored" else (now[id_] is S.SCORED or id_ in recovered)
                assert len(await store.runs(id_)) == 1, "finished runs are kept"
        assert len(recovered) <= 1
        assert S.RUNNING not in now.values()
        assert [event.seq for event in await store.events_since(0, 10_000)] == list(range(1, store.last_seq + 1))


async def test_closing_waits_for_the_write_under_way(tmp_path):
    written = []

    async def slowly(store):
        async def work(tx):
            await asyncio.sleep(0.05)
            tx.emit("block", None, {})

        await store._write(work)
        written.append(True)

    async with trio.open_nursery() as nursery, opened(tmp_path) as store:
        nursery.start_soon(slowly, store)
        await trio.testing.wait_all_tasks_blocked()
    assert written == [True]


async def test_no_thread_or_descriptor_is_left_after_20_stores(tmp_path):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    async with opened(tmp_path):
        pass
    before = descriptors()
    for _ in range(20):
        async with opened(tmp_path, SETTINGS) as store:
            await store.emit("block", {})
    assert descriptors() <= before
    assert store_module.log.name == "crusades.store"


async def test_a_receipt_claimed_in_a_cancelled_scope_is_reported_as_claimed(tmp_path):
    """The caller's scope is cancelled before it starts: nothing is written."""
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, S.QUEUED)
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.claim_receipt(id_, "9-1")
        assert scope.cancelled_caught
        assert await store.receipt_holder("9-1") is None
        await store.transition(id_, S.REJECTED, reason=reason("rule", Stage.CHECK))


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/St_Johns", "Asia/Kathmandu"])
async def test_nothing_depends_on_the_time_zone(tmp_path, monkeypatch, zone):
    """Names of backups, times in the store and in JSON logs are UTC wherever the machine stands."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        before = time.time()
        async with opened(tmp_path) as store:
            id_ = await at_stage(store, S.QUEUED)
            backup = await store.backup()
            detail = await store.submission(id_)
        named = calendar.timegm(time.strptime(backup.name[:16], "%Y%m%dT%H%M%SZ"))
        assert int(before) <= named <= time.time()
        assert all(before <= step.at <= time.time() for step in detail.transitions)
        line = json.loads(logs.JsonLines().format(logging.LogRecord("x", logging.INFO, "", 0, "words", (), None)))
        assert abs(datetime.fromisoformat(line["at"]).timestamp() - time.time()) < 60
        assert line["at"].endswith("+00:00")
    finally:
        monkeypatch.undo()
        time.tzset()
