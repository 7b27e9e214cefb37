"""Where honest arithmetic is quietest: the matrices of the attention's output.

Rounding adds up on the way through the layers, and most where something is bent: in gated MLPs, norms and the attention's own softmax.
What an attention's output matrix multiplies is a mean over tokens, and what comes back to the last one has passed one MLP. In bf16 on an
H100 honest weight gradients of the 3B profile are off by up to 0.06 in the matrices of the MLP, at every depth, and by 0.08 in queries and
keys; in the attention's output by 0.06 in the first layer, 0.03 in the middle one, 0.014 in the last (docs/log.md, 2026-11-27). An
estimate of what the head gives its hidden states, without bias and 0.03 off, is lost in 0.06, and twice 0.014.

Part of the audit (`audit.py`): pure mathematics on tensors, statistics that are larger when worse.
"""

from __future__ import annotations

import re

import torch

from crusades.bench.referee.layout import layer_of
from crusades.bench.referee.measured import Groups, Measured, per_step

_OUTPUT = re.compile(r"(?:attn|attention)(?:\.attention)?\.(?:o_proj|out_proj|c_proj|dense|wo)\.weight$")
"""What transformers call it: Llama and its kin; OPT and GPT-Neo; GPT-2; NeoX, Falcon and Phi; InternLM."""


def attention_errors(own: torch.Tensor, true: torch.Tensor, groups: Groups, group_min: int) -> list[Measured]:
    """How far gradients `own` (S, n) are from `true` (S, n), both in units of each tensor's size, in the attention's output matrices: of the upper
    half of the layers, and of the last one (or as many of the last as have `group_min` coordinates); the median of |g − ĝ| over the median
    of |ĝ|, of coordinates that have a gradient.

    0 where there are fewer than `group_min` of them, or the architecture has no such matrices by these names.
    """
    ids, names = groups["tensor"]
    count = torch.bincount(ids, minlength=len(names)).tolist()
    layer = [layer_of(name, -1) for name in names]
    half = (1 + max(layer, default=-1)) // 2
    upper = sorted((at for at, name in enumerate(names) if _OUTPUT.search(name) and layer[at] >= half), key=lambda at: -layer[at])
    last = list[int]()
    for at in upper:
        if sum(count[i] for i in last) < group_min:
            last.append(at)
    return [_error(name, own, true, ids, chosen, group_min) for name, chosen in (("attention_error", upper), ("last_attention_error", last))]


def _error(name: str, own: torch.Tensor, true: torch.Tensor, ids: torch.Tensor, chosen: list[int], group_min: int) -> Measured:
    there = torch.isin(ids, torch.tensor(chosen, dtype=ids.dtype, device=ids.device))

    def off(s: int) -> tuple[float, str]:
        here = there & (true[s] != 0)
        if int(here.sum()) < group_min:
            return 0.0, ""
        return float((own[s, here] - true[s, here]).abs().median() / true[s, here].abs().median()), ""

    return per_step(name, len(own), off)
