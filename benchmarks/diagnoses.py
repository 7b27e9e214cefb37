"""What a miner is told of each recorded shortcut: `python benchmarks/diagnoses.py [--each] [PROFILE …]`.

Judges the shortcuts in `docs/calibration` by the shipped limits and prints one JSON object: by profile and dimension, how often each
statistic was named; with `--each`, every shortcut with the value and the step, and the shares by which `diagnosis.py` decides, in the run
and in anchored steps: the worst slice over the worst cell, silent coordinates over the squared error, and size (squared) over it, of
the whole gradient and of the even scale. Needs no device. What a shortcut leaves out is known, so this says whether the words point at it.
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
from crusades.bench.referee.statistic import PREFIX
from crusades.bench.referee.verdict import judge
from crusades.records import Audit, Statistic

ROOT = Path(__file__).parent.parent


def named(profile: str) -> Iterator[tuple[Result, Statistic, Audit]]:
    """Each shortcut on record that is caught, the statistic that is named for it, and all. The record has no places, so the words have none."""
    limits = hparams.load(ROOT / "hparams.toml").profile(profile).limits
    for result in read_results(ROOT / "docs" / "calibration" / profile / "results.jsonl"):
        if result.population == "honest" or result.error:
            continue
        found = judge([Measured(name, tuple(values), ("",) * len(values)) for name, values in result.statistics.items()], limits)
        if not found.passed:
            yield result, next(s for s in found.statistics if s.name == found.worst), found


def shares(audit: Audit) -> str:
    """What `diagnosis.py` compares, of statistics that have a value; of `silent` it takes the smaller of its two."""
    value = {s.name: s.value for s in audit.statistics if s.value}
    pairs = {"slice/cell": ("slice_attribution", "cell_attribution", 1), "size/unseen": ("even_projection", "unseen_projection", 1),
             "silent/error²": ("silent", "gradient_error", 1), "silent/even error²": ("silent", "even_error", 1),
             "size²/error²": ("gradient_projection", "gradient_error", 2), "even size²/error²": ("even_projection", "even_error", 2)}  # fmt: skip
    told = []
    for prefix in ("", PREFIX):
        for words, (above, below, power) in pairs.items():
            if prefix + above in value and prefix + below in value:
                told.append(f"{prefix}{words} {value[prefix + above] ** power / value[prefix + below] ** (2 if 'error' in words else 1):.2f}")
    return ", ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("profiles", nargs="*", default=["tiny", "smol", "qwen2.5-3b"])
    parser.add_argument("--each", action="store_true", help="every shortcut, not only how often a statistic was named")
    given = parser.parse_args()
    report = {}
    for profile in given.profiles:
        each: dict[str, dict[str, str]] = defaultdict(dict)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for result, s, audit in named(profile):
            counts[result.dimension][s.name] += 1
            each[result.dimension][result.variant] = f"{s.name} {'not a number' if s.value is None else f'{s.value:.3g}'}, {s.where or 'the run'}; {shares(audit)}"
        report[profile] = each if given.each else {dimension: dict(names.most_common()) for dimension, names in counts.items()}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
