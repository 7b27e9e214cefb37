"""From the two populations to limits, and from limits to what they catch. Pure (design.md §2.1).

For each statistic and step, with h the worst honest distance (or, where enough exams were measured, what the unluckiest of ten
thousand would bring, if that is more: `reach`): a shortcut counts for that statistic where it stands at
least `room` times as far out as any honest variant. The limit is the geometric mean of h and the mildest of those
distances, so that both sides keep a factor of at least √room. The room is the largest of `ROOMS` with which no shortcut
is missed that the smallest room would catch: honest work that nobody has thought of gets all the space there is. A
statistic that no shortcut stands clear in is reported, not judged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

import msgspec

from crusades.bench.referee.verdict import ALWAYS, plain_name

ROOMS = (4096.0, 1024.0, 256.0, 64.0, 16.0, 8.0, 4.0)
"""Tried from the first on; a limit lies at least √4 = 2 times above the worst honest distance."""
WORTH = 0.01
"""Shortcuts of less work than this do not draw limits towards honest work; whether they are caught is reported."""
UNJUDGED = 1e9
"""The limit of a step that a statistic cannot judge: JSON has no word for infinity."""
EXAMS_FOR_A_TAIL = 8
"""With results of so many exams it is known how the worst honest distance varies between them."""
TAIL = 3.72
"""Standard deviations of its logarithm: a normal variable is beyond once in ten thousand times."""
FLOOR = 1e-7
"""Distances below one float32 rounding count as one, so that ratios exist."""
SHARE_FLOORS = {"outliers": 1e-4, "silent": 1e-4, "unmoved": 1e-4}
"""Shares of coordinates: a handful of a hundred thousand is chance."""
EXACT = ("optimizer_second_moment", "optimizer_weights", "total_tokens")
"""Statistics with a limit from arithmetic, not from populations: rounding explains ≤ 1 and nothing beyond; tokens are counted."""
CLAIMS = ("final_loss", "final_logits")
"""What the submission says of its result. No shortcut need stand clear for them to be judged: they are to be true, and prove no more."""
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


def _distance(name: str, value: float | None) -> float:
    return math.inf if value is None else max(abs(value), SHARE_FLOORS.get(plain_name(name), FLOOR))


def limits_of(results: Iterable[Result]) -> dict[str, list[float]]:
    """Statistic → limit per step. Statistics without a usable limit in any step are left out. ValueError without honest results."""
    results = [r for r in results if not r.error]
    tightest = limits_with_room(results, ROOMS[-1])
    caught = _caught(results, tightest)
    return next((found for room in ROOMS if _caught(results, found := limits_with_room(results, room)) >= caught), tightest)


def _caught(results: list[Result], limits: dict[str, list[float]]) -> set[tuple[str, int]]:
    return {(r.variant, r.exam) for r in results if r.population == "shortcut" and caught_by(r, limits)}


def limits_with_room(results: list[Result], room: float) -> dict[str, list[float]]:
    """Limits for one choice of room."""
    honest = [r for r in results if r.population == "honest"]
    shortcuts = [r for r in results if r.population == "shortcut" and r.work >= WORTH / 3]
    if not honest:
        raise ValueError("no honest result: nothing to set limits by")
    limits: dict[str, list[float]] = {}
    for name, values in honest[0].statistics.items():
        if name in ALWAYS:
            continue
        if name in EXACT:
            limits[name] = [EXACT_LIMITS[name]]
            continue
        steps = [_limit(name, step, honest, shortcuts, room) for step in range(len(values))]
        if any(math.isfinite(x) for x in steps):
            limits[name] = [float(f"{x:.4g}") for x in _fill(steps)]
    return limits


def _limit(name: str, step: int, honest: list[Result], shortcuts: list[Result], room: float) -> float:
    worst = reach(name, step, honest)
    distances = (_distance(name, r.statistics[name][step]) for r in shortcuts)
    clear = [d for d in distances if math.isfinite(d) and d >= room * worst]
    if clear and math.isfinite(worst):
        return math.sqrt(worst * min(clear))
    return math.sqrt(ROOMS[-1]) * worst if name in CLAIMS else math.inf


def reach(name: str, step: int, honest: Iterable[Result]) -> float:
    """How far out honest work may stand: the worst that was measured or, of many exams, what their spread leads to expect.

    Late steps of a bf16 model are chaotic, and how much so belongs to the exam: the worst of the few that were measured is
    met again soon. The worst distance of an exam is taken as log-normal.
    """
    by_exam: dict[int, float] = {}
    for r in honest:
        by_exam[r.exam] = max(by_exam.get(r.exam, 0.0), _distance(name, r.statistics[name][step]))
    worst = max(by_exam.values())
    if len(by_exam) < EXAMS_FOR_A_TAIL or not math.isfinite(worst):
        return worst
    logarithms = [math.log(distance) for distance in by_exam.values()]
    return max(worst, math.exp(statistics.mean(logarithms) + TAIL * statistics.stdev(logarithms)))


def _fill(steps: list[float]) -> list[float]:
    """A step in which no shortcut stood clear of honest work is not judged there."""
    return [min(x, UNJUDGED) for x in steps]


def caught_by(result: Result, limits: dict[str, list[float]]) -> list[tuple[str, float]]:
    """(statistic, worst value over its limit) of every statistic that rejects, worst first."""
    found = []
    for name, bound in limits.items():
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
    return max(_ratio(v, bound[min(s, len(bound) - 1)]) for name, bound in limits.items() for s, v in enumerate(result.statistics[name]))


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
