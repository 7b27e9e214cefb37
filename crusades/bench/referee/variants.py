"""The two populations of `crusades calibrate`: honest arithmetic in many forms, and shortcuts of many kinds and sizes.

`work` is the share of a run's arithmetic that a shortcut leaves out, by counting products (forward : input gradients :
weight gradients = 1 : 1 : 1), not by timing. Every dimension has a random and a least visible choice where the two
differ: lowest-loss tokens, smallest-gradient rows, layers and heads. "late" shortcuts act in the last steps only, where
Adam's update forgives most (the known weak spot of comparing final weights).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from crusades.bench.referee.lab import Lab, Recipe, Weights
from crusades.bench.referee.layout import kind_of

SIZES = (0.005, 0.01, 0.02, 0.05, 0.10, 0.25, 0.50)


@dataclass(frozen=True)
class Variant:
    """One way to run the workload."""

    name: str
    population: str
    """"honest", "shortcut", or "policy": measured and reported, in neither population."""
    recipe: Recipe
    dimension: str = ""
    work: float = 0.0
    choice: str = ""
    """"random", "least visible" or empty."""
    keep_previous: bool = False


def everything(steps: int, layers: int, batch: int, *, cuda: bool, low_precision: bool) -> list[Variant]:
    """All variants for a workload. `low_precision`: the weights are bf16, so bf16 products are honest."""
    found = [*_honest(batch, cuda=cuda)]
    found += [*_tokens(steps), *_sequences(steps, batch), *_steps(steps), *_layers(steps, layers), *_tensors(steps, layers), *_rows(steps)]
    found += [*_precision(steps, low_precision=low_precision), *_attention(steps), *_softmax(), *_red_team(steps, batch)]
    names = [v.name for v in found]
    assert len(names) == len(set(names)), "two variants share a name"
    return found


# ------------------------------------------------------------------------------------------------ honest


def _honest(batch: int, *, cuda: bool) -> Iterator[Variant]:
    def honest(name: str, **fields: object) -> Variant:
        return Variant(name, "honest", Recipe(**fields))  # type: ignore[arg-type]

    yield honest("eager")
    yield honest("micro-batch 1", micro=1)
    yield honest("micro-batch 2", micro=2)
    if batch >= 8:
        yield honest("micro-batch 4", micro=4)
    yield honest("fp32 logits", loss="float", micro=2)
    yield honest("chunked loss", loss="chunked", micro=2)
    yield honest("activation checkpointing", checkpointing=True)
    yield honest("math attention", attention="MATH", micro=2)
    if cuda:
        yield honest("flash attention", attention="FLASH_ATTENTION")
        yield honest("memory-efficient attention", attention="EFFICIENT_ATTENTION")
        yield honest("cudnn attention", attention="CUDNN_ATTENTION")
    yield honest("foreach optimizer", foreach=True)
    yield honest("single-tensor optimizer", foreach=False)
    yield honest("full window as a mask", window=lambda step: 1 << 30, micro=2)
    yield honest("compile", compile="default")
    yield honest("compile, micro-batch 2", compile="default", micro=2)
    if cuda:
        yield honest("compile, reduce-overhead", compile="reduce-overhead", micro=4)


# ------------------------------------------------------------------------------------------------ tokens


def _random_tokens(share: float, steps: tuple[int, ...], *, reweight: bool = False) -> Weights:
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


def _tokens(steps: int) -> Iterator[Variant]:
    every, last = tuple(range(steps)), (steps - 1,)
    for size in SIZES:
        yield Variant(f"{size:.1%} of the tokens", "shortcut", Recipe(weights=_random_tokens(size, every)), "tokens", size * 2 / 3, "random")
        yield Variant(f"{size:.1%} easiest tokens", "shortcut", Recipe(weights=_easy_tokens(size, every)), "tokens", size * 2 / 3, "least visible")
        yield Variant(f"last {size:.1%} of every sequence", "shortcut", Recipe(weights=_tail_tokens(size)), "tokens", size, "random")
        late = min(size * steps, 1.0)
        if late < 1:
            yield Variant(f"{late:.1%} of the tokens, last step", "shortcut", Recipe(weights=_random_tokens(late, last)), "tokens, late", size * 2 / 3, "random")
            yield Variant(f"{late:.1%} easiest tokens, last step", "shortcut", Recipe(weights=_easy_tokens(late, last)), "tokens, late", size * 2 / 3, "least visible")


# ------------------------------------------------------------------------------------------------ sequences and steps


def _without_sequences(count: int, steps: tuple[int, ...], *, easiest: bool, reweight: bool = False) -> Weights:
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
            yield Variant(f"{count}{tag} of {batch} sequences dropped", "shortcut", Recipe(weights=_without_sequences(count, every, easiest=easiest)), "sequences", count / batch, choice)
            yield Variant(f"{count}{tag} of {batch} sequences dropped, last step", "shortcut", Recipe(weights=_without_sequences(count, last, easiest=easiest)), "sequences, late", count / batch / steps, choice)


def _steps(steps: int) -> Iterator[Variant]:
    for count in (1, 2):
        late = tuple(range(steps - count, steps))
        yield Variant(f"no update in the last {count} steps", "shortcut", Recipe(no_update=late), "steps", count / steps * 2 / 3)
        yield Variant(f"stale gradient in the last {count} steps", "shortcut", Recipe(stale=late), "steps", count / steps * 2 / 3)
    yield Variant("no update in a middle step", "shortcut", Recipe(no_update=(steps // 2,)), "steps", 1 / steps * 2 / 3)


# ------------------------------------------------------------------------------------------------ layers and tensors


def _zero_where(wanted: Callable[[Lab, str], bool], steps: tuple[int, ...]) -> Callable[[Lab, int], None]:
    def edit(lab: Lab, step: int) -> None:
        if step in steps:
            for name, parameter in lab.named():
                if parameter.grad is not None and wanted(lab, name):
                    parameter.grad.zero_()

    return edit


def _smallest_layer(lab: Lab) -> int:
    """The block whose gradient is smallest right now."""
    norms: dict[int, float] = {}
    for name, parameter in lab.named():
        layer = lab.layer(name)
        if 0 <= layer < lab.reference.layers and parameter.grad is not None:
            norms[layer] = norms.get(layer, 0.0) + float(parameter.grad.float().square().sum())
    return min(norms, key=lambda k: norms[k])


def _freeze_smallest(steps: tuple[int, ...]) -> Callable[[Lab, int], None]:
    def edit(lab: Lab, step: int) -> None:
        if step in steps:
            layer = _smallest_layer(lab)
            _zero_where(lambda inner, name: inner.layer(name) == layer, steps)(lab, step)

    return edit


def _only_at(step: int, layer: int, now: int) -> int | None:
    return layer if now == step else None


def _layers(steps: int, layers: int) -> Iterator[Variant]:
    every, last, share = tuple(range(steps)), (steps - 1,), 1 / layers
    for layer in sorted({0, layers // 2, layers - 1}):
        chosen = lambda lab, name, layer=layer: lab.layer(name) == layer  # noqa: E731
        yield Variant(f"layer {layer} frozen", "shortcut", Recipe(edit_gradients=_zero_where(chosen, every)), "layers", share / 3, "random")
        yield Variant(f"layer {layer} frozen, last step", "shortcut", Recipe(edit_gradients=_zero_where(chosen, last)), "layers, late", share / steps / 3, "random")
        yield Variant(f"layer {layer} left out, last step", "shortcut", Recipe(without_layer=functools.partial(_only_at, steps - 1, layer)), "layers, late", share / steps, "random")
    yield Variant("layer with the smallest gradient frozen", "shortcut", Recipe(edit_gradients=_freeze_smallest(every)), "layers", share / 3, "least visible")
    yield Variant("layer with the smallest gradient frozen, last step", "shortcut", Recipe(edit_gradients=_freeze_smallest(last)), "layers, late", share / steps / 3, "least visible")
    lower = lambda lab, name: -1 < lab.layer(name) < max(1, layers // 8)  # noqa: E731
    yield Variant("no weight gradients in the lowest eighth of the layers", "shortcut", Recipe(edit_gradients=_zero_where(lower, every)), "layers", 1 / 24, "random")


def _tensors(steps: int, layers: int) -> Iterator[Variant]:
    every, middle = tuple(range(steps)), layers // 2
    for kind, work in (("bias", 0.0005), ("embed_tokens", 0.03)):
        chosen = lambda lab, name, kind=kind: kind_of(name) == kind  # noqa: E731
        yield Variant(f"every {kind} frozen", "shortcut", Recipe(edit_gradients=_zero_where(chosen, every)), "tensors", work, "random")
    for leaf, share in (("mlp.down_proj", 0.27), ("self_attn.o_proj", 0.05), ("self_attn.q_proj", 0.05), ("self_attn.k_proj", 0.01), ("self_attn.v_proj", 0.01)):
        chosen = lambda lab, name, leaf=leaf: f"{middle}.{leaf}.weight" in name  # noqa: E731
        yield Variant(f"layer {middle} {leaf} frozen", "shortcut", Recipe(edit_gradients=_zero_where(chosen, every)), "tensors", share / layers / 3, "random")
    queries = lambda lab, name: "q_proj" in name  # noqa: E731
    late = tuple(range(max(0, steps - 2), steps))
    yield Variant("no query gradients, last two steps", "shortcut", Recipe(edit_gradients=_zero_where(queries, late)), "tensors", 0.01, "random")


# ------------------------------------------------------------------------------------------------ coordinates


def _rows_of(share: float, steps: tuple[int, ...], *, smallest: bool, fill: str) -> Callable[[Lab, int], None]:
    """Rows of every matrix: zeroed, stale, or the others scaled up in their place."""

    def edit(lab: Lab, step: int) -> None:
        if step not in steps:
            return
        for name, parameter in lab.named():
            if parameter.dim() != 2 or parameter.grad is None:
                continue
            rows, count = parameter.grad, max(1, round(share * parameter.shape[0]))
            order = rows.float().norm(dim=1).argsort() if smallest else lab.random(rows.shape[0]).argsort()
            out = order[:count]
            if fill == "stale":
                if lab.previous:
                    rows[out] = lab.previous[name][out]
            else:
                rows[out] = 0
                if fill == "reweight":
                    rows[order[count:]] *= 1 / (1 - share)

    return edit


def _rows(steps: int) -> Iterator[Variant]:
    every = tuple(range(steps))
    for size in SIZES:
        yield Variant(f"{size:.1%} of the rows zeroed", "shortcut", Recipe(edit_gradients=_rows_of(size, every, smallest=False, fill="zero")), "coordinates", size / 3, "random")
        yield Variant(f"{size:.1%} smallest rows zeroed", "shortcut", Recipe(edit_gradients=_rows_of(size, every, smallest=True, fill="zero")), "coordinates", size / 3, "least visible")
        yield Variant(f"{size:.1%} of the rows stale", "shortcut", Recipe(edit_gradients=_rows_of(size, every, smallest=False, fill="stale")), "coordinates", size / 3, "random", keep_previous=True)


# ------------------------------------------------------------------------------------------------ precision, attention, softmax


def _fake_quantise(t: torch.Tensor, form: str) -> torch.Tensor:
    """Round to the values of fp8 (e4m3) or int8 with one scale per tensor, back in the tensor's own type."""
    top = 448.0 if form == "fp8" else 127.0
    scale = t.abs().amax().float().clamp(min=1e-30) / top
    scaled = t.float() / scale
    rounded = scaled.to(torch.float8_e4m3fn).float() if form == "fp8" else scaled.round().clamp(-top, top)
    return (rounded * scale).to(t.dtype)


