"""The audit: was the gradient of every step the gradient of all the work? Pure mathematics on tensors.

At secret coordinates the contestant's AdamW left, after each step s, weights w_s and moments m_s, v_s in the referee's
memory. Its gradient follows from the first moment, linearly, without Adam's normalisation:

    g_s = (m_s − β1·m_{s−1}) / (1 − β1)

compared with the reference's ĝ_s in units of D = 1 / (√v̂ + ε), so that every layer counts as Adam counts it. Noise of
honest arithmetic is random; a shortcut lacks what the skipped work would have added. So, besides the error of g_s, it
is regressed on the reference's gradients of the *parts* of the step: honest work has coefficient 1 for every part.

Every statistic is a vector over the steps, oriented so that larger is worse and honest work is near 0. Limits come from
`calibrate` (design.md §2.1), never from a hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

STRONG = 1.0
"""A coordinate is strong in a step when |D·ĝ| is at least this many times its rms: noise seldom changes it by much."""
OFF_BY = 0.75
"""A strong coordinate is an outlier when its gradient is off by more than this share of itself."""
SILENT = 0.01
"""A strong coordinate is silent when its gradient is smaller than this share of what it should be."""


@dataclass(frozen=True)
class Reads:
    """What the referee read from the shared memory: row 0 before the first step. (S + 1, n), the model's dtype."""

    weights: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor


@dataclass(frozen=True)
class Expected:
    """The exam's side, on the device of the audit. Shapes as in `exam.Exam`."""

    weights: torch.Tensor
    exp_avg_sq: torch.Tensor
    gradient: torch.Tensor
    columns: torch.Tensor
    chosen: torch.Tensor
    families: dict[str, tuple[int, int]]
    part_names: tuple[str, ...]
    groups: dict[str, tuple[torch.Tensor, tuple[str, ...]]]
    """"layer", "kind", "tensor" → ids (n,) and names."""


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


def gradients(exp_avg: torch.Tensor, beta1: float) -> torch.Tensor:
    """(S + 1, n) first moments → (S, n) gradients, float32."""
    m = exp_avg.float()
    return (m[1:] - beta1 * m[:-1]) / (1 - beta1)


def solve(columns: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Least squares: coefficients (k,) of `columns` (k, c) that make `target` (c,), in float64. A zero column gets 0."""
    x, t = columns.double(), target.double()
    gram, right = x @ x.T, x @ t
    scale = gram.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    gram = gram / scale[:, None] / scale[None, :]
    ridge = 1e-9 * torch.eye(len(scale), dtype=torch.float64, device=gram.device)
    solution: torch.Tensor = torch.linalg.solve(gram + ridge, right / scale)
    return solution / scale


def audit(reads: Reads, expected: Expected, adam: Adam, group_min: int) -> list[Measured]:
    """Every statistic of one run. Non-finite input gives NaN values, which never pass."""
    steps = expected.gradient.shape[0]
    scale = _scale(expected, adam, steps)
    g, ref = gradients(reads.exp_avg, adam.beta1) * scale, expected.gradient * scale
    stale = _per_step("stale_gradient", steps, lambda s: (_stale(g[s], ref, s), ""))
    return [_initial(reads, expected), *_of_gradients(g, scale, expected, group_min), stale, *_update(reads, expected), *_optimizer(reads, adam)]


def _initial(reads: Reads, expected: Expected) -> Measured:
    """Share of coordinates where weights or moments were not the exam's own when the clock started: whoever is told to get
    ready could alter them, off the clock."""
    altered = (reads.weights[0] != expected.weights[0]) | (reads.exp_avg[0] != 0) | (reads.exp_avg_sq[0] != 0)
    return Measured("initial_state", (share(altered),), ("before step 1",))


def share(found: torch.Tensor) -> float:
    """Share of true elements; 0 only when there is none."""
    return int(found.sum()) / found.numel()


def anchored(exp_avg: torch.Tensor, expected: Expected, adam: Adam, steps: int, group_min: int) -> list[Measured]:
    """Every statistic of one step's gradient. `exp_avg` (2, n) before and after it; `expected.gradient` (1, n) and `columns`
    (1, parts, c) are those at the contestant's own weights; `steps` is how many the exam has (its v̂ is the unit)."""
    scale = _scale(expected, adam, steps)
    return _of_gradients(gradients(exp_avg, adam.beta1) * scale, scale, expected, group_min)


def _scale(expected: Expected, adam: Adam, steps: int) -> torch.Tensor:
    """D = 1 / (√v̂ + ε), by which every layer counts as Adam counts it."""
    v_hat = expected.exp_avg_sq[-1].float() / (1 - adam.beta2**steps)
    return 1.0 / (v_hat.sqrt() + adam.epsilon)


def _of_gradients(g: torch.Tensor, scale: torch.Tensor, expected: Expected, group_min: int) -> list[Measured]:
    """What can be said of scaled gradients (S, n) step by step."""
    steps, ref = len(g), expected.gradient * scale
    return [
        _per_step("gradient_error", steps, lambda s: (_relative(g[s], ref[s]), "")),
        _per_step("gradient_projection", steps, lambda s: (_off_one(_projection(g[s], ref[s])), "")),
        _per_step("outliers", steps, lambda s: (_outliers(g[s], ref[s]), "")),
        _per_step("silent", steps, lambda s: (_silent(g[s], ref[s]), "")),
        *_by_group(g, ref, expected, group_min),
        *_attributions(g, scale, expected),
    ]


def _per_step(name: str, steps: int, measure: Callable[[int], tuple[float, str]]) -> Measured:
    pairs = [measure(s) for s in range(steps)]
    return Measured(name, tuple(v for v, _ in pairs), tuple(w for _, w in pairs))


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _projection(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() @ b.double()) / (b.double() @ b.double()))


