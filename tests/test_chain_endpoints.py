"""Several endpoints: each is held to the genesis before it is believed, and what one has forgotten is asked of another."""

from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from chain_world import NETUID, REVEAL, SETTINGS, open_world, payload, world  # noqa: F401  (world is a fixture)

from crusades import chain as chains
from crusades.chain_archive import GIVE_UP, Archives
from crusades.chain_records import Failed, NoArchive, Pruned, Unresolved
from crusades.devnet import DevnetConfig, open_devnet
from crusades.errors import ChainError

NOWHERE = "ws://127.0.0.1:1"


@asynccontextmanager
async def adapter(w, *endpoints, **changes):
    """A fresh adapter on this world's chain, with further endpoints."""
    settings = msgspec.structs.replace(SETTINGS, endpoints=endpoints, **changes)
    async with chains.open_chain(settings, w.net.url, NETUID, w.bridge, wallet=w.validator) as chain:
        yield chain


def again(w):
    """The same node under another address."""
    return w.net.url.replace("127.0.0.1", "localhost")


async def test_an_endpoint_of_another_chain_never_serves_us(world):  # noqa: F811
    async with open_devnet(DevnetConfig(sealing="instant", block_time=0.5)) as other, adapter(world, other.url, call_deadline=1.0) as chain:
        genesis = (await chain.check()).genesis
        await trio.to_thread.run_sync(world.net.vanish)
        with pytest.raises(ChainError):
            await chain.neurons()
        assert other.calls, "it was dialled"
        assert not any("SubnetInfo" in str(call.params) for call in other.calls)
        await trio.to_thread.run_sync(world.net.appear)
        with trio.fail_after(5):
            assert (await chain.check()).genesis == genesis


async def test_a_second_endpoint_of_the_same_chain_takes_over(world):  # noqa: F811
    async with chains.open_chain(msgspec.structs.replace(SETTINGS, endpoints=(world.net.url,)), NOWHERE, NETUID, world.bridge) as chain:
        assert (await chain.check()).endpoint == world.net.url


# ------------------------------------------------------------------------------------------------ what became of an extrinsic


@pytest.mark.parametrize("lie", [None, "0x00"], ids=["nothing", "no events"])
async def test_an_extrinsic_whose_events_the_node_does_not_show_has_not_failed(world, lie):  # noqa: F811
    told = []
    await world.chain.set_weights(await world.chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0}), signed=told.append)
    world.fault("wrong", "state_getStorageAt", "state_getStorage", count=None, result=lie)
    with pytest.raises(ChainError) as caught:
        await world.chain.resolve(told[0])
    assert not isinstance(caught.value, Failed | Unresolved)
    assert "no clear answer" in str(caught.value)
    world.net.faults.clear()
    assert (await world.chain.resolve(told[0])).block == (await world.chain.read_weights()).last_update


async def test_a_failure_is_told_in_the_chains_words(world):  # noqa: F811
    call = chains.bt.calls.Balances.transfer_keep_alive(dest={"Id": world.validator.hotkey.ss58_address}, value=10**15)
    with pytest.raises(Failed, match=r"Insufficient|FundsUnavailable"):
        await world.chain._sender.send(call, world.miner.coldkey, "too much")


# ------------------------------------------------------------------------------------------------ what a node has forgotten


async def test_an_archive_that_is_down_hides_only_the_rows_that_need_it(tmp_path):
    async with open_world(tmp_path) as w:
        await w.chain.commit(payload("a"), w.miner, REVEAL)
        await w.blocks(REVEAL)
        await w.chain.commit(payload("b"), w.miner, REVEAL)
        await w.blocks(40)
        await trio.to_thread.run_sync(w.net.prune, 5)
        async with adapter(w, NOWHERE) as chain:
            for _ in range(3):
                rows = await chain.commitments()
                assert [row.payload.sha256[0] for row in rows] == ["b"], "its commit block is in today's state"
            assert chain._link.dials == 1
            assert chain.problem == ""


