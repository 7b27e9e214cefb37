"""The validator's duty on a dev chain, with the whole daemon: weights proven, rehearsed, burned, held, and never doubled."""

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from chain_house import ChainHouse, until
from chain_world import NETUID, open_world

from crusades import hparams, validator
from crusades.daemon import make_context
from crusades.errors import MustNotRestart
from crusades.store import open_store
from crusades.weights_ours import Ours


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
async def house(tmp_path, request):
    async with open_world(tmp_path, sealing="interval", block_time=0.1, reveal_blocks=4, tempo=20, commit_reveal=request.param) as world:
        yield ChainHouse(world)


def on_chain(world):
    """Our weights, as the node itself holds them."""
    return world.net.weights(NETUID, world.net.uid(NETUID, world.validator.hotkey.ss58_address))


async def scored(house):
    """A submission that is paid."""
    await house.commit(house.world.miner, "a", 40.0, reveal=4)

    async def equal():
        return (await house.context.store.weights()).equal

    await until(equal, 30)


def rehearsals(ctx, result):
    """How many had this result."""
    return ctx.metrics.rehearsals.labels(result=result)._value.get()


async def handed_over(world, nursery, send):
    """Start sending, and return when the extrinsic is in the node's pool."""
    before = world.calls("author_submitExtrinsic")
    nursery.start_soon(send)

    async def arrived():
        return world.calls("author_submitExtrinsic") > before

    await until(arrived, 5)


async def test_a_burn_share_is_on_chain_for_the_uid_of_the_owner(house):
    import msgspec

    house.settings = msgspec.structs.replace(house.settings, scoring=msgspec.structs.replace(house.settings.scoring, burn=0.25))
    async with house.running() as ctx:
        await scored(house)
        told = await ctx.store.weights()
    miner = house.world.net.uid(NETUID, house.world.miner.hotkey.ss58_address)
    assert set(on_chain(house.world)) == {0, miner}
    assert told.on_chain == pytest.approx({0: 0.25, miner: 0.75}, abs=1e-4)
    assert told.applied_block is not None


async def test_weights_that_another_process_set_end_the_daemon_with_the_code_that_is_not_restarted(house):
    world = house.world
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the story is the point
        async with house.running():
            await scored(house)
            async with world.another() as twin:  # within the same blocks in which ours may be
                await trio.sleep(0.5)
                await twin.set_weights(await twin.preflight_weights({world.miner.hotkey.ss58_address: 1.0}))
            await trio.sleep(20)
    assert [type(error) for error in validator.leaves(caught.value)] == [MustNotRestart]
    assert validator.exit_code(caught.value) == 3


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("same_block", [False, True], ids=["the block before", "the same block"])
async def test_weights_that_another_process_set_are_noticed_although_ours_took_their_place(tmp_path, sealed, same_block):
    async with (open_world(tmp_path, sealing="manual", commit_reveal=sealed) as world, world.another() as twin,
                open_store(tmp_path / "state", world.bridge, hparams.load().store) as store):  # fmt: skip
        house = ChainHouse(world)
        ctx, ours = make_context(house.config(None), store, world.chain, is_dev=True), Ours()
        await world.blocks(3)
        await ours.meet(ctx, await world.chain.read_weights())

        async def send():
            ours.included((await world.chain.set_weights(plan, signed=lambda sent: ours.signed(ctx, plan, sent))).block)

        async def look():
            await world.blocks(3)
            ctx.board.finalized_block = (await world.chain.head()).finalized
            await ours.beware(ctx, await world.chain.read_weights())

        plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
        async with trio.open_nursery() as nursery:
            await handed_over(world, nursery, send)
            await world.blocks()
        await look()
        plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
        async with trio.open_nursery() as nursery:
            await handed_over(world, nursery, partial(twin.set_weights, plan))
            await world.blocks(0 if same_block else 1)
            await handed_over(world, nursery, send)
            await world.blocks()
        with pytest.raises(MustNotRestart, match="not by this process"):
            await look()


