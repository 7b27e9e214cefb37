"""Limits from made-up populations: room on both sides, nothing missed for it, exact statistics left alone."""

import math
from pathlib import Path

import msgspec
import pytest

from crusades import hparams
from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibrate import read_results
from crusades.bench.referee.limits import Result

ROOT = Path(__file__).parent.parent


def result(variant, population, value, *, work=0.05, name="gradient_error", exam=0, values=None, more=None):
    statistics = {name: values or [value], "total_tokens": [0.0], **(more or {})}
    return Result(variant=variant, population=population, dimension="tokens", work=work, choice="random", exam=exam, seconds=1.0, statistics=statistics)


def test_a_limit_is_the_geometric_mean_of_worst_honest_and_mildest_shortcut():
    rows = [result("a", "honest", 1e-4), result("b", "honest", 4e-4), result("c", "shortcut", 0.04), result("d", "shortcut", 0.5)]
    limits = bounds.limits_with_room(rows, 4.0)
    assert limits["gradient_error"] == pytest.approx([math.sqrt(4e-4 * 0.04)], rel=1e-3)


def test_overlapping_populations_are_reported_not_judged():
    limits = bounds.limits_of([result("a", "honest", 0.1), result("c", "shortcut", 0.2)])
    assert "gradient_error" not in limits


def test_shortcuts_of_too_little_work_do_not_draw_the_limit_down():
    wide = bounds.limits_of([result("a", "honest", 1e-4), result("tiny", "shortcut", 1e-2, work=0.001), result("c", "shortcut", 1.0)])
    assert wide["gradient_error"][0] == pytest.approx(1e-2, rel=1e-3)


def test_room_is_given_up_before_a_shortcut_is_missed():
    near, far = result("near", "shortcut", 1e-3), result("far", "shortcut", 1.0)
    limits = bounds.limits_of([result("a", "honest", 1e-4), near, far])
    assert bounds.caught_by(near, limits)


@pytest.mark.parametrize("name", ["outliers", "anchor_outliers", "anchor_silent"])
def test_a_handful_of_coordinates_is_chance_wherever_it_is_counted(name):
    limits = bounds.limits_of([result("a", "honest", 0.0, name=name), result("c", "shortcut", 0.5, name=name)])
    assert limits[name][0] >= math.sqrt(1e-4 * 0.5) * 0.99


@pytest.mark.parametrize("name", ["tiny", "qwen2.5-3b"])
def test_the_limits_that_ship_are_those_of_the_record(name):
    folder = ROOT / "docs" / "calibration" / name
    made = msgspec.json.decode((folder / "limits.json").read_bytes())["limits"]
    shipped = hparams.load(ROOT / "hparams.toml").profile(name).limits
    assert {key: list(limit) if isinstance(limit, tuple) else [limit] for key, limit in shipped.items()} == made
    assert bounds.limits_of(read_results(folder / "results.jsonl")) == made


def many(values, name="gradient_error", population="honest", step=0, steps=1):
    """One result an exam, with these values of a statistic in one step."""
    return [result(f"{population} {exam}", population, 0.0, name=name, exam=exam, values=[value if s == step else 0.0 for s in range(steps)]) for exam, value in enumerate(values)]


def test_few_exams_tell_no_more_than_their_worst():
    assert bounds.reach("gradient_error", 0, many([1e-3] * 6 + [2e-3])) == 2e-3


def test_of_many_exams_that_agree_the_worst_is_enough():
    assert bounds.reach("gradient_error", 0, many([1e-3 + 1e-6 * i for i in range(20)])) == pytest.approx(1.019e-3)


def test_of_many_exams_that_do_not_twice_the_worst_is_to_be_expected():
    assert bounds.reach("gradient_error", 0, many([1e-3 * 1.08**i for i in range(20)])) == pytest.approx(2 * 1e-3 * 1.08**19)


