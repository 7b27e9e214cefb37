"""`crusades store`: backups that restore, exports that import, and a verify that finds what is wrong."""

import json
import os
import sqlite3
import time

import pytest
import trio
from store_kit import accepted, at_stage, opened, reason, record, refused, revealed, run, sealed

from crusades import store_schema, store_tools
from crusades.errors import StateLocked, StoreError, UsageError
from crusades.records import Stage, Status, to_json
from crusades.store_tools import main, prune, run_backup, run_export, run_import, run_restore, run_verify

S = Status


async def fill(state_dir):
    """A store with something of everything; returns how it looks."""
    async with opened(state_dir) as store:
        await store.identify(genesis="0xaa", netuid=7)
        one = await at_stage(store, S.QUEUED, revealed("5A", 10, receipt="9-1"))
        await store.claim_receipt(one, "9-1")
        await store.begin_attempt(one, slot="cpu")
        await store.add_run(one, run(0))
        await store.finish(one, accepted(41.0, [run(0), run(1)]), block=50)
        two = await at_stage(store, S.RUNNING, revealed("5B", 11, text="second"))
        await store.add_run(two, run(0, telemetry={"power": float("nan"), "clock": float("inf")}))
        await at_stage(store, S.FAULTED, revealed("5C", 12, text="third"))
        three = await at_stage(store, S.FETCHED, revealed("5E", 14, text="fourth"))
        await store.same_program(three, "ab", "shape")
        await store.transition(three, S.REJECTED, reason=reason("copy", Stage.CHECK, measured=one))
        await record(store, refused("5D", 13), sealed("5F", 20), revealed("5G", 40, reveal=40, exact=False))
        await store.record_weights(asked={1: 0.25, 2: 0.75}, block=60, first=61, last=70)
        await store.record_on_chain(on_chain={1: 0.25, 2: 0.75}, equal=True, block=62)
        await store.set_fact("note", [1, "two"])
        return await picture(store)


async def picture(store):
    rows = (await store.submissions(limit=500)).items
    return [[to_json(await store.submission(row.id)), to_json(await store.source(row.id)), repr(await store.runs(row.id)), await store.payload(row.id)] for row in rows] + [
        await store.cursor(), await store.weights(), await store.weights_journal(), await store.fact("note"), await store.receipt_holder("9-1")]


async def look(state_dir):
    async with opened(state_dir) as store:
        return await picture(store)


# ------------------------------------------------------------------------------------------------ backup and restore


async def test_the_restore_drill(tmp_path):
    """Back up, lose everything, restore: the store is as it was at the backup, and works."""
    before = await fill(tmp_path / "state")
    backup = run_backup(tmp_path / "state", tmp_path / "copy.db")
    async with opened(tmp_path / "state") as store:
        await record(store, revealed("5Later", 90))
    (tmp_path / "state" / "crusades.db").write_bytes(b"lost" * 1000)
    kept = run_restore(backup, tmp_path / "state")
    assert kept.read_bytes().startswith(b"lost")
    assert await look(tmp_path / "state") == before
    async with opened(tmp_path / "state") as store:
        assert len(await store.recover()) == 1
        await record(store, revealed("5Later", 90))
    assert run_verify(tmp_path / "state") == []


async def test_a_restore_into_an_empty_directory(tmp_path):
    before = await fill(tmp_path / "state")
    assert run_restore(run_backup(tmp_path / "state", tmp_path / "copy.db"), tmp_path / "elsewhere" / "state") is None
    assert await look(tmp_path / "elsewhere" / "state") == before


async def test_the_log_of_the_old_database_is_not_played_into_the_restored_one(tmp_path):
    await fill(tmp_path)
    backup = run_backup(tmp_path, tmp_path / "copy.db")
    (tmp_path / "crusades.db-wal").write_bytes(b"old log")
    run_restore(backup, tmp_path)
    assert not (tmp_path / "crusades.db-wal").exists()


async def test_a_backup_made_while_writes_go_on_is_consistent(tmp_path):
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        stop = trio.Event()

        async def write():
            number = 0
            while not stop.is_set():
                await at_stage(store, S.SCORED, revealed(f"5{number}", 10 + number, text=str(number)))
                number += 1

        nursery.start_soon(write)
        for number in range(5):
            path = await store.backup(tmp_path / f"{number}.db")
            assert await trio.to_thread.run_sync(run_verify, path) == []
        stop.set()


