"""The audit: was the gradient of every step the gradient of all the work? Pure mathematics on tensors.

At secret coordinates the contestant's AdamW left, after each step s, weights w_s and moments m_s, v_s in the referee's
memory. Its gradient follows from the first moment, linearly, without Adam's normalisation:

    g_s = (m_s − β1·m_{s−1}) / (1 − β1)

compared with the reference's ĝ_s in units of D = 1 / (√v̂ + ε), so that every layer counts as Adam counts it, or, where v̂ is
not known and for some statistics always, of its tensor's rms (`_even`). Noise of honest arithmetic is random; a shortcut lacks what the skipped work would have added. So, besides the error of g_s, it
is regressed on the reference's gradients of the *parts* of the step: honest work has coefficient 1 for every part.

Embedding and head have statistics of their own, and no part in those of groups and parts: rounding is largest in the rows of
tokens that are in the batch, and smallest in those of tokens that no batch had, where a sampled softmax shows.

Every statistic is a vector over the steps, oriented so that larger is worse and honest work is near 0. Limits come from
`calibrate` (design.md §2.1), never from a hand.
"""

from __future__ import annotations

import math

import torch

from crusades.bench.referee import quiet, softmax, unseen
from crusades.bench.referee.arithmetic import arithmetic
from crusades.bench.referee.measured import BODY, SEEN, UNSEEN, Adam, Expected, Groups, Measured, Reads, per_step, share

__all__ = ["BODY", "SEEN", "UNSEEN", "Adam", "Expected", "Measured", "Reads", "anchored", "audit", "gradients", "share", "solve"]

STRONG = 1.0
"""A coordinate is strong in a step when |D·ĝ| (or what stands for D) is at least this many times its rms: noise seldom changes it by much."""
OFF_BY = 0.75
"""A strong coordinate is an outlier when its gradient is off by more than this share of itself."""
SILENT = 0.01
"""A strong coordinate is silent when its gradient is smaller than this share of what it should be."""
LEAST_ENERGY = 0.25
"""A single token's part counts as if it had at least this share of the median token's squared gradient."""


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
    """Every statistic of one run; 0 in steps that the reference did not take. Non-finite input gives NaN values, which never pass."""
    steps, known = len(reads.weights) - 1, len(expected.gradient)
    g, even = gradients(reads.exp_avg[: known + 1], adam.beta1), _even(expected)
    scale = even if expected.exp_avg_sq is None else _scale(expected.exp_avg_sq, adam, steps)
    scaled, ref = g * scale, expected.gradient * scale
    found = [*_of_gradients(g, scale, even, expected, group_min), unseen.moment_error(reads.exp_avg[: known + 1], expected, adam, group_min), per_step("stale_gradient", known, lambda s: (_stale(scaled[s], ref, s), "")), *_update(reads, expected)]
    return [_initial(reads, expected), *(_padded(m, steps) for m in found), *arithmetic(reads, adam)]


def _padded(m: Measured, steps: int) -> Measured:
    missing = steps - len(m.values)
    return Measured(m.name, (*m.values, *(0.0,) * missing), (*m.where, *("",) * missing))


def _initial(reads: Reads, expected: Expected) -> Measured:
    """Share of coordinates where weights or moments were not the exam's own when the clock started: whoever is told to get
    ready could alter them, off the clock."""
    altered = (reads.weights[0] != expected.weights[0]) | (reads.exp_avg[0] != 0) | (reads.exp_avg_sq[0] != 0)
    return Measured("initial_state", (share(altered),), ("before step 1",))


def anchored(exp_avg: torch.Tensor, expected: Expected, adam: Adam, steps: int, group_min: int) -> list[Measured]:
    """Every statistic of one step's gradient. `exp_avg` (2, n) before and after it; `expected.gradient` (1, n) and `columns`
    (1, parts, c) are those at the contestant's own weights; `steps` is how many the exam has (its v̂ is the unit, if it is known)."""
    even = _even(expected)
    scale = even if expected.exp_avg_sq is None else _scale(expected.exp_avg_sq, adam, steps)
    return [
        *_of_gradients(gradients(exp_avg, adam.beta1), scale, even, expected, group_min),
        unseen.moment_error(exp_avg, expected, adam, group_min), unseen.group_spread(exp_avg, expected, adam, group_min),
    ]  # fmt: skip


def _scale(exp_avg_sq: torch.Tensor, adam: Adam, steps: int) -> torch.Tensor:
    """(1, n) D = 1 / (√v̂ + ε), by which every layer counts as Adam counts it."""
    v_hat = exp_avg_sq[-1:].float() / (1 - adam.beta2**steps)
    return 1.0 / (v_hat.sqrt() + adam.epsilon)


