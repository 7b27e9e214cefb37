"""What a step without drift can tell, from a calibration's recorded results: limits and catches of the first step alone.

In the first step the contestant's weights are the exam's, so its honest noise is that of one step and nothing more: the
noise that an anchored step has (`crusades/bench/referee/anchor.py`). For every shortcut that acts in all steps this
prints whether the first step alone catches it, beside the work it leaves out *in one step*.

    python benchmarks/anchor_power.py [docs/calibration/qwen2.5-3b/results.jsonl]
"""

import argparse
from pathlib import Path

import msgspec

from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibrate import read_results

ELSEWHERE = {"final_loss", "final_logits", "update_error", *bounds.EXACT}
"""Statistics that no single step has."""


def first_step(result: bounds.Result) -> bounds.Result:
    """The result as if its first step were all of it."""
    return msgspec.structs.replace(result, statistics={name: values[:1] for name, values in result.statistics.items() if name not in ELSEWHERE and not name.startswith("anchor_")})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=Path(__file__).parent.parent / "docs" / "calibration" / "qwen2.5-3b" / "results.jsonl")
    results = [first_step(r) for r in read_results(parser.parse_args().results) if not r.error and "late" not in r.dimension and "last" not in r.variant]
    limits = bounds.limits_of(results)
    honest = [r for r in results if r.population == "honest"]
    print(f"{len(honest)} honest results, the nearest at {max(bounds.nearest(r, limits) for r in honest):.2f} of a limit")
    print(f"{'shortcut':62} {'of one step':>11}  caught by")
    for result in results:
        if result.population == "shortcut":
            found = bounds.caught_by(result, limits)
            print(f"{result.variant:62} {result.work:10.2%}   {f'{found[0][0]}, {found[0][1]:.3g} times its limit' if found else 'MISSED'}")


if __name__ == "__main__":
    main()
