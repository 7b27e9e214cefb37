"""An anchored step: one step's gradient compared at the *contestant's own* weights.

The exam's reference trains its own copy of the model, and by step 5 honest rounding has carried the two apart: on an
H100 (Qwen2.5-3B, bf16) honest gradients of the last step differed from the reference's by up to 65 %, those of the first
by 13 % at most (in Adam's unit; docs/log.md, 2026-11-24). A shortcut in a late step hides in that difference. So before a
late step the referee copies all weights as they stand in the shared memory, and when the contestant is dead it computes
that step's gradient, with its columns, from the copy. What remains is the noise of a single step.

Which runs are kept, and which step of each, is secret, but every candidate step has its turn before any has a second
one, and scored runs come before the warm-up: what shirks the same step in every run is met for certain when there are as
many anchored runs as candidates, and `bench.credit` makes a step that was not met worth no more than one that was. A copy of
the same size is made before every candidate in every run, and every pause, here and after a run, is drawn out to one fixed
length, so that time tells nothing. It is off the contestant's clock, as the reads are. What is done with the copies when the
contestant is dead is in `anchored`.
"""

from __future__ import annotations

import functools
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import torch

from crusades.bench.referee.audit import Measured, Reads
from crusades.bench.referee.exam import Exam
from crusades.bench.referee.memory import Beside, host_buffer
from crusades.bench.referee.models import Reference
from crusades.bench.referee.reads import hold, now_ns, slowest
from crusades.hparams import Profile

CHUNK_ELEMENTS = 1 << 27
"""Elements copied at a time; what is not kept goes into one chunk's worth of memory."""
PIECE_ELEMENTS = 1 << 24
"""Copied to the host at a time; what is not kept goes into one piece's worth of it."""
PAUSE_ROOM = 1.25
"""How many times as long as the slowest copy on the idle device every pause is."""


def candidates(profile: Profile) -> range:
    """Steps (0-based) that may be anchored: the last ones; the first needs no anchor, its weights are the exam's."""
    return range(max(1, profile.steps - profile.audit.anchor_steps), profile.steps)


class Anchor:
    """Copies at step boundaries during one run; those before the steps of `kept` (step → flat buffer) stay. Every one lasts
    `pause` seconds, or a little longer where the contestant keeps the device busy."""

    def __init__(self, reference: Reference, steps: range, kept: dict[int, torch.Tensor], pause: float = 0.0, begin: Callable[[], None] | None = None) -> None:
        self._flat, self._steps, self.kept, self._pause = reference.memory.weights, steps, kept, pause
        self.begin = begin or (lambda: None)
        """Call before the clock starts: what the run before left has to be out of the way."""
        self._waste = torch.empty(min(len(self._flat), CHUNK_ELEMENTS), dtype=self._flat.dtype, device=self._flat.device)

    def before(self, step: int) -> float:
        """Call when all updates before `step` (0-based) are in memory and its batch is not yet out. The seconds of it that are ours."""
        if step not in self._steps:
            return 0.0
        started = now_ns()
        self.copy(step)
        hold(started, self._pause)
        return self._pause

    def copy(self, step: int) -> None:
        """All weights as they stand, to where they stay or to waste: the same bytes in the same pieces."""
        for start in range(0, len(self._flat), CHUNK_ELEMENTS):
            part = self._flat[start : start + CHUNK_ELEMENTS]
            (self.kept[step][start : start + len(part)] if step in self.kept else self._waste[: len(part)]).copy_(part)
        if self._flat.is_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Claims:
    """What the contestant says came of a run's last step."""

    loss: float | None
    logits: torch.Tensor
    """(rows, columns) at the exam's secret places, on the host."""


@dataclass(frozen=True)
class Kept:
    """What an anchored run leaves for the time after its contestant. Everything on the host."""

    run: int
    """Its place among the runs of this contestant."""
    step: int
    exam: Exam
    weights: torch.Tensor
    """(elements,) flat: all weights before `step`."""
    initial: torch.Tensor
    """(elements,) flat: the weights that the run started from."""
    read: torch.Tensor
    """(n,): the weights before `step` as they were read at the sampled coordinates, a moment before all were copied."""
    exp_avg: torch.Tensor
    """(2, n): the first moment at the sampled coordinates before and after `step`."""
    claims: Claims
    measured: tuple[Measured, ...]
    """The statistics of the run so far."""


