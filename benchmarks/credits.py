"""What crediting does to honest scores: `python benchmarks/credits.py RECORD [--draws N]`, RECORD being what `benchmarks/evaluations.py --record` wrote.

Which run verifies which step is drawn anew N times for every evaluation in the record (a second round counts as one), and the
score computed as measured, as credited (`bench/credit.py`), and as credited by the verified time alone. Prints one JSON object: the spread of the score in each
way, the lowest over the mean, the share of steps that took 2 % longer than the median of their kind, and how much at most, and
for every evaluation how far its fastest run is ahead of the median, as the validator credited them (`uneven` of the profile).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

from crusades.bench import mfu
from crusades.bench.credit import credited
from crusades.records import Audit, Run


def run_of(index: int, seen: dict) -> Run:
    return Run(credited_seconds=seen["credited_seconds"], index=index, scored=True, seconds=seen["seconds"], claimed_seconds=None, read_seconds=0.0, mfu=100.0 / seen["seconds"], tokens_per_second=1.0,
               final_loss=0.0, step_seconds=tuple(seen["step_seconds"]), audit=Audit(worst="", words="", statistics=()))  # fmt: skip


def rounds(runs: list[dict]) -> list[list[Run]]:
    """The scored runs of each contestant's: every round begins with its warm-up, and draws anchors of its own."""
    made: list[list[Run]] = []
    for i, seen in enumerate(runs):
        if not seen.get("scored", i > 0):
            made.append([])
        elif not seen.get("void"):
            made[-1].append(run_of(i, seen))
    return made


def by_verified_time(runs: list[Run], anchored: dict[int, int], tolerance: float) -> list[float]:
    """MFU of every run when a step counts for its verified time less the tolerance, whatever the other runs say."""
    floors = {step: (1 - tolerance) * runs[place].step_seconds[step] for place, step in anchored.items()}
    more = [sum(max(0.0, floors.get(step, 0.0) - own) for step, own in enumerate(run.step_seconds)) for run in runs]
    return [run.mfu * run.seconds / (run.seconds + extra) for run, extra in zip(runs, more, strict=True)]


def spread(scores: list[float]) -> dict[str, float]:
    mean = statistics.mean(scores)
    return {"cv_percent": 100 * statistics.pstdev(scores) / mean, "lowest_percent": 100 * (min(scores) / mean - 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--tolerance", type=float, default=0.02)
    given = parser.parse_args()
    evaluations = [made for runs in json.loads(given.record.read_text())["runs"] for made in rounds(runs)]
    dice, steps = random.Random(0), len(evaluations[0][0].step_seconds)
    scores: dict[str, list[float]] = {"measured": [], "credited": [], "by_verified_time_alone": []}
    for runs in evaluations * given.draws:
        count = min(len(runs), steps - 1)
        anchored = dict(zip(dice.sample(range(len(runs)), count), dice.sample(range(1, steps), count), strict=True))
        scores["measured"].append(statistics.median(r.mfu for r in runs))
        scores["credited"].append(statistics.median(r.mfu for r in credited(runs, anchored, given.tolerance)))
        scores["by_verified_time_alone"].append(statistics.median(by_verified_time(runs, anchored, given.tolerance)))
    usual = [statistics.median(r.step_seconds[s] for runs in evaluations for r in runs) for s in range(steps)]
    longer = [seconds / usual[s] - 1 for runs in evaluations for r in runs for s, seconds in enumerate(r.step_seconds)]
    print(json.dumps({**{name: spread(found) for name, found in scores.items()}, "steps": len(longer),
                      "steps_2_percent_longer": sum(x > 0.02 for x in longer), "longest_percent": 100 * max(longer),
                      "uneven_percent": [round(100 * mfu.unevenness([1 / (r.credited_seconds or r.seconds) for r in runs]), 2) for runs in evaluations]}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
