"""What might go unseen in the first step alone, estimated from a calibration's results: `python benchmarks/first_step.py [RESULTS] [--profile P]`.

No anchor meets it. Leaving out a share p of its tokens and counting the others more by
1 / (1 − p) keeps the projection. What stays is the noise of the sub-sample: of the whole gradient √(error² − projection²) / (1 − p)
of the recorded shortcut that leaves out p in every step, and in cells of n tokens a spread of √(p / (1 − p) / n). Prints both
beside their limits, and the largest share that neither would see.
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
    for r in sorted(results, key=lambda r: r.work):
        if r.population == "shortcut" and r.dimension == "tokens":
            error, projection = (r.statistics[name][0] for name in ("even_error", "even_projection"))
            left = math.sqrt(max(error**2 - projection**2, 0.0)) / (1 - projection)
            cells = math.sqrt(projection / (1 - projection) / in_cell)
            print(f"{r.variant:34s} re-weighted: {left:.3f} off, {left / whole:.2f} of the limit ({whole:.3f}); cells {cells:.4f}, {cells / spread:.2f} of theirs ({spread:.4f})")
    unseen = spread**2 * in_cell / (1 + spread**2 * in_cell)
    print(f"re-weighted sub-samples that leave out less than {unseen:.2%} of the first step's tokens stay within the limit of the cells: {unseen / profile.steps * 2 / 3:.2%} of a run's arithmetic")


if __name__ == "__main__":
    main()