def test_where_the_tail_is_known_limits_are_no_farther_out_than_it_says():
    """Else the gap between the populations is free for whatever is in neither."""
    few, enough = (many([1e-3 + 1e-6 * i for i in range(count)]) for count in (5, 20))
    shortcuts = [result("far", "shortcut", 1.0), result("near", "shortcut", 5e-3, more={"total_tokens": [1.0]})]  # this one is caught anyway
    assert bounds.limits_of([*enough, *shortcuts])["gradient_error"][0] < 2.5e-3
    assert bounds.limits_of([*few, *shortcuts])["gradient_error"][0] > 2e-2


def test_a_statistic_that_few_exams_have_is_not_one_whose_tail_is_known():
    """However many exams have others."""
    old, new = many([1e-3] * 20), many([1e-3] * 23)[20:]
    more = [result(r.variant, "honest", 1e-3, exam=r.exam, more={"even_error": [1e-3]}) for r in new]
    shortcuts = [result("far", "shortcut", 1.0, more={"even_error": [10.0]}), result("near", "shortcut", 1.0, more={"even_error": [5e-3]})]
    assert bounds.limits_of([*old, *more, *shortcuts])["even_error"][0] > 2e-2


def test_the_longer_the_tail_the_further_it_reaches():
    longer, short = (bounds.reach("gradient_error", 0, many([1e-3] * 16 + [1e-3 * factor**i for i in range(5)])) for factor in (1.3, 1.1))
    assert longer > 3 * short


def of_steps(*values):
    """One result an exam; `values` are those of each step, exam by exam."""
    return [result(f"honest {exam}", "honest", 0.0, exam=exam, values=list(steps)) for exam, steps in enumerate(zip(*values, strict=True))]


def test_the_tails_index_is_that_of_all_steps_each_in_units_of_its_own():
    """Three values of eleven say next to nothing of it: alone the unlucky step would not be judged at all."""
    unlucky, calm = [1e-3] * 9 + [2.5e-3, 3e-3], [0.02 + 1e-4 * exam for exam in range(11)]
    assert math.isinf(bounds.reach("gradient_error", 0, of_steps(unlucky)))
    together = of_steps(unlucky, *[calm] * 4)
    first, second = (bounds.reach("gradient_error", step, together) for step in (0, 1))
    assert math.isfinite(first)
    assert second / calm[-1] == pytest.approx(first / 3e-3)


def test_a_step_in_which_nothing_is_measured_makes_no_tail_look_short():
    """A statistic of the last step alone is 0 in the others."""
    alone = many([1e-3 * 1.3**i for i in range(11)])
    among = [result(r.variant, "honest", 0.0, exam=r.exam, values=[0.0, 0.0, r.statistics["gradient_error"][0]]) for r in alone]
    assert bounds.reach("gradient_error", 2, among) == bounds.reach("gradient_error", 0, alone)


def test_late_steps_that_are_left_to_the_anchors_say_nothing_of_the_first():
    drifting = [1e-3 * 3**i for i in range(5)] + [0.2] * 6
    alone = of_steps([1e-3 * 1.1**i for i in range(11)])
    among = [result(r.variant, "honest", 0.0, exam=r.exam, values=[r.statistics["gradient_error"][0], off], more={"anchor_gradient_error": [0.0, 1e-3]}) for r, off in zip(alone, drifting, strict=True)]
    assert bounds.reach("gradient_error", 0, among) == bounds.reach("gradient_error", 0, alone)
    assert math.isinf(bounds.reach("gradient_error", 1, among))


@pytest.mark.parametrize("broken", [1, 5])
def test_a_step_that_is_no_number_in_honest_work_is_not_judged_and_says_nothing_of_others(broken):
    calm = [1e-3 * 1.1**i for i in range(11)]
    rows = of_steps(calm, [None] * broken + calm[broken:], calm)
    assert [math.isfinite(bounds.reach("gradient_error", step, rows)) for step in range(3)] == [True, False, True]
    assert bounds.reach("gradient_error", 0, rows) == bounds.reach("gradient_error", 0, of_steps(calm, calm))


