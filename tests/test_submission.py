"""The miner's side: what is looked at before signing, that nothing is paid or committed twice, and the way to the verdict."""

from contextlib import aclosing

import msgspec
import pytest
import trio
from chain_world import NETUID, REVEAL, SETTINGS, URL, open_world, payload, world  # noqa: F401  (world is a fixture)
from httpx import AsyncClient, ConnectError, MockTransport, Response

from crusades import fees
from crusades import submission as s
from crusades.chain_records import CommitFacts, Failed, Pruned, Receipt, Sent, Unresolved
from crusades.chain_rows import HotkeyState, Live, Reveal, rows_of
from crusades.errors import ChainError, UsageError
from crusades.payload import parse_payload
from crusades.records import Finding, Outcome, Payload, Reason, Source, Stage, Status, next_name
from crusades.submission_follow import Remote, ask_validator, follow, validator_api
from crusades.submission_receipts import Receipts, find_receipt, receipts_of

SOURCE = Source(sha256="ab" * 32, content=b"def inner_steps(): ...\n", url=URL, fetched_at=0.0)
FEE = msgspec.structs.replace(SETTINGS, fee_rao=2 * 10**9, fee_address="5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")


async def good_file(url):
    return SOURCE


def clean(source):
    return []


def facts(**changes):
    return CommitFacts(**{"hotkey": "5Me", "head": 1000, "uid": 4, "max_bytes": 3100, "epoch_ends": 1200, "coldkey": "5Cold", **changes})


def words(found):
    return " / ".join(r.message for r in found)


# ------------------------------------------------------------------------------------------------ pre-flight


@pytest.mark.parametrize(("changes", "code", "says"), [
    ({"uid": None}, 1006, "register it first"),
    ({"pending_block": 990}, 1003, "block 990 is still sealed"),
    ({"used_bytes": 2800}, 1004, "has 300 of 3100 left in this epoch; the next one begins about block 1200"),
    ({"last_commitment": 980}, 1004, "from block 1030 on"),
    ({"balance_rao": 10**9}, 1007, "The fee is 2 τ and the coldkey 5Cold holds 1 τ; send it at least 1.002 τ more"),
])
def test_each_obstacle_is_found_before_anything_is_signed(changes, code, says):
    settings = msgspec.structs.replace(FEE, min_commit_interval=50)
    (problem,) = s.chain_problems(facts(**{"balance_rao": 10**10, **changes}), settings, size=400, replace_pending=False)
    assert problem.code == code
    assert says in problem.message


def test_a_pending_seal_may_be_replaced_only_when_told():
    assert s.chain_problems(facts(pending_block=990), SETTINGS, size=400, replace_pending=True) == []


async def test_preflight_shows_what_will_be_signed(world):  # noqa: F811
    seen = await s.preflight(world.chain, URL, world.miner.hotkey.ss58_address, SETTINGS, preview=good_file, check=clean)
    assert seen.ok
    assert seen.payload == Payload(sha256=SOURCE.sha256, url=URL)
    assert "signs Commitments.set_commitment on subnet 1" in words_of(seen.effects)
    assert world.calls("author_submitExtrinsic") == 0


def words_of(lines):
    return "\n".join(lines)


async def test_preflight_stops_at_what_a_validator_would_reject(world):  # noqa: F811
    async def missing(url):
        return Reason(code=1102, stage=Stage.FETCH, message="404.")

    finding = Finding(rule="R101", line=3, column=1, message="os.fork", why="", instead="do not")
    hotkey = world.miner.hotkey.ss58_address
    seen = await s.preflight(world.chain, URL, hotkey, SETTINGS, preview=missing, check=clean)
    assert [p.code for p in seen.problems] == [1102]
    seen = await s.preflight(world.chain, URL, hotkey, SETTINGS, preview=good_file, check=lambda _: [finding, finding])
    assert [(p.code, p.rule, p.line) for p in seen.problems] == [(1201, "R101", 3)]
    with pytest.raises(UsageError, match=r"not ready: os\.fork"):
        s.new_ticket(world.chain, seen, 3)
    long = "https://example.org/" + "x" * 800
    seen = await s.preflight(world.chain, long, hotkey, SETTINGS, preview=good_file, check=clean)
    assert "shorter URL" in words(seen.problems)


# ------------------------------------------------------------------------------------------------ committing


async def ticket_for(world, settings=SETTINGS):  # noqa: F811
    seen = await s.preflight(world.chain, URL, world.miner.hotkey.ss58_address, settings, preview=good_file, check=clean)
    return s.new_ticket(world.chain, seen, REVEAL), s.Tickets(world.folder / "tickets")


