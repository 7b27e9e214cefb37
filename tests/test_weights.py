"""When weights are sent, held or neither: the pure decision, one case at a time."""

from dataclasses import replace

from crusades.weights import Situation, choose

FINE = Situation(block=1000, vector={"5Leader": 1.0}, why_empty="", on_chain_empty=False, on_chain_equal=False, last_update=800, pending=0, tempo=360, interval=100)


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
