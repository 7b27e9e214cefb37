"""Where honest arithmetic is quietest: the matrices of the attention's output.

Rounding adds up on the way through the layers, and most where something is bent: in gated MLPs, norms and the attention's own softmax.
What an attention's output matrix multiplies is a mean over tokens, and what comes back to the last one has passed one MLP. In bf16 on an
H100 the weight gradients of the 3B profile are off by 0.04 to 0.08 everywhere but in the attention's values and output: 0.05 there in
the first layer, 0.02 in the middle one, 0.011 in the last (docs/log.md, 2026-11-27). An estimate of what the head gives its hidden
states, without bias and 0.03 off, is lost in 0.04, and three times 0.011.

Part of the audit (`audit.py`): pure mathematics on tensors, statistics that are larger when worse.
"""

from __future__ import annotations

import math
import re

import torch

from crusades.bench.referee.layout import layer_of
from crusades.bench.referee.measured import Measured, per_step

_OUTPUT = re.compile(r"(?:o_proj|out_proj|\.wo|attn\.c_proj|attention\.dense)\.weight$")
"""What transformers call it: Llama and its kin, OPT, T5, GPT-2, NeoX and Falcon."""

Groups = dict[str, tuple[torch.Tensor, tuple[str, ...]]]


def attention_errors(own: torch.Tensor, true: torch.Tensor, groups: Groups, group_min: int) -> list[Measured]:
    """How far gradients `own` (S, n) are from `true` (S, n), both in units of each tensor's size, in the attention's output matrices: of the upper
    half of the layers, and of the last one (or as many of the last as have `group_min` coordinates); the median of |g − ĝ| over the median of |ĝ|.

    0 where there are fewer than `group_min` coordinates, or the architecture has no such matrices by these names.
    """
    ids, names = groups["tensor"]
    found, count = {}, torch.bincount(ids, minlength=len(names)).tolist()
    layers = 1 + max((layer_of(name, -1) for name in names), default=-1)
    for at, name in enumerate(names):
        if _OUTPUT.search(name) and layer_of(name, -1) >= layers // 2:
            found[layer_of(name, -1)] = at
    upper, last = [found[layer] for layer in sorted(found, reverse=True)], list[int]()
    for at in upper:
        if sum(count[i] for i in last) < group_min:
            last.append(at)
    return [_error(name, own, true, ids, chosen, group_min) for name, chosen in (("attention_error", upper), ("last_attention_error", last))]


def _error(name: str, own: torch.Tensor, true: torch.Tensor, ids: torch.Tensor, chosen: list[int], group_min: int) -> Measured:
    there = torch.isin(ids, torch.tensor(chosen, dtype=ids.dtype, device=ids.device))
    enough = int(there.sum()) >= group_min

    def off(s: int) -> tuple[float, str]:
        size = float(true[s, there].abs().median()) if enough else 0.0
        return (float((own[s, there] - true[s, there]).abs().median()) / size if size > 0 else math.nan if math.isnan(size) else 0.0), ""

    return per_step(name, len(own), off)
