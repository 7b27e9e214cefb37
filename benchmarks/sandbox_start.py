"""How much longer a program takes to start behind all walls than as a bare interpreter. Budget: 30 ms.

    python benchmarks/sandbox_start.py [--runs 40] [--fifo] [--json]

Both start `python -I`, which writes one byte to its channel; the sandboxed one also applies its inside limits, in a second
figure. Runs are interleaved, the first of each is thrown away, and medians are compared. Works without torch. On a machine
with other work `--fifo` (as root) runs both before everybody else, without the cpu cgroup, which takes no such process.
"""

import argparse
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import trio

from crusades import hparams
from crusades.sandbox import cgroups, launch
from crusades.sandbox.policy import contestant_policy

GUARD = Path(launch.__file__).parent / "inside"
HELLO = "import os; os.write(3, b'x')"
GUARDED = "import sys; sys.path.insert(0, '/inside/guard'); import limits; limits.apply(); " + HELLO
BARE_GUARDED = "import ctypes, json, resource, struct; " + HELLO
"""What `limits` imports, without the walls: its cost is not the sandbox's, the harness imports it anyway."""
BUDGET_MS = 30.0


def heard(channel: socket.socket) -> None:
    """Blocks; the event loop has nothing else to do here."""
    select.select([channel], [], [], 30)
    assert channel.recv(1) == b"x", "the program died"


def bare(code: str) -> float:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        start = time.perf_counter()
        shell = ["/bin/sh", "-c", 'exec 3<&0 0</dev/null; exec "$@"', "sh", sys.executable, "-I", "-c", code]
        process = subprocess.Popen(shell, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"PATH": os.defpath})
        heard(ours)
        seconds = time.perf_counter() - start
        process.wait()
    return seconds


async def boxed(code: str) -> tuple[float, float]:
    """Seconds until the first byte, and how many of them `spawn` blocked the event loop."""
    policy = contestant_policy(hparams.Sandbox())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        start = time.perf_counter()
        box = launch.spawn(policy, [sys.executable, "-I", "-c", code], channel=theirs, mounts={GUARD: "/inside/guard"})
        blocked = time.perf_counter() - start
        heard(ours)
        seconds = time.perf_counter() - start
        await box.kill()
    return seconds, blocked


async def measure(runs: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in ("bare", "boxed", "blocked", "bare_guarded", "boxed_guarded")}
    for _ in range(runs + 1):
        samples["bare"].append(bare(HELLO))
        seconds, blocked = await boxed(HELLO)
        samples["boxed"].append(seconds)
        samples["blocked"].append(blocked)
        samples["bare_guarded"].append(bare(BARE_GUARDED))
        samples["boxed_guarded"].append((await boxed(GUARDED))[0])
    ms = {name: 1e3 * statistics.median(values[1:]) for name, values in samples.items()}
    return {
        "bare_ms": ms["bare"],
        "sandboxed_ms": ms["boxed"],
        "over_ms": ms["boxed"] - ms["bare"],
        "over_with_inside_limits_ms": ms["boxed_guarded"] - ms["bare_guarded"],
        "spawn_blocks_ms": ms["blocked"],
        "budget_ms": BUDGET_MS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--fifo", action="store_true", help="with real-time priority")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.fifo:
        found = cgroups.hierarchy()
        bases = {name: base for name, base in found.bases.items() if name != "cpu"}
        cgroups.hierarchy = lambda: cgroups.Hierarchy(found.version, bases, found.why)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    result = {name: round(value, 2) for name, value in trio.run(measure, options.runs).items()}
    print(json.dumps(result) if options.json else "\n".join(f"{name:30} {value:8.2f}" for name, value in result.items()))
    return 0 if result["over_ms"] <= BUDGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
