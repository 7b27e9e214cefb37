"""How safe are limits for honest work on an exam that nobody measured, and how sure is it that a shortcut is caught which nobody
measured? `python benchmarks/limits_left_out.py [RESULTS]`.

Leaves each exam of a calibration's results out in turn (and, `--half`, a random half of them), sets limits by the rest, and
judges the honest results that were left out. Then the same with shortcuts: a random half of them, each dimension in turn, and
those on other exams than the first, judged by limits that have not seen them. Prints one JSON object. Needs no device; exam 0,
which has most of the shortcuts, stays.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibrate import read_results
from crusades.bench.referee.limits import Result


def rejected(results: list[Result], left_out: Iterable[int]) -> list[tuple[str, int, str, float]]:
    """(variant, exam, statistic, over its limit) of honest results on these exams, by the limits of the others."""
    out = set(left_out)
    limits = bounds.limits_of(r for r in results if r.exam not in out)
    honest = (r for r in results if r.exam in out and r.population == "honest")
    return [(r.variant, r.exam, *bounds.caught_by(r, limits)[0]) for r in honest if bounds.caught_by(r, limits)]


def missed(results: list[Result], unseen: Callable[[Result], bool]) -> tuple[int, list[tuple[str, int, float, float]]]:
    """(how many, those that pass: variant, exam, work, over its limit) of shortcuts that the limits have not seen."""
    held = [r for r in results if r.population == "shortcut" and unseen(r)]
    limits = bounds.limits_of(r for r in results if r.population == "honest" or not unseen(r))
    return len(held), [(r.variant, r.exam, r.work, bounds.nearest(r, limits)) for r in held if not bounds.caught_by(r, limits)]


def shortcuts_left_out(results: list[Result], halves: int) -> dict[str, Any]:
    """What each way of leaving shortcuts out misses."""
    shortcuts, dice = [r for r in results if r.population == "shortcut"], random.Random(0)
    found: dict[str, tuple[int, list[tuple[str, int, float, float]]]] = {}
    drawn = [{r.variant for r in dice.sample(shortcuts, len(shortcuts) // 2)} for _ in range(halves)]
    parts = [missed(results, lambda r, names=names: r.variant in names) for names in drawn]  # type: ignore[misc]
    found["random halves"] = sum(count for count, _ in parts), [row for _, rows in parts for row in rows]
    parts = [missed(results, lambda r, one=one: r.dimension == one) for one in sorted({r.dimension for r in shortcuts})]  # type: ignore[misc]
    found["each dimension in turn"] = sum(count for count, _ in parts), [row for _, rows in parts for row in rows]
    found["other exams"] = missed(results, lambda r: r.exam != 0)
    return {way: {"judged": count, "missed": len(rows), "which": sorted({f"{name} (exam {exam}): {work:.2%}, {over:.2f} of a limit" for name, exam, work, over in rows})}
            for way, (count, rows) in found.items()}  # fmt: skip


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
        "shortcuts_left_out": shortcuts_left_out(results, given.half // 2),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