@asynccontextmanager
async def sealed_and_switched_off(tmp_path):
    """A world with sealed weights of ours on their way, and commit-reveal switched off by the subnet's owner before they are opened."""
    async with (open_world(tmp_path, sealing="manual", commit_reveal=True, tempo=10) as world,
                open_store(tmp_path / "state", world.bridge, hparams.load().store) as store):  # fmt: skip
        ctx, ours = make_context(ChainHouse(world).config(None), store, world.chain, is_dev=True), Ours()
        await world.blocks(3)
        await ours.meet(ctx, await world.chain.read_weights())
        plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})

        async def send():
            ours.included((await world.chain.set_weights(plan, signed=lambda sent: ours.signed(ctx, plan, sent))).block)

        async with trio.open_nursery() as nursery:
            await handed_over(world, nursery, send)
            await world.blocks()
        world.net.set_hyperparameter(NETUID, "CommitRevealWeightsEnabled", False)
        yield world, ctx, ours


async def head(world, ctx):
    """Our weights at the best head, all but two blocks of which are final."""
    ctx.board.finalized_block = (await world.chain.head()).finalized
    return await world.chain.read_weights()


async def until_opened(world, ctx, ours):
    """Blocks, one by one, each of them looked at, until the chain has opened our weights."""
    for _ in range(30):
        await world.blocks()
        held = await head(world, ctx)
        await ours.beware(ctx, held)
        if held.by_uid:
            return held
    raise AssertionError("nothing was opened")


async def test_weights_that_the_chain_opened_with_commit_reveal_switched_off_are_ours(tmp_path):
    async with sealed_and_switched_off(tmp_path) as (world, ctx, ours):
        held = await until_opened(world, ctx, ours)
        assert held.last_update == held.block  # it moved, and no alarm was raised
        await world.blocks(3)
        await Ours().meet(ctx, await head(world, ctx))  # the next start knows it
        assert [window for window in await ctx.store.weights_journal() if window[0] == window[1]] == [(held.block, held.block)]


async def test_a_state_that_did_not_seal_what_the_chain_opened_is_a_restored_backup(tmp_path):
    async with sealed_and_switched_off(tmp_path) as (world, ctx, ours), open_store(tmp_path / "backup", world.bridge, hparams.load().store) as backup:
        await backup.record_weights(asked={0: 1.0}, block=1, first=1, last=1)
        await until_opened(world, ctx, ours)
        old = make_context(ChainHouse(world).config(None), backup, world.chain, is_dev=True)
        with pytest.raises(MustNotRestart, match="restored backup"):
            await Ours().meet(old, await head(world, old))


async def test_weights_that_another_process_set_in_the_block_in_which_ours_were_opened_are_not_ours(tmp_path):
    async with sealed_and_switched_off(tmp_path) as (world, ctx, ours), world.another() as twin:
        while (await world.chain.head()).best < 9:  # the epoch of tempo 10 ends with block 10
            await world.blocks()
            await ours.beware(ctx, await head(world, ctx))
        plan = await twin.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
        async with trio.open_nursery() as nursery:
            await handed_over(world, nursery, partial(twin.set_weights, plan))
            await world.blocks()
        held = await head(world, ctx)
        assert await world.chain.call(partial(opened_anything, block=held.last_update))
        with pytest.raises(MustNotRestart, match="not by this process"):
            await ours.beware(ctx, held)


async def opened_anything(node, *, block):
    """Whether the chain opened sealed weights in this block."""
    events, = await (await node.state(await node.block_hash(block))).read(("System", "Events"))
    return any(event["event_id"] == "TimelockedWeightsRevealed" for event in events)


async def test_a_lost_state_holds_the_weights_until_somebody_accepts_it(house, tmp_path):
    async with house.running():
        await scored(house)
    house.state_dir = tmp_path / "another"
    async with house.running() as ctx:
        async def told():
            return "--accept-empty-state" in ctx.board.problems.get("weights", "")

        await until(told, 10)
        sent = house.world.calls("author_submitExtrinsic")
        await trio.sleep(3)
        assert house.world.calls("author_submitExtrinsic") == sent
    house.extra["accept_empty_state"] = True
    async with house.running() as ctx:
        async def equal():
            return (await ctx.store.weights()).equal

        await until(equal, 30)


async def test_the_duty_is_rehearsed_each_epoch_before_anybody_has_scored_and_nothing_is_sent(house):
    world = house.world
    async with house.running() as ctx:
        async def twice():
            return rehearsals(ctx, "hit") >= 2

        await until(twice, 15)
        world.net.set_stake(NETUID, world.validator.hotkey.ss58_address, 0)
        world.net.put("StakeThreshold", (), 10**9)

        async def missed():
            return rehearsals(ctx, "miss") >= 1

        await until(missed, 15)
        assert world.calls("author_submitExtrinsic") == 0
        assert world.calls("crusades_oracle") == 0
