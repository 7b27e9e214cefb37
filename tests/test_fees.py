"""The fee's whole way through the daemon: when a receipt pays, what it is spent on, and when its miner has it back.

The first stories have a stand-in for the chain and run on the virtual clock; the last ones pay for real, on a dev chain.
"""

import msgspec
import pytest
import trio
from chain_house import ChainHouse
from chain_world import SETTINGS as CHAIN
from chain_world import open_world
from daemon_house import House
from fakes import make_commitment, make_source

from crusades import chain as chains
from crusades import submission
from crusades.chain_records import Failed, Pruned, Receipt
from crusades.errors import ChainError, FetchFault
from crusades.intake import FIRST_RETRY
from crusades.records import Commitment, Finding, Neuron, Status

FEE, TREASURY, COLDKEY = 2 * 10**9, "5Treasury", "5Cold2"
PAID = Receipt(id="8-1", block=8, signer=COLDKEY, destination=TREASURY, amount_rao=FEE, success=True)


@pytest.fixture
async def house(tmp_path):
    """A daemon that asks for a fee of 2 τ."""
    made = House(tmp_path / "state")
    made.settings = msgspec.structs.replace(made.settings, chain=msgspec.structs.replace(made.settings.chain, fee_rao=FEE, fee_address=TREASURY))
    made.chain.neuron_list[2] = Neuron(uid=2, hotkey="5Miner2", coldkey=COLDKEY)
    return made


def commit(house, text="# mfu 40", *, block=10, receipt="8-1", hotkey="5Miner2", uid=2):
    """A revealed submission of uid 2 whose payload names a receipt; its id."""
    source = make_source(text, url=f"https://files.example/{hotkey}/{block}.py")
    house.serve_file(source)
    row = make_commitment(hotkey, block, source, uid=uid, receipt=receipt)
    house.chain.rows.append(row)
    return row.submission_id


# ------------------------------------------------------------------------------------------------ does it pay?


@pytest.mark.parametrize("signer", [COLDKEY, "5Miner2"])
async def test_a_paid_submission_is_judged_and_its_receipt_spent(house, signer, autojump_clock):
    house.chain.receipts["8-1"] = msgspec.structs.replace(PAID, signer=signer)
    id_ = commit(house)
    async with house.running() as ctx:
        assert (await house.until(id_)).submission.status is Status.SCORED
        assert await ctx.store.receipt_holder("8-1") == id_


@pytest.mark.parametrize(("receipt", "shown", "says"), [
    (None, None, "names no receipt"),
    ("8-1", None, "holds no transfer 8-1"),
    ("8-1", {"amount_rao": FEE - 1}, "the fee is 2 τ"),
    ("8-1", {"destination": "5Elsewhere"}, "went to 5Elsewhere"),
    ("8-1", {"signer": "5Thief"}, "signed by 5Thief"),
    ("8-1", {"success": False}, "failed"),
    ("11-1", {"block": 11}, "not within"),
])
async def test_an_unpaid_submission_is_rejected_before_its_file_is_fetched(house, receipt, shown, says, autojump_clock):
    if shown is not None:
        house.chain.receipts[receipt] = msgspec.structs.replace(PAID, **shown)
    id_ = commit(house, receipt=receipt)
    async with house.running() as ctx:
        reason = (await house.until(id_)).submission.reason
        assert reason.code == 1007
        assert says in reason.message
        assert receipt is None or await ctx.store.receipt_holder(receipt) is None
    assert house.files.asked == []


async def test_who_paid_the_fee_of_its_commit_block_has_paid_though_the_fee_is_raised(house, autojump_clock):
    house.chain.receipts["8-1"] = ChainError("the node is down")
    id_ = commit(house)
    async with house.running():
        await house.until(id_, Status.REVEALED)
    house.chain.receipts["8-1"] = PAID
    house.settings = msgspec.structs.replace(house.settings, chain=msgspec.structs.replace(house.settings.chain, fee_rao=2 * FEE))
    async with house.running():
        assert (await house.until(id_)).submission.status is Status.SCORED
        later = commit(house, "# mfu 41", block=house.chain.block + 1)
        assert "the fee is 4 τ" in (await house.until(later)).submission.reason.message


async def test_a_longer_interval_does_not_reach_back(house, autojump_clock):
    house.settings = msgspec.structs.replace(house.settings, chain=msgspec.structs.replace(house.settings.chain, fee_rao=0, min_commit_interval=5))
    first, second = commit(house), commit(house, "# mfu 41", block=18)
    house.files.served = {url: FetchFault("down") for url in house.files.served}
    async with house.running():
        await house.until(second, Status.REVEALED)
    house.settings = msgspec.structs.replace(house.settings, chain=msgspec.structs.replace(house.settings.chain, min_commit_interval=50))
    third = commit(house, "# mfu 42", block=40)
    for row, text in ((first, "# mfu 40"), (second, "# mfu 41")):
        house.serve_file(make_source(text, url=f"https://files.example/5Miner2/{10 if row == first else 18}.py"))
    async with house.running():
        assert (await house.until(second)).submission.status is Status.SCORED
        assert (await house.until(third)).submission.reason.code == 1004