def _even(expected: Expected) -> torch.Tensor:
    """(S, n): 1 / rms of the reference's gradient over the coordinate's tensor, by which every tensor counts alike.

    D gives a coordinate whose v̂ happens to be tiny a weight without bounds: on bf16 ten of 60,000 coordinates held half of
    the energy of an honest difference (docs/log.md).
    """
    ids, names = expected.groups["tensor"]
    energy = torch.zeros(len(expected.gradient), len(names), dtype=torch.float64, device=ids.device).index_add_(1, ids, expected.gradient.double().square())
    rms = (energy / torch.bincount(ids, minlength=len(names)).clamp_min(1)).sqrt()
    least = rms.masked_fill(rms == 0, torch.inf).amin(dim=1, keepdim=True)
    size = torch.where(rms > 0, rms, least.nan_to_num(posinf=1.0))  # a tensor that should have no gradient must not have one unseen
    return (1 / size.clamp_min(1e-30)).float()[:, ids]


def _of_gradients(plain: torch.Tensor, scale: torch.Tensor, even: torch.Tensor, expected: Expected, group_min: int) -> list[Measured]:
    """What can be said of gradients (S, n) step by step."""
    steps, g, ref = len(plain), plain * scale, expected.gradient * scale
    body = expected.standing[0] == BODY
    groups = {partition: (ids[body], names) for partition, (ids, names) in expected.groups.items()}
    own, true = (gradient[:, body] * even[:, body] for gradient in (plain, expected.gradient))
    return [
        per_step("gradient_error", steps, lambda s: (_relative(g[s], ref[s]), "")),
        per_step("gradient_projection", steps, lambda s: (_off_one(_projection(g[s], ref[s])), "")),
        per_step("even_error", steps, lambda s: (_relative(own[s], true[s]), "")),
        per_step("even_projection", steps, lambda s: (_off_one(_projection(own[s], true[s])), "")),
        *_typical(own, true, groups, group_min),
        per_step("outliers", steps, lambda s: (_outliers(g[s], ref[s]), "")),
        per_step("silent", steps, lambda s: (_silent(g[s], ref[s]), "")),
        *_by_group(g[:, body], ref[:, body], groups, group_min),
        *quiet.attention_errors(own, true, groups, group_min),
        *_of_vocabulary(plain * even, expected.gradient * even, expected.standing, group_min),
        *_attributions(plain, scale, expected), _tokens((plain - expected.gradient) * even, even, expected), softmax.attribution(plain, even, expected, group_min),
    ]


def _of_vocabulary(g: torch.Tensor, ref: torch.Tensor, standing: torch.Tensor, group_min: int) -> list[Measured]:
    """Error, projection and median error in the rows of tokens that are in a step's batch, and of those that no batch had yet.

    Rows of tokens that only earlier batches had are in neither: what is left of their first moment in bf16 is its rounding.
    """
    found = []
    for name, place in (("seen", SEEN), ("unseen", UNSEEN)):
        values = []
        for own, true, stands in zip(g, ref, standing, strict=True):
            there = (stands == place) & (true != 0)
            enough = int(there.sum()) >= group_min  # an embedding that is no head has no gradient in rows of tokens that are not there
            values.append(_three(own[there], true[there]) if enough else (0.0, 0.0, 0.0))
        for what, column in zip(("error", "projection", "typical_error"), zip(*values, strict=True), strict=True):
            found.append(Measured(f"{name}_{what}", tuple(column), ("",) * len(g)))
    return found


def _three(own: torch.Tensor, true: torch.Tensor) -> tuple[float, float, float]:
    return _relative(own, true), _off_one(_projection(own, true)), _median((own - true).abs() / true.abs())


def _typical(g: torch.Tensor, ref: torch.Tensor, groups: Groups, group_min: int) -> list[Measured]:
    """The median over coordinates of |g − ĝ| / |ĝ|: of all, and of the worst layer and kind.

    A median has no tail, so honest work varies little in it from exam to exam; whatever leaves a little out of every
    coordinate (filtered, lowered, sub-sampled work) moves it.
    """
    off = (g - ref).abs() / ref.abs()
    off = off.masked_fill(ref == 0, -1.0)  # no share of nothing; sorted out below
    found = [per_step("typical_error", len(g), lambda s: (_median(off[s]), ""))]
    for partition in ("layer", "kind"):
        ids, names = groups[partition]
        judged = [i for i, count in enumerate(torch.bincount(ids, minlength=len(names)).tolist()) if count >= group_min]
        values = [[row[i] for i in judged] for row in (_medians(row, ids, len(names)).tolist() for row in off)]
        worst = [max(range(len(row)), key=lambda i: math.inf if math.isnan(row[i]) else row[i], default=None) for row in values]
        found.append(Measured(f"{partition}_typical_error", tuple(0.0 if at is None else row[at] for row, at in zip(values, worst, strict=True)),
                              tuple("" if at is None else names[judged[at]] for at in worst)))  # fmt: skip
    return found