def _low_backward(form: str, which: str, steps: tuple[int, ...]) -> Callable[[Lab, int, nn.Linear, torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor] | None]:
    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps:
            return None
        low = _fake_quantise(dy, form)
        dx = low @ _fake_quantise(module.weight, form) if "d" in which else None
        dw = low.t() @ _fake_quantise(x, form) if "w" in which else dy.t() @ x
        return dx, dw

    return backward


def _precision(steps: int, *, low_precision: bool) -> Iterator[Variant]:
    every, late = tuple(range(steps)), tuple(range(max(0, steps - 2), steps))
    if not low_precision:
        yield Variant("bf16 autocast", "shortcut", Recipe(autocast="bfloat16"), "precision", 0.5, "random")
    for form in ("fp8", "int8"):
        for which, work in (("w", 1 / 6), ("wd", 1 / 3)):
            words = "weight gradients" if which == "w" else "weight and input gradients"
            for when, tag, part in ((every, "", 1.0), (late, ", last two steps", len(late) / steps)):
                population = "policy" if low_precision else "shortcut"
                yield Variant(f"{form} {words}{tag}", population, Recipe(backward_of_linear=_low_backward(form, which, when)), "precision", work * part, "random")


def _attention(steps: int) -> Iterator[Variant]:
    last = steps - 1
    for share in (0.5, 0.875):
        width = lambda lab_length, share=share: max(1, int(share * lab_length))  # noqa: E731
        yield Variant(f"attention window {share:.1%}", "shortcut", Recipe(window=_Window(width, None), micro=2), "attention", 0.02 * (1 - share) * 2, "random")
        yield Variant(f"attention window {share:.1%}, last step", "shortcut", Recipe(window=_Window(width, last), micro=2), "attention, late", 0.02 * (1 - share) * 2 / steps, "random")


