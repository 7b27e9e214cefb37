"""Shortcuts in the head: entries of the logits' gradient left out, or made from a sample of the vocabulary and of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from crusades.bench.referee.lab import Lab
from crusades.bench.referee.recipe import Backward, Recipe, Variant

HEAD = 0.09
"""The head's share of a step's products on the default profile."""
TRUE_POSITIONS = 1 / 16
"""Attention's outputs differ most from their mean in a sequence's first tokens, so that what is wrong with those shows most in its matrices."""
SAMPLED = 18
"""The partition sum, or what moments do not tell, comes from one of so many tokens that are not in the batch."""


def softmax_shortcuts(steps: int) -> Iterator[Variant]:
    """Everything in this file. Late ones name their first step, so that what comes before may be shared."""
    for share in (0.5, 0.9, 0.99):
        yield Variant(f"{share:.0%} smallest softmax gradients filtered", "shortcut", Recipe(edit_logit_gradient=_filter_small(share), micro=2), "softmax", 0.06 * share, "least visible")
    every, last = tuple(range(steps)), (steps - 1,)
    for parts in (4, 8, 16, 32):
        recipe = Recipe(backward_of_head=sampled_head(1 / parts, every), micro=2)
        yield Variant(f"softmax of a sample, rows not in the batch from 1/{parts} of the tokens", "shortcut", recipe, "softmax, sampled", HEAD * (1 - 1 / parts), "least visible")
    for parts, where in ((2, every), (8, every), (8, last)):
        late = where is last
        recipe = Recipe(backward_of_head=sampled_rows(1 / parts, where), micro=2, first=where[0])
        words = f"rows not in the batch from 1/{parts} of the tokens, the softmax of all{', last step' if late else ''}"
        work = HEAD / 3 * (1 - 1 / parts) * len(where) / steps
        yield Variant(words, "shortcut", recipe, f"softmax, rows{', late' if late else ''}", work, "random")
    for where, words in ((every, "every step"), (last, "last step")):
        recipe, work = Recipe(backward_of_head=head_by_moments(where), micro=2, first=where[0]), HEAD / 3 * len(where) / steps
        yield Variant(f"hidden states' gradient of the head by moments, {words}", "shortcut", recipe, "softmax, moments", work, "least visible")
        recipe = Recipe(backward_of_head=head_by_moments(where, sampled=SAMPLED), micro=2, first=where[0])
        yield Variant(f"hidden states' gradient of the head by moments and a sample, {words}", "shortcut", recipe, "softmax, moments", work * (1 - 1 / SAMPLED), "least visible")
    for parts in (8, 4, 2):
        recipe = Recipe(backward_of_head=head_by_moments(every, sampled=parts), micro=2)
        yield Variant(f"hidden states' gradient of the head by moments and 1/{parts} of the rows, every step", "shortcut", recipe, "softmax, moments", HEAD / 3 * (1 - 1 / parts), "least visible")
    for parts in (32, 8):
        recipe = Recipe(backward_of_head=head_by_mean(every, parts), micro=2)
        yield Variant(f"hidden states' gradient of the head by the mean and 1/{parts} of the rows, every step", "shortcut", recipe, "softmax, mean", HEAD / 3 * (1 - 1 / parts), "least visible")
    for parts in (32, 16, 8, 4, 2):
        recipe = Recipe(backward_of_head=head_by_mean(every, parts, by_size=True), micro=2)
        words = f"hidden states' gradient of the head by the mean and 1/{parts} of the rows, large ones first, every step"
        yield Variant(words, "shortcut", recipe, "softmax, mean", HEAD / 3 * (1 - 1 / parts), "least visible")
    for parts, true in ((32, TRUE_POSITIONS), (16, TRUE_POSITIONS), (16, 0.0)):
        recipe = Recipe(backward_of_head=head_by_mean(every, parts, by_size=True, true_positions=true), micro=1)
        words = f"hidden states' gradient of the head by the mean and 1/{parts} of the rows, large ones first, anew for every sequence{' and truly for its first tokens' if true else ''}"
        yield Variant(words, "shortcut", recipe, "softmax, mean", HEAD / 3 * (1 - 1 / parts - true), "least visible")
    recipe = Recipe(backward_of_head=sampled_head(1 / 8, last), micro=2, first=steps - 1)
    yield Variant("softmax of a sample, rows not in the batch from 1/8 of the tokens, last step", "shortcut", recipe, "softmax, sampled, late", HEAD * 7 / 8 / steps, "least visible")


def _filter_small(share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Zero the smallest `share` of the entries of every row of the logits' gradient."""

    def edit(gradient: torch.Tensor) -> torch.Tensor:
        rows = gradient.flatten(0, -2)
        kept = []
        for part in rows.split(256):
            size = part.abs().float()
            threshold = size.kthvalue(max(1, int(share * part.shape[1])), dim=1, keepdim=True).values
            kept.append(part.masked_fill(size <= threshold, 0))
        return torch.cat(kept).view_as(gradient)

    return edit


