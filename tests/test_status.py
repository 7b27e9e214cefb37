"""`crusades status` as text: whose fault, what to do, and nothing that a stranger wrote can steer the terminal."""

import msgspec
import pytest
from fake_api import FakeApi
from fakes_web import AUDIT_REASON, FAULT_REASON, NOW, RULE_REASON, hotkey, simple_rank, submission
from hypothesis import given
from hypothesis import strategies as st

from crusades.records import Status
from crusades.status import status_text

API = FakeApi()
BOARD = simple_rank(API.scored()).rows


def told(*rows, key=None, **more):
    return status_text(API.overview(**more), BOARD, rows, key)


def test_everybodys_newest():
    text = told(submission(1, Status.SCORED, mfu=50.25), submission(2, Status.QUEUED, queue_position=3), submission(3, Status.RUNNING, progress="run 2 of 5"))
    for words in ("finney, subnet 3, block 5001962, ready: 2 queued, 1 running", "leader: " + hotkey(8), "50.250 % MFU", "number 3 in the queue", "run 2 of 5"):
        assert words in text, words


def test_a_sealed_one_says_when_it_opens():
    assert "opens in about 4 min (drand round 12345)" in told(submission(1, Status.SEALED), now=NOW)
    assert "opens soon (drand round 12345)" in told(submission(1, Status.SEALED, reveal_expected_at=None), now=NOW)
    assert "opens" not in told(submission(1, Status.REVEALED, reveal_round=12_345), now=NOW)


def test_ones_own_place_on_the_leaderboard():
    assert "rank 1 of 9 with 51." in told(key=hotkey(8))
    assert "not on the leaderboard" in told(key="5Nobody")
    assert "no submission of 5Nobody has been seen" in told(key="5Nobody")


def test_a_rejection_says_what_was_measured_and_what_to_do():
    text = told(submission(1, Status.REJECTED, reason=AUDIT_REASON), key=hotkey(1))
    for words in ("[1401 cell_attribution] The gradient", "line 88", "measured 0.41, limit 0.08", "to do: the measured statistic"):
        assert words in text, words
    assert "[1201 R104] Line 12" in told(submission(1, Status.REJECTED, reason=RULE_REASON))


def test_a_fault_of_ours_is_called_so():
    assert "the validator's fault, not yours" in told(submission(1, Status.FAULTED, reason=FAULT_REASON))


def test_problems_and_the_notice_are_told():
    text = told(problems=("chain: no head for 40 s",), notice="This is a development network.", ready=False)
    for words in ("problem: chain: no head", "development network", "getting ready"):
        assert words in text, words


@pytest.mark.parametrize("field", ["hotkey", "url", "progress"])
@given(foreign=st.text(min_size=1))
def test_foreign_text_cannot_steer_the_terminal(field, foreign):
    reason = msgspec.structs.replace(AUDIT_REASON, message=foreign, rule=foreign, hint=foreign, measured=foreign, limit=foreign)
    row = msgspec.structs.replace(submission(1, Status.REJECTED, reason=reason), **{field: foreign})
    text = told(row, notice=foreign, network=foreign, problems=(foreign,))
    assert all(character.isprintable() for line in text.split("\n") for character in line)