async def test_a_receipt_that_served_one_submission_does_not_serve_another(house, autojump_clock):
    house.chain.receipts["8-1"] = PAID
    first = commit(house)
    async with house.running():
        await house.until(first)
        second = commit(house, "# mfu 41", block=30)
        reason = (await house.until(second)).submission.reason
    assert (reason.code, first in reason.message) == (1007, True)


async def test_what_the_best_head_says_of_a_fee_is_judged_when_it_is_final(house, autojump_clock):
    """The transfer may be on the branch that wins."""
    house.chain.lag = 20
    id_ = commit(house)
    async with house.running():
        await trio.sleep(10 * house.chain.block_seconds)
        assert (await house.until(id_, Status.REVEALED)).submission.status is Status.REVEALED
        house.chain.receipts["8-1"] = PAID
        detail = await house.until(id_)
    assert detail.submission.status is Status.SCORED
    assert [step.status.value for step in detail.transitions].count("revealed") == 1


# ------------------------------------------------------------------------------------------------ is it spent?


async def test_a_submission_rejected_for_its_work_has_spent_its_fee(house, autojump_clock):
    house.chain.receipts["8-1"] = PAID
    id_ = commit(house, "# reject")
    async with house.running() as ctx:
        assert (await house.until(id_)).submission.reason.code == 1401
        assert await ctx.store.receipt_holder("8-1") == id_


async def test_a_submission_that_was_technically_invalid_leaves_its_fee_for_the_next(house, autojump_clock):
    house.chain.receipts["8-1"] = PAID
    house.findings = [Finding(rule="R101", line=1, column=1, message="socket is not allowed", why="w", instead="i")]
    bad = commit(house, "import socket")
    async with house.running():
        assert (await house.until(bad)).submission.reason.code == 1201
        house.findings.clear()
        good = commit(house, block=30)
        assert (await house.until(good)).submission.status is Status.SCORED


async def test_a_fault_of_ours_gives_the_fee_back(house, autojump_clock):
    house.chain.receipts["8-1"] = PAID
    id_ = commit(house, "# mfu 40\n# fault referee\n# times 99")
    async with house.running() as ctx:
        assert (await house.until(id_)).submission.status is Status.FAULTED
        assert await ctx.store.receipt_holder("8-1") is None
        again = commit(house, "# mfu 41", block=30)
        assert (await house.until(again)).submission.status is Status.SCORED


async def test_a_fault_that_passes_costs_nothing_twice(house, autojump_clock):
    house.chain.receipts["8-1"] = PAID
    id_ = commit(house, "# mfu 40\n# fault sandbox")
    async with house.running() as ctx:
        detail = await house.until(id_)
        assert (detail.submission.status, detail.submission.attempts) == (Status.SCORED, 2)
        assert await ctx.store.receipt_holder("8-1") == id_


# ------------------------------------------------------------------------------------------------ can it be looked up?


@pytest.mark.parametrize("trouble", [ChainError("the node is down"), Pruned("State already discarded")])
async def test_a_receipt_that_cannot_be_looked_up_waits_and_says_so(house, trouble, autojump_clock):
    house.chain.receipts["8-1"] = trouble
    id_ = commit(house)
    async with house.running():
        await trio.sleep(FIRST_RETRY * 5)
        waiting = await house.until(id_, Status.REVEALED)
        assert (waiting.submission.reason.code, str(trouble) in waiting.submission.reason.message) == (3002, True)
        house.chain.receipts["8-1"] = PAID
        detail = await house.until(id_)
    assert detail.submission.status is Status.SCORED
    assert len([step for step in detail.transitions if step.reason]) == 1


async def test_after_a_restart_a_fee_is_not_judged_by_a_board_that_is_still_empty(house, autojump_clock):
    house.chain.receipts["8-1"] = ChainError("the node is down")
    id_ = commit(house)
    async with house.running():
        await trio.sleep(10 * house.chain.block_seconds)
    house.chain.receipts["8-1"] = PAID

    async def no_neurons(block_hash=None):
        raise ChainError("not yet")

    house.chain.neurons = no_neurons
    async with house.running() as ctx:
        assert (await house.until(id_)).submission.status is Status.SCORED
        assert ctx.board.neurons == ()


