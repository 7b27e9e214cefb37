"""The chain's rules for weights, each in the chain's words, and what arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crusades.chain_weights import (
    Epoch,
    OnChainWeights,
    WeightsFacts,
    Window,
    arrived,
    foreign_update,
    owner_uid,
    plan_weights,
    quantise,
    shares,
)
from crusades.records import Neuron

ME, A, B = "5Me", "5A", "5B"


def facts(*, me=None, **changes):
    mine = {"uid": 0, "hotkey": ME, "stake": 1000.0, "validator_permit": True, "last_update": 0, **(me or {})}
    neurons = (Neuron(**mine), Neuron(uid=1, hotkey=A, coldkey="c"), Neuron(uid=2, hotkey=B, coldkey="c"))
    return WeightsFacts(**{"netuid": 3, "hotkey": ME, "block": 1000, "exists": True, "neurons": neurons, "epoch": Epoch(tempo=360), **changes})


def refused(weights=None, own_key=0, **changes):
    return " / ".join(plan_weights(weights or {A: 1.0}, facts(**changes), version_key=own_key).refused)


def test_a_vector_that_meets_every_rule_is_planned_as_asked():
    plan = plan_weights({A: 0.75, B: 0.25, ME: 0.0}, facts(rate_limit=100, min_allowed=2, stake_threshold=1000.0, me={"last_update": 900}))
    assert plan.refused == ()
    assert plan.by_uid == {1: 65535, 2: 21845}
    assert plan.retry_block is None


@pytest.mark.parametrize(("words", "changes"), [
    ("does not exist", {"exists": False}),
    ("takes no weights", {"netuid": 0}),
    ("not registered on subnet 3", {"hotkey": "5Stranger"}),
    ("the chain asks for 1,000.50", {"stake_threshold": 1000.5}),
    ("version key 7; set chain.version_key in hparams.toml (now 6)", {"version_key": 7}),
    ("next at block 1050", {"rate_limit": 100, "me": {"last_update": 950}}),
    ("no validator permit", {"me": {"validator_permit": False}}),
    ("at least 2 weights, scoring gives 1", {"min_allowed": 2}),
    ("100.0% of the sum; the subnet allows 50.0%", {"max_weight": 32768}),
    ("commit-reveal version 5", {"commit_reveal": True, "commit_reveal_version": 5}),
    ("10 sealed weight vectors wait", {"commit_reveal": True, "pending_commits": 10}),
])
def test_each_rule_refuses_in_words_that_say_what_to_do(words, changes):
    assert words in refused(own_key=6, **changes)


@pytest.mark.parametrize("weights", [{A: 0.0}, {}, {A: -1.0}, {A: float("nan")}, {A: float("inf")}])
def test_an_empty_or_doubtful_vector_is_never_planned(weights):
    plan = plan_weights(weights, facts())
    assert plan.refused
    assert plan.uids == ()


def test_a_hotkey_that_left_makes_the_vector_stale():
    assert "not registered any more: 5Gone" in refused({A: 0.5, "5Gone": 0.5})


def test_the_rate_limit_is_met_exactly_when_the_next_block_meets_it():
    assert not refused(rate_limit=100, me={"last_update": 901})
    plan = plan_weights({A: 1.0}, facts(rate_limit=100, me={"last_update": 902}))
    assert plan.retry_block == 1002


def test_a_lone_weight_on_oneself_and_the_owner_are_exempt_as_on_the_chain():
    assert not refused({ME: 1.0}, min_allowed=5, max_weight=1, me={"validator_permit": False})
    assert not refused(owner_hotkey=ME, stake_threshold=5000.0, me={"validator_permit": False})
    assert "no validator permit" in refused({ME: 1.0}, null_consensus=True, me={"validator_permit": False})


def test_a_minimum_beyond_the_subnets_size_asks_for_the_whole_subnet_only():
    assert "at least 3 weights" in refused(min_allowed=1024)


@given(st.dictionaries(st.integers(0, 255), st.floats(0, 1), max_size=256))
def test_quantised_weights_are_what_the_chain_stores_and_keep_their_proportion(asked):
    uids, values = quantise(sorted(asked.items()))
    held = dict(zip(uids, values, strict=True))
    top = max(asked.values(), default=0.0)
    if not uids:
        assert top == 0.0
        return
    assert max(values) == 65535
    assert min(values) >= 1
    assert quantise(sorted(held.items())) == (uids, values), "the chain's own upscaling changes nothing"
    for uid, share in asked.items():
        assert abs(held.get(uid, 0) / 65535 - share / top) <= 0.5 / 65535 + 1e-12


def test_arrived_means_equal_up_to_one_factor():
    assert arrived({1: 65535, 2: 21845}, {1: 65535, 2: 21845})
    assert arrived({1: 65535}, {1: 100})
    assert not arrived({1: 65535, 2: 21845}, {1: 65535, 2: 21844})
    assert not arrived({1: 65535}, {1: 65535, 2: 1})
    assert not arrived({}, {})


def test_shares_of_what_the_chain_holds_sum_to_one():
    assert shares({1: 65535, 2: 65535}) == {1: 0.5, 2: 0.5}
    assert shares({}) == {}


def test_an_update_outside_all_our_windows_is_foreign():
    ours = [Window(100, 120), Window(300, 320)]
    assert not foreign_update(0, ours)
    assert not foreign_update(120, ours)
    assert foreign_update(121, ours)
    assert foreign_update(50, [])


def test_the_burn_goes_to_the_owners_uid_or_nowhere():
    neurons = [Neuron(uid=5, hotkey="5Own", coldkey="ck"), Neuron(uid=2, hotkey="5Other", coldkey="ck"), Neuron(uid=1, hotkey="5X", coldkey="c2")]
    assert owner_uid(neurons, "5Own", "ck") == 5
    assert owner_uid(neurons, "5Gone", "ck") == 2
    assert owner_uid(neurons, "5Gone", "nobody") is None


def test_age_is_counted_in_blocks_and_tempos():
    held = OnChainWeights(block=1080, uid=0, by_uid={}, last_update=360, pending_commits=0, tempo=360)
    assert (held.age_blocks, held.age_tempos) == (720, 2.0)
    assert OnChainWeights(block=9, uid=0, by_uid={}, last_update=0, pending_commits=0).age_blocks is None
