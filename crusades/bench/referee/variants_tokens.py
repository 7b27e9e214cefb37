"""Shortcuts that leave out part of the work in time: tokens, sequences, steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from crusades.bench.referee.lab import Lab
from crusades.bench.referee.recipe import Recipe, Variant, Weights

# ------------------------------------------------------------------------------------------------ tokens


def random_tokens(share: float, steps: tuple[int, ...], *, reweight: bool = False) -> Weights:
    def weights(lab: Lab, step: int, losses: torch.Tensor) -> torch.Tensor:
        if step not in steps:
            return torch.ones_like(losses)
        keep = (lab.random(*losses.shape) >= share).to(losses.dtype)
        return keep / (1 - share) if reweight else keep

    return weights


def _easy_tokens(share: float, steps: tuple[int, ...]) -> Weights:
    def weights(lab: Lab, step: int, losses: torch.Tensor) -> torch.Tensor:
        if step not in steps:
            return torch.ones_like(losses)
        threshold = losses.flatten().float().kthvalue(max(1, round(share * losses.numel()))).values
        return (losses.float() > threshold).to(losses.dtype)

    return weights


def _tail_tokens(share: float) -> Weights:
    def weights(lab: Lab, step: int, losses: torch.Tensor) -> torch.Tensor:
        keep = torch.ones_like(losses)
        keep[:, losses.shape[1] - max(1, round(share * losses.shape[1])) :] = 0
        return keep

    return weights


def token_shortcuts(steps: int, batch: int, sizes: tuple[float, ...]) -> Iterator[Variant]:
    """Everything in this file. Late ones name their first step, so that what comes before may be shared."""
    yield from _tokens(steps, sizes)
    yield from _sequences(steps, batch)
    yield from _steps(steps)
    yield from _alone(0, "first step", steps, batch)
    if steps >= 3:
        yield from _alone(steps // 2, "one middle step", steps, batch)


def _tokens(steps: int, sizes: tuple[float, ...]) -> Iterator[Variant]:
    every, last = tuple(range(steps)), (steps - 1,)
    for size in sizes:
        yield Variant(f"{size:.1%} of the tokens", "shortcut", Recipe(weights=random_tokens(size, every)), "tokens", size * 2 / 3, "random")
        yield Variant(f"{size:.1%} easiest tokens", "shortcut", Recipe(weights=_easy_tokens(size, every)), "tokens", size * 2 / 3, "least visible")
        yield Variant(f"last {size:.1%} of every sequence", "shortcut", Recipe(weights=_tail_tokens(size)), "tokens", size, "random")
        recipe = Recipe(weights=random_tokens(size, every, reweight=True))
        yield Variant(f"{size:.1%} of the tokens left out, the others weighted up", "shortcut", recipe, "tokens, weighted up", size * 2 / 3, "random")
        late = min(size * steps, 1.0)
        if late < 1:
            yield Variant(f"{late:.1%} of the tokens, last step", "shortcut", Recipe(weights=random_tokens(late, last), first=steps - 1), "tokens, late", size * 2 / 3, "random")
            yield Variant(f"{late:.1%} easiest tokens, last step", "shortcut", Recipe(weights=_easy_tokens(late, last), first=steps - 1), "tokens, late", size * 2 / 3, "least visible")


# ------------------------------------------------------------------------------------------------ sequences and steps


def without_sequences(count: int, steps: tuple[int, ...], *, easiest: bool, reweight: bool = False) -> Weights:
    def weights(lab: Lab, step: int, losses: torch.Tensor) -> torch.Tensor:
        keep = torch.ones_like(losses)
        if step in steps:
            order = losses.float().mean(1).argsort() if easiest else lab.random(len(losses)).argsort()
            keep[order[:count]] = 0
            keep *= len(losses) / (len(losses) - count) if reweight else 1
        return keep

    return weights


def _sequences(steps: int, batch: int) -> Iterator[Variant]:
    every, last = tuple(range(steps)), (steps - 1,)
    for count in sorted({1, max(1, batch // 4), batch // 2}):
        for easiest in (False, True):
            choice = "least visible" if easiest else "random"
            tag = " easiest" if easiest else ""
            yield Variant(f"{count}{tag} of {batch} sequences dropped", "shortcut", Recipe(weights=without_sequences(count, every, easiest=easiest)), "sequences", count / batch, choice)
            yield Variant(f"{count}{tag} of {batch} sequences dropped, last step", "shortcut", Recipe(weights=without_sequences(count, last, easiest=easiest), first=steps - 1), "sequences, late", count / batch / steps, choice)


def _steps(steps: int) -> Iterator[Variant]:
    for count in (1, 2):
        late = tuple(range(steps - count, steps))
        yield Variant(f"no update in the last {count} steps", "shortcut", Recipe(no_update=late, first=late[0]), "steps", count / steps * 2 / 3)
        yield Variant(f"stale gradient in the last {count} steps", "shortcut", Recipe(stale=late, first=late[0] - 1), "steps", count / steps * 2 / 3)
    yield Variant("no update in a middle step", "shortcut", Recipe(no_update=(steps // 2,), first=steps // 2), "steps", 1 / steps * 2 / 3)


def _alone(step: int, words: str, steps: int, batch: int) -> Iterator[Variant]:
    """One step before or between honest ones: the first, which no anchor meets; a middle one, early enough to be forgotten in the
    end, late enough for drift to hide it where there is some."""

    def alone(name: str, weights: Weights, work: float, choice: str) -> Variant:
        return Variant(f"{name}, {words}", "shortcut", Recipe(weights=weights, first=step), words, work / steps, choice)

    for size in (0.05, 0.5):
        yield alone(f"{size:.1%} of the tokens", random_tokens(size, (step,)), size * 2 / 3, "random")
        yield alone(f"{size:.1%} easiest tokens", _easy_tokens(size, (step,)), size * 2 / 3, "least visible")
    yield alone("half of the tokens reweighted", random_tokens(0.5, (step,), reweight=True), 1 / 3, "least visible")
    yield alone(f"1 of {batch} sequences dropped", without_sequences(1, (step,), easiest=False), 1 / batch, "random")
