"""Was the hidden states' gradient made from all rows of the output layer, or from their first moments?

A token's logits give its hidden state the gradient Σᵥ pᵥ·Wᵥ − W_target, per position. Near a random start the sum is two percent of
it, and its rows' mean μ and covariance C make nearly all of that: Σᵥ pᵥ·Wᵥ ≈ μ + C·h (exactly so for Gaussian rows). So a third of
the head's arithmetic can be left out at an error below bf16's own rounding (docs/log.md, 2026-11-27). But that rounding is random, and
what was left out is known: δ = Σᵥ pᵥ·Wᵥ − μ − C·h, followed back through the last layers, is a direction in which honest work
has coefficient 1, whatever its noise, and work by moments 0.

Part of the reference pass (`exam.py`) and of the audit (`audit.py`).
"""

from __future__ import annotations

import torch
from torch import nn

from crusades.bench.referee.columns import head_of
from crusades.bench.referee.layout import layer_of
from crusades.bench.referee.measured import Expected, Measured, per_step
from crusades.bench.referee.models import Reference

DEPTH = 4
"""δ is followed through the last of so many parts of the layers: further down it costs more than it tells."""
CHUNK = 1024
"""Tokens whose probabilities are held at once: 1.5 GB for a vocabulary of 150,000, in float32 twice and in bf16."""


class BeyondMoments:
    """What δ makes of the sampled gradient of the last layers' matrices; active inside `with`. Call `add` between a micro-batch's forward
    and backward pass; `found` (n,) float32 adds up, 0 at all other coordinates and where the output layer is no matrix."""

    def __init__(self, reference: Reference, local: list[torch.Tensor], bounds: tuple[tuple[int, int], ...]) -> None:
        """`local`: the sampled coordinates of each parameter, in itself; `bounds`: where they stand in the sample."""
        self.found = torch.zeros(bounds[-1][1], device=reference.device)
        head, first = head_of(reference.model, reference.layout), reference.layers - max(1, reference.layers // DEPTH)
        self._head = head[0] if head else None
        named = zip(reference.layout.specs, bounds, local, reference.model.parameters(), strict=True)
        self._followed = [(p, at, slice(a, b)) for s, (a, b), at, p in named if p.dim() == 2 and first <= layer_of(s.name, reference.layers) < reference.layers]
        self._hidden = torch.zeros(0)
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> BeyondMoments:
        if self._head is not None:
            self._moments = _moments(self._head.weight.detach())
            self._handle = self._head.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._hidden = torch.zeros(0)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = inputs[0]

    def add(self, logits: torch.Tensor, positions: int) -> None:
        """Of one micro-batch's `logits` (sequences, length, vocabulary); the loss is a mean over `positions`."""
        if self._head is None or not self._followed:
            return
        hidden, weight, (mean, covariance) = self._hidden, self._head.weight.detach(), self._moments
        at, scores = hidden.detach().flatten(0, -2), logits.detach().flatten(0, -2)
        beyond = torch.empty_like(at)
        for rows, some, into in zip(at.split(CHUNK), scores.split(CHUNK), beyond.split(CHUNK), strict=True):
            made = _product(some.float().softmax(dim=1).to(weight.dtype), weight) - mean - rows.float() @ covariance
            into.copy_(made / positions)
        gradients = torch.autograd.grad(hidden, [p for p, _, _ in self._followed], beyond.view_as(hidden), retain_graph=True, allow_unused=True)
        for gradient, (_, local, place) in zip(gradients, self._followed, strict=True):
            if gradient is not None:
                self.found[place] += gradient.flatten()[local].float()


def _moments(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (hidden,) and covariance (hidden, hidden) of the rows of `weight` (vocabulary, hidden), float32."""
    mean = weight.mean(dim=0, dtype=torch.float32)
    return mean, _product(weight.t(), weight) / len(weight) - mean[:, None] * mean[None, :]


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a·b, added up and returned in float32: a card can do that with bf16, a CPU would be slow."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def attribution(g: torch.Tensor, scale: torch.Tensor, expected: Expected, group_min: int) -> Measured:
    """How much of δ's part is missing from the gradients `g` (S, n), or too much: |⟨g − ĝ, D⟩| / ⟨D, D⟩ with D what δ makes of ĝ; all in
    units of `scale` (S, n). 0 in work that is honest, 1 where moments stand for the output layer's rows."""

    def missing(s: int) -> tuple[float, str]:
        if expected.beyond is None:
            return 0.0, ""
        there = expected.beyond[s] != 0
        if int(there.sum()) < group_min:
            return 0.0, ""
        size = scale[s, there].double()
        direction, off = expected.beyond[s, there].double() * size, (g[s, there] - expected.gradient[s, there]).double() * size
        return float((off @ direction).abs() / (direction @ direction)), ""

    return per_step("softmax_attribution", len(g), missing)
