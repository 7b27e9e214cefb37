"""What a miner is told of each recorded shortcut: `python benchmarks/diagnoses.py [--each] [PROFILE …]`.

Judges the shortcuts in `docs/calibration` by the shipped limits and prints one JSON object: by profile and dimension, how often each
statistic was named; with `--each`, every shortcut with the value and the step. Needs no device. What a shortcut leaves out is known, so
this says whether the words of `diagnosis.py` point at it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from crusades import hparams
from crusades.bench.referee.calibrate import read_results
from crusades.bench.referee.limits import Result
from crusades.bench.referee.measured import Measured
from crusades.bench.referee.verdict import judge
from crusades.records import Statistic

ROOT = Path(__file__).parent.parent


def named(profile: str) -> Iterator[tuple[Result, Statistic]]:
    """Each shortcut on record that is caught, and the statistic that is named for it. The record has no places, so the words have none."""
    limits = hparams.load(ROOT / "hparams.toml").profile(profile).limits
    for result in read_results(ROOT / "docs" / "calibration" / profile / "results.jsonl"):
        if result.population == "honest" or result.error:
            continue
        found = judge([Measured(name, tuple(values), ("",) * len(values)) for name, values in result.statistics.items()], limits)
        if not found.passed:
            yield result, next(s for s in found.statistics if s.name == found.worst)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("profiles", nargs="*", default=["tiny", "smol", "qwen2.5-3b"])
    parser.add_argument("--each", action="store_true", help="every shortcut, not only how often a statistic was named")
    given = parser.parse_args()
    report = {}
    for profile in given.profiles:
        each: dict[str, dict[str, str]] = defaultdict(dict)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for result, s in named(profile):
            counts[result.dimension][s.name] += 1
            each[result.dimension][result.variant] = f"{s.name} {'not a number' if s.value is None else f'{s.value:.3g}'}, {s.where or 'the run'}"
        report[profile] = each if given.each else {dimension: dict(names.most_common()) for dimension, names in counts.items()}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
