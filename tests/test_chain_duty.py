"""The validator's duty on a dev chain, with the whole daemon: weights proven, rehearsed, burned, held, and never doubled."""

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

        async def handed_over(nursery, send):
            before = world.calls("author_submitExtrinsic")
            nursery.start_soon(send)

            async def arrived():
                return world.calls("author_submitExtrinsic") > before

            await until(arrived, 5)

        async def send():
            ours.included((await world.chain.set_weights(plan, signed=lambda sent: ours.signed(ctx, plan, sent))).block)

        async def look():
            await world.blocks(3)
            ctx.board.finalized_block = (await world.chain.head()).finalized
            await ours.beware(ctx, await world.chain.read_weights())

        plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
        async with trio.open_nursery() as nursery:
            await handed_over(nursery, send)
            await world.blocks()
        await look()
        plan = await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0})
        async with trio.open_nursery() as nursery:
            await handed_over(nursery, partial(twin.set_weights, plan))
            await world.blocks(0 if same_block else 1)
            await handed_over(nursery, send)
            await world.blocks()
        with pytest.raises(MustNotRestart, match="not by this process"):
            await look()


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
