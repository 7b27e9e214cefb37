"""What the referee does between two steps, off the contestant's clock: secret reads, and how much of their time is its own.

Two processes share the card in slices of time. A contestant that asks for the next batch while work of its own still waits
on the card makes the referee wait for it; were all of that wait subtracted, the rest of the step would be free. So no read
takes more off the clock than it takes on an idle card, with a little room; what is beyond stays the contestant's and is
reported.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from crusades.bench.referee.audit import Reads
from crusades.bench.referee.layout import Sample
from crusades.bench.referee.models import Reference

if TYPE_CHECKING:
    from crusades.bench.referee.anchor import Anchor

READ_ROOM = 1.5
"""How many times as long as on the idle card a read may take off the clock: caches are cold after a contestant's step."""
TRIALS = 5
"""The slowest of so many is what the idle device needs."""
FLUSH_BYTES = 256 << 20
"""Written between two trials: more than any card's cache holds."""


def now_ns() -> int:
    """The clock of every score: CLOCK_MONOTONIC_RAW, which no adjustment of the system time bends."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def hold(started: int, seconds: float) -> None:
    """Return `seconds` after `started` (of `now_ns`), however early the work was done. Spins: a sleep ends when it likes."""
    while now_ns() < started + seconds * 1e9:
        pass


def slowest(work: Callable[[], object], device: str) -> float:
    """Seconds that `work` takes on the idle `device` with cold caches: the slowest of a few, since the first is no typical one."""
    took = []
    for _ in range(TRIALS + 1):
        if device == "cuda":
            torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device).zero_()
            torch.cuda.synchronize()
        started = now_ns()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append((now_ns() - started) / 1e9)
    return max(took[1:])


class Reader:
    """Secret reads of weights and moments at the coordinates of `sample`, and the copies of an anchor; buffers are allocated
    before the clock starts. `allowed`: seconds that one read may take off the clock (`idle_read`)."""

    def __init__(self, reference: Reference, sample: Sample, steps: int, anchor: Anchor | None = None, allowed: float = math.inf) -> None:
        self._memory, self._cuda, self._anchor, self._allowed = reference.memory, reference.device == "cuda", anchor, allowed
        self._index = sample.index.to(reference.device)
        shape = (steps + 1, len(sample))
        self._rows = [torch.empty(shape, dtype=reference.layout.dtype, device=reference.device) for _ in range(3)]
        self.read_seconds, self.copy_seconds, self.excess = ([0.0] * (steps + 1) for _ in range(3))
        """By row: what is off the clock of reads and of copies, and what they took beyond."""

    def read(self, row: int) -> None:
        """Read row `row`: what stands in memory now. Costs 0.6 ms for a million coordinates on an H100."""
        started = now_ns()
        for flat, rows in zip((self._memory.weights, self._memory.exp_avg, self._memory.exp_avg_sq), self._rows, strict=True):
            torch.index_select(flat, 0, self._index, out=rows[row])
        if self._cuda:
            torch.cuda.synchronize()
        between = now_ns()
        pause = self._anchor.before(row) if self._anchor else 0.0
        took, copied = (between - started) / 1e9, (now_ns() - between) / 1e9
        self.read_seconds[row], self.copy_seconds[row] = min(took, self._allowed), min(copied, pause)
        self.excess[row] = took + copied - self.off(row)

    def off(self, row: int) -> float:
        """Seconds of row `row` that are not the contestant's."""
        return self.read_seconds[row] + self.copy_seconds[row]

    def steps_of(self, started: int, marks: list[int]) -> tuple[float, ...]:
        """Seconds of every step, without what is off the clock: `marks` (of `now_ns`) are the ends of the reads of rows 1, 2 …"""
        return tuple((b - a) / 1e9 - self.off(row) for row, (a, b) in enumerate(itertools.pairwise([started, *marks]), 1))

    def result(self) -> Reads:
        """All rows."""
        return Reads(*self._rows)


def idle_read(reference: Reference, sample: Sample) -> float:
    """Seconds that a read of `sample` may take off the clock. Only while nothing else computes on the device."""
    reader = Reader(reference, sample, 0)
    return READ_ROOM * slowest(lambda: reader.read(0), reference.device)
