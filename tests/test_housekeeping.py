"""Housekeeping: backups come on time, litter goes, and a failed backup is told and tried again."""

import os
import time

import msgspec
from daemon_house import House, eventually

from crusades import housekeeping
from crusades.errors import StoreError
from crusades.housekeeping import cut_logs, newest_backup, sweep
from crusades.store import Store
from crusades.store_schema import sound_backups


def test_only_old_folders_of_slots_that_are_gone_are_swept(tmp_path):
    for name in ("cpu", "cuda-0", "cuda-1"):
        (tmp_path / name).mkdir()
    month_ago = time.time() - 30 * 86_400
    os.utime(tmp_path / "cpu", (month_ago, month_ago))
    os.utime(tmp_path / "cuda-0", (month_ago, month_ago))
    assert sweep(tmp_path, live=frozenset({"cpu"})) == ["cuda-0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu", "cuda-1"]
    assert sweep(tmp_path / "nowhere", frozenset()) == []


def test_a_log_that_grows_without_end_is_emptied_under_its_writer(tmp_path):
    (tmp_path / "cpu").mkdir()
    with (tmp_path / "cpu" / "referee.log").open("wb", buffering=0) as file:
        file.write(b"x" * 300_000)
        assert cut_logs(tmp_path, most=1 << 20) == []
        assert cut_logs(tmp_path, most=200_000) == [tmp_path / "cpu" / "referee.log"]
        file.write(b"its last words")
        assert cut_logs(tmp_path, most=200_000) == []
    assert (tmp_path / "cpu" / "referee.log").read_bytes().endswith(b"its last words")


async def test_a_backup_is_made_at_the_first_start_and_then_each_interval(tmp_path, autojump_clock):
    house = House(tmp_path / "state")
    house.settings = msgspec.structs.replace(house.settings, store=msgspec.structs.replace(house.settings.store, backup_hours=0.25))
    async with house.running() as ctx:
        await eventually(lambda: ctx.backup_at)
        first = newest_backup(tmp_path / "state")
        await eventually(lambda: newest_backup(tmp_path / "state") != first, step=30)
    assert first is not None


async def test_a_backup_of_the_future_is_none(tmp_path, autojump_clock):
    """The clock went back: otherwise none would be made until it has caught up."""
    house = House(tmp_path / "state")
    async with house.running() as ctx:
        await eventually(lambda: ctx.backup_at)
    (left,) = sound_backups(tmp_path / "state")
    os.utime(left, (4e9, 4e9))
    async with house.running() as ctx:
        await eventually(lambda: ctx.backup_at is not None and ctx.backup_at < 4e9)


async def test_what_cannot_be_tidied_is_a_problem_and_stops_nobody(tmp_path, autojump_clock, monkeypatch):
    house = House(tmp_path / "state")

    def refused(*_):
        raise PermissionError(1, "Operation not permitted", "slots")

    with monkeypatch.context() as patch:
        patch.setattr(housekeeping, "sweep", refused)
        async with house.running() as ctx:
            await eventually(lambda: "not permitted" in ctx.board.problems.get("housekeeping", ""))
            patch.undo()
            await eventually(lambda: "housekeeping" not in ctx.board.problems)


async def test_a_backup_that_fails_is_a_problem_until_one_succeeds(tmp_path, autojump_clock, monkeypatch):
    house = House(tmp_path / "state")
    real = Store.backup

    async def full(self, out=None):
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "backup", full)
    async with house.running() as ctx:
        await eventually(lambda: "disk is full" in ctx.board.problems.get("backup", ""))
        monkeypatch.setattr(Store, "backup", real)
        await eventually(lambda: "backup" not in ctx.board.problems)
