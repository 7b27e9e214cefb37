"""What a variant is: a recipe that differs from plain eager training in one thing, and what is known of it beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from crusades.bench.referee.lab import Lab

SIZES = (0.005, 0.01, 0.02, 0.05, 0.10, 0.25, 0.50)
"""How much is left out, in the dimensions that are graded."""

Weights = Callable[["Lab", int, torch.Tensor], torch.Tensor]
"""(lab, step, losses (batch, positions)) → loss weights of the same shape; all ones is honest."""
Backward = Callable[["Lab", int, nn.Linear, torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor] | None]
"""(lab, step, module, x (tokens, in), dy (tokens, out)) → (dx or None for the true one, dw), or None for the true backward."""


class Inapplicable(Exception):
    """A recipe for which this exam or this architecture has no use: a result of its own, and no failure of ours."""


@dataclass(frozen=True)
class Recipe:
    """How a variant differs from plain eager training. Steps are 0-based."""

    micro: int = 0
    """Sequences per backward; 0 = all."""
    compile: str = ""
    """torch.compile mode; empty = eager."""
    attention: str = ""
    """A name of torch.nn.attention.SDPBackend."""
    checkpointing: bool = False
    loss: str = "native"
    """"native", "float" (fp32 logits) or "chunked"."""
    foreach: bool | None = None
    autocast: str = ""
    weights: Weights | None = None
    edit_gradients: Callable[[Lab, int], None] | None = None
    edit_logit_gradient: Callable[[torch.Tensor], torch.Tensor] | None = None
    backward_of_linear: Backward | None = None
    backward_of_head: Backward | None = None
    """Of the output layer, which `backward_of_linear` leaves alone."""
    window: Callable[[int], int] | None = None
    """step → attention window in tokens; 0 = full."""
    without_layer: Callable[[int], int | None] | None = None
    """step → a block that the forward leaves out."""
    no_update: tuple[int, ...] = ()
    stale: tuple[int, ...] = ()
    """Steps that use the gradient of the step before."""
    early: tuple[int, ...] = ()
    """Steps whose gradient is of their own tokens at the weights before the last update."""
    forward_of_linear: Callable[[Lab, int, nn.Linear, torch.Tensor], torch.Tensor | None] | None = None
    """(lab, step, module, x) → x·Wᵀ as the variant computes it, without the bias, or None for the true product."""
    first: int = 0
    """The first step that differs from plain eager training (or that a later one needs): what comes before may be shared."""
    adaptive: bool = False
    """It acts only where it finds that it may: `Lab.left_out` says what became of it."""
    submission: str = ""
    """Path of a train.py of ours whose inner_steps does the training instead of the lab."""


@dataclass(frozen=True)
class Variant:
    """One way to run the workload."""

    name: str
    population: str
    """"honest", "shortcut", or "policy": measured and reported, in neither population."""
    recipe: Recipe
    dimension: str = ""
    work: float = 0.0
    choice: str = ""
    """"random", "least visible" or empty."""
    keep_previous: bool = False
