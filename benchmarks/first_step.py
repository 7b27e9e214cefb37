"""What might go unseen if a few tokens were left out and the others weighted up, estimated from a calibration's results:
`python benchmarks/first_step.py [RESULTS] [--profile P]`.

Leaving out a share p of the tokens and counting the others more by 1 / (1 − p) keeps the projection. What stays is the noise of
the sub-sample: of the whole gradient √(error² − projection²) / (1 − p) of the recorded shortcut that leaves out p in every step,
and in cells of n tokens a spread of √(p / (1 − p) / n). Prints both beside their limits in the first step, where the recorded
shortcut's weights are still those of honest work, and the largest share that neither would see.
"""

import argparse
import math
from pathlib import Path

from crusades import hparams
from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibrate import read_results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/calibration/qwen2.5-3b/results.jsonl"))
    parser.add_argument("--profile", default="qwen2.5-3b")
    given = parser.parse_args()
    profile = hparams.load().profile(given.profile)
    in_cell = profile.batch_size * (profile.sequence_length - 1) / profile.audit.cells
    results = [r for r in read_results(given.results) if not r.error]
    limits = bounds.limits_of(results)
    whole, spread = limits["even_error"][0], limits["cell_spread"][0]
    over: dict[float, float] = {}
    for r in sorted(results, key=lambda r: r.work):
        if r.population == "shortcut" and r.dimension == "tokens":
            error, projection = (r.statistics[name][0] for name in ("even_error", "even_projection"))
            left = math.sqrt(max(error**2 - projection**2, 0.0)) / (1 - projection)
            cells = math.sqrt(projection / (1 - projection) / in_cell)
            print(f"{r.variant:34s} re-weighted: {left:.3f} off, {left / whole:.2f} of the limit ({whole:.3f}); cells {cells:.4f}, {cells / spread:.2f} of theirs ({spread:.4f})")
            if r.choice == "random" and "last" not in r.variant:
                over[r.work * 3 / 2] = max(left / whole, cells / spread)
    share = largest(over)
    print(f"sub-samples that leave out less than {share:.2%} of the tokens stay within both: {share * 2 / 3:.2%} of a run's arithmetic if in every step, {share * 2 / 3 / profile.steps:.2%} in the first alone")


def largest(over: dict[float, float]) -> float:
    """The share at which the noise comes to its limit, by the measured ones beside it (share → over its limit), as a power between them."""
    below = max((p for p, ratio in over.items() if ratio <= 1), default=0.0)
    above = min((p for p, ratio in over.items() if ratio > 1 and p > below), default=0.0)
    if not below or not above:
        return below
    steep = math.log(over[above] / over[below]) / math.log(above / below)
    return below * (1 / over[below]) ** (1 / steep)


if __name__ == "__main__":
    main()
