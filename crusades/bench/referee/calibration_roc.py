"""The ROC of a calibration: what would be rejected if all limits were tighter or wider, and what each statistic tells by itself.
Pure, from the results alone; the receiver operating characteristic of Fawcett (2006), with honest work as the negatives.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crusades.bench.referee import limits as bounds
from crusades.bench.referee.limits import Result

FACTORS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0, 16.0)
"""What all limits are multiplied by; 1 is the shipped operating point."""


class Point(NamedTuple):
    """One operating point."""

    factor: float
    honest_rejected: int
    shortcuts_caught: int
    policy_rejected: int


def points(results: Sequence[Result], limits: Mapping[str, list[float]], factors: Sequence[float] = FACTORS) -> list[Point]:
    """What every factor on all limits would reject, of each population."""
    out = {kind: [bounds.nearest(r, dict(limits)) for r in results if r.population == kind] for kind in ("honest", "shortcut", "policy")}
    return [Point(f, *(sum(far > f for far in out[kind]) for kind in ("honest", "shortcut", "policy"))) for f in factors]


def area(honest: Sequence[float], shortcuts: Sequence[float]) -> float | None:
    """Area under the curve: the chance that a shortcut stands further out than an honest result, ties counting half (Mann and
    Whitney 1947). None where a population is empty."""
    if not honest or not shortcuts:
        return None
    ordered = sorted(honest)
    wins = sum(bisect_left(ordered, far) + bisect_right(ordered, far) for far in shortcuts)
    return wins / 2 / len(honest) / len(shortcuts)


def roc(results: Sequence[Result], limits: Mapping[str, list[float]]) -> list[str]:
    """The section of the report, in Markdown."""
    counts = {kind: sum(r.population == kind for r in results) for kind in ("honest", "shortcut", "policy")}
    lines = ["\n## ROC\n", "All limits multiplied by one factor; 1 is what ships.\n",
             f"| limits × | honest rejected (of {counts['honest']}) | shortcuts caught (of {counts['shortcut']}) | policy rejected (of {counts['policy']}) |", "|---|---|---|---|"]  # fmt: skip
    lines += [f"| {p.factor:g} | {p.honest_rejected} | {p.shortcuts_caught} | {p.policy_rejected} |" for p in points(results, limits)]
    lines += ["\nEach statistic by itself, by its largest value over its limit: the area under its curve; what it catches at its limit, and what it would catch",
              "at the tightest limit that rejects no honest result.\n",
              "| statistic | honest + shortcuts | area | caught at its limit | caught at no honest rejected |", "|---|---|---|---|---|"]  # fmt: skip
    for name, bound in limits.items():
        honest, shortcuts = ([bounds.nearest(r, {name: bound}) for r in bounds.having(name, list(results)) if r.population == kind] for kind in ("honest", "shortcut"))
        found, worst = area(honest, shortcuts), max(honest, default=0.0)
        lines.append(f"| {name} | {len(honest)} + {len(shortcuts)} | {'–' if found is None else f'{found:.3f}'} | {sum(s > 1 for s in shortcuts)} | {sum(s > worst for s in shortcuts)} |")
    return lines
