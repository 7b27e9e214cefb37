"""What people read in a terminal."""

import pytest

from crusades import report
from crusades.records import Audit, Outcome, Reason, Run, Stage, Standing, Statistic, Status, Submission, Verdict


def run(index, *, value=0.01, limit=0.02, seconds=1.0, **extra):
    audit = Audit(worst="unmoved", words="", statistics=(Statistic(name="unmoved", value=value, limit=limit), Statistic(name="free", value=9.0, limit=None)))
    return Run(index=index, scored=index > 0, seconds=seconds, claimed_seconds=None, read_seconds=0.002, mfu=40.0, tokens_per_second=1234.5, final_loss=2.5, audit=audit, **extra)


def test_columns_line_up_and_numbers_are_flush_right():
    lines = report.table([["name", "n"], ["a", "1"], ["bcdefg", "23"]], right="1").splitlines()
    assert lines == ["name     n", "a        1", "bcdefg  23"]


@pytest.mark.parametrize(
    ("value", "limit", "share"),
    [(0.01, 0.02, 0.5), (9.0, None, 0.0), (None, 0.1, float("inf")), (0.0, 0.0, 0.0), (1.0, 0.0, float("inf"))],
)
def test_closeness_of_a_statistic_to_its_limit(value, limit, share):
    assert report.closeness(Statistic(name="x", value=value, limit=limit)) == share


def test_an_accepted_verdict_shows_every_run_and_its_nearest_limit():
    verdict = Verdict(verdict=Outcome.ACCEPTED, score_mfu=40.0, runs=(run(0), run(1, step_seconds=(0.1, 0.2)), run(2, seconds=2.0)), model="m", device="cpu", notes=("no sandbox",))
    text = report.verdict_text(verdict)
    assert "warm-up" in text
    assert "unmoved 50% of its limit" in text
    assert "steps of run 1: 100.0 ms  200.0 ms  (the judge has subtracted its own reads 2.0 ms)" in text
    assert "than on an idle device" not in text
    assert "note: no sandbox" in text
    assert text.splitlines()[-1] == "ACCEPTED  40.000 % MFU, the median of 2 runs"


def test_copies_and_what_was_still_queued_are_said():
    text = report.verdict_text(Verdict(verdict=Outcome.ACCEPTED, score_mfu=40.0, runs=(run(1, step_seconds=(0.1,), copy_seconds=0.02, excess_seconds=0.05),)))
    assert "its own reads 2.0 ms, its copies 20.0 ms" in text
    assert "reads and copies took 50.0 ms more than on an idle device" in text


def test_a_void_run_is_said_and_not_counted():
    text = report.verdict_text(Verdict(verdict=Outcome.ACCEPTED, score_mfu=40.0, runs=(run(1), run(2, void="Xid 79"))))
    assert "void: Xid 79" in text
    assert text.endswith("the median of 1 runs")


def test_a_rejection_says_what_was_measured_where_and_what_to_do_and_the_last_output():
    verdict = Verdict(
        verdict=Outcome.REJECTED, code=1401, rule="unmoved", stage=Stage.AUDIT, message="step 5: nothing moved", measured=1.0, limit=2.8e-05, line=7, hint="train",
        runs=(run(0, value=1.0, limit=2.8e-05),), output_tail="x\n" * 30 + "last words\n",
    )  # fmt: skip
    text = report.verdict_text(verdict)
    for words in ("REJECTED  [1401 unmoved] audit: step 5: nothing moved, line 7", "measured 1, limit 2.8e-05", "to do: train", "    last words", "35,714 times its limit"):
        assert words in text
    assert text.count("    x\n") == 14


def test_submissions_show_place_score_and_reason():
    common = {"netuid": 1, "hotkey": "5H", "uid": 1, "commit_block": 4, "created_at": 0.0, "updated_at": 0.0}
    reason = Reason(code=1105, stage=Stage.FETCH, message="it is a web page", hint="host the raw file")
    items = [
        Submission(id="a", status=Status.QUEUED, queue_position=2, **common),
        Submission(id="b", status=Status.SCORED, score_mfu=33.3333, **common),
        Submission(id="c", status=Status.REJECTED, reason=reason, **common),
    ]
    text = report.submissions_text(items)
    for words in ("number 2 in the queue", "33.333 % MFU", "[1105] it is a web page", "to do: host the raw file"):
        assert words in text
    assert report.submissions_text([]) == "no submissions yet"


def test_the_leaderboard_uses_names_where_it_knows_them():
    row = Standing(rank=1, submission_id="a", hotkey="5H", uid=1, score_mfu=40.0, commit_block=4, weight=0.95, why="leads")
    assert report.leaderboard_text([row], {"5H": "baseline"}).splitlines()[1] == "   1  baseline  40.000     95%  leads"
    assert "5H" in report.leaderboard_text([row], {})
    assert report.leaderboard_text([], {}) == "nobody has been scored"