async def test_commit_blocks_that_the_node_has_pruned_come_from_an_archive(world):  # noqa: F811
    done = await world.chain.commit(payload("a"), world.miner, REVEAL)
    await world.blocks(REVEAL)
    await world.chain.commit(payload("b"), world.miner, REVEAL)
    await world.blocks(REVEAL)
    async with adapter(world, again(world)) as chain:
        await chain.check()
        world.fault("error", "state_queryStorageAt", skip=2, message="State already discarded for 0x12")  # the look at the block before the reveal
        rows = await chain.commitments()
        assert world.net.faults.struck == 1
    assert (rows[0].commit_block, rows[0].commit_block_exact) == (done.block, True)


@pytest.mark.parametrize(("kind", "more"), [("wrong", {"result": None}), ("error", {"message": "UnknownBlock: header was not found"})])
async def test_a_receipt_of_a_forgotten_block_is_looked_up_in_an_archive(world, kind, more):  # noqa: F811
    settings = {"fee_rao": 10**9, "fee_address": world.validator.coldkeypub.ss58_address}
    async with adapter(world, again(world), **settings) as chain:
        named = await chain.pay_fee(world.miner)
        world.fault(kind, "chain_getBlock", **more)
        assert (await chain.receipt(named)).id == named
    async with adapter(world, **settings) as chain:
        world.fault(kind, "chain_getBlock", **more)
        with pytest.raises(Pruned):
            await chain.receipt(named)


async def test_weights_in_a_forgotten_block_are_found_through_an_archive(world):  # noqa: F811
    told = []
    async with adapter(world, again(world)) as chain:
        done = await chain.set_weights(await chain.preflight_weights({world.miner.hotkey.ss58_address: 1.0}), signed=told.append)
        world.fault("wrong", "chain_getBlock", result=None)
        assert (await chain.resolve(told[0])).block == done.block


async def test_nonsense_about_the_dev_chain_is_the_nodes_fault(world):  # noqa: F811
    """Found by the random faults: it ended a miner's command in a traceback."""
    async with adapter(world) as chain:
        world.fault("wrong", "crusades_info", result="no object")
        with pytest.raises(ChainError):
            await chain.opens_after(4)
        assert await chain.opens_after(4) == (await chain.call(lambda node: node.rpc("crusades_info")))["reveal_blocks"]


# ------------------------------------------------------------------------------------------------ the pool, by itself


class Down(Exception):
    """The endpoint is to blame."""


class Pool:
    """Endpoints by what they answer: a value, or an exception."""

    def __init__(self, **answers):
        self.answers, self.asked, self.now = answers, [], 1000.0
        self.archives = Archives(list(answers), dial=self.dial, hang_up=self.hang_up, is_trouble=lambda error: isinstance(error, Down), patience=1.0, rest=60.0,
                                 now=lambda: self.now)

    async def dial(self, endpoint):
        return endpoint

    async def hang_up(self, _):
        pass

    async def question(self, endpoint):
        self.asked.append(endpoint)
        answer = self.answers[endpoint]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def ask(self, bridge, but=""):
        return await bridge.run(lambda: self.archives.ask(self.question, but=but))


async def test_the_next_is_asked_where_one_has_forgotten_and_never_the_node_itself(world):  # noqa: F811
    pool = Pool(a=Pruned("gone"), b="known", c="known too")
    assert await pool.ask(world.bridge) == "known"
    assert pool.asked == ["a", "b"]
    assert await pool.ask(world.bridge, but="b") == "known too"


async def test_when_all_have_forgotten_that_is_the_answer(world):  # noqa: F811
    with pytest.raises(Pruned):
        await Pool(a=Pruned("gone"), b=Pruned("gone")).ask(world.bridge)


async def test_one_that_is_down_is_left_alone_and_may_still_know(world):  # noqa: F811
    pool = Pool(a=Down("refused"), b=Pruned("gone"))
    for _ in range(2):
        with pytest.raises(NoArchive, match=r"a cannot be asked; put an archive"):
            await pool.ask(world.bridge)
    assert pool.asked == ["a", "b", "b"]


async def test_one_that_is_down_for_an_hour_has_forgotten(world):  # noqa: F811
    pool = Pool(a=Down("refused"))
    with pytest.raises(NoArchive):
        await pool.ask(world.bridge)
    pool.now += GIVE_UP
    with pytest.raises(NoArchive):
        await pool.ask(world.bridge)
    with pytest.raises(Pruned):
        await pool.ask(world.bridge)
