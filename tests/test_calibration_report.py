"""What a calibration tells people, from made-up results: the curve, what passes by policy, what was not measured."""

import random

import pytest

from crusades.bench.referee import calibration_roc as rocs
from crusades.bench.referee.calibration_report import report
from crusades.bench.referee.limits import Result

LIMITS = {"gradient_error": [1.0]}


def result(variant, population, value, *, work=0.05, dimension="tokens"):
    return Result(variant=variant, population=population, dimension=dimension, work=work, choice="random", exam=0, seconds=1.0, statistics={"gradient_error": [value]})


ROWS = [result("near", "honest", 0.3), result("far", "honest", 0.6), result("small", "shortcut", 1.5, work=0.01), result("large", "shortcut", 5.0, work=0.2),
        result("fp8 in part", "policy", 0.4, work=0.1), result("fp8", "policy", 3.0, work=0.2)]  # fmt: skip


@pytest.mark.parametrize(("factor", "expected"), [(0.25, (2, 2, 2)), (0.5, (1, 2, 1)), (1.0, (0, 2, 1)), (2.0, (0, 1, 1)), (8.0, (0, 0, 0))])
def test_a_point_of_the_curve_counts_what_stands_beyond_its_limits(factor, expected):
    (point,) = rocs.points(ROWS, LIMITS, [factor])
    assert point == (factor, *expected)


@pytest.mark.parametrize(("honest", "shortcuts", "expected"), [
    ([1, 2], [3, 4], 1.0), ([3, 4], [1, 2], 0.0), ([1, 1], [1], 0.5), ([1, 3], [2], 0.5), ([1, 2, 3, 4], [2, 9], (1.5 + 4) / 8), ([], [1], None), ([1], [], None)])  # fmt: skip
def test_the_area_is_the_chance_that_a_shortcut_stands_further_out(honest, shortcuts, expected):
    assert rocs.area(honest, shortcuts) == expected


def test_the_area_of_two_samples_of_one_population_is_a_half():
    dice = random.Random(1)
    assert rocs.area([dice.random() for _ in range(2000)], [dice.random() for _ in range(2000)]) == pytest.approx(0.5, abs=0.03)


def test_what_is_allowed_and_passes_stands_in_the_first_lines_with_what_it_adds():
    first = report("here", ROWS, LIMITS, []).partition("## What is caught")[0]
    assert "passes: fp8 in part, 10.00% (+11.11%)" in first
    assert "missed: 0" in first


def test_nothing_is_said_of_policy_where_there_is_none():
    told = report("here", [r for r in ROWS if r.population != "policy"], LIMITS, [])
    assert "policy" not in told.replace("policy rejected", "")


def test_the_smallest_that_is_caught_and_the_largest_that_is_missed_come_with_the_time_they_save():
    told = report("here", [*ROWS, result("hidden", "shortcut", 0.9, work=0.04)], LIMITS, [])
    assert "| tokens | random | 2 of 3 | small: 1.00% (+1.01%) | hidden: 4.00% (+4.17%) |" in told
    assert "The largest missed: hidden, 4.00% (+4.17%)" in told