def _median(off: torch.Tensor) -> float:
    known = off[(off >= 0) | off.isnan()]
    return float(known.median()) if len(known) else 0.0


def _medians(off: torch.Tensor, ids: torch.Tensor, groups: int) -> torch.Tensor:
    """`_median` of every group of `ids` (n,), float32 (groups,)."""
    known = (off >= 0) | off.isnan()
    values, ids = off[known], ids[known]
    order = values.argsort()
    order = order[ids[order].argsort(stable=True)]
    count = torch.bincount(ids, minlength=groups)
    middle = count.cumsum(0) - count + (count - 1).clamp_min(0) // 2
    broken = torch.bincount(ids[values.isnan()], minlength=groups) > 0
    found = torch.cat([values[order], values.new_zeros(1)])[middle.clamp_max(len(values))]
    return found.masked_fill(count == 0, 0.0).masked_fill(broken, math.nan)


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


def _by_group(g: torch.Tensor, ref: torch.Tensor, groups: Groups, group_min: int) -> list[Measured]:
    """For each partition of the coordinates: the worst group's error and the worst group's projection, per step."""
    found = []
    for partition, (ids, names) in groups.items():
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
    scale = scale.expand_as(g)
    target, base, weight = (g * scale)[:, expected.chosen], (expected.gradient * scale)[:, expected.chosen], scale[:, expected.chosen]
    found = []
    for family, (first, last) in expected.families.items():
        if family == "token":
            continue
        worst, where, spread = [], [], []
        for s, parts in enumerate(expected.columns):
            columns = parts[first:last] * weight[s]
            own = solve(columns, base[s])
            ratio = torch.where(own.abs() > 1e-3, solve(columns, target[s]) / own, torch.ones_like(own)) - 1
            ratio = ratio.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
            at = int(ratio.abs().argmax())
            worst.append(float(ratio[at].abs()))
            where.append(expected.part_names[first + at])
            spread.append(float(ratio.square().mean().sqrt()))
        found.append(Measured(f"{family}_attribution", tuple(worst), tuple(where)))
        if family == "cell":
            found.append(Measured("cell_spread", tuple(spread), ("",) * len(g)))
    return found


def _tokens(off: torch.Tensor, weight: torch.Tensor, expected: Expected) -> Measured:
    """How much of a secret single token's part is missing from the gradient, or in it too often, by what it is off by, `off` (S, n):
    the worst token's coefficient.

    A percent of the tokens left out, and the others weighted up, hides in the noise of the whole and of cells of hundreds. But a
    token is there or not: left out it has 1 here, honest bf16 work of the 3B model 0.065 at most (docs/log.md, 2026-11-27). Tokens
    have little in common with each other in these units, so that each is asked for by itself. One that hardly has a gradient (what a
    trained model knows) would be all noise, and is measured as if it had a larger one.
    """
    first, last = expected.families.get("token", (0, 0))
    if first == last:
        return Measured("token_attribution", (0.0,) * len(off), ("",) * len(off))
    worst, where = [], []
    for s, parts in enumerate(expected.columns):
        columns = parts[first:last] * weight[s, expected.chosen]
        energy = columns.square().sum(dim=1)
        energy = energy.clamp_min(LEAST_ENERGY * float(energy.median()))
        found = (columns @ off[s, expected.chosen] / energy).abs()
        found = found.masked_fill(energy == 0, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
        at = int(found.argmax())
        worst.append(float(found[at]))
        where.append(expected.part_names[first + at])
    return Measured("token_attribution", tuple(worst), tuple(where))


# ------------------------------------------------------------------------------------------------ weights


def _update(reads: Reads, expected: Expected) -> list[Measured]:
    """Weight changes step by step and in all, and the share of coordinates that should have moved and did not."""
    steps = len(expected.gradient)
    w, ref = reads.weights[: steps + 1].float(), expected.weights.float()
    moves, expected_moves = w[1:] - w[:-1], ref[1:] - ref[:-1]

    def unmoved(s: int) -> float:
        should = expected_moves[s] != 0
        return float((moves[s] == 0)[should].float().mean()) if bool(should.any()) else 0.0

    found = [
        per_step("step_error", steps, lambda s: (_relative(moves[s], expected_moves[s]), "")),
        per_step("unmoved", steps, lambda s: (unmoved(s), "")),
    ]
    if expected.exp_avg_sq is not None:
        total = _relative(w[-1] - ref[0], ref[-1] - ref[0])
        found.append(Measured("update_error", (0.0,) * (steps - 1) + (total,), ("",) * steps))
    return found
