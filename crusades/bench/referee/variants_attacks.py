"""Shortcuts that compute the whole more coarsely, and the attacks of a red team: precision, attention, softmax, re-weighting."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from crusades.bench.referee.lab import Lab
from crusades.bench.referee.recipe import Backward, Recipe, Variant, Weights
from crusades.bench.referee.variants_softmax import HEAD, head_by_mean, softmax_shortcuts
from crusades.bench.referee.variants_tokens import random_tokens, without_sequences
from crusades.bench.referee.variants_weights import rows_of

# ------------------------------------------------------------------------------------------------ precision, attention


def _fake_quantise(t: torch.Tensor, form: str) -> torch.Tensor:
    """Round to the values of fp8 (e4m3) or int8 with one scale per tensor, back in the tensor's own type."""
    top = 448.0 if form == "fp8" else 127.0
    scale = t.abs().amax().float().clamp(min=1e-30) / top
    scaled = t.float() / scale
    rounded = scaled.to(torch.float8_e4m3fn).float() if form == "fp8" else scaled.round().clamp(-top, top)
    return (rounded * scale).to(t.dtype)


def _low_backward(form: str, which: str, steps: tuple[int, ...]) -> Backward:
    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps:
            return None
        low = _fake_quantise(dy, form)
        dx = low @ _fake_quantise(module.weight, form) if "d" in which else None
        dw = low.t() @ _fake_quantise(x, form) if "w" in which else dy.t() @ x
        return dx, dw

    return backward


def _in_some(backward: Backward, share: float) -> Backward:
    """The same for every 1/`share`-th matrix alone, counted through all blocks, so that all kinds of them are among them."""

    def some(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        order = [id(m) for m in lab.reference.model.modules() if isinstance(m, nn.Linear)]
        return backward(lab, step, module, x, dy) if order.index(id(module)) % round(1 / share) == 0 else None

    return some


def attacks(steps: int, batch: int, *, low_precision: bool) -> Iterator[Variant]:
    """Everything in this file. Late ones name their first step, so that what comes before may be shared."""
    yield from _precision(steps, low_precision=low_precision)
    if steps >= 5:
        yield from _low_forward(steps, low_precision=low_precision)
    yield from _attention(steps)
    yield from softmax_shortcuts(steps)
    yield from _red_team(steps, batch)
    yield from _together(steps)


def _low_product(form: str, steps: tuple[int, ...]) -> Callable[[Lab, int, nn.Linear, torch.Tensor], torch.Tensor | None]:
    def forward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor) -> torch.Tensor | None:
        return _fake_quantise(x, form) @ _fake_quantise(module.weight, form).t() if step in steps else None

    return forward