async def test_routine_backups_are_pruned_and_others_are_kept(tmp_path, monkeypatch):
    stamps = iter(range(100, 200))
    monkeypatch.setattr(store_schema.time, "strftime", lambda *_: f"stamp{next(stamps)}")
    async with opened(tmp_path) as store:
        names = [(await store.backup()).name for _ in range(10)]
    precious = store_schema.new_backup_path(tmp_path, "before-migration-2")
    precious.write_bytes(b"")
    prune(tmp_path, 3)
    assert {path.name for path in store_schema.backups(tmp_path)} == {*names[-3:], precious.name}


async def test_a_clock_that_went_back_costs_no_fresh_backup_and_what_a_kill_left_half_made_goes(tmp_path):
    async with opened(tmp_path) as store:
        (tmp_path / "backups").mkdir()
        old = [await store.backup(tmp_path / "backups" / f"{year}0101T000000Z-backup.db") for year in (2090, 2091)]
        for path in old:
            os.utime(path, (4e9, 4e9))
        half = [tmp_path / "backups" / name for name in ("old.db.partial", "new.db.partial")]
        for path, age in zip(half, (2 * store_tools.HALF_MADE_AGE, 0), strict=True):
            path.write_bytes(b"")
            os.utime(path, (time.time() - age,) * 2)
        fresh = run_backup(tmp_path, keep=2)
    assert set(store_schema.backups(tmp_path)) == {old[1], fresh}
    assert [path.exists() for path in half] == [False, True]


