"""Limits from made-up populations: room on both sides, nothing missed for it, exact statistics left alone."""

import math
from pathlib import Path

import msgspec
import pytest

from crusades import hparams
from crusades.bench.referee import limits as bounds
from crusades.bench.referee.limits import Result

ROOT = Path(__file__).parent.parent


def result(variant, population, value, *, work=0.05, name="gradient_error", exam=0):
    statistics = {name: [value], "total_tokens": [0.0]}
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
    results = [msgspec.json.decode(line, type=Result) for line in (folder / "results.jsonl").read_bytes().splitlines()]
    assert bounds.limits_of(results) == made


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
