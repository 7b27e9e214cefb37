"""How long the demo takes, and how long each submission waits from the front of the queue to its verdict.

    python benchmarks/demo_time.py

Budgets (docs/design.md §8 and the README): `demo --once` within 180 s on two cores that have nothing else to do; the baseline, with
its warm-up and five scored runs, within 20 s from the front of the queue. Ends with 1 when a budget is missed or a
verdict was not as expected. The demo's own progress lines are the measurement.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_BUDGET, BASELINE_BUDGET = 180.0, 20.0
LINE = re.compile(r"\[ *([0-9.]+) s\] ([a-z-]+): (running|scored|rejected|faulted|queued)")


def spans(words: str) -> list[tuple[str, float]]:
    """(name, seconds) of every submission that ran: from the verdict before it (or its own queueing) to its verdict."""
    queued: dict[str, float] = {}
    found, free = [], 0.0
    for at, name, state in LINE.findall(words):
        if state == "queued":
            queued.setdefault(name, float(at))
        elif state in ("scored", "rejected", "faulted") and name in queued:
            found.append((name, float(at) - max(free, queued[name])))
            free = float(at)
    return found


def main() -> int:
    """Run it and print the table."""
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    done = subprocess.run([sys.executable, "-m", "crusades.cli", "demo", "--once", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout:
        print(f"{done.stderr[-3000:]}\nexit code {done.returncode}")
        return 1
    seconds = json.loads(done.stdout)["seconds"]
    found = spans(done.stderr)
    for name, span in found:
        print(f"{span:7.1f} s  {name}")
    print(f"{seconds:7.1f} s  demo --once (budget {DEMO_BUDGET:.0f} s), exit code {done.returncode}")
    return int(done.returncode != 0 or seconds > DEMO_BUDGET or dict(found).get("baseline", 0.0) > BASELINE_BUDGET)


if __name__ == "__main__":
    sys.exit(main())
