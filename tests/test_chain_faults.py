"""Outages as stories: nothing committed is lost, nothing is sent twice, and in the end the chain holds what was asked."""

import time

import pytest
import trio
from chain_chaos import tell, verdict
from chain_world import NETUID, REVEAL, open_world, payload
from trio.testing import MockClock

from crusades import hparams
from crusades.chain_weights import arrived, foreign_update
from crusades.errors import ChainError, ChainIncompatible
from crusades.records import Status


async def test_nothing_is_lost_or_invented_under_random_faults(tmp_path):
    story = await tell(tmp_path, seed=1, faults=15)
    assert verdict(story) == "", story.errors
    assert story.struck


async def until(condition):
    """Look again and again, in real time; twenty seconds are the end."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await trio.to_thread.run_sync(time.sleep, 0.01)


async def keep(chain, asked, windows, errors):
    """A validator's weight keeper: look, send when it differs, look again."""
    while True:
        try:
            held, plan = await chain.read_weights(), await chain.preflight_weights(asked)
            if arrived(plan.by_uid, held.by_uid):
                return
            if not plan.refused:
                windows.append(chain.window(plan))
                await chain.set_weights(plan)
        except ChainError as error:
            errors.append(type(error).__name__)
        await trio.sleep(1.0)


@pytest.fixture
def clock():
    """A clock that stands still but for `fly`."""
    return MockClock()


async def fly(clock, bridge):
    """Let virtual time pass, a second in two real milliseconds, whenever nothing of ours waits for the real world."""
    while True:
        await trio.to_thread.run_sync(time.sleep, 0.002)
        if not bridge.in_flight:
            clock.jump(1.0)


async def test_a_node_that_restarts_mid_extrinsic_vanishes_for_an_hour_and_returns_pruned_and_upgraded(tmp_path, clock):
    settings = hparams.Chain(call_deadline=20.0, redial_first=0.5, redial_max=30.0, poll_interval=3.0, weights_deadline=120.0)
    async with open_world(tmp_path, settings, sealing="interval", block_time=0.05) as w:
        asked = {w.miner.hotkey.ss58_address: 0.75, (await w.chain.owner()).hotkey: 0.25}
        windows, errors = [], []
        async with trio.open_nursery() as flying:
            flying.start_soon(fly, clock, w.bridge)
            done = await w.chain.commit(payload(), w.miner, REVEAL)
            await w.chain.commitments()
            await hour_of_silence(w, asked, windows, errors)
            flying.cancel_scope.cancel()
        held = await w.chain.read_weights()
        assert arrived((await w.chain.preflight_weights(asked)).by_uid, held.by_uid)
        assert not foreign_update(held.last_update, windows)
        assert errors
        head = await w.chain.head()
        (row,) = await w.chain.commitments(head.finalized_hash)
        assert (row.commit_block, row.commit_block_exact, row.state) == (done.block, True, Status.REVEALED)


async def hour_of_silence(w, asked, windows, errors):
    w.net.calls.clear()
    w.fault("silence", "author_submitExtrinsic")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, w.chain, asked, windows, errors)
        await until(lambda: w.calls("author_submitExtrinsic"))
        await trio.to_thread.run_sync(w.net.vanish)
        left_at = trio.current_time()
        await trio.sleep(3600)
        assert w.chain.problem
        w.net.prune(8)
        w.net.upgrade()
        await trio.to_thread.run_sync(w.net.appear)
    assert trio.current_time() - left_at >= 3600


async def test_an_upgrade_that_lacks_a_call_holds_the_weights_until_the_next_one_has_it(tmp_path, clock):
    settings = hparams.Chain(call_deadline=20.0, redial_first=0.5, redial_max=4.0, weights_deadline=60.0)
    async with open_world(tmp_path, settings, sealing="interval", block_time=0.05, commit_reveal=True, tempo=10) as w:
        asked = {w.miner.hotkey.ss58_address: 1.0}
        w.net.upgrade("commit_timelocked_mechanism_weights")
        seen = []
        async with trio.open_nursery() as nursery:
            async def heads():
                async for head in w.chain.heads():
                    seen.append(head)  # noqa: PERF401  (it never ends)

            nursery.start_soon(heads)
            nursery.start_soon(fly, clock, w.bridge)
            await until(lambda: w.chain.missing)
            with pytest.raises(ChainIncompatible):
                await w.chain.preflight_weights(asked)
            before = len(seen)
            await until(lambda: len(seen) >= before + 3)
            w.net.upgrade()
            await until(lambda: not w.chain.missing)
            await keep(w.chain, asked, [], [])
            nursery.cancel_scope.cancel()
        assert w.net.weights(NETUID, w.net.uid(NETUID, w.chain.hotkey)) == {w.net.uid(NETUID, w.miner.hotkey.ss58_address): 65535}