class Keeper:
    """Chooses which runs and steps of one contestant are anchored, and keeps what they leave."""

    def __init__(self, reference: Reference, profile: Profile) -> None:
        self._reference, self._profile = reference, profile
        self._steps = candidates(profile)
        self._buffer: torch.Tensor | None = None
        self._host: list[torch.Tensor] = []
        if profile.audit.anchored_runs and self._steps:
            self._buffer = torch.empty_like(reference.memory.weights)
            self._host = [host_buffer(len(self._buffer), self._buffer.dtype, reference.device) for _ in range(profile.audit.anchored_runs)]
            self._waste = host_buffer(min(len(self._buffer), PIECE_ELEMENTS), self._buffer.dtype, reference.device)
        self.kept: list[Kept] = []
        self._place, self._turn, self._step_of = 0, -1, dict[int, int]()
        self.pause = self._rest = 0.0
        self._copying = 0
        self._beside = Beside(reference.device)
        self._holds: Kept | torch.Tensor | None = None
        """Whose weights the buffer has, or which initial weights."""

    def settle(self) -> None:
        """Measure on the idle device how long copies take: from now on every pause lasts as long. Once: it takes a second, and
        neither device nor host change."""
        if self._buffer is None or self._rest:
            return
        self._finish()
        self._holds = None
        first, device = self._steps[0], self._reference.device
        either = (Anchor(self._reference, self._steps, kept) for kept in ({}, {first: self._buffer}))
        self.pause = PAUSE_ROOM * max(slowest(functools.partial(anchor.copy, first), device) for anchor in either)
        self._rest = slowest(functools.partial(self._copy, 0), device)

    def begin(self, runs: int) -> None:
        """A contestant that is to make `runs` runs, a warm-up first: draw the secret choice."""
        self._finish()
        self.kept.clear()
        self._holds = None
        self._place, self._turn = 0, -1
        dice = secrets.SystemRandom()
        chosen = [*dice.sample(range(1, runs), runs - 1), 0][: len(self._host)]
        turns = itertools.cycle(dice.sample(self._steps, len(self._steps)))
        self._step_of = dict(zip(chosen, turns, strict=False))

    def anchor(self, *, repeats: bool = False) -> Anchor | None:
        """The next run's anchor; None where the profile has none. When it `repeats` a void run it takes that one's anchor, so
        that no step is verified by the time of a run that does not count."""
        if self._buffer is None:
            return None
        if repeats:
            self.kept = [kept for kept in self.kept if kept.run != self._place - 1]
        else:
            self._turn += 1
        step = self._step_of.get(self._turn)
        self._holds = self._holds if step is None else None
        return Anchor(self._reference, self._steps, {} if step is None else {step: self._buffer}, self.pause, self._finish)

    def _copy(self, place: int) -> None:
        assert self._buffer is not None
        pieces = self._buffer.split(len(self._waste))
        into = self._host[place].split(len(self._waste)) if place < len(self._host) else [self._waste] * len(pieces)
        with self._beside.begin():
            for target, piece in zip(into, pieces, strict=True):
                target[: len(piece)].copy_(piece, non_blocking=True)

    def _finish(self) -> None:
        if self._copying:
            self._beside.finish()
            hold(self._copying, self._rest)
            self._copying = 0

    def keep(self, anchor: Anchor | None, exam: Exam, initial: torch.Tensor, reads: Reads, measured: list[Measured], claims: Claims) -> None:
        """After a run from `initial` that passed so far: note what it leaves, and begin to copy its weights to the host while the
        next run is made ready. The same bytes go when nothing is kept, and are not there sooner: nobody can tell. Last of
        all: every number that comes from the device after that waits for it."""
        if anchor is None:
            return
        place = len(self.kept)
        number, self._place = self._place, self._place + 1
        for step in anchor.kept or self._steps[:1]:
            read, moments = reads.weights[step].cpu(), reads.exp_avg[step : step + 2].cpu()
            if step in anchor.kept:
                self.kept.append(Kept(number, step, exam, self._host[place], initial, read, moments, claims, tuple(measured)))
                self._holds = self.kept[-1]
        self._copying = now_ns()
        self._copy(place)

    def at_hand(self, kept: Kept) -> torch.Tensor:
        """(elements,) `kept.weights`: on the device if they are still there, else on the host."""
        self._finish()
        return self._buffer if self._buffer is not None and self._holds is kept else kept.weights

    def load(self, initial: torch.Tensor) -> torch.Tensor:
        """`initial` (elements,) where the copies of a run were, brought there if it is not: only when no contestant exists, and the
        last that is asked of the copy that was there."""
        self._finish()
        if self._buffer is None:
            return initial
        if self._holds is not initial:
            self._holds = initial
            self._buffer.copy_(initial, non_blocking=True)
        return self._buffer
