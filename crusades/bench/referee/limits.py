"""From the two populations to limits, and from limits to what they catch. Pure (design.md §2.1).

For each statistic and step, with h how far out honest work may stand (`reach`: the worst that was measured and, where enough
exams were, more by the weight of the tail): a shortcut counts for that statistic where it stands at least `room` times as far
out. The limit is the geometric mean of h and the mildest of those distances, so that both sides keep a factor of at least
√room. Where a statistic has results of enough exams to know its tail, the room is the smallest of `ROOMS`: space between the populations is space for
shortcuts that are in neither. Else it is the largest with which no shortcut is missed that the smallest would catch: honest work that
nobody has measured gets all the space there is. A statistic that no shortcut stands clear in is reported, not judged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

import msgspec

from crusades.bench.referee.statistic import ALWAYS, PREFIX, WORDS, plain_name
from crusades.hparams_check import UNJUDGED

ROOMS = (4096.0, 1024.0, 256.0, 64.0, 16.0, 8.0, 4.0)
"""Tried from the first on; a limit lies at least √4 = 2 times above the worst honest distance."""
WORTH = 0.01
"""Shortcuts of less work than this do not draw limits towards honest work; whether they are caught is reported."""
EXAMS_FOR_A_TAIL = 8
"""With results of so many exams it is known how honest distances spread beyond the common ones."""
TAIL_SHARE, HEAVIEST = 1 / 6, 0.4
"""The tail's index is estimated (Hill 1975) from this share of the values; where it is larger than `HEAVIEST`, no number of
exams that anybody would measure makes a limit safe."""
UNLUCKY, RARE = 1e-4, 1e-7
"""The share of honest values that may come as far out as the closest limit, by that tail; and the share that decides, where the tail is
so light that it matters, whether the closest limit is nearer than four times the worst."""
FOLLOWS = 0.1
"""While the worst honest gradient error of a step is below this, honest trajectories are the reference's. Beyond, and where
anchored steps make it needless, late steps are not judged along them: what bf16 makes of them belongs to the exam. Steps that
the reference did not take measure 0 in all results, so that no shortcut stands clear there and none is judged."""
FLOOR = 1e-7
"""Distances below one float32 rounding count as one, so that ratios exist."""
SHARE_FLOORS = {"outliers": 1e-4, "silent": 1e-4, "unmoved": 1e-4}
"""Shares of coordinates: a handful of a hundred thousand is chance."""
FINER = 0.1
"""Of those floors, for the shape of the tail, which they would hide."""
EXACT = ("optimizer_second_moment", "optimizer_weights", "total_tokens")
"""Statistics with a limit from arithmetic, not from populations: rounding explains ≤ 1 and nothing beyond; tokens are counted."""
EXACT_LIMITS = {"optimizer_second_moment": 1.0, "optimizer_weights": 1.0, "total_tokens": 0.0}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one exam."""

    variant: str
    population: str
    dimension: str
    work: float
    choice: str
    exam: int
    seconds: float
    statistics: dict[str, list[float | None]]
    error: str = ""


def _distance(name: str, value: float | None, finer: float = 1.0) -> float:
    return math.inf if value is None else max(abs(value), finer * SHARE_FLOORS[plain_name(name)] if plain_name(name) in SHARE_FLOORS else FLOOR)


def limits_of(results: Iterable[Result]) -> dict[str, list[float]]:
    """Statistic → limit per step. Statistics without a usable limit in any step are left out. ValueError without honest results."""
    results = [r for r in results if not r.error]
    tightest = limits_with_room(results, ROOMS[-1])
    caught = _caught(results, tightest)
    return next((found for room in ROOMS if _caught(results, found := limits_with_room(results, room)) >= caught), tightest)


def _caught(results: list[Result], limits: dict[str, list[float]]) -> set[tuple[str, int]]:
    return {(r.variant, r.exam) for r in results if r.population == "shortcut" and caught_by(r, limits)}


def limits_with_room(results: list[Result], room: float) -> dict[str, list[float]]:
    """Limits for one choice of room, the smallest for statistics whose tail is known."""
    honest = [r for r in results if r.population == "honest"]
    shortcuts = [r for r in results if r.population == "shortcut" and r.work >= WORTH / 3]
    if not honest:
        raise ValueError("no honest result: nothing to set limits by")
    limits: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for r in honest for name in r.statistics):
        if name in ALWAYS or plain_name(name) not in WORDS:  # the latter was measured once, and is no longer
            continue
        if name in EXACT:
            limits[name] = [EXACT_LIMITS[name]]
            continue
        ours, theirs = having(name, honest), having(name, shortcuts)
        needed = ROOMS[-1] if len({r.exam for r in ours}) >= EXAMS_FOR_A_TAIL else room
        steps = [_limit(name, step, ours, theirs, needed) for step in range(len(ours[0].statistics[name]))]
        if any(math.isfinite(x) for x in steps):
            limits[name] = [float(f"{x:.4g}") for x in _fill(steps)]
    return limits


def having(name: str, results: list[Result]) -> list[Result]:
    """Those that have the statistic: results may be older than it is."""
    return [r for r in results if name in r.statistics]


def _limit(name: str, step: int, honest: list[Result], shortcuts: list[Result], room: float) -> float:
    worst = reach(name, step, honest)
    distances = (_distance(name, r.statistics[name][step]) for r in shortcuts)
    clear = [d for d in distances if math.isfinite(d) and d >= room * worst]
    return math.sqrt(worst * min(clear)) if clear and math.isfinite(worst) else math.inf