def sampled_head(share: float, steps: tuple[int, ...]) -> Backward:
    """What a sampled softmax with re-weighted rows (Jean et al. 2015, arXiv:1412.2007, without its guarantees) makes of the head.

    The partition sum comes from a sample of the vocabulary; the rows of tokens that are not in the batch from a `share` of its
    tokens (twice that in the first step, where an exam has a reference), weighted up; what those rows add to the hidden states'
    gradient from the first two moments of their weights. The rows of tokens in the batch are exact.
    """

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps:
            return None
        tokens, scale, weight = len(dy), lab.profile.batch_size * (lab.profile.sequence_length - 1), module.weight.detach()
        seen, unseen = vocabulary_of(lab, step, len(weight))
        drawn = unseen[lab.random(len(unseen)).argsort()[: max(64, len(weight) // SAMPLED)]]
        chosen = lab.random(tokens).argsort()[: max(1, int(tokens * min(1.0, share if step else 2 * share)))]
        target = torch.zeros(tokens, len(seen), device=dy.device).scatter_(1, torch.searchsorted(seen, dy.argmin(dim=1))[:, None], 1 / scale)
        own = dy[:, seen].float() + target
        total = scale * (own.sum(dim=1) + len(unseen) / len(drawn) * dy[:, drawn].float().sum(dim=1))
        own = own / total[:, None]
        left = 1 / scale - own.sum(dim=1)
        own = (own - target).to(x.dtype)
        others = weight[unseen].float()
        dx = own @ weight[seen] + (left[:, None] * (others.mean(dim=0) + others.var() * x.float())).to(x.dtype)
        dw = torch.zeros_like(weight)
        dw[seen] = own.t() @ x
        dw[unseen] = (dy[chosen][:, unseen] * (tokens / len(chosen) / total[chosen][:, None]).to(dy.dtype)).t() @ x[chosen]
        return dx, dw

    return backward


def sampled_rows(share: float, steps: tuple[int, ...]) -> Backward:
    """Only the weight gradient of the rows of tokens that are not in the batch is made from a `share` of the batch's tokens,
    weighted up: the softmax and the hidden states' gradient are the true ones. What is left out is a third of the head."""

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps:
            return None
        seen, unseen = vocabulary_of(lab, step, len(module.weight))
        chosen = lab.random(len(dy)).argsort()[: max(1, int(len(dy) * share))]
        dw = torch.zeros_like(module.weight)
        dw[seen] = dy[:, seen].t() @ x
        dw[unseen] = (dy[chosen][:, unseen] * (len(dy) / len(chosen))).t() @ x[chosen]
        return None, dw

    return backward


def head_by_moments(steps: tuple[int, ...], *, sampled: int = 0) -> Backward:
    """The head's weight gradient is the true one; what the rows of tokens that are not in the batch add to the hidden states'
    gradient comes from the first two moments of their weights; `sampled`: what those do not tell of it, from one of so many
    rows, weighted up, so that the estimate is nearly unbiased."""

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps:
            return None
        seen, unseen = vocabulary_of(lab, step, len(module.weight))
        own, weight = dy[:, seen], module.weight.detach()
        left = -own.float().sum(1, keepdim=True)  # every row of a softmax's gradient adds up to nothing
        others = weight[unseen].float()
        dx = own @ weight[seen] + (left * (others.mean(0) + others.var() * x.float())).to(x.dtype)
        if sampled:
            drawn = unseen[lab.random(len(unseen)).argsort()[: max(64, len(unseen) // sampled)]]
            some = dy[:, drawn]
            by_moments = some.float().sum(1, keepdim=True) * (others.mean(0) + others.var() * x.float())
            dx = dx + (((some @ weight[drawn]).float() - by_moments) * (len(unseen) / len(drawn))).to(x.dtype)
        return dx, dy.t() @ x

    return backward


def head_by_mean(steps: tuple[int, ...], sampled: int, *, by_size: bool = False, true_positions: float = 0.0) -> Backward:
    """As `head_by_moments`, from the mean over tokens of the probabilities, which the weight gradient's product gives for next to
    nothing, and from one of `sampled` rows for what each token's differ by. What is wrong is nothing that tokens have in common.
    `by_size`: rows are drawn as likely as they differ much, which leaves the estimate the least variance that it can have.
    `true_positions`: the share of every sequence, from its first token on, whose gradients are the true ones."""

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps:
            return None
        seen, unseen = vocabulary_of(lab, step, len(module.weight))
        own, weight = dy[:, seen], module.weight.detach()
        left = -own.float().sum(1, keepdim=True)
        mean = dy.sum(0, dtype=torch.float32)[unseen] / left.sum()
        together = (mean.to(x.dtype) @ weight[unseen]).float()
        count = max(64, len(unseen) // sampled)
        if by_size:
            size = torch.cat([(dy[:, ids].float() - left * m).norm(dim=0) for ids, m in zip(unseen.split(8192), mean.split(8192), strict=True)])
            chance = chances(size, count)
            drawn = (lab.random(len(unseen)) < chance).nonzero()[:, 0]
            scale = 1 / chance[drawn]
        else:
            drawn = lab.random(len(unseen)).argsort()[:count]
            scale = torch.full((len(drawn),), len(unseen) / len(drawn), device=dy.device)
        differs = ((dy[:, unseen[drawn]].float() - left * mean[drawn]) * scale).to(x.dtype)
        dx = (own @ weight[seen]).float() + left * together + (differs @ weight[unseen[drawn]]).float()
        positions = lab.profile.sequence_length - 1
        true = torch.arange(len(dy), device=dy.device) % positions < int(positions * true_positions)
        dx[true] = (dy[true] @ weight).float()
        return dx.to(x.dtype), dy.t() @ x

    return backward


def chances(size: torch.Tensor, count: int) -> torch.Tensor:
    """In proportion to `size` (n,), but at most 1, so that their sum is `count`: how likely each is drawn."""
    chance = torch.zeros_like(size)
    while True:  # those that would be above 1 are certain, and leave the others more
        free = chance < 1
        chance[free] = size[free] / size[free].sum() * (count - (~free).sum())
        if not (chance > 1).any():
            return chance
        chance.clamp_(max=1)


def vocabulary_of(lab: Lab, step: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids that are in the step's batch, and those that are not, both sorted, on the device."""
    absent = torch.ones(rows, dtype=torch.bool)
    absent[torch.from_numpy(lab.exam.batches[step]).flatten()] = False
    return (~absent).nonzero()[:, 0].to(lab.reference.device), absent.nonzero()[:, 0].to(lab.reference.device)
