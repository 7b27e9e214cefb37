"""From measured statistics to a judged audit: limits, the worst one, and what to say to the miner. Pure."""

from __future__ import annotations

import math

import torch

from crusades.bench.referee.audit import Measured
from crusades.faults import fault
from crusades.records import Audit, Reason, Stage, Statistic

Limits = dict[str, float | tuple[float, ...]]

WORDS = {
    "gradient_error": "the gradient is not that of the batch",
    "even_error": "the gradient is not that of the batch",
    "even_projection": "the gradient of the layers is too small or too large along the true one",
    "typical_error": "most coordinates got a gradient that is a little off",
    "layer_typical_error": "most of the gradient of {where} is a little off",
    "kind_typical_error": "most of the gradient of the {where} parameters is a little off",
    "gradient_projection": "the gradient is too small or too large along the true one",
    "stale_gradient": "the gradient of the step before was used again",
    "outliers": "single coordinates got a gradient that is not theirs",
    "silent": "coordinates that should have a gradient got none",
    "layer_error": "the gradient of {where} is wrong",
    "layer_projection": "{where} was not trained in full",
    "kind_error": "the gradient of the {where} parameters is wrong",
    "kind_projection": "the {where} parameters were not trained in full",
    "tensor_error": "the gradient of {where} is wrong",
    "tensor_projection": "{where} was not trained in full",
    "seen_error": "the gradient of the vocabulary's rows of tokens in the batch is wrong",
    "seen_projection": "the vocabulary's rows of tokens in the batch were not trained in full",
    "seen_typical_error": "most of the gradient of the vocabulary's rows of tokens in the batch is a little off",
    "unseen_error": "the gradient of the vocabulary's rows of tokens in no batch is wrong",
    "unseen_projection": "the vocabulary's rows of tokens in no batch were not trained in full",
    "unseen_typical_error": "most of the gradient of the vocabulary's rows of tokens in no batch is a little off",
    "unseen_moment_error": "the gradient of the vocabulary's rows of tokens in no batch is a little off",
    "unseen_group_spread": "the vocabulary's rows of tokens in no batch were not trained on all tokens alike",
    "sequence_attribution": "{where} was not trained on in full",
    "cell_attribution": "the tokens of {where} were not trained on in full",
    "cell_spread": "secret groups of tokens were not all trained on alike",
    "slice_attribution": "not trained on in full: {where}",
    "step_error": "the update is not AdamW's update for the batch",
    "unmoved": "weights that should have moved did not",
    "update_error": "the final weights are not those that training gives",
    "optimizer_second_moment": "the second moment does not follow from the first by AdamW",
    "optimizer_weights": "the weights do not follow from the moments by AdamW",
    "final_loss": "final_loss is not the loss of the last step",
    "final_logits": "final_logits are not those of the last step",
    "total_tokens": "total_tokens is not steps × batch × sequence",
}

ALWAYS = {
    "initial_state": "weights or moments were altered before the clock started",
    "result_not_finite": "final_loss or final_logits are not finite numbers",
    "anchor_weights": "the weights changed while the judge was reading them",
    "anchor_reach": "weights are where training cannot have brought them from the initial ones",
}
"""Statistics that are exactly 0 in honest work, whatever the profile: judged without calibration, and named before all others."""

_CODES = {"optimizer_second_moment": "optimizer", "optimizer_weights": "optimizer", "final_loss": "result-mismatch", "final_logits": "result-mismatch",
          "anchor_final_loss": "result-mismatch", "anchor_final_logits": "result-mismatch", "result_not_finite": "not-finite", "total_tokens": "result-mismatch"}  # fmt: skip


PREFIX = "anchor_"
"""Of the statistics of an anchored step (`anchor.py`); they mean what their namesakes mean."""


def plain_name(name: str) -> str:
    """The statistic without what says where it was measured."""
    return name.removeprefix(PREFIX)


