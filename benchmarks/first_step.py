"""What might go unseen in the first step alone, estimated from a calibration's results: `python benchmarks/first_step.py [RESULTS]`.

Where the reference takes one step, no anchor meets it. Of a shortcut that leaves out a share p of the tokens in every step, the
first step's `even_error` without its projection is the noise of the sub-sample: counted more by 1 / (1 − p), so that the
projection is 1 again, what stays is √(error² − projection²) / (1 − p). Prints that for every such shortcut, beside the limit.
"""

import argparse
import math
from pathlib import Path

from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibrate import read_results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path, nargs="?", default=Path("docs/calibration/qwen2.5-3b/results.jsonl"))
    given = parser.parse_args()
    results = [r for r in read_results(given.results) if not r.error]
    limit = bounds.limits_of(results)["even_error"][0]
    for r in sorted(results, key=lambda r: r.work):
        if r.population == "shortcut" and r.dimension in ("tokens", "sequences"):
            error, projection = (r.statistics[name][0] for name in ("even_error", "gradient_projection"))
            left = math.sqrt(max(error**2 - projection**2, 0.0)) / (1 - projection)
            print(f"{r.variant:34s} would be off by {left:.3f} re-weighted, {left / limit:.2f} of the limit ({limit:.3f})")


if __name__ == "__main__":
    main()
