"""Outages as stories: nothing committed is lost, nothing is sent twice, and in the end the chain holds what was asked."""

import time

import pytest
import trio
from chain_chaos import tell, verdict
from chain_house import ChainHouse
from chain_world import NETUID, open_world
from trio.testing import MockClock

from crusades import hparams
from crusades.chain_weights import arrived
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


async def keep(chain, asked, errors):
    """A validator's weight keeper: look, send when it differs, look again."""
    while True:
        try:
            held, plan = await chain.read_weights(), await chain.preflight_weights(asked)
            if arrived(plan.by_uid, held.by_uid):
                return
            if not plan.refused:
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


@pytest.mark.parametrize("commit_reveal", [False, True])
async def test_a_node_that_restarts_mid_extrinsic_vanishes_for_an_hour_and_returns_pruned_and_upgraded(tmp_path, clock, commit_reveal):
    """The whole daemon: in the end the chain holds the vector that its scoring asks for, and nothing was lost or taken for foreign."""
    settings = hparams.Chain(call_deadline=20.0, redial_first=0.5, redial_max=30.0, poll_interval=3.0, weights_deadline=120.0)
    async with open_world(tmp_path, settings, sealing="interval", block_time=0.05, commit_reveal=commit_reveal) as w:
        house, late = ChainHouse(w), w.wallet("late")
        async with trio.open_nursery() as flying:
            flying.start_soon(fly, clock, w.bridge)
            async with house.running() as ctx:
                await an_hour_of_silence(w, house, late)
                await until_async(lambda: at_rest(w, house))
                told = await ctx.store.weights()
                rows = {row.hotkey: row for row in (await ctx.store.submissions()).items}
            flying.cancel_scope.cancel()
        assert w.net.weights(NETUID, w.net.uid(NETUID, w.chain.hotkey)) == {w.net.uid(NETUID, late.hotkey.ss58_address): 65535}
        assert (told.equal, list(told.on_chain.values())) == (True, [1.0])
        row = rows[late.hotkey.ss58_address]
        assert (row.status, row.commit_block, row.commit_block_exact, row.provisional) == (Status.SCORED, house.late_block, True, False)
        assert rows[w.miner.hotkey.ss58_address].status is Status.SCORED


async def an_hour_of_silence(w, house, late):
    """The first weights are on their way to a node that says nothing any more, restarts, and is gone; a better submission is
    revealed meanwhile."""
    await house.commit(w.miner, "early", 40.0)
    house.late_block = (await house.commit(late, "late", 50.0, reveal=40)).block
    w.net.calls.clear()
    w.fault("silence", "author_submitExtrinsic")
    await until(lambda: w.calls("author_submitExtrinsic"))
    await trio.to_thread.run_sync(w.net.close_connections)
    await trio.to_thread.run_sync(w.net.vanish)
    left_at = trio.current_time()
    await trio.sleep(3600)
    assert house.context.board.problems["chain"]
    w.net.prune(8)
    w.net.upgrade()
    await trio.to_thread.run_sync(w.net.appear)
    assert trio.current_time() - left_at >= 3600


async def at_rest(w, house):
    """Everybody is judged, nothing is wrong any more, and the chain holds what scoring asks for."""
    rows = (await house.context.store.submissions()).items
    if house.context.board.problems or len(rows) < 2 or not all(row.status.final and not row.provisional for row in rows):
        return False
    try:
        return arrived(await house.asked(), (await w.chain.read_weights()).by_uid) and (await house.context.store.weights()).equal
    except ChainError:
        return False


async def until_async(condition):
    """`until`, for a condition that must be awaited and may take some real blocks and judgements."""
    deadline = time.monotonic() + 120
    while not await condition():
        assert time.monotonic() < deadline
        await trio.to_thread.run_sync(time.sleep, 0.02)


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
            await keep(w.chain, asked, [])
            nursery.cancel_scope.cancel()
        assert w.net.weights(NETUID, w.net.uid(NETUID, w.chain.hotkey)) == {w.net.uid(NETUID, w.miner.hotkey.ss58_address): 65535}