async def steps(*args, **more):
    return [step async for step in follow(*args, poll=0.05, **more)]


async def test_a_submission_is_committed_and_followed_to_its_reveal(world):  # noqa: F811
    ticket, tickets = await ticket_for(world)
    done = await s.submit(world.chain, world.miner, ticket, tickets, SETTINGS)
    assert done.stage == "sealed"
    (row,) = await world.chain.commitments()
    assert row.submission_id == done.submission_id
    seen = []
    async for step in follow(world.chain, done, tickets, ask=None, poll=0.05):
        seen.append(step.ticket.stage)
        await world.blocks(REVEAL)
    assert seen == ["sealed", "revealed"]
    assert step.exit_code == 0
    (revealed,) = await world.chain.commitments()
    assert revealed.payload == Payload(sha256=SOURCE.sha256, url=URL)


async def test_a_submission_broken_off_after_sending_is_not_sent_again(world):  # noqa: F811
    ticket, tickets = await ticket_for(world)
    world.fault("close", "author_submitExtrinsic", carried_out=True)
    with trio.move_on_after(0.5):
        await s.submit(world.chain, world.miner, ticket, tickets, SETTINGS)
    left = tickets.unfinished(world.chain.genesis, NETUID, world.miner.hotkey.ss58_address)
    assert left.stage == "committing"
    assert left.sent is not None
    async with world.another(world.miner) as chain:
        done = await s.submit(chain, world.miner, left, tickets, SETTINGS)
    assert done.stage == "sealed"
    assert world.calls("author_submitExtrinsic") == 1


async def test_a_lost_submission_is_known_as_lost_and_may_be_repeated(tmp_path):
    settings = msgspec.structs.replace(SETTINGS, weights_deadline=0.4)
    async with open_world(tmp_path, settings, sealing="interval", block_time=0.1) as w:
        ticket, tickets = await ticket_for(w)
        w.fault("lose", "author_submitExtrinsic")
        with pytest.raises(Unresolved):
            await s.submit(w.chain, w.miner, ticket, tickets, settings)
        left = tickets.unfinished(w.chain.genesis, NETUID, w.miner.hotkey.ss58_address)
        with pytest.raises(Unresolved):
            await s.submit(w.chain, w.miner, left, tickets, settings)
        await w.blocks(30)
        done = await s.submit(w.chain, w.miner, left, tickets, settings)
        assert done.stage == "sealed"
        assert len(await w.chain.commitments()) == 1


async def test_a_refused_submission_leaves_the_ticket_ready(world):  # noqa: F811
    ticket, tickets = await ticket_for(world)
    world.fault("error", "author_submitExtrinsic", code=1010, message="Invalid Transaction")
    with pytest.raises(ChainError):
        await s.submit(world.chain, world.miner, ticket, tickets, SETTINGS)
    left = tickets.unfinished(world.chain.genesis, NETUID, ticket.hotkey, ticket.payload)
    assert (left.stage, left.sent) == ("prepared", None)


async def test_tickets_of_another_chain_hotkey_or_file_are_not_taken_up(world):  # noqa: F811
    ticket, tickets = await ticket_for(world)
    tickets.save(ticket)
    (world.folder / "tickets" / "junk.json").write_text("{")
    assert tickets.unfinished(ticket.genesis, NETUID, ticket.hotkey) == ticket
    assert tickets.unfinished("0x00", NETUID, ticket.hotkey) is None
    assert tickets.unfinished(ticket.genesis, NETUID, "5Other") is None
    assert tickets.unfinished(ticket.genesis, NETUID, ticket.hotkey, Payload(sha256="cd" * 32, url=URL)) is None
    tickets.save(msgspec.structs.replace(ticket, stage="scored"))
    assert tickets.unfinished(ticket.genesis, NETUID, ticket.hotkey) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    ticket = s.Ticket(network="dev", genesis="0x", netuid=1, hotkey="5", payload=Payload(sha256="ab" * 32, url=URL), created_at=0.0)
    with pytest.raises(UsageError, match="cannot keep"):
        s.Tickets(tmp_path / "file").save(ticket)


# ------------------------------------------------------------------------------------------------ following


class FakeChain:
    netuid, network, block_time, genesis = 1, "dev", 0.02, "0x"

    def __init__(self, *answers):
        self.answers = list(answers)

    async def commitments(self, block_hash=None, *, hotkey=None):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def sealed_ticket(tmp_path, **changes):
    tickets = s.Tickets(tmp_path)
    made = s.Ticket(**{"network": "dev", "genesis": "0x", "netuid": 1, "hotkey": "5Me", "payload": Payload(sha256="ab" * 32, url=URL),
                       "created_at": 0.0, "stage": "sealed", "commit_block": 7, "reveal_block_estimate": 10, **changes})
    return made, tickets


