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
length, so that time tells nothing. It is off the contestant's clock, as the reads are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from crusades.bench.referee import audit as audits
from crusades.bench.referee.audit import Adam, Measured, Reads
from crusades.bench.referee.columns import Parts, draw_parts
from crusades.bench.referee.dice import Dice
from crusades.bench.referee.exam import Exam, ReferencePass
from crusades.bench.referee.memory import host_buffer
from crusades.bench.referee.models import Reference
from crusades.bench.referee.reads import hold, now_ns, slowest
from crusades.bench.referee.verdict import PREFIX, result_statistics
from crusades.hparams import Profile

T = TypeVar("T")

CHUNK_ELEMENTS = 1 << 27
"""Elements copied at a time; what is not kept goes into one chunk's worth of memory."""
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
        self.kept: list[Kept] = []
        self._place, self._turn, self._step_of = 0, -1, dict[int, int]()
        self.pause = self._rest = 0.0
        self._copying = 0
        self._stream = torch.cuda.Stream() if reference.device == "cuda" else None
        self._held: torch.Tensor | None = None
        """Of which the buffer is a copy."""

    def settle(self) -> None:
        """Measure on the idle device how long copies take: from now on every pause lasts as long."""
        if self._buffer is None:
            return
        self._finish()
        self._held = None
        first, device = self._steps[0], self._reference.device
        either = (Anchor(self._reference, self._steps, kept) for kept in ({}, {first: self._buffer}))
        self.pause = PAUSE_ROOM * max(slowest(functools.partial(anchor.copy, first), device) for anchor in either)
        if not self._rest:  # measured once: it takes most of a second, and the host does not change
            self._rest = PAUSE_ROOM * slowest(functools.partial(self._host[0].copy_, self._buffer), device)

    def begin(self, runs: int) -> None:
        """A contestant that is to make `runs` runs, a warm-up first: draw the secret choice."""
        self._finish()
        self.kept.clear()
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
        self._held = None
        return Anchor(self._reference, self._steps, {} if step is None else {step: self._buffer}, self.pause, self._finish)

    def copy_out(self) -> None:
        """After a run: begin to copy what it may have left to the host, while it is audited and the next one is made ready. The
        same is copied when nothing is to be kept, and it is never over sooner: nobody can tell."""
        if self._buffer is None:
            return
        self._copying = now_ns()
        if len(self.kept) < len(self._host):
            with torch.cuda.stream(self._stream):  # nothing on a CPU, where the copy is over when it returns
                self._host[len(self.kept)].copy_(self._buffer, non_blocking=True)

    def _finish(self) -> None:
        if self._copying:
            if self._stream is not None:
                self._stream.synchronize()
            hold(self._copying, self._rest)
            self._copying = 0

    def keep(self, anchor: Anchor | None, exam: Exam, initial: torch.Tensor, reads: Reads, measured: list[Measured], claims: Claims) -> None:
        """After a run from `initial` that passed so far, and after `copy_out`."""
        if anchor is None:
            return
        number, self._place = self._place, self._place + 1
        for step in anchor.kept:
            read, moments = reads.weights[step].cpu(), reads.exp_avg[step : step + 2].cpu()
            self.kept.append(Kept(number, step, exam, self._host[len(self.kept)], initial, read, moments, claims, tuple(measured)))

    def at_hand(self, initial: torch.Tensor) -> torch.Tensor:
        """`initial` (elements,) on the device, where the copies of a run were: only when no contestant exists."""
        self._finish()
        assert self._buffer is not None
        if self._held is not initial:
            self._held = initial
            self._buffer.copy_(initial)
        return self._buffer


def compare(kept: Kept, initial: torch.Tensor, reference: Reference, profile: Profile, expected: audits.Expected, adam: Adam) -> list[Measured]:
    """The anchored step's statistics, 0 in every other step. Trains nothing, but uses the shared memory and the model: only when no contestant exists.

    `initial` is `kept.initial`, here or on the device; `expected` is the exam's; its gradient and columns are replaced by those at the contestant's weights, with cells of its own.
    Those weights were copied after they were read: `anchor_weights` is the share of coordinates that changed in between, for a
    copy of other weights would make other weights' gradient right. `anchor_reach` is the share of *all* weights that are where
    AdamW cannot have brought them: a few hundred that were never sampled could make a step's true gradient trivial. After the
    last step the contestant's result is compared, too.
    """
    exam, last = kept.exam, kept.step == profile.steps - 1
    changed = audits.share(kept.weights[exam.sample.index] != kept.read)
    reference.restore(kept.weights)
    astray = out_of_reach(reference.memory.weights, initial, adam, kept.step)
    pass_ = ReferencePass(reference, profile, exam.sample, exam.plan, exam.logit_rows, exam.logit_columns)
    parts = fine_parts(exam, kept.step, profile, reference.device)
    gradient, columns = pass_.gradient(exam.batches[kept.step], parts, last=last)
    reference.model.zero_grad(set_to_none=True)
    own = dataclasses.replace(expected, gradient=gradient[None], columns=columns[None], families=parts.families, part_names=parts.names,
                              standing=exam.standing(kept.step).to(reference.device)[None])  # fmt: skip
    found = audits.anchored(kept.exp_avg.to(reference.device), own, adam, profile.steps, profile.audit.group_min)
    found = [Measured("weights", (changed,), ("",)), Measured("reach", (astray,), ("",)), *found]
    found = [Measured(PREFIX + m.name, _at(kept.step, profile.steps, m.values[0], 0.0), _at(kept.step, profile.steps, m.where[0], "")) for m in found]
    if last:
        found += [Measured(PREFIX + m.name, m.values, m.where) for m in result_statistics(kept.claims.loss, pass_.losses[-1], kept.claims.logits, pass_.logits)]
    return found


REACH = 2.0
"""Learning rates that a weight may move in a step at most. AdamW moves it by |m̂| / √v̂ of one: by Cauchy and Schwarz at most
√(Σ aᵢ²/bᵢ) over the shares a, b that step i has in m̂ and v̂, which is 1.003 in step 5 (β₁ 0.9, β₂ 0.95) and 1.011 (β₂ 0.999)."""


def out_of_reach(weights: torch.Tensor, initial: torch.Tensor, adam: Adam, steps: int) -> float:
    """The share of `weights` (elements,) that are farther from `initial` than `steps` of AdamW can carry them, their rounding
    and decay counted. `initial` may be elsewhere."""
    moved, eps = REACH * steps * adam.learning_rate, torch.finfo(weights.dtype).eps + adam.learning_rate * abs(adam.weight_decay)
    astray = 0
    for start in range(0, len(weights), CHUNK_ELEMENTS // 4):
        now, then = (flat[start : start + CHUNK_ELEMENTS // 4].to(weights.device).float() for flat in (weights, initial))
        within = (now - then).abs_() <= then.abs().add_(moved).mul_(steps * eps).add_(moved)
        astray += int((~within).sum())  # what is no number is not within
    return astray / len(weights)


def fine_parts(exam: Exam, step: int, profile: Profile, device: str) -> Parts:
    """The parts of an anchored step, with `fine_cells` cells: as secret as the exam's seed, and drawn when they are needed."""
    seed = hashlib.sha256(exam.seed + step.to_bytes(4, "little")).digest()
    return draw_parts(profile.batch_size, profile.sequence_length - 1, profile.audit.fine_cells, Dice(seed), device)


def _at(step: int, steps: int, value: T, other: T) -> tuple[T, ...]:
    return tuple(value if s == step else other for s in range(steps))

