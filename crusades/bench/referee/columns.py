"""Columns of the regression: what each part of the tokens adds to the gradient at secret coordinates.

The gradient of a matrix is a sum over token positions, dW[i, j] = Σ_t dY[t, i]·X[t, j]. A tap keeps a layer's input X
from the forward pass and meets the output gradient dY in the backward pass; at the sampled coordinates it then splits
the sum by *parts* (sequences, secret position cells, slices). So one ordinary backward pass yields every column of
every family, with no pass of its own; the parts of a family add up to the gradient, but for those of "token", a few single ones.

Parts are given by an indicator (parts, tokens) of zeros and ones. Tapped: nn.Linear (weight and bias) and transformers'
Conv1D. Other parameters (norms, learned positions, which one look-up serves for all sequences) have no columns and take part in
the per-layer statistics alone. Embedding and head have statistics of their own, because what bf16 makes of the rows of a batch's
tokens is several times the noise of everything else (docs/log.md, 2026-11-26), and columns only in the head's rows of tokens that
no batch had: those are named step by step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from crusades.bench.protocol import ParameterSpec
from crusades.bench.referee.dice import Dice, in_order
from crusades.bench.referee.layout import Layout, Sample

CHUNK_ELEMENTS = 1 << 26
"""Tokens × coordinates held at once while a tap computes: 256 MB in float32, half in bf16."""


@dataclass(frozen=True)
class ColumnPlan:
    """Which sampled coordinates carry columns: `chosen` (c,) indexes the sample; `slices` gives each tensor its range of c."""

    chosen: torch.Tensor
    slices: dict[str, tuple[int, int]]

    def __len__(self) -> int:
        return self.chosen.numel()


def head_of(model: nn.Module, layout: Layout) -> tuple[nn.Linear, ParameterSpec] | None:
    """The output embedding and its weight, if it is a matrix like any other."""
    head = model.get_output_embeddings()  # type: ignore[operator]  # whatever class of transformers it is
    if not isinstance(head, nn.Linear):
        return None
    name = next(n for n, p in model.named_parameters() if p is head.weight)
    return head, next(s for s in layout.specs if s.name == name)


def _tapped(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(module, leaf, parameter name) of everything that can be split by position, the head not counted."""
    from transformers.pytorch_utils import Conv1D

    names = {id(p): n for n, p in model.named_parameters()}
    head = model.get_output_embeddings()  # type: ignore[operator]  # whatever class of transformers it is
    linears = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    return [(m, leaf, names[id(p)]) for m in linears for leaf, p in m._parameters.items() if p is not None]


def plan_columns(model: nn.Module, layout: Layout, sample: Sample, wanted: int, dice: Dice) -> ColumnPlan:
    """Choose up to `wanted` of the sampled coordinates, in proportion, among parameters that can be split."""
    tapped = {name for _, _, name in _tapped(model)}
    usable = sum(b - a for spec, (a, b) in zip(layout.specs, sample.bounds, strict=True) if spec.name in tapped)
    share, parts, slices, at = min(1.0, wanted / max(usable, 1)), [], {}, 0
    for spec, (a, b) in zip(layout.specs, sample.bounds, strict=True):
        if spec.name in tapped:
            count = max(1, round((b - a) * share))
            parts.append(in_order(dice.permutation(b - a)[:count]) + a)
            slices[spec.name] = (at, at + count)
            at += count
    return ColumnPlan(torch.cat(parts), slices)


