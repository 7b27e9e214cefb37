"""When weights are sent, held or neither: the pure decision, one case at a time."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
from fakes import ERA, VALIDATOR, FakeChain

from crusades.chain_read import weights_sent
from crusades.chain_weights import OnChainWeights, Window
from crusades.errors import ChainError, MustNotRestart
from crusades.weights import Situation, choose
from crusades.weights_ours import GIVE_UP, Ours
from crusades.weights_proof import Proof

FINE = Situation(block=1000, vector={"5Leader": 1.0}, why_empty="", on_chain_empty=False, on_chain_equal=False, last_update=800, pending=0, on_its_way=False, tempo=360, interval=100)


def test_a_changed_vector_is_sent_when_the_interval_has_passed():
    assert choose(FINE).send
    assert not choose(replace(FINE, last_update=950)).send


def test_an_equal_vector_is_sent_again_after_a_tempo_only():
    equal = replace(FINE, on_chain_equal=True)
    assert not choose(equal).send
    assert choose(replace(equal, last_update=600)).send


def test_the_first_weights_are_sent_at_once():
    assert choose(replace(FINE, on_chain_empty=True, last_update=0)).send


def test_sealed_weights_that_wait_to_be_opened_are_not_sent_again():
    assert not choose(replace(FINE, on_chain_empty=True, pending=1)).send


def test_the_vector_that_is_sealed_already_is_sent_again_after_a_tempo_only():
    sealed = replace(FINE, pending=1, on_its_way=True)
    assert not choose(sealed).send
    assert choose(replace(sealed, last_update=600)).send
    assert choose(replace(sealed, on_its_way=False)).send


def test_after_a_failure_it_waits_in_silence():
    assert choose(replace(FINE, never_before=1001)) == choose(replace(FINE, never_before=1001, on_chain_equal=True))
    assert not choose(replace(FINE, never_before=1001)).send


def test_nobody_to_pay_holds_with_scorings_own_words():
    held = choose(replace(FINE, vector={}, why_empty="the leader is not registered any more"))
    assert (held.send, held.held) == (False, "the leader is not registered any more")


def test_an_unknown_state_holds_until_a_person_accepts_it():
    lost = replace(FINE, state_known=False)
    assert "--accept-empty-state" in choose(lost).held
    assert choose(replace(lost, accept_empty_state=True)).send


# ------------------------------------------------------------------------------------------------ applied or not

A, B, C = {1: 65535}, {2: 65535}, {3: 65535}


def seen(proof, block, by_uid, reveal_period=1):
    """Whether the newest vector is on chain, and for how long too long nothing of ours has been."""
    held = OnChainWeights(block=block, uid=0, by_uid=by_uid, last_update=block, pending_commits=1, tempo=100, reveal_period=reveal_period)
    return proof.look(held), proof.overdue(held)


def test_sending_again_does_not_make_weights_that_never_apply_young():
    proof = Proof()
    proof.ask(A, 10)
    assert seen(proof, 11, A) == (True, 0)
    for block in range(20, 320, 20):
        proof.ask(B if block % 40 else C, block)
        assert seen(proof, block, A) == (False, 0)
    assert seen(proof, 321, A) == (False, 301)
    assert seen(proof, 322, B if proof.asked == B else C) == (True, 0)


def test_an_older_vector_of_ours_that_arrives_is_a_sign_of_life():
    proof = Proof()
    proof.ask(A, 10)
    seen(proof, 11, {})
    proof.ask(B, 200)
    seen(proof, 300, {})
    assert seen(proof, 310, A) == (False, 0)
    assert seen(proof, 320, A) == (False, 0)


def test_a_longer_reveal_period_is_waited_for():
    proof = Proof()
    proof.ask(A, 10)
    seen(proof, 10, {})
    assert seen(proof, 400, {}, reveal_period=3) == (False, 0)
    assert seen(proof, 511, {}, reveal_period=3) == (False, 501)


def test_after_a_restart_the_time_counts_from_when_the_last_process_asked():
    proof = Proof()
    proof.resume(A, 10, applied=False)
    assert seen(proof, 400, {}) == (False, 390)


# ------------------------------------------------------------------------------------------------ which updates are ours


def guarded(*, lag, windows=()):
    """A chain at block 100, a context around it, and what is known of our updates."""
    async def record(**_):
        await trio.lowlevel.checkpoint()

    chain = FakeChain(finality_lag=lag)
    chain.block = 100
    ctx = SimpleNamespace(chain=chain, store=SimpleNamespace(record_weights=record), board=SimpleNamespace(finalized_block=100 - lag), hotkey=VALIDATOR)
    return chain, ctx, Ours(windows=list(windows))


async def sends(chain, ctx, ours):
    """Weights of ours, in the next block."""
    plan = await chain.preflight_weights({"5Miner3": 1.0})
    ours.included((await chain.set_weights(plan, signed=lambda sent: ours.signed(ctx, plan, sent))).block)


async def sees(chain, ctx, ours, *, finalized):
    """The next head, with all up to a block final."""
    chain.lag, ctx.board.finalized_block = chain.block - finalized, finalized
    await ours.beware(ctx, await chain.read_weights())


async def test_where_finality_lags_each_of_several_updates_under_way_gets_its_block():
    chain, ctx, ours = guarded(lag=12)
    for _ in range(2):
        await sends(chain, ctx, ours)
        chain.block += 10
        await ours.beware(ctx, await chain.read_weights())
    assert [window.last - window.first for window in ours.windows] == [ERA - 1] * 2
    await sees(chain, ctx, ours, finalized=chain.block)
    assert ours.windows == [Window(101, 101), Window(111, 111)]
    assert ours.under_way == []


async def test_of_two_updates_signed_under_the_same_finalised_head_the_second_stays_ours_when_the_first_is_final():
    chain, ctx, ours = guarded(lag=2)
    for _ in range(2):
        await sends(chain, ctx, ours)
        chain.block += 10
        chain.lag += 10
    assert ours.windows[0] == ours.windows[1]
    await sees(chain, ctx, ours, finalized=101)
    await sees(chain, ctx, ours, finalized=chain.block)
    assert ours.windows == [Window(101, 101), Window(111, 111)]


@pytest.mark.parametrize("late", [False, True])
async def test_what_cannot_be_looked_up_is_looked_up_again_until_an_ordinary_node_has_forgotten_it(late):
    async def nonsense(sent, *, final):
        raise ChainError("no sense")

    chain, ctx, ours = guarded(lag=2)
    await sends(chain, ctx, ours)
    (wide,) = ours.windows
    chain.resolve, chain.block = nonsense, wide.last + GIVE_UP - (not late)
    await sees(chain, ctx, ours, finalized=chain.block)
    assert bool(ours.under_way) is not late
    assert ours.windows == [wide]


@pytest.mark.parametrize("block", [101, 102])
async def test_what_a_process_before_this_one_had_under_way_is_no_other_validators(block):
    """It died when its weights were in the pool; they come just before the first of this one, or with them."""
    chain, ctx, ours = guarded(lag=2, windows=[Window(99, 98 + ERA)])
    chain.block = 101
    chain.last_update = block
    await sends(chain, ctx, ours)
    chain.block += 5
    await sees(chain, ctx, ours, finalized=chain.block)
    assert not ours.under_way
    chain.last_update = 99 + ERA
    with pytest.raises(MustNotRestart):
        await ours.beware(ctx, await chain.read_weights())


@pytest.mark.parametrize("opened", [True, False])
async def test_what_moved_just_before_ours_is_no_other_validators_where_the_chain_moved_it_itself(opened):
    chain, ctx, ours = guarded(lag=2)
    chain.last_update = 100
    await sends(chain, ctx, ours)
    chain.block += 5
    chain.opened = {100} if opened else set()
    if opened:
        await sees(chain, ctx, ours, finalized=chain.block)
        assert ours.windows == [Window(101, 101)]
    else:
        with pytest.raises(MustNotRestart, match="block 100"):
            await sees(chain, ctx, ours, finalized=chain.block)


async def test_of_a_block_only_our_own_successful_weights_of_this_subnet_are_counted():
    def call(function, netuid=1, module="SubtensorModule"):
        return {"address": VALIDATOR, "call": {"call_module": module, "call_function": function, "call_args": [{"name": "netuid", "value": netuid}]}}

    def decode(raw, _):
        return decoded[raw.removeprefix(signed)]  # KeyError: what a stranger sends is not decoded, whatever it holds

    key = bytes(range(32))
    signed = b"\xc8\x84\0" + key
    decoded = {b"\1": call("set_mechanism_weights"), b"\2": call("commit_timelocked_mechanism_weights"), b"\3": call("set_mechanism_weights", netuid=2),
               b"\4": call("set_commitment", module="Commitments"), b"\5": call("set_weights"), b"\6": call("set_weights") | {"address": "5Stranger"},
               b"\7": {"address": VALIDATOR, "call": {"call_module": "SubtensorModule", "call_function": "set_mechanism_weights",
                                                     "call_args": [{"name": "netuid", "value": 1}, {"name": "mecid", "value": 1}]}}}  # fmt: skip
    block = [b"\0 a codec nobody has, and " + signed, *(signed + raw for raw in decoded)]

    async def rpc(method, block_hash):
        return {"block": {"extrinsics": ["0x" + raw.hex() for raw in block]}}

    async def read(*_):
        return ([{"extrinsic_idx": n, "module_id": "System", "event_id": "ExtrinsicFailed" if n == 5 else "ExtrinsicSuccess"} for n in range(len(block))],)

    state = SimpleNamespace(node=SimpleNamespace(rpc=rpc), runtime=SimpleNamespace(decode_extrinsic=decode), read=read, hash="0x7", number=7)
    assert await weights_sent(state, 1, VALIDATOR, key) == 2