def validator(*answers):
    left = list(answers)

    def handle(request):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return Response(answer)
        return Response(200, json={"submission": {"id": "x", "unknown": 1, **answer}, "transitions": []})

    return AsyncClient(transport=MockTransport(handle))


async def test_the_verdict_is_followed_through_the_validator_to_its_reason(tmp_path, autojump_clock):
    ticket, tickets = sealed_ticket(tmp_path)
    client = validator(ConnectError("down"), 404, {"status": "queued", "queue_position": 2}, {"status": "running", "progress": "run 2 of 5"}, {
        "status": "rejected", "verdict": "rejected", "reason": {"code": 1401, "stage": "audit", "message": "Half was skipped.", "later": 1}})
    found = await steps(FakeChain([]), ticket, tickets, ask=ask_validator(client, "127.0.0.1:8080"))
    assert [f.ticket.stage for f in found] == ["sealed", "sealed", "queued", "running", "rejected"]
    assert "cannot be asked" in found[0].words
    assert "number 2 in the queue" in found[2].words
    assert "run 2 of 5" in found[3].words
    assert found[-1].ticket.reason.message == "Half was skipped."
    assert found[-1].exit_code == 1
    assert tickets.all()[0].over


async def test_an_accepted_submission_ends_with_its_score(tmp_path, autojump_clock):
    ticket, tickets = sealed_ticket(tmp_path)
    client = validator({"status": "scored", "verdict": "accepted", "score_mfu": 41.5})
    (last,) = await steps(FakeChain([]), ticket, tickets, ask=ask_validator(client, "http://host"))
    assert (last.exit_code, last.score_mfu, last.verdict) == (0, 41.5, Outcome.ACCEPTED)


async def test_the_verdict_of_another_file_under_the_same_name_is_not_the_tickets(tmp_path, autojump_clock):
    """A validator names what it opened by the block of its opening where no better is known, and the ticket was committed there: it is
    known by the next name, once it is known."""
    ticket, tickets = sealed_ticket(tmp_path)
    known, asked = {ticket.submission_id: Remote(status=Status.REJECTED, verdict=Outcome.REJECTED, sha256="ef" * 32)}, []

    async def ask(submission_id):
        asked.append(submission_id)
        if len(asked) == 4:
            known[next_name(ticket.submission_id)] = Remote(status=Status.SCORED, verdict=Outcome.ACCEPTED, score_mfu=41.5, sha256=ticket.payload.sha256)
        return known.get(submission_id)

    first, last = await steps(FakeChain([]), ticket, tickets, ask=ask)
    assert (first.ticket.stage, last.exit_code, last.score_mfu) == ("sealed", 0, 41.5)
    assert "not seen it yet" in first.words
    assert asked == [ticket.submission_id, next_name(ticket.submission_id)] * 2


async def test_a_validator_that_talks_nonsense_is_waited_out(tmp_path, autojump_clock):
    ticket, tickets = sealed_ticket(tmp_path)
    client = validator(500, {"status": "dancing"}, {"status": "faulted", "verdict": "fault"})
    found = await steps(FakeChain([]), ticket, tickets, ask=ask_validator(client, "host:1"))
    assert found[-1].exit_code == 3


async def test_outages_of_the_chain_are_told_and_waited_out(tmp_path, autojump_clock):
    ticket, tickets = sealed_ticket(tmp_path)
    from crusades.chain_rows import HotkeyState, Live, rows_of

    failed = rows_of(1, HotkeyState("5Me", uid=1, live=Live(block=7, failed=True)), provisional=False)
    found = await steps(FakeChain(ChainError("node is down"), failed), ticket, tickets, ask=None)
    assert "the chain cannot be asked: node is down" in found[0].words
    assert (found[-1].ticket.reason.code, found[-1].exit_code) == (1002, 1)


async def test_a_seal_that_was_overwritten_meanwhile_is_told(tmp_path, autojump_clock):
    ticket, tickets = sealed_ticket(tmp_path)
    from crusades.chain_rows import HotkeyState, Live, rows_of

    newer = rows_of(1, HotkeyState("5Me", uid=1, live=Live(block=9, rounds=(1,))), provisional=False)
    (last,) = await steps(FakeChain(newer), ticket, tickets, ask=None)
    assert last.ticket.reason.code == 1003


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://[", "host:0", "host:99999", "host:port", "http://ä..", ""])
def test_an_address_that_is_no_validators_is_a_usage_error(url):
    with pytest.raises(UsageError, match="HOST:PORT"):
        validator_api(url)


