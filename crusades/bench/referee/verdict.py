"""From measured statistics to a judged audit, and what a run fails for. Pure."""

from __future__ import annotations

import math

import torch

from crusades.bench.referee.audit import Measured
from crusades.bench.referee.diagnosis import diagnose
from crusades.bench.referee.statistic import Limits, in_words, limit_at, ratio
from crusades.faults import fault
from crusades.records import Audit, Reason, Stage, Statistic

_CODES = {"optimizer_second_moment": "optimizer", "optimizer_weights": "optimizer", "final_loss": "result-mismatch", "final_logits": "result-mismatch",
          "anchor_final_loss": "result-mismatch", "anchor_final_logits": "result-mismatch", "result_not_finite": "not-finite", "total_tokens": "result-mismatch"}  # fmt: skip


def judge(measured: list[Measured], limits: Limits) -> Audit:
    """Each statistic at its worst step, the worst statistic of all, and that one in words."""
    statistics = [_worst_step(m, limits) for m in measured]
    worst = max(statistics, key=lambda s: ratio(s.value, s.limit))
    failing = any(not s.passed for s in statistics)
    named = diagnose(statistics) if failing else worst
    words = in_words(named) if failing else f"all within limits; nearest to its own: {named.name}, at {100 * ratio(named.value, named.limit):.0f} % of it"
    return Audit(worst=named.name, words=words, statistics=tuple(statistics))


def _worst_step(m: Measured, limits: Limits) -> Statistic:
    steps = range(len(m.values))
    judged = [ratio(m.values[s], limit_at(limits, m.name, s)) for s in steps]
    at = max(steps, key=lambda s: (judged[s], m.values[s] if math.isfinite(m.values[s]) else math.inf))
    place = f"step {at + 1}" + (f", {m.where[at]}" if m.where[at] else "") if len(m.values) > 1 else m.where[at]
    value = m.values[at] if math.isfinite(m.values[at]) else None
    return Statistic(name=m.name, value=value, limit=limit_at(limits, m.name, at), where=place)


def reason_of(audit: Audit) -> Reason | None:
    """Why a run fails its audit; None when it passes."""
    if audit.passed:
        return None
    named = next(s for s in audit.statistics if s.name == audit.worst)
    row = fault("not-finite" if named.value is None else _CODES.get(named.name, "audit"))
    return Reason(code=row.code, stage=Stage.AUDIT, rule=named.name, message=audit.words, hint=row.advice,
                  measured=named.value, limit=named.limit)  # fmt: skip


def result_statistics(final_loss: float | None, reference_loss: float, logits: torch.Tensor, reference_logits: torch.Tensor) -> list[Measured]:
    """The contestant's claims about its result against the exam: they prove presence, not time (design.md §2)."""
    loss = math.nan if final_loss is None else abs(final_loss - reference_loss)
    centred = reference_logits - reference_logits.mean(dim=-1, keepdim=True)
    error = float((logits - reference_logits).norm() / centred.norm())
    return [Measured("final_loss", (loss,), ("",)), Measured("final_logits", (error,), ("",))]


def finite_result(final_loss: float | None, logits: torch.Tensor) -> Measured:
    """The share of the contestant's result that is no finite number, whether or not it is compared with anything."""
    broken = int((~logits.isfinite()).sum()) + (final_loss is None or not math.isfinite(final_loss))
    return Measured("result_not_finite", (broken / (logits.numel() + 1),), ("",))


def tokens_statistic(tokens: int, expected: int) -> Measured:
    """The share by which the number of tokens that the contestant says it trained on is off."""
    return Measured("total_tokens", (abs(tokens - expected) / expected,), ("",))
