"""The vocabulary's rows of tokens that no batch had yet: the most exact part of the gradient, and where a sampled softmax shows.

Part of the audit (`audit.py`): pure mathematics on tensors, statistics that are larger when worse.
"""

from __future__ import annotations

import math

import torch

from crusades.bench.referee.measured import UNSEEN, Adam, Expected, Measured


def moment_error(exp_avg: torch.Tensor, expected: Expected, adam: Adam, group_min: int) -> Measured:
    """In the rows of tokens that no batch had yet: how far the first moment is from the one that the true gradient makes of the
    moment before, rounded as it is, in units of what the gradient adds to it; means of absolute values. `exp_avg` (S + 1, n).

    In bf16 the rounding of an old moment hides a small new gradient. Rounded alike, both come out the same but where the
    difference crosses a boundary, and on average that happens as often as the difference is large: no rounding is left in it.
    """
    values = []
    for before, after, true, stands in zip(exp_avg[:-1], exp_avg[1:], expected.gradient, expected.standing, strict=True):
        there = (stands == UNSEEN) & (true != 0)
        off, added = _moment_off(before[there], after[there], true[there], adam).abs(), true[there] * (1 - adam.beta1)
        values.append(float(off.mean() / added.abs().mean()) if len(off) >= group_min else 0.0)
    return Measured("unseen_moment_error", tuple(values), ("",) * len(values))


def _moment_off(before: torch.Tensor, after: torch.Tensor, true: torch.Tensor, adam: Adam) -> torch.Tensor:
    """The first moment `after` less the one that the gradient `true` makes of `before`, rounded as it is."""
    made = before.float() * adam.beta1 + true * (1 - adam.beta1)
    return after.float() - made.to(before.dtype).float()


NO_DIRECTION = 1e-9
"""Of the largest eigenvalue: below it an eigenvector is rounding."""
GROUPS = 32
"""Secret groups of tokens, each of as many cells, whose shares of the head's rows are looked at."""


def group_spread(exp_avg: torch.Tensor, expected: Expected, adam: Adam, group_min: int) -> Measured:
    """In the head's rows of tokens that no batch had yet: how much of the first moment's error lies where the gradients of secret
    groups of tokens differ from that of all, rms over these directions. `exp_avg` (2, n).

    Where hidden states are nearly one vector those rows' gradient hardly depends on which tokens it is made from: it is right
    within its rounding although most were left out. But what is then wrong lies in these few directions, while rounding lies in
    all. Every coordinate counts in units of √(k · Σ cᵢ²) over its k cells' shares c: the size of its gradient, or of what
    cancels in it; else the few rows that are likely everywhere hide the others, on an H100 by a factor of ten (docs/log.md).
    """
    assert expected.of_head is not None
    assert expected.head_columns is not None
    first, last = expected.families["cell"]
    cells = expected.head_columns[first:last]
    size = (len(cells) * torch.linalg.vector_norm(cells, dim=0, dtype=torch.float64).square()).sqrt()
    there = ~(size == 0)
    if int(there.sum()) < group_min or len(cells) < 2:
        return Measured("unseen_group_spread", (0.0,), ("",))
    before, after, true = (row[expected.of_head] for row in (exp_avg[0], exp_avg[1], expected.gradient[0]))
    off = _moment_off(before, after, true, adam)[there].double() / (1 - adam.beta1) / size[there]
    groups = torch.stack([cells[k::GROUPS, there].sum(0, dtype=torch.float64) for k in range(min(GROUPS, len(cells)))]) / size[there]
    whole = groups.sum(0) / groups.sum(0).norm()
    contrasts = groups - (groups @ whole)[:, None] * whole
    if not bool(contrasts.isfinite().all()):  # eigh may raise on what is no number, and that would be our fault
        return Measured("unseen_group_spread", (math.nan,), ("",))
    spectrum, directions = torch.linalg.eigh(contrasts @ contrasts.T)
    usable = spectrum > NO_DIRECTION * spectrum[-1]  # the contrasts add up to nothing: one direction is none
    along = (directions.T @ (contrasts @ off))[usable] / spectrum[usable].sqrt()
    return Measured("unseen_group_spread", (float(along.square().mean().sqrt()),), ("",))
