"""What each statistic of the audit is called and means, and how far one is over its limit. Pure."""

from __future__ import annotations

import math

from crusades.records import Statistic

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
    "attention_error": "most of the gradient of the attention's output matrices is a little off",
    "last_attention_error": "the gradient of the last attention's output matrix is a little off: its own, or what the output layer gives",
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
    "token_attribution": "{where} was not trained on like the others",
    "softmax_attribution": "the hidden states' gradient was not made from all rows of the output layer",
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


def in_words(s: Statistic) -> str:
    """ "step 5: layer 3 was not trained in full (layer_projection 0.98, limit 0.02)"."""
    step, _, where = s.where.partition(", ")
    text = (ALWAYS.get(s.name) or WORDS.get(plain_name(s.name), s.name)).format(where=where or "a part of the work")
    value = "not a finite number" if s.value is None else f"{s.value:.3g}"
    measured = f"({s.name} {value}, {'reported only' if s.limit is None else f'limit {s.limit:.3g}'})"
    return f"{step}: {text} {measured}" if step else f"{text} {measured}"