def limit_at(limits: Limits, name: str, step: int) -> float | None:
    """The limit of a statistic in a step; None when it is not judged."""
    limit = 0.0 if name in ALWAYS else limits.get(name)
    return limit[min(step, len(limit) - 1)] if isinstance(limit, tuple) else limit


def ratio(value: float | None, limit: float | None) -> float:
    """value / limit: over 1 fails; what is not finite counts as infinite; an unjudged statistic as 0."""
    if limit is None:
        return 0.0
    if value is None or not math.isfinite(value):
        return math.inf
    return value / limit if limit > 0 else (math.inf if value > limit else 0.0)


def judge(measured: list[Measured], limits: Limits) -> Audit:
    """Each statistic at its worst step, the worst statistic of all, and that one in words."""
    statistics = [_worst_step(m, limits) for m in measured]
    worst = max(statistics, key=lambda s: ratio(s.value, s.limit))
    failing = {s.name: s for s in statistics if not s.passed}
    named = diagnose(failing) if failing else worst
    words = in_words(named) if failing else f"all within limits; nearest to its own: {named.name}, at {100 * ratio(named.value, named.limit):.0f} % of it"
    return Audit(worst=named.name, words=words, statistics=tuple(statistics))


def _worst_step(m: Measured, limits: Limits) -> Statistic:
    steps = range(len(m.values))
    judged = [ratio(m.values[s], limit_at(limits, m.name, s)) for s in steps]
    at = max(steps, key=lambda s: (judged[s], m.values[s] if math.isfinite(m.values[s]) else math.inf))
    place = f"step {at + 1}" + (f", {m.where[at]}" if m.where[at] else "") if len(m.values) > 1 else m.where[at]
    value = m.values[at] if math.isfinite(m.values[at]) else None
    return Statistic(name=m.name, value=value, limit=limit_at(limits, m.name, at), where=place)


_SPECIFIC = (
    # The first failing statistic that is at least this large explains the failure best: 1 means "all of it is missing".
    ("total_tokens", 0.0), ("unmoved", 0.9), ("stale_gradient", 0.5), ("layer_projection", 0.8), ("sequence_attribution", 0.8),
    ("kind_projection", 0.8), ("tensor_projection", 0.8), ("seen_projection", 0.8), ("unseen_projection", 0.8), ("slice_attribution", 0.5), ("silent", 0.002),
)  # fmt: skip

ALL_MISSING = 0.8
"""A gradient whose projection on the true one is off by more than this is missing as a whole: no part of it is to blame."""


def diagnose(failing: dict[str, Statistic]) -> Statistic:
    """Which of several failing statistics to name: one that points at what is missing, before one that only says how much."""

    def by_ratio(statistics: list[Statistic]) -> Statistic:
        return max(statistics, key=lambda s: ratio(s.value, s.limit))

    if tampered := next((failing[name] for name in ALWAYS if name in failing), None):
        return tampered
    others = {name: s for name, s in failing.items() if _CODES.get(name) != "optimizer"}
    if not others:
        return by_ratio(list(failing.values()))
    for s in others.values():
        if s.value is None:
            return s
    whole = others.get("gradient_projection")
    all_missing = whole is not None and (whole.value or 0.0) > ALL_MISSING
    for name, enough in _SPECIFIC:
        for found in filter(None, (others.get(name), others.get(PREFIX + name))):
            if (found.value or 0.0) >= enough and (not all_missing or name in ("unmoved", "stale_gradient")):
                return found
    return whole if whole is not None and all_missing else by_ratio(list(others.values()))


def in_words(s: Statistic) -> str:
    """ "step 5: layer 3 was not trained in full (layer_projection 0.98, limit 0.02)"."""
    step, _, where = s.where.partition(", ")
    text = (ALWAYS.get(s.name) or WORDS.get(plain_name(s.name), s.name)).format(where=where or "a part of the work")
    value = "not a finite number" if s.value is None else f"{s.value:.3g}"
    measured = f"({s.name} {value}, {'reported only' if s.limit is None else f'limit {s.limit:.3g}'})"
    return f"{step}: {text} {measured}" if step else f"{text} {measured}"


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
