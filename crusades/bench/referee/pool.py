"""Exams kept ready in host memory, and who may still be served which (design.md §2, item 1).

An exam serves a submission at most once, and never one committed after the exam's first use: so a queue of submissions
shares exams, and nobody can prepare for one. Random-init profiles draw new initial weights for every set.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from crusades.bench.referee.data import Corpus
from crusades.bench.referee.exam import Exam, prepare_exams
from crusades.bench.referee.memory import host_buffer
from crusades.bench.referee.models import Reference
from crusades.errors import RefereeFault
from crusades.hparams import Profile


@dataclass
class ExamSet:
    """Exams that start from the same initial weights (flat, on the host)."""

    initial: torch.Tensor
    exams: list[Exam] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """What one call of `ensure` did."""

    available: int
    prepared: int
    seconds: float
    retired_seeds: tuple[str, ...]


class ExamPool:
    """At most `profile.exam_pool` exams, the oldest sets retired first. Not thread-safe; the referee has one thread that asks."""

    def __init__(self, reference: Reference, corpus: Corpus, profile: Profile) -> None:
        self._reference, self._corpus, self._profile = reference, corpus, profile
        self._sets: list[ExamSet] = []
        self._seeds: set[bytes] = set()
        self._spare = [] if reference.pretrained else [host_buffer(reference.layout.elements, reference.layout.dtype, reference.device)]
        """The buffer of retired weights, at most one, and one to begin with: pinning host memory takes longer than drawing weights."""

    def available(self, submission_id: str, commit_block: int) -> int:
        """How many exams this submission may be served now."""
        return sum(e.may_serve(submission_id, commit_block) for s in self._sets for e in s.exams)

    def ensure(self, submission_id: str, commit_block: int, wanted: int, at_hand: Callable[[torch.Tensor], torch.Tensor] = lambda flat: flat) -> Prepared:
        """Prepare what is missing so that `wanted` exams may serve this submission. Only while no contestant exists. `at_hand` puts
        a set's initial weights where they are quickly read several times."""
        started = time.monotonic()
        retired = self._make_room(submission_id, commit_block, wanted)
        missing = max(0, wanted - self.available(submission_id, commit_block))
        if missing:
            fresh = ExamSet(self._reference.redraw(secrets.randbits(62), self._spare.pop() if self._spare else None))
            self._sets.append(fresh)
            initial = at_hand(fresh.initial)
            fresh.exams += prepare_exams(self._reference, self._corpus, self._profile, initial, [self._new_seed() for _ in range(missing)])
            self._reference.restore(initial)
        return Prepared(self.available(submission_id, commit_block), missing, time.monotonic() - started, retired)

    def initial_for(self, submission_id: str, commit_block: int) -> torch.Tensor | None:
        """The initial weights of the exam that `take` is likely to give this submission next; None when it will give none."""
        left = [(e, s.initial) for s in self._sets for e in s.exams if e.may_serve(submission_id, commit_block)]
        return next((initial for e, initial in left if e.first_use_block is not None), left[0][1] if left else None)

    def take(self, submission_id: str, commit_block: int, block: int) -> tuple[Exam, torch.Tensor]:
        """An exam for one run, and the initial weights it starts from. Raises RefereeFault when none may serve."""
        candidates = [(e, s.initial) for s in self._sets for e in s.exams if e.may_serve(submission_id, commit_block)]
        if not candidates:
            raise RefereeFault("no exam may serve this submission; ensure() was not called")
        shared = [c for c in candidates if c[0].first_use_block is not None]
        # Shared ones first, and in no order that another submission could have told of.
        exam, initial = secrets.choice(shared or candidates)
        exam.served.add(submission_id)
        exam.first_use_block = block if exam.first_use_block is None else exam.first_use_block
        return exam, initial

    def _new_seed(self) -> bytes:
        seed = secrets.token_bytes(16)
        if seed in self._seeds:
            raise RefereeFault("the random generator repeated a 128-bit seed")
        self._seeds.add(seed)
        return seed

    def _make_room(self, submission_id: str, commit_block: int, wanted: int) -> tuple[str, ...]:
        """Drop whole sets, oldest first, until what this submission will then lack fits into the pool's bound. Their seeds may
        be published. Before anything is prepared: what is dropped afterwards may be what was counted on."""
        retired: list[str] = []
        bound = max(self._profile.exam_pool, wanted)
        while self._sets and (missing := wanted - self.available(submission_id, commit_block)) > 0 and sum(len(s.exams) for s in self._sets) + missing > bound:
            oldest = self._sets.pop(0)
            retired += [e.seed.hex() for e in oldest.exams]
            if oldest.initial is not self._reference.initial and not self._spare:  # pretrained weights are every set's
                self._spare.append(oldest.initial)
        return tuple(retired)


def peak_of(measure: Callable[[], float], repeats: int = 5) -> float:
    """The best of a few measurements: a peak is a maximum."""
    return max(measure() for _ in range(repeats))


def matmul_tflops(device: str, dtype: torch.dtype) -> float:
    """Measured dense matrix-product peak of `device` in TFLOP/s, best of five: what MFU is relative to on unknown hardware."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))

    def once() -> float:
        count = 8
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        return 2.0 * size**3 * count / (time.perf_counter() - started) / 1e12

    return peak_of(once)