def test_a_bare_host_and_port_is_an_address():
    assert validator_api("127.0.0.1:8080") == "http://127.0.0.1:8080/api/v1"
    assert validator_api("https://v.example/") == "https://v.example/api/v1"


# ------------------------------------------------------------------------------------------------ fees


async def test_a_fee_is_paid_once_named_and_found_on_chain(world):  # noqa: F811
    world.chain.settings = FEE
    ticket, tickets = await ticket_for(world, FEE)
    before = world.net.balance(FEE.fee_address)
    done = await s.submit(world.chain, world.miner, ticket, tickets, FEE)
    again = await s.submit(world.chain, world.miner, done, tickets, FEE)
    assert again == done
    assert world.net.balance(FEE.fee_address) - before == FEE.fee_rao
    await world.blocks(REVEAL)
    (row,) = await world.chain.commitments()
    assert row.payload.receipt == done.payload.receipt
    found = await world.chain.receipt(row.payload.receipt)
    assert (found.signer, found.amount_rao, found.success) == (world.miner.coldkeypub.ss58_address, FEE.fee_rao, True)
    verdict = fees.judge_receipt(row.payload.receipt, found, FEE, payers={world.miner.coldkeypub.ss58_address}, commit_block=row.commit_block,
                                 submission_id=row.submission_id, used_by=None)
    assert verdict is None


async def test_a_receipt_that_names_no_transfer_is_none(world):  # noqa: F811
    done = await world.chain.commit(b"x" * 20, world.miner, REVEAL)
    assert await world.chain.receipt(done.extrinsic) is None
    assert await world.chain.receipt(f"{done.block}-99") is None
    with pytest.raises(ChainError, match="has not reached block 99999999"):
        await world.chain.receipt("99999999-0")


async def test_a_fee_that_was_sent_before_the_crash_is_not_paid_again(world):  # noqa: F811
    world.chain.settings = FEE
    ticket, tickets = await ticket_for(world, FEE)
    before = world.net.balance(FEE.fee_address)
    world.fault("close", "author_submitExtrinsic", carried_out=True)
    with trio.move_on_after(0.5):
        await s.submit(world.chain, world.miner, ticket, tickets, FEE)
    left = tickets.all()[0]
    assert left.stage == "paying"
    done = await s.submit(world.chain, world.miner, left, tickets, FEE)
    assert done.stage == "sealed"
    assert world.net.balance(FEE.fee_address) - before == FEE.fee_rao


def with_receipt(stage, receipt="900-2", why=None, **changes):
    made = s.Ticket(network="dev", genesis="0x", netuid=1, hotkey="5Me", payload=Payload(sha256="ab" * 32, url=URL, receipt=receipt), created_at=0.0, stage=stage,
                    commit_block=7, reason=why and Reason(code=why[0], stage=why[1], message="m"))
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(("stage", "why", "free"), [
    ("paid", None, True), ("faulted", None, True), ("rejected", (1201, Stage.CHECK), True), ("rejected", (1008, Stage.CHAIN), True),
    ("rejected", (1007, Stage.CHAIN), False), ("rejected", (1401, Stage.AUDIT), False), ("rejected", None, False),
    ("scored", None, False), ("sealed", None, False), ("revealed", None, False), ("committing", None, False), ("running", None, False),
])  # fmt: skip
def test_a_receipt_is_spare_only_when_its_submission_is_known_to_have_left_it(stage, why, free):
    assert receipts_of([with_receipt(stage, why=why)], "0x", 1, "5Me").spare == (("900-2",) if free else ())


def test_a_receipt_that_another_ticket_holds_is_not_spare():
    found = receipts_of([with_receipt("scored"), with_receipt("faulted"), with_receipt("paid", "901-1"), with_receipt("paid", "902-1", hotkey="5Other")], "0x", 1, "5Me")
    assert found.spare == ("901-1",)
    assert list(found.spent) == ["900-2"]


class Ledger:
    """What a chain shows for receipts."""

    def __init__(self, *shown, trouble=None):
        self.shown, self.trouble = {one.id: one for one in shown}, trouble

    async def receipt(self, receipt):
        found = self.trouble or self.shown.get(receipt)
        if isinstance(found, Exception):
            raise found
        return found


async def find(ledger, receipts, head=1000):
    return await find_receipt(ledger, FEE, receipts, payers={"5Me", "5Cold"}, head=head)