async def test_a_coldkey_that_the_chain_does_not_know_is_waited_for(house, autojump_clock):
    house.chain.receipts["8-1"] = PAID
    known, house.chain.neuron_list[2] = house.chain.neuron_list[2], Neuron(uid=2, hotkey="5Miner2")
    id_ = commit(house)
    async with house.running():
        await trio.sleep(FIRST_RETRY * 5)
        waiting = await house.until(id_, Status.REVEALED)
        assert "knows no coldkey" in waiting.submission.reason.message
        house.chain.neuron_list[2] = known
        assert (await house.until(id_)).submission.status is Status.SCORED


async def test_a_receipt_from_before_the_window_is_refused_without_asking_an_archive(house, autojump_clock):
    house.chain.receipts["8-1"] = ChainError("the archive is slow")
    house.chain.block = 8000
    id_ = commit(house, block=7990)
    async with house.running():
        assert "not within" in (await house.until(id_)).submission.reason.message


# ------------------------------------------------------------------------------------------------ for real


@pytest.fixture
async def market(tmp_path):
    """A dev chain and a daemon on it that asks for a fee; blocks come ten a second."""
    asks = msgspec.structs.replace(CHAIN, fee_rao=FEE, fee_address=chains.core.Keypair.create_from_uri("//treasury").ss58_address)
    async with open_world(tmp_path, asks, sealing="interval", block_time=0.1, reveal_blocks=4) as world:
        yield ChainHouse(world)


async def transfer(world, wallet, destination, rao):
    """A transfer by the wallet's coldkey, whatever becomes of it; its receipt."""
    call = chains.bt.calls.Balances.transfer_keep_alive(dest={"Id": destination}, value=rao)
    try:
        return (await world.chain._sender.send(call, wallet.coldkey, "a transfer", final=True)).extrinsic
    except Failed as failed:
        block = int(str(failed).partition("in block ")[2].partition(":")[0])
        found = [await world.chain.receipt(f"{block}-{index}") for index in range(6)]
        return next(one.id for one in found if one is not None)


async def judged(market, wallet, name, mfu, receipt):
    """The submission, once the daemon has judged it."""
    done = await market.commit(wallet, name, mfu, reveal=4, receipt=receipt)
    id_ = Commitment(netuid=1, hotkey=wallet.hotkey.ss58_address, uid=None, commit_block=done.block).submission_id
    return (await market.until(id_, Status.SCORED, Status.REJECTED, patience=30)).submission


async def test_real_transfers_pay_only_when_they_should(market):
    world, asks = market.world, market.settings.chain
    thief, elsewhere = world.wallet("thief"), world.validator.coldkeypub.ss58_address
    receipts = {
        "paid": await world.chain.pay_fee(world.miner),
        "is of": await transfer(world, world.miner, asks.fee_address, FEE - 1),
        "went to": await transfer(world, world.miner, elsewhere, FEE),
        "failed": await transfer(world, world.miner, asks.fee_address, 10**15),
        "signed by": await transfer(world, thief, asks.fee_address, FEE),
        "holds no transfer": "1-7",
    }
    async with market.running() as ctx:
        for number, (says, receipt) in enumerate(receipts.items()):
            row = await judged(market, world.miner, f"n{number}", 40.0 + number, receipt)
            if says == "paid":
                assert row.status is Status.SCORED
                paid = row.id
            else:
                assert (row.status, row.reason.code, says in row.reason.message) == (Status.REJECTED, 1007, True), row.reason
        again = await judged(market, world.miner, "again", 50.0, receipts["paid"])
        assert f"used by submission {paid}" in again.reason.message
        assert await ctx.store.receipt_holder(receipts["paid"]) == paid


async def test_the_coldkey_of_a_hotkey_is_what_the_chain_says_and_an_unknown_hotkey_has_none(market):
    chain, miner = market.world.chain, market.world.miner
    assert await chain.coldkey(miner.hotkey.ss58_address) == miner.coldkeypub.ss58_address
    with pytest.raises(ChainError, match="knows no coldkey"):
        await chain.coldkey(market.world.wallet("nobody", register=False).hotkey.ss58_address)


async def test_what_submit_pays_is_what_the_daemon_takes(market):
    world = market.world
    tickets = submission.Tickets(world.folder / "tickets")
    async with market.running() as ctx, world.another(world.miner, **msgspec.structs.asdict(market.settings.chain)) as chain:
        source = market.files.served[market.host("mine", 41.0).url]

        async def preview(url):
            return source

        seen = await submission.preflight(chain, source.url, world.miner.hotkey.ss58_address, market.settings.chain, preview=preview, check=lambda _: [])
        assert seen.ok
        ticket = await submission.submit(chain, world.miner, submission.new_ticket(chain, seen, seen.reveal_blocks), tickets, market.settings.chain)
        row = (await market.until(ticket.submission_id, Status.SCORED, Status.REJECTED, patience=30)).submission
        assert row.status is Status.SCORED, row.reason
        assert await ctx.store.receipt_holder(ticket.payload.receipt) == ticket.submission_id
