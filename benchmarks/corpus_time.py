"""How long the adversarial corpus takes, and how long from warm sandboxes: `python benchmarks/corpus_time.py [--judge-only]`, ten minutes.

Runs `tests/adversarial` but for `test_judge.py` with pytest, then the hostile submissions of that file as it does, on two slots,
and prints one JSON object: seconds in all; the count and seconds of each order to the referees
(`Connect` is starting a sandbox that imports torch and transformers; the slots work side by side, so the orders add up to about
twice the whole); and the same without those starts, an estimate of what the corpus takes once its sandboxes are warm: both slots are
busy throughout, so each start costs half of its time. Fails when a test of the rest fails, or one of a sandbox is skipped; what
the judge says of the submissions is the test's to check.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio
from evaluations import watch_orders

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 2
"""Of the test; a start keeps one of them busy."""


def through_the_judge() -> dict[str, object]:
    """The hostile submissions through the judge."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as the test does
    sys.path[:0] = [str(ROOT / "tests" / "adversarial"), str(ROOT / "tests")]
    import test_judge as corpus

    orders, began = watch_orders(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trio.run(corpus.judge_all, Path(folder), set(corpus.PROGRAMS))
    seconds, starts = time.monotonic() - began, sum(orders.get("Connect", []))
    told = {name: {"count": len(each), "seconds": round(sum(each), 1)} for name, each in orders.items()}
    return {"submissions": len(corpus.PROGRAMS), "seconds": round(seconds, 1), "without_starts_s": round(seconds - starts / SLOTS, 1), "orders": told}


def others() -> float:
    """Seconds of everything else in the corpus."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "tests/adversarial", "--ignore=tests/adversarial/test_judge.py"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "CRUSADES_CI": "1"}, check=True, stdout=sys.stderr)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--judge-only", action="store_true")
    given = parser.parse_args()
    rest = None if given.judge_only else others()
    judged = through_the_judge()
    found: dict[str, object] = {"evaluations": judged}
    if rest is not None:
        found |= {"others_s": round(rest, 1), "seconds": round(rest + judged["seconds"], 1), "from_warm_sandboxes_s": round(rest + judged["without_starts_s"], 1)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