async def test_the_first_spare_receipt_that_still_pays_is_taken():
    ledger = Ledger(RECEIPT, msgspec.structs.replace(RECEIPT, id="901-1", amount_rao=1))
    assert await find(ledger, Receipts(spare=("901-1", "900-2"))) == ("900-2", [])
    assert await find(ledger, Receipts(spare=("901-1",))) == (None, [])
    assert await find(ledger, Receipts(spare=("900-2",)), head=900 + fees.WINDOW) == (None, [])


async def test_a_receipt_that_was_spent_here_is_refused_by_name():
    receipt, (wrong,) = await find(Ledger(RECEIPT), Receipts(named="900-2", spent={"900-2": "abc"}))
    assert (receipt, "used by submission abc" in wrong.message) == (None, True)


async def test_nothing_is_paid_again_while_a_node_has_forgotten_what_was_paid():
    receipt, (wrong,) = await find(Ledger(trouble=Pruned("State already discarded")), Receipts(spare=("900-2",)))
    assert (receipt, wrong.code, "archive" in wrong.hint) == (None, 3002, True)


RECEIPT = Receipt(id="900-2", block=900, signer="5Cold", destination=FEE.fee_address, amount_rao=2 * 10**9, success=True)


@pytest.mark.parametrize(("named", "changes", "used_by", "says"), [
    (None, {}, None, "names no receipt"),
    ("900-2", None, None, "holds no transfer 900-2"),
    ("900-2", {"success": False}, None, "failed"),
    ("900-2", {"signer": "5Thief"}, None, "signed by 5Thief"),
    ("900-2", {"destination": "5Me"}, None, "went to 5Me"),
    ("900-2", {"amount_rao": 10**9}, None, "is of 1 τ; the fee is 2 τ"),
    ("1001-2", {"id": "1001-2", "block": 1001}, None, "not within"),
    ("900-2", {}, "other", "used by submission other"),
])
def test_a_receipt_must_be_signed_addressed_large_recent_and_unused(named, changes, used_by, says):
    found = None if changes is None else msgspec.structs.replace(RECEIPT, **changes)
    verdict = fees.judge_receipt(named, found, FEE, payers={"5Cold", "5Hot"}, commit_block=1000, submission_id="mine", used_by=used_by)
    assert verdict.code == 1007
    assert says in verdict.message


def test_no_fee_is_asked_unless_it_is_set_and_ones_own_receipt_stays_valid():
    assert fees.judge_receipt(None, None, SETTINGS, payers=(), commit_block=1, submission_id="x", used_by=None) is None
    assert fees.judge_receipt("900-2", RECEIPT, FEE, payers={"5Cold"}, commit_block=1000, submission_id="mine", used_by="mine") is None


@pytest.mark.parametrize(("outcome", "stage", "spent"), [
    (Outcome.ACCEPTED, None, True), (Outcome.REJECTED, Stage.AUDIT, True), (Outcome.REJECTED, Stage.LOAD, True),
    (Outcome.REJECTED, Stage.FETCH, False), (Outcome.REJECTED, Stage.CHECK, False), (Outcome.REJECTED, Stage.CHAIN, False),
    (Outcome.FAULT, Stage.RUN, False)])
def test_a_receipt_is_spent_only_when_the_submission_was_run(outcome, stage, spent):
    assert fees.spends(outcome, stage) is spent


def test_the_committed_payload_is_what_validators_parse():
    assert Status.SEALED == "sealed"
    assert parse_payload(s.format_payload(Payload(sha256="ab" * 32, url=URL, receipt="900-2"))).receipt == "900-2"


async def test_a_node_that_forgot_a_fee_is_no_reason_to_pay_again(world, monkeypatch):  # noqa: F811
    async def forgot(sent, *, final=False):
        raise Pruned("state discarded")

    monkeypatch.setattr(world.chain, "resolve", forgot)
    world.chain.settings = FEE
    ticket, tickets = await ticket_for(world, FEE)
    sent = Sent(hash="0x00", what="the fee", first=1, last=17)
    with pytest.raises(ChainError, match="may have been paid"):
        await s.submit(world.chain, world.miner, msgspec.structs.replace(ticket, stage="paying", sent=sent), tickets, FEE)
    assert world.calls("author_submitExtrinsic") == 0


async def test_a_forgotten_fee_that_is_too_old_to_count_holds_up_nothing(world, monkeypatch):  # noqa: F811
    async def forgot(sent, *, final=False):
        raise Pruned("state discarded")

    monkeypatch.setattr(world.chain, "resolve", forgot)
    ticket, tickets = await ticket_for(world)
    tickets.save(msgspec.structs.replace(ticket, stage="paying", sent=Sent(hash="0x1", what="the fee", first=1, last=16)))
    with pytest.raises(ChainError, match="archive"):
        await s.settle_all(world.chain, tickets, ticket.hotkey)
    monkeypatch.setattr(s, "WINDOW", 30)
    await world.blocks(50)
    await s.settle_all(world.chain, tickets, ticket.hotkey)
    assert [(t.stage, t.sent) for t in tickets.all()] == [("prepared", None)]