@dataclass
class _Tap:
    """One use of one parameter: row and column of its coordinates, and where they stand among the columns."""

    kind: str
    rows: torch.Tensor
    cols: torch.Tensor
    at: tuple[int, int]

    def contributions(self, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """Each token's part of the gradient at this tap's coordinates: (tokens, coordinates), in the dtype of `dy`."""
        if self.kind == "bias":
            return dy[:, self.rows]
        if self.kind == "conv1d":
            return x[:, self.rows] * dy[:, self.cols]
        return dy[:, self.rows] * x[:, self.cols]


def _make_tap(module: nn.Module, leaf: str, spec: ParameterSpec, index: torch.Tensor, at: tuple[int, int]) -> _Tap:
    """Of the coordinates `index`[at] (into the flat segment), on the device."""
    local = index[at[0] : at[1]] - spec.offset
    width = spec.shape[-1] if len(spec.shape) > 1 else 1
    kind = "bias" if leaf == "bias" else "linear" if isinstance(module, nn.Linear) else "conv1d"
    return _Tap(kind, local // width, local % width, at)


class ColumnTaps:
    """Hooks on a model; active inside `with taps.of(parts)`, once for every step. Set `indicator` before each micro-batch; `columns` collects
    (parts, c + h): those of the plan, then those of `of_head` (h,), which indexes the sample's coordinates in the head."""

    def __init__(self, model: nn.Module, layout: Layout, sample: Sample, plan: ColumnPlan, device: str, of_head: torch.Tensor | None = None) -> None:
        self._device = device
        planned, more = len(plan), 0 if of_head is None else len(of_head)
        self._width = planned + more
        self.columns = self.indicator = torch.zeros(0, self._width, device=device)
        chosen = plan.chosen if of_head is None else torch.cat([plan.chosen, of_head])
        index, specs = sample.index[chosen].to(device), {s.name: s for s in layout.specs}  # one upload, and not one for every tap
        self._taps: dict[nn.Module, list[_Tap]] = {}
        for module, leaf, name in _tapped(model):
            self._taps.setdefault(module, []).append(_make_tap(module, leaf, specs[name], index, plan.slices[name]))
        if of_head is not None and (found := head_of(model, layout)):
            self._taps[found[0]] = [_make_tap(found[0], "weight", found[1], index, (planned, planned + more))]
        self._deaf = False

    @contextlib.contextmanager
    def of(self, parts: int) -> Iterator[None]:
        """Collect the columns of a step that has `parts`, in a tensor of its own."""
        self.columns = torch.zeros(parts, self._width, device=self._device)
        handles = [module.register_forward_hook(self._on_forward) for module in self._taps]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """While another gradient than the loss's goes back."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def _on_forward(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._on_backward(module, inputs[0].detach()))

    def _on_backward(self, module: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def hook(dy: torch.Tensor) -> None:
            if self._deaf:
                return
            flat_dy = dy.reshape(-1, dy.shape[-1])
            flat_x = x.reshape(-1, x.shape[-1])
            if not flat_dy.is_cuda:  # a card multiplies bf16 and adds in float32; a CPU would add in bf16, and slowly
                flat_x, flat_dy = flat_x.float(), flat_dy.float()
            for tap in self._taps[module]:
                self._accumulate(tap, flat_x, flat_dy)

        return hook

    def _accumulate(self, tap: _Tap, x: torch.Tensor, dy: torch.Tensor) -> None:
        first, last = tap.at
        step = max(1, CHUNK_ELEMENTS // max(1, dy.shape[0]))
        for start in range(first, last, step):
            stop = min(last, start + step)
            chunk = _Tap(tap.kind, tap.rows[start - first : stop - first], tap.cols[start - first : stop - first], (start, stop))
            self.columns[:, start:stop] += self._by_part(chunk.contributions(x, dy))

    def _by_part(self, contributions: torch.Tensor) -> torch.Tensor:
        """(parts, coordinates) float32. Parts are zeros and ones, so that only the contributions' own rounding is in the sums."""
        if contributions.dtype == torch.float32:
            return self.indicator @ contributions
        return torch.mm(self.indicator.to(contributions.dtype), contributions, out_dtype=torch.float32)


@dataclass(frozen=True)
class Parts:
    """Families of parts of one step's tokens. Each family but "token", which are single ones, partitions all (batch, sequence − 1)
    predicted positions."""

    families: dict[str, tuple[int, int]]
    """name → range of rows of the indicator."""
    names: tuple[str, ...]
    """Every row in words: "sequence 3", "cell 17", "the easiest quarter of the tokens"."""
    fixed: torch.Tensor
    """(rows, batch, sequence − 1), bool; the rows of "slice" are completed per micro-batch (see `indicator`)."""

    def on(self, device: str) -> Parts:
        """The same on `device`."""
        return dataclasses.replace(self, fixed=self.fixed.to(device))

    def indicator(self, rows: slice, losses: torch.Tensor) -> torch.Tensor:
        """(parts, tokens) float32 for the sequences `rows`; `losses` (sequences, sequence − 1) of the reference names the easy ones."""
        member = self.fixed[:, rows].clone()
        easy_at, end = self.families["slice"]
        quarter = losses.numel() // 4
        threshold = losses.flatten().kthvalue(max(1, quarter)).values
        easy = losses <= threshold
        member[easy_at] = easy
        member[easy_at + 1 : end] &= ~easy
        return member.flatten(1).float()


TAIL_SHARE = 1 / 40
"""The tail slice: the last 2.5 % of every sequence, where shortened inputs save."""
WINDOW = 64
"""Tokens in the secret contiguous window of every sequence."""


def draw_parts(batch: int, positions: int, cells: int, dice: Dice) -> Parts:
    """Secret parts for one step: each sequence, `cells` random position cells, and the slices easy, tail, window, rest."""
    sequence = torch.eye(batch, dtype=torch.bool)[:, :, None].expand(-1, -1, positions)
    which = dice.below(cells, (batch, positions))
    cell = torch.stack([which == c for c in range(cells)])
    tail = torch.zeros(batch, positions, dtype=torch.bool)
    tail[:, positions - max(1, math.ceil(positions * TAIL_SHARE)) :] = True
    width = min(WINDOW, max(1, positions // 4))
    starts = dice.below(positions - width + 1, (batch,))
    at = torch.arange(positions)
    window = (at >= starts[:, None]) & (at < starts[:, None] + width) & ~tail
    slices = torch.stack([torch.zeros_like(tail), tail, window, ~(tail | window)])
    families = {"sequence": (0, batch), "cell": (batch, batch + cells), "slice": (batch + cells, batch + cells + 4)}
    names = (
        *(f"sequence {b + 1}" for b in range(batch)),
        *(f"position cell {c + 1}" for c in range(cells)),
        "the easiest quarter of the tokens", "the tail of the sequences", "a secret window of the sequences", "the rest of the tokens",
    )  # fmt: skip
    return Parts(families, names, torch.cat([sequence, cell, slices]))


def with_tokens(parts: Parts, count: int, dice: Dice) -> Parts:
    """The same parts, and `count` secret single tokens (all, where there are fewer) as the last family. Their names do not tell which:
    an exam may serve others, and nobody can look up a batch that is secret."""
    rows, batch, positions = parts.fixed.shape
    drawn = in_order(dice.permutation(batch * positions)[:count])
    single = torch.zeros(len(drawn), batch * positions, dtype=torch.bool)
    single[torch.arange(len(drawn)), drawn] = True
    families = parts.families | {"token": (rows, rows + len(drawn))}
    return Parts(families, (*parts.names, *("a secret token",) * len(drawn)), torch.cat([parts.fixed, single.view(-1, batch, positions)]))
