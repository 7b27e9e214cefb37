"""An exam: secret batches, and the reference's gradients, weights and moments at secret coordinates, step by step.

Prepared only while no contestant exists on the slot. What is kept lies in host memory; everything else that the
reference pass touched is overwritten (`memory` by the next restore, gradients and activations by `room`).
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from crusades.bench.inside.model import make_optimizer
from crusades.bench.referee.columns import ColumnTaps, Parts
from crusades.bench.referee.data import Corpus
from crusades.bench.referee.draft import Draft, draw_exam
from crusades.bench.referee.layout import Sample
from crusades.bench.referee.loss import losses
from crusades.bench.referee.measured import Expected
from crusades.bench.referee.memory import host_buffer
from crusades.bench.referee.models import Reference
from crusades.bench.referee.softmax import BeyondMoments
from crusades.hparams import Profile


@dataclass
class Exam(Draft):
    """What one run is compared with. All tensors on the host; c of the n sampled coordinates have columns."""

    weights: torch.Tensor
    """(R + 1, n) in the model's dtype; row 0 is the initial weights."""
    exp_avg_sq: torch.Tensor
    """(R, n) in the model's dtype."""
    gradient: torch.Tensor
    """(R, n) float32: the gradient of the mean loss of each step."""
    columns: torch.Tensor
    """(R, parts, c) float32: each part's share of `gradient` at the chosen coordinates."""
    beyond: torch.Tensor
    """(R, n) float32: the part of `gradient` that moments of the output layer's rows do not make (`softmax.py`)."""
    losses: tuple[float, ...]
    logits: torch.Tensor
    """(rows, columns) float32 of the last step; zeros when the reference did not take it."""
    seconds: float
    """What the reference took."""
    first_use_block: int | None = None
    served: set[str] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        """Whether the reference took every step."""
        return len(self.gradient) == len(self.batches)

    def may_serve(self, submission_id: str, commit_block: int) -> bool:
        """At most once per submission, and never one committed after the exam's first use."""
        if submission_id in self.served:
            return False
        return self.first_use_block is None or commit_block <= self.first_use_block


def groups_of(sample: Sample, device: str) -> dict[str, tuple[torch.Tensor, tuple[str, ...]]]:
    """Layer, kind and tensor of every coordinate, as the audit wants them."""
    groups = sample.groups
    return {"layer": (groups.layer.to(device), groups.layer_names), "kind": (groups.kind.to(device), groups.kind_names), "tensor": (groups.tensor.to(device), groups.tensor_names)}


def expected_of(exam: Exam, device: str) -> Expected:
    """An exam as the audit wants it, on `device`."""
    return Expected(
        weights=exam.weights.to(device), exp_avg_sq=exam.exp_avg_sq.to(device) if exam.whole else None, gradient=exam.gradient.to(device),
        columns=exam.columns.to(device), chosen=exam.plan.chosen.to(device), families=exam.parts[0].families, part_names=exam.parts[0].names,
        groups=groups_of(exam.sample, device), standing=exam.standings[: len(exam.gradient)].to(device), beyond=exam.beyond.to(device),
    )  # fmt: skip


