"""500 random faults around a whole daemon and its store: nothing committed is lost or invented, and the weights are those asked.

    python benchmarks/chain_faults.py [--faults 500] [--per-run 25] [--seed 1]

Each run is a fresh devnet with three miners and a daemon with the real store (tests/chain_chaos.py). Prints one line per run
and ends with 1 when one of them failed. A failing seed is repeated with --seed and --faults 25; timing differs from run to
run, so it may take a few attempts.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import trio  # noqa: E402
from chain_chaos import tell, verdict  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--per-run", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    bad = injected = struck = committed = 0
    seed = options.seed
    while injected < options.faults:
        count = min(options.per_run, options.faults - injected)
        with tempfile.TemporaryDirectory() as folder:
            story = trio.run(lambda: tell(Path(folder), seed=seed, faults=count))  # noqa: B023  (run at once)
        words = verdict(story)
        bad += bool(words)
        injected, struck, committed = injected + count, struck + story.struck, committed + len(story.committed)
        print(f"seed {seed}: {count} faults, {story.struck} met by a call, {len(story.committed)} commitments, {len(story.counted)} in the store, "
              f"{story.restarts} restarts, errors {story.errors}, {story.seconds:.1f} s: {words or 'ok'}", flush=True)
        seed += 1
    print(f"{injected} faults injected ({struck} met by a call, the others were outages, reorganisations, or found no call to meet), {committed} commitments: {bad} runs failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
