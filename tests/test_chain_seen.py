"""Whatever happens to a commitment on chain is a row with a reason that people see: in the API, and as the terminal shows it.

The whole daemon on a dev chain with the real SDK; what is asked is its web application.
"""

import random
import time

import msgspec
import pytest
from chain_house import ChainHouse, until
from chain_world import NETUID, REVEAL, open_world, payload

from crusades import chain as chains
from crusades.fetch import Reason
from crusades.records import Page, Stage, Status
from crusades.tui.widgets.submissions import words_of
from crusades.web import create_app


class Viewer:
    """The daemon's web application, asked in process."""

    def __init__(self, ctx):
        self.app = create_app(ctx.store, ctx.board, ctx.hparams, rules_version="1+test")

    async def overview(self):
        return (await (await self.app.test_client().get("/api/v1/overview")).get_data()).decode()

    async def rows(self, hotkey, code=None):
        """This hotkey's rows as the API gives them (only those with a reason of that code), oldest commit first."""
        answer = await self.app.test_client().get(f"/api/v1/submissions?hotkey={hotkey}&limit=200")
        items = msgspec.json.decode(await answer.get_data(), type=Page).items
        return sorted((row for row in items if code is None or (row.reason and row.reason.code == code)), key=lambda row: row.commit_block)


@pytest.fixture
async def house(tmp_path):
    async with open_world(tmp_path, sealing="interval", block_time=0.1, tempo=20) as world:
        made = ChainHouse(world)

        async def nowhere(payload, settings):
            return Reason(code=1102, stage=Stage.FETCH, message="404.")

        made.parts["fetch"] = nowhere
        yield made


async def seen(house, hotkey, code, words):
    """Until the API shows a confirmed row of this hotkey with this reason, and the terminal its words."""
    async with house.running() as ctx:
        viewer = Viewer(ctx)

        async def shown():
            return [row for row in await viewer.rows(hotkey, code) if not row.provisional]

        await until(shown, 20)
        (row,) = await shown()
        assert (row.status, row.verdict) == (Status.REJECTED, "rejected")
        assert row.reason.hint
        assert words in row.reason.message
        assert words in words_of(row, time.time()).plain
        return row


async def test_a_seal_is_seen_before_it_is_opened(house):
    async with house.running() as ctx:
        viewer = Viewer(ctx)
        done = await house.commit(house.world.miner, "x", 40.0, reveal=100)
        await until(lambda: viewer.rows(house.world.miner.hotkey.ss58_address), 2.0)
        (row,) = await viewer.rows(house.world.miner.hotkey.ss58_address)
        assert (row.status, row.commit_block, row.url) == (Status.SEALED, done.block, "")


async def test_a_seal_that_cannot_be_opened(house):
    call = chains.bt.calls.Commitments.set_commitment(
        netuid=NETUID, info={"fields": [[{"TimelockEncrypted": {"encrypted": b"no ciphertext at all", "reveal_round": 1000}}]]})
    done = await house.world.chain._sender.send(call, house.world.miner.hotkey, "a bad seal")
    row = await seen(house, house.world.miner.hotkey.ss58_address, 1002, "could not open the sealed commitment")
    assert row.commit_block == done.block


async def test_a_seal_that_was_overwritten(house):
    async with house.running() as ctx:
        first = await house.commit(house.world.miner, "a", 40.0)
        await until(lambda: Viewer(ctx).rows(house.world.miner.hotkey.ss58_address), 5.0)
        await house.commit(house.world.miner, "b", 41.0)
    row = await seen(house, house.world.miner.hotkey.ss58_address, 1003, "replaced this one")
    assert row.commit_block == first.block


@pytest.mark.parametrize(("back", "words"), [(False, "is not registered"), (True, "registered anew")])
async def test_a_commitment_of_who_was_deregistered_and_perhaps_came_back(house, back, words):
    world, hotkey = house.world, house.world.miner.hotkey.ss58_address
    await house.commit(world.miner, "a", 40.0)
    await world.blocks(REVEAL)
    world.net.replace(NETUID, world.net.uid(NETUID, hotkey), world.wallet("other", register=False).hotkey.ss58_address)
    await world.blocks(2)
    if back:
        world.net.register(NETUID, hotkey)
        await world.blocks()
    await seen(house, hotkey, 1006, words)


@pytest.mark.parametrize(("raw", "words"), [
    (b'{"model": "x", "revision": 3}', "but JSON"), (b"someone/model@abcdef", "the name of a repository"), (b"a|b|c", "fields with |"),
    (b"", "is empty"), (b"\xff\xfe\x00", "not UTF-8"), (payload("a")[:-3] + b"   ", "unprintable"), (b"c1:" + b"a" * 63 + b":https://x/y", "63 characters")])
async def test_payloads_of_other_programs_and_broken_ones(house, raw, words):
    hotkey = house.world.miner.hotkey.ss58_address
    house.world.net.set_reveals(NETUID, hotkey, [(raw, 1)])
    row = await seen(house, hotkey, 1001, words)
    assert row.reason.rule in ("foreign", "malformed")


async def test_every_payload_of_a_fuzz_corpus_is_a_row_with_a_reason(house):
    dice, world, corpus = random.Random(7), house.world, {}
    for number in range(30):
        hotkey = chains.core.Keypair.create_from_uri(f"//fuzz{number}").ss58_address
        world.net.register(NETUID, hotkey)
        corpus[hotkey] = [(mutated(dice), block) for block in range(1, 11)]
        world.net.set_reveals(NETUID, hotkey, corpus[hotkey])
    async with house.running() as ctx:
        viewer = Viewer(ctx)

        async def rejected():
            return [row for hotkey in corpus for row in await viewer.rows(hotkey) if row.status is Status.REJECTED and not row.provisional]

        async def all_rejected():
            return len(await rejected()) == 300

        await until(all_rejected, 30)
        for row in await rejected():
            assert row.reason.message
            assert words_of(row, time.time()).plain


def mutated(dice):
    """Random bytes, or a good payload with a few bytes changed, cut out, doubled or put in front."""
    if dice.random() < 0.3:
        return dice.randbytes(dice.randrange(0, 700))
    raw = bytearray(payload(dice.choice("abcdef"), dice.choice([None, "900-2"])))
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(raw))
        match dice.randrange(4):
            case 0:
                raw[at] = dice.randrange(256)
            case 1:
                del raw[at:at + dice.randrange(1, 9)]
            case 2:
                raw[at:at] = raw[at:at + 5]
            case _:
                raw[:0] = dice.randbytes(dice.randrange(1, 4))
        raw = raw or bytearray(b"x")
    return bytes(raw)


async def test_a_runtime_without_our_call_holds_the_weights_and_says_so(house):
    world = house.world
    async with house.running() as ctx:
        viewer = Viewer(ctx)

        async def told():
            return "set_mechanism_weights" in await viewer.overview()

        async def silent():
            return not await told()

        world.net.upgrade("set_mechanism_weights")
        await until(told, 20)
        world.net.upgrade()
        await until(silent, 20)