def optimizer_settings(profile: Profile) -> dict[str, float]:
    """The optimizer's constants as the contestant's harness gets them."""
    return {key: getattr(profile, key) for key in ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")}


def prepare_exam(reference: Reference, corpus: Corpus, profile: Profile, initial: torch.Tensor, seed: bytes | None = None) -> Exam:
    """Run the reference on secret batches. Leaves trained weights in the shared memory: the caller restores before use."""
    return _answered(draw_exam(reference, corpus, profile, seed or secrets.token_bytes(16)), reference, profile, initial)


def prepare_exams(reference: Reference, corpus: Corpus, profile: Profile, initial: torch.Tensor, seeds: Sequence[bytes]) -> Iterator[Exam]:
    """The same for each of `seeds`. While the device computes one, a thread draws the others: a sixth of the time on a card."""
    with ThreadPoolExecutor(1) as beside:
        for draft in beside.map(functools.partial(draw_exam, reference, corpus, profile), seeds):
            yield _answered(draft, reference, profile, initial)


def _answered(draft: Draft, reference: Reference, profile: Profile, initial: torch.Tensor) -> Exam:
    """Nothing in here waits for the device before the last lines: it is given one step while it computes another."""
    started = time.monotonic()
    reference.restore(initial)
    pass_ = ReferencePass(reference, profile, draft)
    batches, parts = torch.from_numpy(draft.batches).to(reference.device), [parts_of_step.on(reference.device) for parts_of_step in draft.parts]
    for step, parts_of_step in enumerate(parts):
        pass_.step(batches[step], parts_of_step, last=step == profile.steps - 1)
    kept = (pass_.weights, pass_.exp_avg_sq, pass_.gradients, pass_.columns, pass_.beyond)
    weights, exp_avg_sq, gradient, columns, beyond = (_on_host(rows, reference.device) for rows in kept)
    reference.wait()
    return Exam(
        **vars(draft), weights=weights, exp_avg_sq=exp_avg_sq, gradient=gradient, columns=columns, beyond=beyond,
        losses=tuple(torch.stack(pass_.losses).tolist()), logits=pass_.logits.cpu(), seconds=time.monotonic() - started,
    )  # fmt: skip


def _on_host(rows: list[torch.Tensor], device: str) -> torch.Tensor:
    """`rows` one above the other; not to be read before `Reference.wait`. Half a gigabyte of columns comes and goes in hundredths of
    a second from memory that the driver knows, in tenths from any other, and every run of every submission needs them."""
    host = host_buffer(len(rows) * rows[0].numel(), rows[0].dtype, device, "what an exam keeps").view(len(rows), *rows[0].shape)
    for row, into in zip(rows, host, strict=True):
        into.copy_(row, non_blocking=True)
    return host


class ReferencePass:
    """Micro-batched AdamW training, from the weights that stand in the shared memory, that keeps samples only: a row a step, on the device."""

    def __init__(self, reference: Reference, profile: Profile, draft: Draft) -> None:
        self._reference, self._profile, self._sample, self._plan = reference, profile, draft.sample, draft.plan
        self._index = draft.sample.index.to(reference.device)
        self._local = [self._index[a:b] - spec.offset for spec, (a, b) in zip(reference.layout.specs, draft.sample.bounds, strict=True)]
        self._rows, self._columns_at = draft.logit_rows.to(reference.device), draft.logit_columns.to(reference.device)
        parameters = list(reference.model.parameters())
        self._optimizer = make_optimizer(parameters, optimizer_settings(profile))
        first, second = (reference.layout.views(m) for m in (reference.memory.exp_avg, reference.memory.exp_avg_sq))
        for name, parameter in reference.model.named_parameters():
            step = torch.zeros((), device=reference.device)
            self._optimizer.state[parameter] = {"step": step, "exp_avg": first[name], "exp_avg_sq": second[name]}
        self.weights = [self._read(reference.memory.weights)]
        self.exp_avg_sq: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []
        self.columns: list[torch.Tensor] = []
        self.beyond: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        self.logits = torch.zeros(len(draft.logit_rows), len(draft.logit_columns), device=reference.device)

    @functools.cached_property
    def _taps(self) -> ColumnTaps:
        """Those of every step that asks for no more than the plan: to make them takes as long as a few layers."""
        return self._tapped(None)

    def _tapped(self, of_head: torch.Tensor | None) -> ColumnTaps:
        return ColumnTaps(self._reference.model, self._reference.layout, self._sample, self._plan, self._reference.device, of_head)

    def _read(self, flat: torch.Tensor) -> torch.Tensor:
        return flat[self._index]

    def step(self, batch: np.ndarray | torch.Tensor, parts: Parts, *, last: bool) -> None:
        """One optimizer step over `batch` (batch, sequence)."""
        gradient, columns = self.gradient(batch, parts, last=last)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.gradients.append(gradient)
        self.columns.append(columns)
        self.weights.append(self._read(self._reference.memory.weights))
        self.exp_avg_sq.append(self._read(self._reference.memory.exp_avg_sq))

    def gradient(self, batch: np.ndarray | torch.Tensor, parts: Parts, *, last: bool = False, of_head: torch.Tensor | None = None,
                 meanwhile: Callable[[], object] = lambda: None) -> tuple[torch.Tensor, torch.Tensor]:
        """Sampled gradient (n,) and columns (parts, c + h) of one batch at the present weights, in micro-batches, with taps on; on
        the device. `of_head` (h,) names more coordinates of the sample, all in the head, that are to have columns;
        `meanwhile` is called when all that this needs is on the device, before it begins to compute.
        """
        reference, size = self._reference, self._profile.audit.micro_batch
        tokens, parts = torch.as_tensor(batch, device=reference.device), parts.on(reference.device)
        loss = torch.zeros((), device=reference.device)
        moments = BeyondMoments(reference, self._local, self._sample.bounds)
        taps = self._taps if of_head is None else self._tapped(of_head)
        with taps.of(len(parts.names)), moments:
            meanwhile()
            for start in range(0, len(tokens), size):
                loss += self._micro_batch(tokens, slice(start, min(start + size, len(tokens))), parts, taps, moments, last)
        self.losses.append(loss)
        self.beyond.append(moments.found)
        return self._sampled_gradient(), taps.columns

    def _micro_batch(self, tokens: torch.Tensor, rows: slice, parts: Parts, taps: ColumnTaps, moments: BeyondMoments, last: bool) -> torch.Tensor:
        x, y = tokens[rows, :-1], tokens[rows, 1:]
        logits = self._reference.model(x).logits
        each = losses(logits.flatten(0, 1), y.flatten())
        taps.indicator = parts.indicator(rows, each.detach().view(y.shape))
        if last:
            self._keep_logits(logits.detach(), rows)
        with taps.deaf():
            moments.add(logits, tokens.shape[0] * y.shape[1])
        loss = each.sum() / (tokens.shape[0] * y.shape[1])
        loss.backward()
        return loss.detach()

    def _keep_logits(self, logits: torch.Tensor, rows: slice) -> None:
        local = self._rows - rows.start * logits.shape[1]
        flat = logits.flatten(0, 1)
        inside = (local >= 0) & (local < len(flat))
        shown = flat[local.clamp(0, len(flat) - 1)][:, self._columns_at].float()
        self.logits = torch.where(inside[:, None], shown, self.logits)

    def _sampled_gradient(self) -> torch.Tensor:
        got = torch.empty(len(self._sample), device=self._reference.device)
        for local, (a, b), parameter in zip(self._local, self._sample.bounds, self._reference.model.parameters(), strict=True):
            assert parameter.grad is not None
            got[a:b] = parameter.grad.flatten()[local]
        return got
