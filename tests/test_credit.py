"""A late step is worth no more speed than was verified."""

import pytest

from crusades.bench.credit import credited, words
from crusades.records import Audit, Run


def run(index, *steps, **more):
    return Run(index=index, scored=index > 0, seconds=sum(steps), claimed_seconds=None, read_seconds=0.0, mfu=100.0 / sum(steps), tokens_per_second=1.0,
               final_loss=1.0, step_seconds=steps, audit=Audit(worst="", words="", statistics=()), **more)  # fmt: skip


def test_a_step_that_is_faster_than_where_it_was_verified_counts_as_there_less_the_tolerance():
    _, honest, shirked = credited([run(0, 9.0, 9.0), run(1, 1.0, 1.0), run(2, 1.0, 0.5)], {1: 1}, 0.02)
    assert (honest.credited_seconds, honest.mfu) == (None, 50.0)
    assert shirked.seconds == 1.5
    assert shirked.credited_seconds == pytest.approx(1.98)
    assert shirked.mfu == pytest.approx(100.0 / 1.98)


def test_a_verified_step_that_was_slow_by_accident_does_not_slow_the_other_runs():
    runs = [run(1, 1.0, 1.0, 1.08), run(2, 1.0, 1.0, 1.0), run(3, 1.0, 1.0, 0.99)]
    assert credited(runs, {0: 2, 1: 1}, 0.02) == runs


def test_whoever_shirks_a_step_in_every_run_but_the_verified_one_is_credited_with_what_other_steps_took():
    """The step stands alone in its length; but late steps do the same work."""
    runs = [run(1, 1.0, 1.0, 1.0), *(run(i, 1.0, 1.0, 0.5) for i in (2, 3, 4, 5))]
    assert [r.credited_seconds for r in credited(runs, {0: 2, 1: 1}, 0.0)] == [None, 3.0, 3.0, 3.0, 3.0]


def test_jitter_within_the_tolerance_is_the_runs_own():
    runs = [run(0, 1.0, 1.0), run(1, 1.0, 1.0), run(2, 1.0, 0.981)]
    assert credited(runs, {1: 1}, 0.02) == runs


def test_the_fastest_verified_time_counts():
    runs = credited([run(1, 1.0, 1.0), run(2, 1.0, 0.8), run(3, 1.0, 0.8)], {0: 1, 1: 1}, 0.0)
    assert [r.credited_seconds for r in runs] == [None, None, None]


@pytest.mark.parametrize("slow", [run(0, 1.0, 5.0), run(1, 1.0, 5.0, void="thermal slowdown")])
def test_a_run_that_does_not_count_verifies_no_time(slow):
    runs = [slow, run(2, 1.0, 1.0)]
    assert credited(runs, {0: 1}, 0.0) == runs


def test_shirking_in_most_runs_leaves_the_median_where_honest_work_has_it():
    """Three of five runs without their last step, the anchor in one of the other two: the score is the honest one, less the tolerance."""
    runs = [run(0, 1.0, 1.0), *(run(i, 1.0, 0.1) for i in (1, 2, 3)), run(4, 1.0, 1.0), run(5, 1.0, 1.0)]
    mfus = sorted(r.mfu for r in credited(runs, {4: 1}, 0.02) if r.scored)
    assert mfus[2] == pytest.approx(100.0 / 1.98)


def test_the_report_says_which_run_was_credited_with_what():
    assert words(credited([run(1, 1.0, 1.0), run(2, 1.0, 0.5)], {0: 1}, 0.0)) == (
        "run 2 took 1.500 s and is credited with 2.000 s: a late step was faster in it than where that step was verified",
    )
