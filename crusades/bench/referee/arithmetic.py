"""AdamW's arithmetic (Loshchilov & Hutter, arXiv:1711.05101): do the weights and the second moment follow from the first? Pure.

True moments with false weights, or the reverse, fail exactly; nothing of an exam is needed.
"""

from __future__ import annotations

import torch

from crusades.bench.referee.measured import Adam, Measured, Reads, per_step


def arithmetic(reads: Reads, adam: Adam) -> list[Measured]:
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
        per_step("optimizer_second_moment", steps, lambda s: (second(s), "")),
        per_step("optimizer_weights", steps, lambda s: (weight(s), "")),
    ]


def _high(ratio: torch.Tensor) -> float:
    if not bool(torch.isfinite(ratio).all()):
        return float("nan")
    k = max(1, int(0.999 * ratio.numel()))
    return float(ratio.topk(ratio.numel() - k + 1).values[-1])  # kthvalue(k), which takes a card fourteen times as long
