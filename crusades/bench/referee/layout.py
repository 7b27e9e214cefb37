"""How the parameters of a model lie in one flat segment, and which coordinates of it are looked at. Pure but for torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from crusades.bench.protocol import ParameterSpec
from crusades.bench.referee.dice import Dice, in_order

ALIGN_BYTES = 256
"""Every parameter starts on a 256-byte boundary, as cudaMalloc'd tensors do: kernels may vectorise as usual."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")


@dataclass(frozen=True)
class Layout:
    """The flat segment of one model: `specs` in named_parameters order, `elements` of `dtype` in all."""

    specs: tuple[ParameterSpec, ...]
    elements: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one segment."""
        return self.elements * self.dtype.itemsize

    @property
    def parameters(self) -> int:
        """N: how many weights there are, tied ones once."""
        return sum(math.prod(s.shape) for s in self.specs)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """name → view of `flat` (elements,) in the parameter's shape."""
        return {s.name: flat[s.offset : s.offset + math.prod(s.shape)].view(s.shape) for s in self.specs}


def layout_of(model: nn.Module, dtype: torch.dtype) -> Layout:
    """Lay out `model`'s parameters one after the other. Works on the meta device."""
    align, offset, specs = ALIGN_BYTES // dtype.itemsize, 0, []
    for name, parameter in model.named_parameters():
        specs.append(ParameterSpec(name=name, shape=tuple(parameter.shape), offset=offset))
        offset += -(-parameter.numel() // align) * align
    return Layout(tuple(specs), offset, dtype)


def layer_of(name: str, layers: int) -> int:
    """Which block a parameter belongs to: 0 … layers − 1; −1 for what comes before the blocks, `layers` for what comes after."""
    found = _LAYER.search(name)
    if found:
        return int(found.group(1))
    return -1 if re.search(r"embed|wte|wpe", name) else layers


def kind_of(name: str) -> str:
    """The role of a parameter: "bias", "norm", or the name of its matrix ("q_proj", "embed_tokens")."""
    if name.endswith("bias"):
        return "bias"
    if re.search(r"norm|ln_", name.rsplit(".", 2)[-2] if "." in name else name):
        return "norm"
    return name.split(".")[-2] if "." in name else name


@dataclass(frozen=True)
class Groups:
    """Every sampled coordinate's layer, kind and tensor, as small integers with names. Tensors are int64 (n,)."""

    layer: torch.Tensor
    layer_names: tuple[str, ...]
    kind: torch.Tensor
    kind_names: tuple[str, ...]
    tensor: torch.Tensor
    tensor_names: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A secret sample of coordinates. `index` is int64 (n,) into the flat segment, sorted by tensor; `bounds` are each tensor's slice."""

    index: torch.Tensor
    bounds: tuple[tuple[int, int], ...]
    groups: Groups

    def __len__(self) -> int:
        return self.index.numel()


def draw_sample(layout: Layout, coordinates: int, min_per_tensor: int, dice: Dice) -> Sample:
    """About `coordinates` secret coordinates: uniform over the weights, at least `min_per_tensor` of each tensor.

    A tensor of which half or more would be taken is sampled without replacement; elsewhere repeats are too rare to matter.
    """
    total, parts, bounds, at = layout.parameters, [], [], 0
    for spec in layout.specs:
        size = math.prod(spec.shape)
        count = min(size, max(min_per_tensor, round(coordinates * size / total)))
        local = dice.permutation(size)[:count] if 2 * count >= size else dice.below(size, (count,))
        parts.append(in_order(local) + spec.offset)
        bounds.append((at, at + count))
        at += count
    return Sample(torch.cat(parts), tuple(bounds), _groups(layout, bounds))


def vocabulary_rows(layout: Layout, sample: Sample, vocabulary: int) -> torch.Tensor:
    """int64 (n,): the token id whose row of the embedding or of the head a coordinate is in; −1 where it is in neither."""
    found = torch.full((len(sample),), -1)
    for spec, (a, b) in zip(layout.specs, sample.bounds, strict=True):
        if of_vocabulary(spec, vocabulary):
            found[a:b] = (sample.index[a:b] - spec.offset) // spec.shape[1]
    return found


def of_vocabulary(spec: ParameterSpec, vocabulary: int) -> bool:
    """Whether a parameter has a row for every token."""
    return len(spec.shape) == 2 and spec.shape[0] == vocabulary


def _groups(layout: Layout, bounds: list[tuple[int, int]]) -> Groups:
    names = [s.name for s in layout.specs]
    layers = 1 + max((int(m.group(1)) for n in names if (m := _LAYER.search(n))), default=-1)
    kinds = sorted({kind_of(n) for n in names})
    lengths = torch.tensor([b - a for a, b in bounds])
    layer_ids = torch.tensor([layer_of(n, layers) + 1 for n in names])
    kind_ids = torch.tensor([kinds.index(kind_of(n)) for n in names])
    return Groups(
        layer=torch.repeat_interleave(layer_ids, lengths),
        layer_names=("embedding", *(f"layer {i}" for i in range(layers)), "head"),
        kind=torch.repeat_interleave(kind_ids, lengths),
        kind_names=tuple(kinds),
        tensor=torch.repeat_interleave(torch.arange(len(names)), lengths),
        tensor_names=tuple(names),
    )