class _Window:
    """step → window; the length of a sequence is filled in by `calibrate` through `length`."""

    length = 128

    def __init__(self, width: Callable[[int], int], only: int | None) -> None:
        self._width, self._only = width, only

    def __call__(self, step: int) -> int:
        return self._width(self.length) if self._only is None or step == self._only else 0


def set_sequence_length(length: int) -> None:
    """Windows are shares of this many tokens."""
    _Window.length = length


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


def _softmax() -> Iterator[Variant]:
    for share in (0.5, 0.9, 0.99):
        yield Variant(f"{share:.0%} smallest softmax gradients filtered", "shortcut", Recipe(edit_logit_gradient=_filter_small(share), micro=2), "softmax", 0.06 * share, "least visible")


# ------------------------------------------------------------------------------------------------ the red team's attacks


def _half_tokens_backward(steps: tuple[int, ...], keep: float, lower: bool) -> Callable[[Lab, int, nn.Linear, torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor] | None]:
    """Weight gradients from a random part of the tokens, weighted up; input gradients true."""

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps or (lower and id(module) not in _lower_half(lab)):
            return None
        rows = (lab.random(x.shape[0]) < keep).nonzero()[:, 0]
        return None, dy[rows].t() @ x[rows] / keep

    return backward


def _lower_half(lab: Lab) -> set[int]:
    half = lab.reference.layers // 2
    return {id(m) for n, m in lab.reference.model.named_modules() if isinstance(m, nn.Linear) and 0 <= lab.layer(n + ".weight") < half}