async def test_a_backup_never_overwrites_and_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    await fill(tmp_path / "state")
    (tmp_path / "there.db").write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        run_backup(tmp_path / "state", tmp_path / "there.db")
    with pytest.raises(StoreError, match=r"no backup|failed|unable"):
        run_backup(tmp_path / "state", tmp_path / "no" / "such" / "folder.db")
    monkeypatch.setattr(store_tools, "_must_be_sound", lambda *_: (_ for _ in ()).throw(StoreError("the copy is damaged")))
    with pytest.raises(StoreError, match="the copy is damaged"):
        run_backup(tmp_path / "state", tmp_path / "new.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "there.db"]


async def test_restore_refuses_what_is_no_sound_backup_and_changes_nothing(tmp_path):
    before = await fill(tmp_path / "state")
    good = run_backup(tmp_path / "state", tmp_path / "good.db")
    raw = bytearray(good.read_bytes())
    raw[4096:12288] = b"\xff" * 8192
    cases = {"damaged.db": bytes(raw), "text.db": b"no database" * 1000, "empty.db": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError):
            run_restore(tmp_path / name, tmp_path / "state")
    with sqlite3.connect(good) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer program"):
        run_restore(good, tmp_path / "state")
    with pytest.raises(StoreError, match="there is no backup"):
        run_restore(tmp_path / "nosuch.db", tmp_path / "state")
    assert await look(tmp_path / "state") == before


async def test_what_changes_the_state_is_refused_while_a_validator_runs(tmp_path):
    await fill(tmp_path / "state")
    backup = run_backup(tmp_path / "state", tmp_path / "copy.db")
    run_export(tmp_path / "state", tmp_path / "all.jsonl")
    async with opened(tmp_path / "state"):
        with pytest.raises(StateLocked):
            run_restore(backup, tmp_path / "state")
        with pytest.raises(StateLocked):
            run_import(tmp_path / "all.jsonl", tmp_path / "state")
        assert run_export(tmp_path / "state", tmp_path / "again.jsonl") == 7
        assert run_verify(tmp_path / "state") == []


# ------------------------------------------------------------------------------------------------ export and import


async def test_an_export_imports_into_an_empty_store_without_loss(tmp_path):
    before = await fill(tmp_path / "state")
    assert run_export(tmp_path / "state", tmp_path / "all.jsonl") == 7
    got = run_import(tmp_path / "all.jsonl", tmp_path / "new")
    assert (got.added, got.kept) == (7, 0)
    assert await look(tmp_path / "new") == before
    assert run_verify(tmp_path / "new") == []
    for line in (tmp_path / "all.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


async def test_importing_twice_changes_nothing(tmp_path):
    before = await fill(tmp_path / "state")
    run_export(tmp_path / "state", tmp_path / "all.jsonl")
    for _ in range(2):
        got = run_import(tmp_path / "all.jsonl", tmp_path / "state")
        assert (got.added, got.kept) == (0, 7)
    assert await look(tmp_path / "state") == before


async def test_an_import_adds_what_is_missing_and_leaves_what_has_gone_on(tmp_path):
    await fill(tmp_path / "state")
    run_export(tmp_path / "state", tmp_path / "all.jsonl")
    async with opened(tmp_path / "other") as store:
        id_ = await at_stage(store, S.SCORED, revealed("5B", 11, text="second"), mfu=99.0)
    assert run_import(tmp_path / "all.jsonl", tmp_path / "other").added == 6
    async with opened(tmp_path / "other") as store:
        assert (await store.submission(id_)).submission.score_mfu == 99.0


async def test_an_import_takes_what_the_export_knows_further(tmp_path):
    """An old export, and a newer one of the same validator: whichever comes last, the store ends where the newer one was."""
    async with opened(tmp_path / "state") as store:
        await store.identify(genesis="0xaa", netuid=7)
        one = await at_stage(store, S.QUEUED, revealed("5A", 10, receipt="9-1"))
        await store.claim_receipt(one, "9-1")
        await store.record_weights(asked={1: 1.0}, block=60, first=61, last=70)
        run_export(tmp_path / "state", tmp_path / "old.jsonl")
        await store.begin_attempt(one, slot="cpu")
        await store.add_run(one, run(0))
        await store.finish(one, accepted(41.0, [run(0), run(1)]), block=50)
        await store.record_on_chain(on_chain={1: 1.0}, equal=True, block=62)
        await store.record_weights(asked={2: 1.0}, block=80, first=81, last=90)
        await store.set_cursor(95)
        run_export(tmp_path / "state", tmp_path / "new.jsonl")
        newest = await picture(store)
    for order in (("old", "new"), ("new", "old"), ("old", "new", "old", "new")):
        got = [run_import(tmp_path / f"{name}.jsonl", tmp_path / "-".join(order)) for name in order]
        assert [one.added for one in got] == [1] + [0] * (len(order) - 1)
        assert sum(one.updated for one in got) == (order[0] == "old")
        assert await look(tmp_path / "-".join(order)) == newest
        assert run_verify(tmp_path / "-".join(order)) == []


async def test_an_import_never_takes_a_verdict_back(tmp_path):
    """Two validators went on from one export: the one that is not done cannot undo the one that is, however late it wrote."""
    async with opened(tmp_path / "one") as store:
        id_ = await at_stage(store, S.QUEUED, revealed("5A", 10))
    run_export(tmp_path / "one", tmp_path / "start.jsonl")
    run_import(tmp_path / "start.jsonl", tmp_path / "two")
    async with opened(tmp_path / "one") as store:
        await store.begin_attempt(id_, slot="cpu")
        await store.finish(id_, accepted(41.0, [run(0), run(1)]))
    async with opened(tmp_path / "two") as store:
        await store.begin_attempt(id_, slot="cpu")
        await store.requeue(id_, reason("referee", Stage.RUN))
    for name in ("one", "two"):
        run_export(tmp_path / name, tmp_path / f"{name}.jsonl")
    assert run_import(tmp_path / "two.jsonl", tmp_path / "one").kept == 1
    assert run_import(tmp_path / "one.jsonl", tmp_path / "two").updated == 1
    for name in ("one", "two"):
        async with opened(tmp_path / name) as store:
            assert (await store.submission(id_)).submission.score_mfu == 41.0


@pytest.mark.parametrize("spoil", ["cut", "reordered", "newer", "garbage", "unknown field", "miscounted"])
async def test_a_spoilt_export_imports_nothing_and_says_where(tmp_path, spoil):
    await fill(tmp_path / "state")
    run_export(tmp_path / "state", tmp_path / "all.jsonl")
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    if spoil == "cut":
        del lines[-1]
    elif spoil == "reordered":
        lines[0], lines[1] = lines[1], lines[0]
    elif spoil == "newer":
        lines[0] = lines[0].replace('"version":1', '"version":2')
    elif spoil == "garbage":
        lines[5] = lines[5][:40]
    elif spoil == "unknown field":
        lines[5] = lines[5][:-1] + ',"colour":"red"}'
    else:
        lines[-1] = '{"kind":"end","submissions":3}'
    (tmp_path / "bad.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(StoreError, match="export"):
        run_import(tmp_path / "bad.jsonl", tmp_path / "new")
    async with opened(tmp_path / "new") as store:
        assert (await store.submissions()).items == ()
        assert await store.cursor() is None


async def test_an_export_of_another_validator_is_refused(tmp_path):
    await fill(tmp_path / "state")
    run_export(tmp_path / "state", tmp_path / "all.jsonl")
    async with opened(tmp_path / "other") as store:
        await store.identify(genesis="0xbb", netuid=7)
    with pytest.raises(StoreError, match="another validator"):
        run_import(tmp_path / "all.jsonl", tmp_path / "other")


# ------------------------------------------------------------------------------------------------ verify


@pytest.mark.parametrize(("harm", "words"), [
    ("UPDATE submissions SET status = 'queued' WHERE status = 'running'", "not in the state that its history says"),
    ("DELETE FROM verdicts", "scored without an accepted verdict"),
    ("DELETE FROM sources", "has none"),
    ("UPDATE submissions SET reason = NULL", "without a reason"),
    ("UPDATE submissions SET verdict = 'accepted'", "not its state's"),
    ("DELETE FROM events WHERE seq = 5", "follows a gap"),
    ("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)", "not the number that was noted"),
    ("DELETE FROM submissions WHERE status = 'scored'", "refers to a row"),
    ("UPDATE submissions SET reason = '{\"code\": 1}' WHERE reason IS NOT NULL", "the reason cannot be read"),
    ("UPDATE runs SET run = x'00'", "the run cannot be read"),
    ("UPDATE files SET content = x'00'", "is not what its hash says"),
    ("PRAGMA user_version = 99", "version 99"),
])
async def test_verify_finds(tmp_path, harm, words):
    await fill(tmp_path)
    assert run_verify(tmp_path) == []
    with sqlite3.connect(tmp_path / "crusades.db") as db:
        db.execute(harm)
    db.close()
    found = run_verify(tmp_path)
    assert any(words in problem for problem in found), found


async def test_verify_says_when_the_file_itself_is_damaged_or_missing(tmp_path):
    await fill(tmp_path)
    raw = bytearray((tmp_path / "crusades.db").read_bytes())
    raw[8192:20480] = b"\xff" * 12288
    (tmp_path / "bad.db").write_bytes(raw)
    try:
        assert run_verify(tmp_path / "bad.db") != []
    except StoreError as error:
        assert "damaged" in str(error)  # noqa: PT017 - either way is fine, as long as it is said
    with pytest.raises(StoreError, match="there is no database"):
        run_verify(tmp_path / "nosuch")


# ------------------------------------------------------------------------------------------------ the command


async def test_the_command_line(tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    await fill(state)
    place = ["--state-dir", str(state)]
    assert main(["backup", str(tmp_path / "copy.db"), *place]) == 0
    assert main(["export", str(tmp_path / "all.jsonl"), *place]) == 0
    assert main(["import", str(tmp_path / "all.jsonl"), "--state-dir", str(tmp_path / "new")]) == 0
    assert main(["restore", str(tmp_path / "copy.db"), *place]) == 0
    assert main(["verify", *place]) == 0
    said = capsys.readouterr().out
    for words in ("backed up to", "exported 7 submissions", "7 submissions added", "restored", "is sound"):
        assert words in said
    assert main(["verify", str(tmp_path / "copy.db"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"problems": []}
    with sqlite3.connect(state / "crusades.db") as db:
        db.execute("DELETE FROM verdicts")
    db.close()
    monkeypatch.setenv("STATE_DIRECTORY", str(state))
    assert main(["verify"]) == 1
    assert main(["backup"]) == 0
    assert len(store_schema.backups(state)) == 2


def test_without_a_state_directory_the_only_one_is_meant_and_two_must_be_named(tmp_path, monkeypatch):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="there is none"):
        store_tools.default_state_dir()
    for name in ("finney-3", "dev-1"):
        (tmp_path / "crusades" / name).mkdir(parents=True)
        (tmp_path / "crusades" / name / "crusades.db").touch()
        if name == "finney-3":
            assert store_tools.default_state_dir() == tmp_path / "crusades" / "finney-3"
    with pytest.raises(UsageError, match="several"):
        store_tools.default_state_dir()
