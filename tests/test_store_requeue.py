"""`crusades store requeue`: a person takes back what a fault of ours has ended."""

import pytest
import trio
from store_kit import at_stage, opened, reason, record, revealed, source

from crusades.errors import StateLocked, StoreError
from crusades.records import Stage, Status
from crusades.store_tools import main


async def requeue(state_dir, id_):
    return await trio.to_thread.run_sync(main, ["requeue", id_, "--state-dir", str(state_dir)])


async def test_a_faulted_submission_is_queued_again_and_its_history_says_by_whom(tmp_path, capsys):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, Status.FAULTED)
    assert await requeue(tmp_path, id_) == 0
    assert f"{id_} is queued again" in capsys.readouterr().out
    async with opened(tmp_path) as store:
        found = await store.submission(id_)
    assert found.submission.status is Status.QUEUED
    assert found.submission.verdict is None
    assert "by hand" in found.transitions[-1].reason.message


@pytest.mark.parametrize("status", [Status.QUEUED, Status.SCORED, Status.REJECTED])
async def test_nothing_else_is_queued_again(tmp_path, status):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, status)
    with pytest.raises(StoreError, match=f"is {status.value}; only a faulted one"):
        await requeue(tmp_path, id_)


async def test_what_faulted_before_the_rules_were_checked_does_not_get_past_them(tmp_path):
    async with opened(tmp_path) as store:
        row = revealed()
        await record(store, row)
        await store.save_source(row.submission_id, source())
        await store.transition(row.submission_id, Status.FETCHED, block=1)
        await store.transition(row.submission_id, Status.FAULTED, reason=reason("sandbox", Stage.CHECK))
    with pytest.raises(StoreError, match="before the rules were checked"):
        await requeue(tmp_path, row.submission_id)


async def test_it_is_refused_while_a_validator_runs(tmp_path):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, Status.FAULTED)
        with pytest.raises(StateLocked):
            await requeue(tmp_path, id_)


async def test_a_wrong_id_or_folder_is_said_and_makes_nothing(tmp_path):
    async with opened(tmp_path / "state"):
        pass
    with pytest.raises(StoreError, match="there is no submission nope"):
        await requeue(tmp_path / "state", "nope")
    with pytest.raises(StoreError, match="there is no database"):
        await requeue(tmp_path / "other", "nope")
    assert not (tmp_path / "other").exists()