def _control_variate(share: float, steps: tuple[int, ...]) -> Callable[[Lab, int], None]:
    """Rows left out get the gradient of the step before: an estimate that is right on average."""
    return _rows_of(share, steps, smallest=False, fill="stale")


def _red_team(steps: int, batch: int) -> Iterator[Variant]:
    last, late = (steps - 1,), tuple(range(max(0, steps - 2), steps))

    def team(name: str, work: float, recipe: Recipe, *, keep_previous: bool = False) -> Variant:
        return Variant(name, "shortcut", recipe, "red team", work, "least visible", keep_previous)

    yield team("half of the tokens reweighted, last step", 1 / 15, Recipe(weights=_random_tokens(0.5, last, reweight=True)))
    yield team("half of the tokens reweighted, last two steps", 2 / 15, Recipe(weights=_random_tokens(0.5, late, reweight=True)))
    yield team("a tenth of the tokens left out and reweighted, last step", 1 / 75, Recipe(weights=_random_tokens(0.1, last, reweight=True)))
    yield team("weight gradients from half of the tokens, last step", 1 / 30, Recipe(backward_of_linear=_half_tokens_backward(last, 0.5, lower=False)))
    yield team("weight gradients from half of the tokens, last two steps", 1 / 15, Recipe(backward_of_linear=_half_tokens_backward(late, 0.5, lower=False)))
    yield team("weight gradients from 90 % of the tokens, last step", 1 / 150, Recipe(backward_of_linear=_half_tokens_backward(last, 0.9, lower=False)))
    yield team("weight gradients from half of the tokens in the lower layers, last two steps", 1 / 30, Recipe(backward_of_linear=_half_tokens_backward(late, 0.5, lower=True)))
    yield team("one sequence of each pair reweighted, last step", 1 / 15, Recipe(weights=_without_sequences(batch // 2, last, easiest=False, reweight=True)))
    yield team("half of the rows reweighted, last two steps", 1 / 15, Recipe(edit_gradients=_rows_of(0.5, late, smallest=False, fill="reweight")))
    yield team("half of the rows by a stale control variate, last step", 1 / 30, Recipe(edit_gradients=_control_variate(0.5, last)), keep_previous=True)
    yield team("a tenth of the rows by a stale control variate, last step", 1 / 150, Recipe(edit_gradients=_control_variate(0.1, last)), keep_previous=True)
