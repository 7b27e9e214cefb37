"""Why honest steps differ: `python benchmarks/step_noise.py train.py [--profile P] [--device D] [--blocks off,on,off,on] [--runs N] [--record FILE]`.

inner_steps runs here, in plain memory, in blocks of N runs without and with the sampler that watches the card through every
scored run (`crusades.nvml`). On a card every step's mean SM clock is known exactly: a kernel at both its ends notes every
multiprocessor's cycle counter and the card's own nanoseconds. Prints one JSON object a block: the spread of the runs, how many
steps took 2 % longer than the median of their place, how much, and the SM clock in them relative to its median there; and the
correlation of a step's time with its clock. A step that is longer at a lower clock was slowed by the card's power control; one
that is longer at a higher clock had the card wait.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from plain import Plain

from crusades import nvml

STAMP = r"""
extern "C" __global__ void stamp(long long* out) {
  unsigned int sm; unsigned long long ns;
  asm volatile("mov.u32 %0, %smid;" : "=r"(sm));
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  if (threadIdx.x == 0) { out[2 * sm] = clock64(); out[2 * sm + 1] = (long long)ns; }
}
"""
LONGER = 0.02


class Clock:
    """Stamps of a card's cycle counters; without a card it knows nothing."""

    def __init__(self, device: str) -> None:
        self._places = torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 0
        self._kernel: Any = torch.cuda._compile_kernel(STAMP, "stamp") if device == "cuda" else None

    def stamp(self) -> torch.Tensor:
        """(multiprocessors, 2): cycles and nanoseconds now."""
        found = torch.zeros(2 * self._places, dtype=torch.int64, device="cuda" if self._places else "cpu")
        if self._kernel:
            self._kernel((2 * self._places, 1, 1), (32, 1, 1), (found,))
            torch.cuda.synchronize()
        return found.view(-1, 2)

    def mhz(self, before: torch.Tensor, after: torch.Tensor) -> float:
        """The median multiprocessor's mean clock between two stamps; 0 where nothing is known."""
        both = (before[:, 1] > 0) & (after[:, 1] > 0)
        passed = (after - before)[both].double()
        return float((passed[:, 0] / passed[:, 1]).median()) * 1e3 if len(passed) else 0.0


@contextlib.contextmanager
def sampled(wanted: bool) -> Iterator[None]:
    """With the validator's own sampler beside."""
    if not wanted:
        yield
        return
    library = nvml.load()
    if library is None:
        raise SystemExit("no NVIDIA driver answers here: there is nothing to sample; --blocks off")
    sampler = nvml.Sampler(0, library)
    sampler.start()
    try:
        yield
    finally:
        sampler.stop()


def once(plain: Plain, clock: Clock, seed: int) -> tuple[list[float], list[float]]:
    """Seconds and MHz of every step."""
    ends: list[tuple[float, torch.Tensor, float]] = []

    def mark() -> None:
        ended = time.perf_counter()
        ends.append((ended, clock.stamp(), time.perf_counter()))

    plain.run(seed, mark)
    pairs = list(itertools.pairwise(ends))
    return [after[0] - before[2] for before, after in pairs], [clock.mhz(before[1].cpu(), after[1].cpu()) for before, after in pairs]


def block(plain: Plain, clock: Clock, kind: str, runs: int) -> dict[str, Any]:
    """`runs` runs, and what can be said of their steps."""
    with sampled(kind == "on"):
        each = [once(plain, clock, 2 + i) for i in range(runs)]
    steps, mhz = (torch.tensor([row[i] for row in each], dtype=torch.float64) for i in (0, 1))
    more, faster = steps / steps.median(0).values - 1, mhz / mhz.median(0).values - 1  # no number where no clock is known
    totals, longer = steps.sum(1), more > LONGER
    correlation = float(torch.corrcoef(torch.stack([more.flatten(), faster.flatten()]))[0, 1])
    return {
        "sampler": kind, "runs": runs, "run_s_median": float(totals.median()), "run_spread_percent": float(100 * totals.std() / totals.mean()),
        "steps": steps.numel(), "steps_2_percent_longer": int(longer.sum()), "longer_percent_and_its_clock": [[100 * a, 100 * b if math.isfinite(b) else None] for a, b in zip(more[longer].tolist(), faster[longer].tolist(), strict=True)],
        "correlation_of_time_and_clock": correlation if math.isfinite(correlation) else None, "seconds": steps.tolist(), "mhz": mhz.tolist(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--profile", default="qwen2.5-3b")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--blocks", default="off,on,off,on")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--record", type=Path, help="every step of every block, too")
    given = parser.parse_args()
    kinds = given.blocks.split(",")
    if not set(kinds) <= {"on", "off"} or given.runs < 3:
        parser.error("--blocks: on and off, with commas; --runs: at least 3")
    plain, clock, found = Plain(given.path, given.profile, given.device), Clock(given.device), []
    for seed in range(2):
        once(plain, clock, seed)
    for kind in kinds:
        found.append(block(plain, clock, kind, given.runs))
        print(json.dumps({name: value for name, value in found[-1].items() if name not in ("seconds", "mhz")}), flush=True)
        if given.record:
            given.record.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
