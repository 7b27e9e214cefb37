"""Where the time of the adversarial corpus's evaluations goes: `python benchmarks/corpus_time.py`, some minutes.

Runs every hostile submission of `tests/adversarial/test_judge.py` as that test does, on two slots, and prints one JSON object:
seconds in all, and the count and seconds of each order to the referees (`Connect` is starting a sandbox that imports torch and
transformers). The slots work side by side, so the orders add up to about twice the whole.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import trio
from evaluations import watch_orders

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # as the test does
    sys.path[:0] = [str(ROOT / "tests" / "adversarial"), str(ROOT / "tests")]
    import test_judge as corpus

    orders, began = watch_orders(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trio.run(corpus.judge_all, Path(folder), set(corpus.PROGRAMS))
    told = {name: {"count": len(each), "seconds": round(sum(each), 1)} for name, each in orders.items()}
    print(json.dumps({"submissions": len(corpus.PROGRAMS), "seconds": round(time.monotonic() - began, 1), "orders": told}, indent=1))


if __name__ == "__main__":
    main()
