"""How safe are limits for honest work on an exam that nobody measured? `python benchmarks/limits_left_out.py [RESULTS]`.

Leaves each exam of a calibration's results out in turn (and, `--half`, a random half of them), sets limits by the rest, and
judges the honest results that were left out. Prints one JSON object. Needs no device; exam 0, which has the shortcuts, stays.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibrate import read_results
from crusades.bench.referee.limits import Result


def rejected(results: list[Result], left_out: Iterable[int]) -> list[tuple[str, int, str, float]]:
    """(variant, exam, statistic, over its limit) of honest results on these exams, by the limits of the others."""
    out = set(left_out)
    limits = bounds.limits_of(r for r in results if r.exam not in out)
    honest = (r for r in results if r.exam in out and r.population == "honest")
    return [(r.variant, r.exam, *bounds.caught_by(r, limits)[0]) for r in honest if bounds.caught_by(r, limits)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/calibration/qwen2.5-3b/results.jsonl"))
    parser.add_argument("--half", type=int, default=20, help="random halves to leave out")
    given = parser.parse_args()
    results = [r for r in read_results(given.results) if not r.error]
    exams, dice = sorted({r.exam for r in results} - {0}), random.Random(0)
    one = [row for exam in exams for row in rejected(results, [exam])]
    halves = [rejected(results, dice.sample(exams, len(exams) // 2)) for _ in range(given.half)]
    judged = given.half * (len(exams) // 2)
    print(json.dumps({
        "exams": len(exams) + 1, "honest": sum(r.population == "honest" for r in results), "rejected_when_one_is_left_out": one,
        "exams_rejected_when_half_is_left_out": sum(len({exam for _, exam, _, _ in half}) for half in halves), "of_exams": judged,
        "worst_over_its_limit": max((over for half in halves for *_, over in half), default=None),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
