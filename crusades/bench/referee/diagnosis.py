"""Which of several failing statistics to name to the miner: one that says what is missing, before one that only says how much. Pure.

How far a value is over its limit does not tell: limits are as tight as honest work allows, and differ by orders of magnitude. The
shares below come from the recorded shortcuts of every profile, whose names are known: `benchmarks/diagnoses.py` prints what each is
called.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from crusades.bench.referee.statistic import ALWAYS, PREFIX, plain_name, ratio
from crusades.records import Statistic

OPTIMIZER = frozenset({"optimizer_second_moment", "optimizer_weights"})
"""A false gradient breaks AdamW's arithmetic as well, so that these are named only where nothing else fails."""

_WHOLE = (("unmoved", 0.9), ("stale_gradient", 0.25))
"""Statistics that explain a failure, from the value on at which they do, even if the gradient as a whole is missing."""

_PARTS = (
    ("layer_projection", 0.8), ("sequence_attribution", 0.8), ("kind_projection", 0.8), ("tensor_projection", 0.8),
    ("seen_projection", 0.8), ("unseen_projection", 0.8),
)  # fmt: skip
"""And those that do if it is not: 1 is a part that is missing altogether."""

ALL_MISSING = 0.8
"""A gradient whose projection on the true one is off by more than this is missing as a whole: no part of it is to blame."""

SLICE, OVER_CELLS = 0.3, 1.3
"""A slice may be half of what is missing (the tail is 2.5 % of a sequence, and 1 % is cut), and a wrong gradient moves every attribution.
So a slice is to blame if it stands out from the secret cells, which are as large and drawn by lot: where up to a quarter of every
sequence is left out at its end, it is at 1.4 (of 60 exams, docs/log.md, 2026-11-27) to 19 times the worst of them; where rows are zeroed
or stale, heads frozen, products in int8, and a slice comes to 0.3, at 1.25 times at most (`benchmarks/diagnoses.py --each`)."""

SILENT, OF_ERROR = 0.002, 0.25
"""Coordinates without a gradient explain a squared error in which their share is as large as among the coordinates: rows of all matrices
zeroed are 0.9 and more of it in the first step, half in the worst anchored one; whatever is wrong everywhere (precision, tokens) has some that became silent by chance, at most 0.1."""

_SIZES = (("gradient_projection", "gradient_error"), ("even_projection", "even_error"))
"""How much of the gradient is missing along the true one, and how far off it is altogether; a profile may judge only the second pair."""

IN_SIZE = 0.4
"""The share of the squared error that size alone must explain for it to be named: 0.6 to 0.9 where half of the tokens are left out, less for
fewer (a tenth of them: 0.1 to 0.4), almost nothing where the others are given their weight."""

IN_ALL = 0.5
"""Where the vocabulary's rows of tokens in no batch, the most exact ones, are short by some share, and the gradient as a whole by at
least this part of that share, tokens are missing and not rows: 0.9 to 1.1 where tokens are left out, 0.1 at most where rows are. Not so
where size is next to nothing of the error (tokens weighted up in the others' place), or what is there instead is the step before's."""
NOTHING = 0.015
"""Less than this share of the squared error."""

ONE_TOKEN, IN_A_TOKENS_PLACE = 0.15, 0.05
"""A secret token that was left out, or counts twice, has 1 ± this much; by chance it may where coordinates or rows are wrong, or all is.
So those must be right: off by no more than this share, the error as a whole by five times that, and what the step before left by a
tenth of it (tokens left out: at most 0.003, half a percent of the rows stale: 0.005 to 0.009); in anchored steps that is not known."""

NEARLY_RIGHT = 0.1
"""A typical error up to this is "a little off"; over it the words are too mild."""


def diagnose(statistics: Iterable[Statistic]) -> Statistic:
    """Of all statistics of a run, at least one of them over its limit, the one that explains the failure best.

    What was altered on purpose comes first, then what is no number. What is wrong in the run as it was (`anchor.py` says what is not) is
    clearer than what is wrong in a step at the contestant's weights, where hidden states of late steps may be nearly one vector.
    """
    measured = {s.name: s for s in statistics}
    failing = {name: s for name, s in measured.items() if not s.passed}
    if tampered := next((failing[name] for name in ALWAYS if name in failing), None):
        return tampered
    others = {name: s for name, s in failing.items() if name not in OPTIMIZER} or failing
    for s in others.values():
        if s.value is None:
            return s
    if "total_tokens" in others:
        return others["total_tokens"]
    for prefix in ("", PREFIX):
        value = {plain_name(name): s.value or 0.0 for name, s in measured.items() if name.startswith(PREFIX) == bool(prefix)}
        named = {plain_name(name): s for name, s in others.items() if name.startswith(PREFIX) == bool(prefix)}
        if found := _explanation(named, value):
            return found
    telling = [s for s in others.values() if not _vague(s)]
    softmax = next((s for name, s in others.items() if plain_name(name) == "softmax_attribution"), None)
    if softmax and all(s.name.endswith("_error") for s in telling):  # they say how much is wrong, and it says what
        return softmax
    return _furthest(telling or others.values())


def _explanation(failing: dict[str, Statistic], value: dict[str, float]) -> Statistic | None:
    """One of `failing` that were measured in the same way, by plain names, each at its worst step; `value` has what passed, too, for
    comparison."""

    def of(name: str) -> float:
        return value[name] if name in failing else 0.0

    all_missing = next((failing[size] for size, _ in _SIZES if of(size) > ALL_MISSING), None)
    for name, enough in _WHOLE if all_missing else _WHOLE + _PARTS:
        if of(name) >= enough:
            return failing[name]
    if all_missing:
        return all_missing
    if of("slice_attribution") >= max(SLICE, OVER_CELLS * value.get("cell_attribution", 0.0)):
        return failing["slice_attribution"]
    off = max(value.get("gradient_error", 0.0), value.get("even_error", 0.0))  # either may be judged in other steps alone
    if of("silent") >= max(SILENT, OF_ERROR * off**2):
        return failing["silent"]
    if explained := next((failing[size] for size, error in _SIZES if of(size) > 0 and of(size) ** 2 >= IN_SIZE * value.get(error, math.inf) ** 2), None):
        return explained
    elsewhere = max(of("unseen_projection"), of("outliers"), of("kind_projection"), off / 5, 10 * value.get("stale_gradient", math.inf))
    if abs(of("token_attribution") - 1) <= ONE_TOKEN and elsewhere <= IN_A_TOKENS_PLACE:
        return failing["token_attribution"]
    short = of("even_projection")
    whole = short**2 >= NOTHING * value.get("even_error", math.inf) ** 2 and short > of("stale_gradient")
    return failing["even_projection"] if whole and 0 < IN_ALL * of("unseen_projection") <= short else None


def _vague(s: Statistic) -> bool:
    """Whether its words say less than any other's would, or something else than what is wrong: whatever is wrong with a gradient
    silences some coordinates by chance."""
    name = plain_name(s.name)
    return name in ("outliers", "silent", "softmax_attribution", "token_attribution", "attention_error", "last_attention_error") or (name.endswith("typical_error") and (s.value or 0.0) > NEARLY_RIGHT)


def _furthest(statistics: Iterable[Statistic]) -> Statistic:
    return max(statistics, key=lambda s: ratio(s.value, s.limit))
