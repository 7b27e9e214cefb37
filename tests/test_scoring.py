"""Who leads and who is paid: one property a test, and the whole against a plain restatement of the rule."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crusades.hparams import Scoring
from crusades.records import Neuron, Outcome, Status, Submission
from crusades.scoring import standings

MARGIN = 0.01
RULES = Scoring(margin=MARGIN)
OWNER = Neuron(uid=0, hotkey="5Owner")


def scored(hotkey, block, score, *, id_="", uid=1, provisional=False):
    return Submission(id=id_ or f"{hotkey}@{block}", netuid=7, hotkey=hotkey, uid=uid, status=Status.SCORED, verdict=Outcome.ACCEPTED, commit_block=block,
                      score_mfu=score, created_at=float(block), updated_at=0.0, provisional=provisional)


def keys(*hotkeys, since=0):
    return [OWNER, *(Neuron(uid=n, hotkey=hotkey, registered_block=since) for n, hotkey in enumerate(hotkeys, start=1))]


def rank(*rows, rules=RULES, neurons=None, owner_uid=0):
    return standings(rows, rules, keys("5A", "5B", "5C", "5D") if neurons is None else neurons, owner_uid)


def test_nobody_scored_no_weights():
    got = rank()
    assert (got.rows, got.leader, got.weights, got.history) == ((), None, {}, ())
    assert "nobody has scored" in got.reasons[0]


def test_nobody_scored_and_a_burn_is_still_no_weights():
    assert rank(rules=Scoring(burn=1.0)).weights == {}


def test_the_only_one_leads_and_gets_everything():
    got = rank(scored("5A", 10, 40.0))
    assert got.weights == {"5A": 1.0}
    assert (got.leader.hotkey, got.leader.rank, got.leader.weight, got.leader.why) == ("5A", 1, 1.0, "leads since block 10")


@pytest.mark.parametrize(("score", "leads"), [(40.3, False), (40.4, False), (40.41, True)])
def test_a_challenger_must_exceed_the_leader_by_more_than_the_margin(score, leads):
    got = rank(scored("5A", 10, 40.0), scored("5B", 20, score))
    assert (got.leader.hotkey == "5B") is leads


def test_the_order_of_commits_decides_and_not_the_order_of_judging():
    early, late = scored("5A", 10, 40.0), scored("5B", 20, 40.2)
    assert rank(early, late).leader == rank(late, early).leader == rank(early).leader


def test_ties_go_to_the_earlier_commit_then_to_the_lower_uid():
    assert rank(scored("5B", 20, 40.0), scored("5A", 10, 40.0), rules=Scoring(margin=0.0)).leader.hotkey == "5A"
    assert rank(scored("5B", 10, 40.0, uid=2), scored("5A", 10, 40.0, uid=1)).leader.hotkey == "5A"
    assert rank(scored("5B", 10, 40.0, uid=None), scored("5A", 10, 40.0, uid=9)).leader.hotkey == "5A"


def test_without_a_margin_any_improvement_leads():
    assert rank(scored("5A", 10, 40.0), scored("5B", 20, math.nextafter(40.0, 41)), rules=Scoring(margin=0.0)).leader.hotkey == "5B"


def test_a_leader_that_improves_on_itself_keeps_the_lead_and_raises_the_bar():
    got = rank(scored("5A", 10, 40.0), scored("5B", 20, 40.3), scored("5A", 30, 40.35), scored("5C", 40, 40.5))
    assert got.leader.hotkey == "5A"
    assert (got.leader.score_mfu, got.leader.why) == (40.35, "leads since block 10")


def test_a_leader_that_falls_back_keeps_its_best():
    got = rank(scored("5A", 10, 40.0), scored("5A", 30, 35.0))
    assert [(row.hotkey, row.score_mfu) for row in got.rows] == [("5A", 40.0)]


def test_one_row_for_each_hotkey_the_leader_first_then_by_score():
    got = rank(scored("5A", 10, 40.0), scored("5B", 20, 30.0), scored("5B", 30, 40.2), scored("5C", 40, 40.1))
    assert [(row.rank, row.hotkey, row.score_mfu) for row in got.rows] == [(1, "5A", 40.0), (2, "5B", 40.2), (3, "5C", 40.1)]


@pytest.mark.parametrize(("score", "words"), [
    (40.2, "0.50% ahead of the leader; the lead takes more than 1.00%"), (40.0, "equals the leader, who came first"),
    (39.0, "2.50% behind the leader; the lead takes more than 1.00% ahead")])
def test_every_row_says_why(score, words):
    assert rank(scored("5A", 10, 40.0), scored("5B", 20, score)).rows[1].why == words


def test_behind_without_a_margin_says_no_more_than_that():
    assert rank(scored("5A", 10, 40.0), scored("5B", 20, 39.0), rules=Scoring(margin=0.0)).rows[1].why == "2.50% behind the leader"


# ------------------------------------------------------------------------------------------------ who can be paid


@pytest.mark.parametrize(("row", "neurons", "why"), [
    (scored("5X", 10, 50.0), None, "not registered any more"),
    (scored("5A", 10, 50.0), keys("5A", since=11), "registered anew in block 11"),
    (scored("5A", 10, 50.0, provisional=True), None, "not final"),
])
def test_who_cannot_be_paid_is_listed_last_with_the_reason_and_does_not_lead(row, neurons, why):
    neurons = [*(neurons or keys("5A")), Neuron(uid=9, hotkey="5Fair")]
    got = rank(row, scored("5Fair", 20, 30.0), neurons=neurons)
    assert got.weights == {"5Fair": 1.0}
    assert [(one.rank, one.hotkey, one.weight) for one in got.rows] == [(1, "5Fair", 1.0), (2, row.hotkey, 0.0)]
    assert why in got.rows[1].why


def test_when_nobody_can_be_paid_there_are_no_weights_burn_or_not():
    got = rank(scored("5X", 10, 50.0), rules=Scoring(burn=0.5))
    assert got.leader is None
    assert got.weights == {}
    assert "nobody who has scored can be paid" in got.reasons[0]


def test_registered_in_the_block_of_the_commitment_counts():
    assert rank(scored("5A", 10, 50.0), neurons=keys("5A", since=10)).weights == {"5A": 1.0}


def test_an_unknown_list_of_keys_ranks_but_pays_nobody():
    got = rank(scored("5A", 10, 50.0), neurons=[])
    assert got.leader.hotkey == "5A"
    assert (got.leader.weight, got.weights) == (0.0, {})
    assert "not known" in got.reasons[0]


def test_a_provisional_improvement_does_not_hide_what_is_final():
    got = rank(scored("5A", 10, 40.0), scored("5A", 20, 50.0, provisional=True))
    assert [(row.hotkey, row.score_mfu) for row in got.rows] == [("5A", 40.0)]


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), 0.0, -3.0])
def test_a_score_that_is_none_counts_for_nothing(score):
    got = rank(scored("5A", 10, score))
    assert (got.rows, got.weights, got.history) == ((), {}, ())


# ------------------------------------------------------------------------------------------------ shares


def test_a_burn_goes_to_the_owners_hotkey_and_is_said():
    got = rank(scored("5A", 10, 40.0), rules=Scoring(burn=0.25))
    assert got.weights == {"5Owner": 0.25, "5A": 0.75}
    assert got.leader.weight == 0.75
    assert "25.0% is burned" in got.reasons[0]


@pytest.mark.parametrize("owner_uid", [None, 77])
def test_a_burn_without_a_known_owner_is_no_weights_rather_than_a_gift(owner_uid):
    got = rank(scored("5A", 10, 40.0), rules=Scoring(burn=0.25), owner_uid=owner_uid)
    assert got.weights == {}
    assert "gift" in got.reasons[0]


def test_without_a_burn_nobody_asks_for_the_owner():
    assert rank(scored("5A", 10, 40.0), owner_uid=None).weights == {"5A": 1.0}


def test_an_owner_who_competes_gets_both_but_only_one_is_merit():
    got = rank(scored("5Owner", 10, 40.0), rules=Scoring(burn=0.25))
    assert got.weights == {"5Owner": 1.0}
    assert got.leader.weight == 0.75


def test_burning_everything_pays_nobody_else():
    assert rank(scored("5A", 10, 40.0), rules=Scoring(burn=1.0)).weights == {"5Owner": 1.0}


def test_runners_up_share_the_rest_by_rank():
    rows = [scored("5A", 10, 40.0), scored("5B", 20, 39.0), scored("5C", 30, 38.0), scored("5D", 40, 37.0)]
    got = rank(*rows, rules=Scoring(winner_share=0.7, runners_up=2))
    assert got.weights == pytest.approx({"5A": 0.7, "5B": 0.2, "5C": 0.1})
    assert [row.weight for row in got.rows] == pytest.approx([0.7, 0.2, 0.1, 0.0])


def test_fewer_runners_up_than_asked_share_all_of_the_rest():
    assert rank(scored("5A", 10, 40.0), scored("5B", 20, 39.0), rules=Scoring(winner_share=0.7, runners_up=5)).weights == pytest.approx({"5A": 0.7, "5B": 0.3})


def test_the_leader_gets_what_nobody_is_there_to_share():
    assert rank(scored("5A", 10, 40.0), rules=Scoring(winner_share=0.7, runners_up=5)).weights == {"5A": 1.0}
    assert rank(scored("5A", 10, 40.0), scored("5B", 20, 39.0), rules=Scoring(winner_share=0.7)).weights == {"5A": 1.0}


# ------------------------------------------------------------------------------------------------ history


def test_history_tells_every_change_of_the_lead_also_of_those_who_have_left():
    got = rank(scored("5Gone", 5, 39.0), scored("5A", 10, 40.0), scored("5B", 20, 40.1), scored("5A", 30, 40.2), scored("5B", 40, 42.0))
    assert [(p.block, p.leader_mfu, p.took_lead) for p in got.history] == [
        (5, 39.0, True), (10, 40.0, True), (20, 40.0, False), (30, 40.2, False), (40, 42.0, True)]
    assert got.history[0].at == 5.0


# ------------------------------------------------------------------------------------------------ the whole


SUBMISSIONS = st.lists(
    st.builds(scored, hotkey=st.sampled_from(["5A", "5B", "5C", "5X"]), block=st.integers(1, 6), score=st.sampled_from([39.0, 40.0, 40.2, 40.41, 41.0]),
              uid=st.sampled_from([None, 1, 2]), provisional=st.booleans()), max_size=8, unique_by=lambda row: (row.hotkey, row.commit_block))


@settings(max_examples=300, deadline=None)
@given(SUBMISSIONS, st.sampled_from([Scoring(margin=MARGIN), Scoring(margin=0.0, burn=0.3, winner_share=0.6, runners_up=2)]), st.randoms())
def test_whatever_the_order_of_arrival_the_answer_is_the_same_and_adds_up(rows, rules, random):
    got = rank(*rows, rules=rules)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert rank(*shuffled, rules=rules) == got
    payable = [row for row in rows if row.hotkey != "5X" and not row.provisional]
    assert bool(payable) == bool(got.weights) == (got.leader is not None)
    assert {row.hotkey for row in got.rows} == {row.hotkey for row in rows}
    assert [row.rank for row in got.rows] == list(range(1, len(got.rows) + 1))
    if got.weights:
        assert math.isclose(math.fsum(got.weights.values()), 1.0, abs_tol=1e-12)
        assert all(share > 0 for share in got.weights.values())
        assert "5X" not in got.weights
        best = max(row.score_mfu for row in payable)
        assert best <= got.leader.score_mfu * (1 + rules.margin), "nobody is further ahead than the margin allows"