def reach(name: str, step: int, honest: list[Result]) -> float:
    """How far out honest work may stand in a step; infinite where that is unknown.

    Of a few exams it is the worst that was measured. Of many it is more, as the tail of their values says: some exams are
    ill-conditioned, and the worst of those that were measured is met again soon. How heavy it is, all steps that are judged say together. At its own weights one late step is as good
    as another (`anchor.py`), so that anchored statistics have the values of all of them.
    """
    anchored = name.startswith(PREFIX)
    if not anchored and step and _drifts(step, honest):
        return math.inf
    worst = max(_distance(name, r.statistics[name][step]) for r in honest)
    if len({r.exam for r in honest}) < EXAMS_FOR_A_TAIL or not math.isfinite(worst):
        return worst
    judged = [s for s in range(len(honest[0].statistics[name])) if anchored or not (s and _drifts(s, honest))]
    by_step = {s: values for s in judged if math.isfinite(max(values := _worst_of_exams(name, s, honest)))}
    if anchored and step:
        together = [value for s, values in by_step.items() if s for value in values]
        return max(worst, _beyond(max(together), len(together), _index(together)))
    return max(worst, _beyond(max(by_step[step]), len(by_step[step]), _index(_in_medians(list(by_step.values())))))


def _worst_of_exams(name: str, step: int, honest: list[Result]) -> list[float]:
    found: dict[int, float] = {}
    for r in honest:
        found[r.exam] = max(found.get(r.exam, 0.0), _distance(name, r.statistics[name][step], FINER))
    return list(found.values())


def _in_medians(by_step: list[list[float]]) -> list[float]:
    """The values of all steps, each in units of its own step's median: eleven exams of one step tell next to nothing of a tail's
    index, which is taken to be the same in all of them. Steps in which nothing varies are none."""
    return [value / statistics.median(values) for values in by_step if max(values) > min(values) for value in values] or [1.0]


def _index(values: list[float]) -> float:
    """Hill's estimate of how heavy their tail is: the mean logarithm of the largest over the next."""
    ordered = sorted(values, reverse=True)
    count = min(len(ordered) - 1, max(3, round(len(ordered) * TAIL_SHARE)))
    return statistics.mean(math.log(value / ordered[count]) for value in ordered[:count]) if count else 0.0


def _beyond(worst: float, count: int, index: float) -> float:
    """Half of what a share of `UNLUCKY` comes to, by the worst of `count` values that were seen and the tail's index, for the closest
    limit is twice as far out; and half of what a share of `RARE` does, but between the worst and twice that: room that no honest work
    needs is room for shortcuts (a few percent of the tokens left out and the others weighted up would fit below four times the worst error)."""
    if index > HEAVIEST:
        return math.inf
    rare, unlucky = ((count * share) ** -index / 2 for share in (RARE, UNLUCKY))
    return worst * max(1.0, min(2.0, float(rare)), float(unlucky))


def _drifts(step: int, honest: list[Result]) -> bool:
    """Whether a late step is better left to the anchors."""
    errors = [r.statistics["gradient_error"] for r in honest if PREFIX + "gradient_error" in r.statistics]
    return any(_distance("gradient_error", error[min(step, len(error) - 1)]) > FOLLOWS for error in errors)


def _fill(steps: list[float]) -> list[float]:
    """A step in which no shortcut stood clear of honest work is not judged there."""
    return [min(x, UNJUDGED) for x in steps]


def caught_by(result: Result, limits: dict[str, list[float]]) -> list[tuple[str, float]]:
    """(statistic, worst value over its limit) of every statistic that rejects, worst first."""
    found = []
    for name, bound in limits.items():
        if name not in result.statistics:
            continue
        ratios = [_ratio(v, bound[min(s, len(bound) - 1)]) for s, v in enumerate(result.statistics[name])]
        if max(ratios) > 1:
            found.append((name, max(ratios)))
    return sorted(found, key=lambda pair: -pair[1])


def _ratio(value: float | None, limit: float) -> float:
    if value is None:
        return math.inf
    return abs(value) / limit if limit > 0 else (math.inf if abs(value) > limit else 0.0)


def nearest(result: Result, limits: dict[str, list[float]]) -> float:
    """How close to rejection a result comes: its largest value over its limit."""
    return max((_ratio(v, bound[min(s, len(bound) - 1)]) for name, bound in limits.items() for s, v in enumerate(result.statistics.get(name, ()))), default=0.0)


def power(results: list[Result], limits: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Per dimension and choice: how many shortcuts are caught, the smallest caught, the largest missed and the work it saves."""
    rows = []
    shortcuts = [r for r in results if r.population == "shortcut" and not r.error]
    for key in sorted({(r.dimension, r.choice) for r in shortcuts}):
        members = sorted((r for r in shortcuts if (r.dimension, r.choice) == key), key=lambda r: r.work)
        caught = [r for r in members if caught_by(r, limits)]
        missed = [r for r in members if not caught_by(r, limits)]
        rows.append({
            "dimension": key[0], "choice": key[1], "caught": len(caught), "of": len(members),
            "smallest_caught": min(caught, key=lambda r: r.work).variant if caught else None,
            "smallest_caught_work": min((r.work for r in caught), default=None),
            "largest_missed": max(missed, key=lambda r: r.work).variant if missed else None,
            "largest_missed_work": max((r.work for r in missed), default=None),
        })  # fmt: skip
    return rows