async def test_a_node_that_forgot_a_commitments_block_still_shows_the_commitment(world, monkeypatch):  # noqa: F811
    async def forgot(sent, *, final=False):
        raise Pruned("state discarded")

    done = await world.chain.commit(s.format_payload(Payload(sha256=SOURCE.sha256, url=URL)), world.miner, REVEAL)
    monkeypatch.setattr(world.chain, "resolve", forgot)
    ticket, tickets = await ticket_for_sealed(world)
    sent = Sent(hash="0x00", what="the commitment", first=done.block, last=done.block + 15)
    after = await s.submit(world.chain, world.miner, msgspec.structs.replace(ticket, stage="committing", sent=sent), tickets, SETTINGS)
    assert after.commit_block == done.block


async def ticket_for_sealed(world):  # noqa: F811
    seen = await s.preflight(world.chain, URL, world.miner.hotkey.ss58_address, SETTINGS, preview=good_file, check=clean, replace_pending=True)
    return s.new_ticket(world.chain, seen, REVEAL), s.Tickets(world.folder / "tickets")


# ------------------------------------------------------------------------------------------------ reorganisations


async def ticket_of_somebody_rich(w):
    """A ticket for which preflight has seen money enough."""
    rich = msgspec.structs.replace(FEE, fee_rao=10**6)
    return await ticket_for(w, rich)


async def in_the_second_of_two_new_blocks(w, task_status=trio.TASK_STATUS_IGNORED):
    """Include what comes in the second of two blocks that are not final, so that a branch of another length moves it."""
    await w.blocks()
    task_status.started()
    await trio.to_thread.run_sync(w.net.chain.wait_pool, 1, 5.0)
    await w.blocks()


async def other_branch(w, *, keep_extrinsics=True, then=1):
    """The newest two blocks lose, and so many others come."""
    await trio.to_thread.run_sync(lambda: w.net.reorganize(2, keep_extrinsics=keep_extrinsics))
    await w.blocks(then)


async def committed(w):
    """A ticket whose commitment lies in the newest, not yet final block."""
    ticket, tickets = await ticket_for(w)
    async with trio.open_nursery() as nursery:
        await nursery.start(in_the_second_of_two_new_blocks, w)
        return await s.submit(w.chain, w.miner, ticket, tickets, SETTINGS), tickets


async def test_a_commitment_that_a_reorganisation_moved_is_followed_to_its_new_block(tmp_path):
    async with open_world(tmp_path, sealing="manual", finality_lag=6) as w:
        await w.blocks(10)
        ticket, tickets = await committed(w)
        await other_branch(w, then=REVEAL + 2)
        (last,) = await steps(w.chain, ticket, tickets, ask=None)
        (row,) = await w.chain.commitments()
        assert (last.ticket.stage, last.ticket.commit_block) == ("revealed", ticket.commit_block - 1)
        assert last.ticket.submission_id == row.submission_id


async def test_the_validators_word_that_a_block_is_gone_is_no_verdict_on_a_moved_commitment(tmp_path):
    async with open_world(tmp_path, sealing="manual", finality_lag=6) as w:
        await w.blocks(10)
        ticket, tickets = await committed(w)
        await other_branch(w)
        gone = {"status": "rejected", "verdict": "rejected", "reason": {"code": 1008, "stage": "chain", "message": "gone"}}
        scored = {"status": "scored", "verdict": "accepted", "score_mfu": 41.0}
        found = await steps(w.chain, ticket, tickets, ask=ask_validator(validator(gone, scored), "host:1"))
        assert [step.ticket.stage for step in found] == ["sealed", "scored"]
        assert found[-1].ticket.commit_block == ticket.commit_block - 1


async def test_a_commitment_that_a_reorganisation_lost_is_told_and_can_be_repeated(tmp_path):
    async with open_world(tmp_path, sealing="manual", finality_lag=6) as w:
        await w.blocks(10)
        ticket, tickets = await committed(w)
        await other_branch(w, keep_extrinsics=False, then=30)
        (last,) = await steps(w.chain, ticket, tickets, ask=None)
        assert (last.ticket.reason.code, last.exit_code) == (1008, 1)
        assert tickets.unfinished(w.chain.genesis, NETUID, ticket.hotkey, ticket.payload) is None
        async with trio.open_nursery() as nursery:
            await nursery.start(in_the_second_of_two_new_blocks, w)
            again = await s.submit(w.chain, w.miner, ticket, tickets, SETTINGS)
        assert again.commit_block == w.net.chain.head.number


