"""What the audit works on and what it says: reads of the shared memory, the exam's side, and statistics. Data, no judgement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Reads:
    """What the referee read from the shared memory: row 0 before the first step. (S + 1, n), the model's dtype."""

    weights: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor


BODY, SEEN, UNSEEN, BEFORE = range(4)
"""Of a coordinate in a step: it is in no row of the vocabulary; in the row of a token that is in the step's batch; of a token that
has been in no batch of the run so far; or of one that was in an earlier one only."""


Groups = dict[str, tuple[torch.Tensor, tuple[str, ...]]]
""""layer", "kind", "tensor" → ids (n,) and names."""


@dataclass(frozen=True)
class Expected:
    """The exam's side, on the device of the audit. Shapes as in `exam.Exam`, for as many steps as the reference took."""

    weights: torch.Tensor
    exp_avg_sq: torch.Tensor | None
    """None where the reference did not go all the way: then v̂ is not known."""
    gradient: torch.Tensor
    columns: torch.Tensor
    chosen: torch.Tensor
    families: dict[str, tuple[int, int]]
    part_names: tuple[str, ...]
    groups: Groups
    standing: torch.Tensor
    """uint8 (S, n): where a coordinate stands in each step, by the tokens of its batch (`BODY` … `BEFORE`)."""
    of_head: torch.Tensor | None = None
    """int64 (h,): coordinates in the head's rows of tokens that no batch had, where their columns are known: of one step alone."""
    head_columns: torch.Tensor | None = None
    """(parts, h) float32."""
    beyond: torch.Tensor | None = None
    """(S, n) float32: what of the gradient the output layer's rows make beyond their first moments (`softmax.py`)."""


@dataclass(frozen=True)
class Adam:
    """The optimizer's constants."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


@dataclass(frozen=True)
class Measured:
    """One statistic: a value per step, and in words where each step's value comes from."""

    name: str
    values: tuple[float, ...]
    where: tuple[str, ...]


def per_step(name: str, steps: int, measure: Callable[[int], tuple[float, str]]) -> Measured:
    """A statistic from `measure`: step (0-based) → value, and in words where it comes from."""
    pairs = [measure(s) for s in range(steps)]
    return Measured(name, tuple(v for v, _ in pairs), tuple(w for _, w in pairs))


def share(found: torch.Tensor) -> float:
    """Share of true elements; 0 only when there is none."""
    return int(found.sum()) / found.numel()