def _off_one(value: float) -> float:
    return abs(value - 1.0)


def _stale(g: torch.Tensor, ref: torch.Tensor, step: int) -> float:
    """How much of the previous step's gradient stands in this one's, beyond what the reference has in common."""
    return abs(float(solve(torch.stack([ref[step], ref[step - 1]]), g)[1])) if step else 0.0


def _strong(ref: torch.Tensor) -> torch.Tensor:
    return ref.abs() >= STRONG * ref.square().mean().sqrt()


def _outliers(g: torch.Tensor, ref: torch.Tensor) -> float:
    strong = _strong(ref)
    return float(((g - ref).abs() > OFF_BY * ref.abs())[strong].float().mean())


def _silent(g: torch.Tensor, ref: torch.Tensor) -> float:
    strong = _strong(ref)
    return float((g.abs() < SILENT * ref.abs())[strong].float().mean())


# ------------------------------------------------------------------------------------------------ layers, kinds, tensors


def _by_group(g: torch.Tensor, ref: torch.Tensor, expected: Expected, group_min: int) -> list[Measured]:
    """For each partition of the coordinates: the worst group's error and the worst group's projection, per step."""
    found = []
    for partition, (ids, names) in expected.groups.items():
        count = torch.bincount(ids, minlength=len(names))
        judged = count >= group_min
        error, projection, silent = _group_sums(g, ref, ids, len(names))
        for name, values in ((f"{partition}_error", error), (f"{partition}_projection", (projection - 1).abs())):
            values = values.masked_fill(silent | ~judged, 0.0)
            worst = values.nan_to_num(nan=torch.inf, posinf=torch.inf).max(dim=1)
            found.append(Measured(name, tuple(worst.values.tolist()), tuple(names[i] for i in worst.indices.tolist())))
    return found