async def test_a_fee_is_named_by_the_block_it_is_final_in(tmp_path):
    async with open_world(tmp_path, FEE, sealing="manual", finality_lag=4) as w:
        await w.blocks(10)
        before = w.net.balance(FEE.fee_address)

        async def blocks(task_status):
            await in_the_second_of_two_new_blocks(w, task_status)
            await other_branch(w, then=8)

        async with trio.open_nursery() as nursery:
            await nursery.start(blocks)
            receipt = await w.chain.pay_fee(w.miner)
        assert (await w.chain.receipt(receipt)).signer == w.miner.coldkeypub.ss58_address
        assert w.net.balance(FEE.fee_address) - before == FEE.fee_rao


async def test_a_fee_that_fails_on_one_branch_and_is_paid_on_the_other_is_paid_once(tmp_path):
    async with open_world(tmp_path, FEE, sealing="manual", finality_lag=6) as w:
        await w.blocks(10)
        before = w.net.balance(FEE.fee_address)
        ticket, tickets = await ticket_for(w, FEE)

        async def blocks(task_status):
            coldkey = w.miner.coldkeypub.ss58_address
            w.net.fund(coldkey, 10**9)
            await in_the_second_of_two_new_blocks(w, task_status)  # and fails there
            await trio.to_thread.run_sync(lambda: w.net.reorganize(2, keep_extrinsics=True))
            w.net.fund(coldkey, 10**12)
            await w.blocks(8)
            await trio.to_thread.run_sync(w.net.chain.wait_pool, 1, 5.0)  # the commitment
            await w.blocks()

        async with trio.open_nursery() as nursery:
            await nursery.start(blocks)
            done = await s.submit(w.chain, w.miner, ticket, tickets, FEE)
        assert done.stage == "sealed"
        assert w.net.balance(FEE.fee_address) - before == FEE.fee_rao


async def test_a_fee_that_failed_for_good_is_told_as_failed(tmp_path):
    async with open_world(tmp_path, FEE) as w:
        w.net.fund(w.miner.coldkeypub.ss58_address, 10**9)
        ticket, tickets = await ticket_of_somebody_rich(w)
        async with trio.open_nursery() as nursery:
            async def finality():
                await trio.to_thread.run_sync(w.net.chain.wait_pool, 1, 5.0)
                await w.blocks(6)

            nursery.start_soon(finality)
            with pytest.raises(Failed):
                await s.submit(w.chain, w.miner, ticket, tickets, FEE)
        assert [(t.stage, t.sent) for t in tickets.all()] == [("prepared", None)]


async def test_a_node_that_lacks_a_block_commits_nothing_twice(tmp_path):
    """It says of a block that it has not got yet what it says of one it has forgotten."""
    settings = msgspec.structs.replace(SETTINGS, weights_deadline=0.5)
    async with open_world(tmp_path, settings, sealing="manual", finality_lag=6) as w:
        await w.blocks(20)
        ticket, tickets = await ticket_for(w)
        with pytest.raises(Unresolved):
            await s.submit(w.chain, w.miner, ticket, tickets, SETTINGS)
        w.fault("wrong", "chain_getBlock", result=None)
        with pytest.raises(Unresolved, match="may still come"):
            await s.submit(w.chain, w.miner, tickets.all()[0], tickets, SETTINGS)
        assert w.calls("author_submitExtrinsic") == 1


async def test_a_commitment_of_another_file_on_its_way_is_waited_for(tmp_path):
    settings = msgspec.structs.replace(SETTINGS, weights_deadline=0.5)
    async with open_world(tmp_path, settings, sealing="manual", finality_lag=6) as w:
        await w.blocks(20)
        ticket, tickets = await ticket_for(w)
        with pytest.raises(Unresolved):
            await s.submit(w.chain, w.miner, ticket, tickets, SETTINGS)
        with pytest.raises(Unresolved):
            await s.settle_all(w.chain, tickets, ticket.hotkey)
        await w.blocks()
        await s.settle_all(w.chain, tickets, ticket.hotkey)
        assert [(t.stage, t.commit_block) for t in tickets.all()] == [("sealed", 21)]


async def test_a_seal_that_came_after_preflight_is_not_destroyed(world):  # noqa: F811
    ticket, tickets = await ticket_for(world)
    await world.chain.commit(payload("b"), world.miner, REVEAL)
    with pytest.raises(UsageError, match="would destroy it unread"):
        await s.submit(world.chain, world.miner, ticket, tickets, SETTINGS)
    assert world.calls("author_submitExtrinsic") == 1
    assert (await s.submit(world.chain, world.miner, ticket, tickets, SETTINGS, replace_pending=True)).stage == "sealed"