def test_a_tail_that_is_too_long_is_not_judged():
    assert math.isinf(bounds.reach("gradient_error", 0, many([1e-3] * 16 + [1e-3 * 3**i for i in range(5)])))


def test_one_late_step_at_its_own_weights_is_as_good_as_another():
    honest = many([1e-3] * 8, "anchor_gradient_error", step=1, steps=3)
    honest[3] = result("unlucky", "honest", 0.0, name="anchor_gradient_error", exam=3, values=[0.0, 1e-3, 5e-3])
    assert bounds.reach("anchor_gradient_error", 1, honest) >= 2 * 5e-3


@pytest.mark.parametrize(("error", "follows"), [(0.05, True), (0.2, False)])
def test_late_steps_that_leave_the_reference_are_left_to_the_anchors(error, follows):
    honest = [result("a", "honest", 0.0, values=[1e-3, error], more={"anchor_gradient_error": [0.0, 1e-3], "silent": [0.0, 1e-3]})]
    assert math.isfinite(bounds.reach("silent", 1, honest)) == follows
    assert math.isfinite(bounds.reach("silent", 0, honest))


def test_without_anchors_late_steps_are_judged_all_the_same():
    honest = [result("a", "honest", 0.0, values=[1e-3, 0.2])]
    assert bounds.reach("gradient_error", 1, honest) == 0.2


def test_no_exam_of_the_record_would_have_been_an_honest_miners_bad_luck():
    """Each in turn is left out, limits are set without it, and its honest results are judged by them."""
    results = read_results(ROOT / "docs" / "calibration" / "qwen2.5-3b" / "results.jsonl")
    exams = {r.exam for r in results} - {0}  # most shortcuts were measured on exam 0
    assert len(exams) >= 10
    for exam in exams:
        limits = bounds.limits_of(r for r in results if r.exam != exam)
        assert [(r.variant, r.exam) for r in results if r.exam == exam and r.population == "honest" and bounds.caught_by(r, limits)] == []


def test_a_statistic_that_only_later_results_have_is_judged_by_those():
    old = [result("a", "honest", 1e-4), result("c", "shortcut", 0.2)]
    new = [result("b", "honest", 1e-4, more={"even_error": [1e-5]}), result("d", "shortcut", 0.2, more={"even_error": [0.1]})]
    limits = bounds.limits_of([*old, *new])
    assert limits["even_error"] == pytest.approx([1e-3], rel=1e-3)
    assert "even_error" in dict(bounds.caught_by(new[1], limits))
    assert "even_error" not in dict(bounds.caught_by(old[1], limits))


def test_a_statistic_that_is_measured_no_longer_gets_no_limit():
    rows = [result(v, p, 1e-4 if p == "honest" else 0.2, more={"sequence_f": [1.0 if p == "honest" else 1e6]}) for v, p in (("a", "honest"), ("c", "shortcut"))]
    assert set(bounds.limits_of(rows)) == {"gradient_error", "total_tokens"}


def test_what_rounding_cannot_explain_is_rejected():
    assert (bounds.EXACT_LIMITS["optimizer_weights"], bounds.EXACT_LIMITS["optimizer_second_moment"]) == (1.0, 1.0)


def test_no_honest_result_is_an_error():
    with pytest.raises(ValueError, match="honest"):
        bounds.limits_of([result("c", "shortcut", 1.0)])


def test_a_statistic_that_is_not_finite_is_always_caught():
    limits = bounds.limits_of([result("a", "honest", 1e-4), result("c", "shortcut", 1.0)])
    assert bounds.caught_by(result("x", "shortcut", None), limits) == [("gradient_error", math.inf)]


def test_power_names_the_smallest_caught_and_the_largest_missed():
    rows = [result("a", "honest", 1e-4), result("small", "shortcut", 2e-4, work=0.01), result("big", "shortcut", 1.0, work=0.5)]
    (row,) = bounds.power(rows, bounds.limits_of(rows))
    assert (row["smallest_caught"], row["largest_missed"]) == ("big", "small")