def _group_sums(g: torch.Tensor, ref: torch.Tensor, ids: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Relative error and projection of every group in every step, and where it has no reference gradient to be relative to:
    three (S, groups) tensors."""

    def total(values: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(values.shape[0], groups, dtype=torch.float64, device=values.device)
        return out.index_add_(1, ids, values.double())

    energy = total(ref * ref)
    silent = energy <= 0
    energy = energy.masked_fill(silent, 1.0)
    error = (total((g - ref).square()) / energy).sqrt()
    projection = total(g * ref) / energy
    return error, projection, silent


# ------------------------------------------------------------------------------------------------ sequences, cells, slices


def _attributions(g: torch.Tensor, scale: torch.Tensor, expected: Expected) -> list[Measured]:
    """Coefficients of every part, relative to those of the reference's own gradient: the worst, and the rms over cells."""
    steps, chosen = expected.gradient.shape[0], expected.chosen
    target, base, weight = g[:, chosen], (expected.gradient * scale)[:, chosen], scale[chosen]
    found = []
    for family, (first, last) in expected.families.items():
        worst, where, spread = [], [], []
        for s in range(steps):
            columns = expected.columns[s, first:last] * weight
            own = solve(columns, base[s])
            ratio = torch.where(own.abs() > 1e-3, solve(columns, target[s]) / own, torch.ones_like(own)) - 1
            ratio = ratio.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
            at = int(ratio.abs().argmax())
            worst.append(float(ratio[at].abs()))
            where.append(expected.part_names[first + at])
            spread.append(float(ratio.square().mean().sqrt()))
        found.append(Measured(f"{family}_attribution", tuple(worst), tuple(where)))
        if family == "cell":
            found.append(Measured("cell_spread", tuple(spread), ("",) * steps))
    return found


# ------------------------------------------------------------------------------------------------ weights


def _update(reads: Reads, expected: Expected) -> list[Measured]:
    """Weight changes step by step and in all, and the share of coordinates that should have moved and did not."""
    steps = expected.gradient.shape[0]
    w, ref = reads.weights.float(), expected.weights.float()
    moves, expected_moves = w[1:] - w[:-1], ref[1:] - ref[:-1]

    def unmoved(s: int) -> float:
        should = expected_moves[s] != 0
        return float((moves[s] == 0)[should].float().mean()) if bool(should.any()) else 0.0

    total = _relative(w[-1] - ref[0], ref[-1] - ref[0])
    return [
        _per_step("step_error", steps, lambda s: (_relative(moves[s], expected_moves[s]), "")),
        _per_step("unmoved", steps, lambda s: (unmoved(s), "")),
        Measured("update_error", (0.0,) * (steps - 1) + (total,), ("",) * steps),
    ]


# ------------------------------------------------------------------------------------------------ AdamW's arithmetic


def _optimizer(reads: Reads, adam: Adam) -> list[Measured]:
    """Do w_s and v_s follow from m_s, v_{s−1}, w_{s−1} by AdamW? In units of what rounding can explain: ≤ 1 is exact.

    The 99.9th percentile, so that one coordinate in a million with an unlucky rounding decides nothing.
    """
    steps = reads.weights.shape[0] - 1
    eps = torch.finfo(reads.weights.dtype).eps
    w, m, v = reads.weights.float(), reads.exp_avg.float(), reads.exp_avg_sq.float()

    def second(s: int) -> float:
        g = (m[s + 1] - adam.beta1 * m[s]) / (1 - adam.beta1)
        dg = eps * (m[s + 1].abs() + m[s].abs()) / (1 - adam.beta1)
        predicted = adam.beta2 * v[s] + (1 - adam.beta2) * g * g
        slack = (1 - adam.beta2) * (2 * g.abs() * dg + dg * dg) + 2 * eps * (v[s].abs() + predicted) + 1e-30
        return _high((v[s + 1] - predicted).abs() / slack)

    def weight(s: int) -> float:
        first, denominator = 1 - adam.beta1 ** (s + 1), (v[s + 1] / (1 - adam.beta2 ** (s + 1))).clamp_min(0).sqrt() + adam.epsilon
        step = adam.learning_rate * m[s + 1] / first / denominator
        predicted = w[s] * (1 - adam.learning_rate * adam.weight_decay) - step
        decay = adam.learning_rate * abs(adam.weight_decay) * w[s].abs()  # lost by implementations that round after decaying
        slack = 4 * eps * step.abs() + 2 * eps * w[s].abs() + (decay if reads.weights.dtype != torch.float32 else 0) + 1e-30
        return _high((w[s + 1] - predicted).abs() / slack)

    return [
        _per_step("optimizer_second_moment", steps, lambda s: (second(s), "")),
        _per_step("optimizer_weights", steps, lambda s: (weight(s), "")),
    ]


def _high(ratio: torch.Tensor) -> float:
    if not bool(torch.isfinite(ratio).all()):
        return float("nan")
    k = max(1, int(0.999 * ratio.numel()))
    return float(ratio.kthvalue(k).values)