async def test_a_receipt_that_has_become_too_old_is_not_committed(tmp_path, monkeypatch):
    async with open_world(tmp_path, FEE) as w:
        ticket, tickets = await ticket_for(w, FEE)
        receipt = await w.chain.pay_fee(w.miner)
        paid = msgspec.structs.replace(ticket, stage="paid", payload=msgspec.structs.replace(ticket.payload, receipt=receipt))
        monkeypatch.setattr(fees, "WINDOW", 105)
        await w.blocks(10)
        with pytest.raises(UsageError, match="too old to pay"):
            await s.submit(w.chain, w.miner, paid, tickets, FEE)
        assert w.calls("author_submitExtrinsic") == 1


async def test_a_node_behind_the_block_of_a_receipt_is_no_word_that_nothing_was_paid(tmp_path):
    async with open_world(tmp_path, FEE) as w:
        receipt = await w.chain.pay_fee(w.miner)
        await w.blocks(5)
        earlier = w.net.chain.ledger[int(receipt.split("-")[0]) - 1].hash
        w.fault("wrong", "chain_getHead", result=earlier)
        w.fault("wrong", "chain_getFinalizedHead", result=earlier)
        with pytest.raises(ChainError, match="has not reached block"):
            await w.chain.receipt(receipt)
        assert (await w.chain.receipt(receipt)).amount_rao == FEE.fee_rao


async def test_a_commitment_whose_place_is_not_final_is_not_replaced_by_itself(tmp_path):
    """A reorganisation moved it, and the node that is asked where it is has not seen that yet."""
    async with open_world(tmp_path, sealing="manual", finality_lag=6) as w:
        await w.blocks(10)
        ticket, tickets = await committed(w)
        (moved,), behind = w.net.chain._unfinal[-1:], w.net.chain.ledger[9].hash
        await trio.to_thread.run_sync(lambda: w.net.reorganize(2))
        moved.lost = True
        await w.blocks(2)
        moved.lost = False
        await w.blocks()
        w.fault("wrong", "chain_getHead", skip=2, result=behind)  # the first are of the rows
        found = []
        async for step in follow(w.chain, ticket, tickets, ask=None, poll=0.05):
            found.append((step.ticket.stage, step.ticket.commit_block))
            if step.ticket.commit_block != ticket.commit_block:
                break
        assert found == [("sealed", ticket.commit_block), ("sealed", ticket.commit_block + 1)]


async def test_a_commitment_whose_block_is_forgotten_is_followed_to_its_opening(tmp_path):
    async with open_world(tmp_path) as w:
        ticket, tickets = await ticket_for(w)
        done = await s.submit(w.chain, w.miner, ticket, tickets, SETTINGS)
        await w.blocks(REVEAL)
        await w.chain.commit(payload("b"), w.miner, REVEAL)
        await w.blocks(REVEAL + 300)
        await trio.to_thread.run_sync(w.net.prune, 5)
        async with w.another(w.miner) as chain:
            assert [step.ticket.stage for step in await steps(chain, done, tickets, ask=None)] == ["revealed"]


async def test_another_that_was_opened_in_the_tickets_block_is_not_taken_for_it(world):  # noqa: F811
    """Its own block is forgotten and that of its opening stands in; a malformed one would have ended the ticket."""

    class Rows:
        block_time = 1.0

        async def commitments(self, *, hotkey):
            state = HotkeyState(hotkey, uid=4, reveals=(Reveal(b"{}", 120),), live=Live(block=120, rounds=(2000,)))
            return rows_of(3, state, provisional=False)

    ticket, tickets = await ticket_for(world)
    ticket = tickets.save(msgspec.structs.replace(ticket, stage="sealed", commit_block=120))
    async with aclosing(follow(Rows(), ticket, tickets, ask=None)) as following:
        assert (await anext(following)).ticket.stage == "sealed"


async def test_a_ticket_of_a_dev_chain_that_was_started_anew_is_submitted_anew(world, tmp_path):  # noqa: F811
    ticket, tickets = await ticket_for(world)
    await world.blocks(50)
    left = await s.submit(world.chain, world.miner, ticket, tickets, SETTINGS)
    async with open_world(tmp_path / "again") as fresh:
        fresh.net.register(NETUID, ticket.hotkey)
        done = await s.submit(fresh.chain, world.miner, left, tickets, SETTINGS)
        assert done.commit_block < left.commit_block
        assert len(await fresh.chain.commitments()) == 1