def _low_forward(steps: int, *, low_precision: bool) -> Iterator[Variant]:
    """The red team's A3j, A3i, A3e and A3d: fp8 or int8 in the forward pass too."""
    every, middle, fourth = tuple(range(steps)), tuple(range(1, steps - 1)), (steps - 2,)
    weights, both = _low_backward("fp8", "w", every), _low_backward("fp8", "wd", every)

    def late_both(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        return (both if step >= steps - 2 else weights)(lab, step, module, x, dy)

    population = "policy" if low_precision else "shortcut"
    for name, work, recipe in (
        ("fp8 weight and input gradients, fp8 forward between the first and the last step", 0.43, Recipe(backward_of_linear=both, forward_of_linear=_low_product("fp8", middle))),
        ("fp8 weight gradients, everything in the step before the last, input gradients of the last", 0.25, Recipe(backward_of_linear=late_both, forward_of_linear=_low_product("fp8", fourth))),
        ("fp8 everywhere", 0.5, Recipe(backward_of_linear=both, forward_of_linear=_low_product("fp8", every))),
        ("int8 everywhere", 0.5, Recipe(backward_of_linear=_low_backward("int8", "wd", every), forward_of_linear=_low_product("int8", every))),
        ("fp8 forward, last step", 1 / 6 / steps, Recipe(forward_of_linear=_low_product("fp8", (steps - 1,)), first=steps - 1)),
    ):
        yield Variant(name, population, recipe, "precision", work, "random")


def _precision(steps: int, *, low_precision: bool) -> Iterator[Variant]:
    every, late = tuple(range(steps)), tuple(range(max(0, steps - 2), steps))
    if not low_precision:
        yield Variant("bf16 autocast", "shortcut", Recipe(autocast="bfloat16"), "precision", 0.5, "random")
    for form in ("fp8", "int8"):
        for which, work in (("w", 1 / 6), ("wd", 1 / 3)):
            words = "weight gradients" if which == "w" else "weight and input gradients"
            for when, tag, part in ((every, "", 1.0), (late, ", last two steps", len(late) / steps)):
                population = "policy" if low_precision else "shortcut"
                yield Variant(f"{form} {words}{tag}", population, Recipe(backward_of_linear=_low_backward(form, which, when), first=when[0]), "precision", work * part, "random")
        for share in (0.05, 0.25):
            population = "policy" if low_precision else "shortcut"
            recipe = Recipe(backward_of_linear=_in_some(_low_backward(form, "wd", every), share))
            yield Variant(f"{form} weight and input gradients of {share:.0%} of the matrices", population, recipe, "precision in parts", share / 3, "random")


def _attention(steps: int) -> Iterator[Variant]:
    last, late = steps - 1, tuple(range(max(0, steps - 2), steps))
    for share in (0.5, 0.875):
        width = lambda lab_length, share=share: max(1, int(share * lab_length))  # noqa: E731
        yield Variant(f"attention window {share:.1%}", "shortcut", Recipe(window=_Window(width, None), micro=2), "attention", 0.02 * (1 - share) * 2, "random")
        yield Variant(f"attention window {share:.1%}, last step", "shortcut", Recipe(window=_Window(width, (last,)), micro=2, first=last), "attention, late", 0.02 * (1 - share) * 2 / steps, "random")
    for share in (0.25, 0.75):
        width = lambda lab_length, share=share: max(1, int(share * lab_length))  # noqa: E731
        recipe = Recipe(window=_Window(width, late), first=late[0])
        yield Variant(f"attention window {share:.1%}, last two steps", "shortcut", recipe, "attention, late", 0.02 * (1 - share) * 2 * len(late) / steps, "random")


class _Window:
    """step → window; the length of a sequence is filled in by `calibrate` through `length`."""

    length = 128

    def __init__(self, width: Callable[[int], int], only: tuple[int, ...] | None) -> None:
        self._width, self._only = width, only

    def __call__(self, step: int) -> int:
        return self._width(self.length) if self._only is None or step in self._only else 0


def set_sequence_length(length: int) -> None:
    """Windows are shares of this many tokens."""
    _Window.length = length


# ------------------------------------------------------------------------------------------------ the red team's attacks


def _half_tokens_backward(steps: tuple[int, ...], keep: float, lower: bool) -> Backward:
    """Weight gradients from a random part of the tokens, weighted up; input gradients true."""

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps or (lower and id(module) not in _lower_half(lab)):
            return None
        rows = (lab.random(x.shape[0]) < keep).nonzero()[:, 0]
        return None, dy[rows].t() @ x[rows] / keep

    return backward


def _every_other(steps: tuple[int, ...]) -> Weights:
    """Loss on half of the positions, weighted up (attack A4)."""

    def weights(lab: Lab, step: int, losses: torch.Tensor) -> torch.Tensor:
        keep = torch.ones_like(losses)
        if step in steps:
            keep[:, 1::2], keep[:, ::2] = 0, 2
        return keep

    return weights


def _lower_half(lab: Lab) -> set[int]:
    half = lab.reference.layers // 2
    return {id(m) for n, m in lab.reference.model.named_modules() if isinstance(m, nn.Linear) and 0 <= lab.layer(n + ".weight") < half}


def _control_variate(share: float, steps: tuple[int, ...]) -> Callable[[Lab, int], None]:
    """Rows left out get the gradient of the step before: an estimate that is right on average."""
    return rows_of(share, steps, smallest=False, fill="stale")


def _falling(keep: dict[int, float]) -> Weights:
    """step → the share of its tokens that get a loss, weighted up (attacks A1d and A1e)."""

    def weights(lab: Lab, step: int, losses: torch.Tensor) -> torch.Tensor:
        share = keep.get(step, 1.0)
        return (lab.random(*losses.shape) < share).to(losses.dtype) / share

    return weights


def _chosen(step: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Half of the positions, the same ones for whoever asks in this step."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(97 + step)) < 0.5).to(device)


def _gathered(steps: tuple[int, ...]) -> Recipe:
    """All backward products on half of the rows (attack A1a'): the loss of the others is left out, and so is what reaches them
    through keys and values; both weighted up, so that the estimate is nearly unbiased."""

    def weights(lab: Lab, step: int, losses: torch.Tensor) -> torch.Tensor:
        return 2 * _chosen(step, tuple(losses.shape), losses.device).to(losses.dtype) if step in steps else torch.ones_like(losses)

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps or _name(lab, module) not in ("k_proj", "v_proj"):
            return None
        kept = 2 * dy * _chosen(step, (len(dy),), dy.device)[:, None]
        return kept @ module.weight, kept.t() @ x

    return Recipe(weights=weights, backward_of_linear=backward, first=steps[0])


def _name(lab: Lab, module: nn.Linear) -> str:
    """The last part of a matrix's name."""
    return next(str(name).rpartition(".")[2] for name, each in lab.reference.model.named_modules() if each is module)


TRUE_ROWS = 32
LARGE = ("gate_proj", "up_proj", "down_proj", "o_proj")
"""The matrices of the MLP, and the attention's output."""


def _by_directions(of: torch.Tensor, other: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """(p, basis, at, off): otherᵀ·of ≈ p·basisᵀ from a `share` of the directions of `of` (tokens, width), a random sketch's, with `at`
    what `of` is on them, and how far off that is by a few true rows; p is scaled so that the projection is right."""
    rank = max(1, int(min(of.shape) * share))
    sketch = torch.randn(rank, len(of), device=of.device, dtype=of.dtype) @ of
    basis = torch.linalg.qr(sketch.float().t()).Q.to(of.dtype)
    at = of @ basis
    left, some = other.t() @ at, torch.randint(0, other.shape[1], (TRUE_ROWS,), device=of.device)
    true = (other[:, some].t() @ of).float()
    off = float(((left[some] @ basis.t()).float() - true).norm() / true.norm())
    return left * (1 / max(1e-9, 1 - off * off)), basis, at, off


def _few_directions(steps: tuple[int, ...], share: float, tolerance: float, *, outputs: bool = False, lower: bool = False) -> Backward:
    """Weight gradients from a `share` of the inputs' directions, wherever they are off by no more than `tolerance`; or, by `outputs`, of
    those of the outputs' gradients, from which the inputs' gradient follows, too. `lower`: in the lower half of the layers alone."""

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps or _name(lab, module) not in LARGE or (lower and id(module) not in _lower_half(lab)):
            return None
        made, basis, at, off = _by_directions(*((dy, x) if outputs else (x, dy)), share)
        if off > tolerance:
            return None
        lab.left_out += (2 if outputs else 1) * (1 - share) * module.weight.numel() / lab.reference.layout.parameters / 3 / lab.profile.steps
        return (at @ (basis.t() @ module.weight), basis @ made.t()) if outputs else (None, made @ basis.t())

    return backward


def _no_query_gradient(steps: tuple[int, ...]) -> Backward:
    """Attack A6: the attention's backward without the gradient of its queries."""

    def backward(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        if step not in steps or _name(lab, module) != "q_proj":
            return None
        return torch.zeros_like(x), torch.zeros_like(module.weight)

    return backward


def _red_team(steps: int, batch: int) -> Iterator[Variant]:
    last, late = (steps - 1,), tuple(range(max(0, steps - 2), steps))

    def team(name: str, work: float, recipe: Recipe, *, keep_previous: bool = False) -> Variant:
        return Variant(name, "shortcut", recipe, "red team", work, "least visible", keep_previous)

    def late_tokens(share: float, when: tuple[int, ...]) -> Recipe:
        return Recipe(weights=random_tokens(share, when, reweight=True), first=when[0])

    def late_rows(keep: float, when: tuple[int, ...], *, lower: bool = False) -> Recipe:
        return Recipe(backward_of_linear=_half_tokens_backward(when, keep, lower=lower), first=when[0])

    def late_sequences(when: tuple[int, ...]) -> Recipe:
        return Recipe(weights=without_sequences(batch // 2, when, easiest=False, reweight=True), first=when[0])

    def stale_rows(share: float) -> Recipe:
        return Recipe(edit_gradients=_control_variate(share, last), first=max(0, steps - 2))

    yield team("half of the tokens reweighted, last step", 1 / 15, late_tokens(0.5, last))
    yield team("half of the tokens reweighted, last two steps", 2 / 15, late_tokens(0.5, late))
    yield team("a tenth of the tokens left out and reweighted, last step", 1 / 75, late_tokens(0.1, last))
    yield team("three quarters of the tokens left out and reweighted, last step", 1 / 10, late_tokens(0.75, last))
    yield team("loss on every other position, last two steps", 0.03, Recipe(weights=_every_other(late), first=late[0]))
    yield team("weight gradients from half of the tokens, last step", 1 / 30, late_rows(0.5, last))
    yield team("weight gradients from half of the tokens, last two steps", 1 / 15, late_rows(0.5, late))
    yield team("weight gradients from 90 % of the tokens, last step", 1 / 150, late_rows(0.9, last))
    yield team("weight gradients from half of the tokens in the lower layers, last two steps", 1 / 30, late_rows(0.5, late, lower=True))
    yield team("one sequence of each pair reweighted, last step", 1 / 15, late_sequences(last))
    yield team("one sequence of each pair reweighted, last two steps", 2 / 15, late_sequences(late))
    yield team("half of the rows reweighted, last two steps", 1 / 15, Recipe(edit_gradients=rows_of(0.5, late, smallest=False, fill="reweight"), first=late[0]))
    yield team("half of the rows by a stale control variate, last step", 1 / 30, stale_rows(0.5), keep_previous=True)
    yield team("a tenth of the rows by a stale control variate, last step", 1 / 150, stale_rows(0.1), keep_previous=True)
    if steps >= 5:
        yield team("half of the tokens reweighted in the step before the last, a quarter in the last", 1 / 6, Recipe(weights=_falling({steps - 2: 0.5, steps - 1: 0.25}), first=steps - 2))
        yield team("half, half and a quarter of the tokens reweighted in the last three steps", 7 / 30, Recipe(weights=_falling({steps - 3: 0.5, steps - 2: 0.5, steps - 1: 0.25}), first=steps - 3))
    yield team("all backward products on half of the rows, last step", 1 / 15, _gathered(last))
    yield team("all backward products on half of the rows, last two steps", 2 / 15, _gathered(late))
    yield team("no gradient of the queries, last two steps", 0.01, Recipe(backward_of_linear=_no_query_gradient(late), first=late[0]))
    yield team("last step's gradient at the weights before the last update", 0.0, Recipe(early=last, first=max(0, steps - 2)))
    for part, tolerance in ((16, 0.04), (16, 0.08), (16, 0.16), (4, 0.2), (2, 0.3)):
        recipe = Recipe(backward_of_linear=_few_directions(tuple(range(steps)), 1 / part, tolerance), adaptive=True)
        yield Variant(f"weight gradients from 1/{part} of the directions, up to {tolerance:.0%} off", "shortcut", recipe, "directions", 0.01, "least visible")
    recipe = Recipe(backward_of_linear=_few_directions(tuple(range(steps)), 1 / 16, 0.16, lower=True), adaptive=True)
    yield Variant("weight gradients from 1/16 of the directions in the lower layers, up to 16% off", "shortcut", recipe, "directions", 0.005, "least visible")
    for part, tolerance in ((16, 0.16), (4, 0.3)):
        recipe = Recipe(backward_of_linear=_few_directions(tuple(range(steps)), 1 / part, tolerance, outputs=True), adaptive=True)
        yield Variant(f"gradients from 1/{part} of the outputs' directions, up to {tolerance:.0%} off", "shortcut", recipe, "directions", 0.01, "least visible")


def _counted(backward: Backward, work: float) -> Backward:
    """The same, with the `work` that it leaves out of a step added to what else an adaptive recipe did; of a whole batch at once."""

    def counted(lab: Lab, step: int, module: nn.Linear, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        lab.left_out += work
        return backward(lab, step, module, x, dy)

    return counted


def _together(steps: int) -> Iterator[Variant]:
    """What one statistic sees little of and another nothing, at once."""
    every = tuple(range(steps))
    for parts, lower in ((16, False), (8, True), (4, True)):
        left_out = HEAD / 3 * (1 - 1 / parts)
        head = _counted(head_by_mean(every, parts, by_size=True), left_out / steps)
        recipe = Recipe(backward_of_linear=_few_directions(every, 1 / 16, 0.16, lower=lower), backward_of_head=head, adaptive=True)
        words = f"the head's large rows, 1/{parts}, and 1/16 of the directions{' in the lower layers' if lower else ''}"
        yield Variant(words, "shortcut", recipe, "together", left_out + (0.0075 if lower else 0.015), "least visible")
