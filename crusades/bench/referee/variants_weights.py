"""Shortcuts that leave out part of the model: layers, heads, tensors, rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from crusades.bench.referee.lab import Lab
from crusades.bench.referee.layout import kind_of
from crusades.bench.referee.recipe import Recipe, Variant

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


def weight_shortcuts(steps: int, layers: int, heads: int, matrices: int, sizes: tuple[float, ...]) -> Iterator[Variant]:
    """Everything in this file. Late ones name their first step, so that what comes before may be shared."""
    yield from _layers(steps, layers)
    yield from _many_layers(steps, layers, sizes)
    yield from _tensors(steps, layers)
    if matrices:
        yield from _many_matrices(steps, matrices, sizes)
    if heads:
        yield from _heads(steps, layers, heads, sizes)
    yield from _rows(steps, sizes)
    yield from _embedding_rows(steps)


def _layers(steps: int, layers: int) -> Iterator[Variant]:
    every, last, share = tuple(range(steps)), (steps - 1,), 1 / layers
    for layer in sorted({0, layers // 2, layers - 1}):
        chosen = lambda lab, name, layer=layer: lab.layer(name) == layer  # noqa: E731
        yield Variant(f"layer {layer} frozen", "shortcut", Recipe(edit_gradients=_zero_where(chosen, every)), "layers", share / 3, "random")
        yield Variant(f"layer {layer} frozen, last step", "shortcut", Recipe(edit_gradients=_zero_where(chosen, last), first=steps - 1), "layers, late", share / steps / 3, "random")
        yield Variant(f"layer {layer} left out, last step", "shortcut", Recipe(without_layer=functools.partial(_only_at, steps - 1, layer), first=steps - 1), "layers, late", share / steps, "random")
    yield Variant("layer with the smallest gradient frozen", "shortcut", Recipe(edit_gradients=_freeze_smallest(every)), "layers", share / 3, "least visible")
    yield Variant("layer with the smallest gradient frozen, last step", "shortcut", Recipe(edit_gradients=_freeze_smallest(last), first=steps - 1), "layers, late", share / steps / 3, "least visible")
    lower = lambda lab, name: -1 < lab.layer(name) < max(1, layers // 8)  # noqa: E731
    yield Variant("no weight gradients in the lowest eighth of the layers", "shortcut", Recipe(edit_gradients=_zero_where(lower, every)), "layers", 1 / 24, "random")


def _counts(total: int, sizes: tuple[float, ...]) -> list[int]:
    """How many of `total` the sizes mean, each number once, at least one."""
    return sorted({max(1, round(size * total)) for size in sizes})


def _squares(lab: Lab, group: Callable[[str], int]) -> dict[int, float]:
    """Squared norm of the gradient of every group of parameters right now; a negative group is none."""
    found: dict[int, float] = {}
    for name, parameter in lab.named():
        if (at := group(name)) >= 0 and parameter.grad is not None:
            found[at] = found.get(at, 0.0) + float(parameter.grad.float().square().sum())
    return found


def _chosen(keys: list[int], count: int, squares: dict[int, float] | None) -> set[int]:
    """`count` of `keys`: those with the smallest gradient, or the same random ones in every step."""
    if squares is not None:
        return set(sorted(keys, key=lambda k: squares.get(k, 0.0))[:count])
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(count)).tolist()
    return {keys[i] for i in order[:count]}


def _freeze_layers(count: int, *, smallest: bool) -> Callable[[Lab, int], None]:
    def edit(lab: Lab, step: int) -> None:
        def group(name: str) -> int:
            return lab.layer(name) if lab.layer(name) < lab.reference.layers else -1

        out = _chosen(list(range(lab.reference.layers)), count, _squares(lab, group) if smallest else None)
        _zero_where(lambda _, name: group(name) in out, (step,))(lab, step)

    return edit


def _many_layers(steps: int, layers: int, sizes: tuple[float, ...]) -> Iterator[Variant]:
    for count in _counts(layers, sizes):
        for smallest in (False, True) if count > 1 else ():  # single ones are above
            name = f"{count} {'smallest ' if smallest else ''}of {layers} layers frozen"
            yield Variant(name, "shortcut", Recipe(edit_gradients=_freeze_layers(count, smallest=smallest)), "layers", count / layers / 3, "least visible" if smallest else "random")


def block_matrices(lab: Lab) -> list[str]:
    """Names of the two-dimensional parameters of the blocks."""
    return [n for n, q in lab.reference.model.named_parameters() if q.dim() == 2 and 0 <= lab.layer(n) < lab.reference.layers]


def _freeze_matrices(count: int, *, smallest: bool) -> Callable[[Lab, int], None]:
    def edit(lab: Lab, step: int) -> None:
        place = {name: at for at, name in enumerate(block_matrices(lab))}
        out = _chosen(list(place.values()), count, _squares(lab, lambda name: place.get(name, -1)) if smallest else None)
        _zero_where(lambda _, name: place.get(name, -1) in out, (step,))(lab, step)

    return edit


def _many_matrices(steps: int, matrices: int, sizes: tuple[float, ...]) -> Iterator[Variant]:
    for count in _counts(matrices, sizes):
        for smallest in (False, True):
            name = f"{count} {'smallest ' if smallest else ''}of {matrices} matrices frozen"
            work = count / matrices / 3  # on average: the smallest are usually the cheap ones
            yield Variant(name, "shortcut", Recipe(edit_gradients=_freeze_matrices(count, smallest=smallest)), "tensors", work, "least visible" if smallest else "random")


def _freeze_heads(count: int, heads: int, *, smallest: bool) -> Callable[[Lab, int], None]:
    """Rows of q_proj and columns of o_proj of whole attention heads, anywhere in the model."""

    def edit(lab: Lab, step: int) -> None:
        slices = [s for name, q in lab.named() if q.grad is not None for s in _head_slices(name, q.grad, lab.layer(name), heads)]
        squares: dict[int, float] = {}
        for key, part in slices if smallest else ():
            squares[key] = squares.get(key, 0.0) + float(part.float().square().sum())
        out = _chosen(sorted({key for key, _ in slices}), count, squares if smallest else None)
        for key, part in slices:
            if key in out:
                part.zero_()

    return edit


def _head_slices(name: str, gradient: torch.Tensor, layer: int, heads: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(number of the head, its part of `gradient`), for the matrices that are split by query heads."""
    dim = 0 if name.endswith("q_proj.weight") else 1 if name.endswith("o_proj.weight") else None
    if dim is not None:
        for head, part in enumerate(gradient.chunk(heads, dim)):
            yield layer * heads + head, part


def _heads(steps: int, layers: int, heads: int, sizes: tuple[float, ...]) -> Iterator[Variant]:
    total = layers * heads
    for count in _counts(total, sizes):
        for smallest in (False, True):
            name = f"{count} {'smallest ' if smallest else ''}of {total} heads frozen"
            work = count / total * 0.1 / 3  # q_proj and o_proj are a tenth of a layer's products
            yield Variant(name, "shortcut", Recipe(edit_gradients=_freeze_heads(count, heads, smallest=smallest)), "heads", work, "least visible" if smallest else "random")


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
    yield Variant("no query gradients, last two steps", "shortcut", Recipe(edit_gradients=_zero_where(queries, late), first=late[0]), "tensors", 0.01, "random")


# ------------------------------------------------------------------------------------------------ coordinates


def rows_of(share: float, steps: tuple[int, ...], *, smallest: bool, fill: str) -> Callable[[Lab, int], None]:
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


def _rows(steps: int, sizes: tuple[float, ...]) -> Iterator[Variant]:
    every = tuple(range(steps))
    for size in sizes:
        yield Variant(f"{size:.1%} of the rows zeroed", "shortcut", Recipe(edit_gradients=rows_of(size, every, smallest=False, fill="zero")), "coordinates", size / 3, "random")
        yield Variant(f"{size:.1%} smallest rows zeroed", "shortcut", Recipe(edit_gradients=rows_of(size, every, smallest=True, fill="zero")), "coordinates", size / 3, "least visible")
        yield Variant(f"{size:.1%} of the rows stale", "shortcut", Recipe(edit_gradients=rows_of(size, every, smallest=False, fill="stale")), "coordinates", size / 3, "random", keep_previous=True)


def _drop_embedding_rows(share: float, steps: tuple[int, ...]) -> Callable[[Lab, int], None]:
    """Random rows of the token embedding get no gradient (attack A13 of the red team)."""

    def edit(lab: Lab, step: int) -> None:
        for name, parameter in lab.named() if step in steps else ():
            if kind_of(name) in ("embed_tokens", "wte") and parameter.grad is not None:
                parameter.grad[lab.random(len(parameter.grad)) < share] = 0

    return edit


def _embedding_rows(steps: int) -> Iterator[Variant]:
    every, late = tuple(range(steps)), tuple(range(max(0, steps - 2), steps))
    for share in (0.05, 0.5):
        yield Variant(f"{share:.1%} of the embedding rows zeroed", "shortcut", Recipe(edit_gradients=_drop_embedding_rows(share, every)), "embedding rows", 0.03 * share, "random")
        recipe = Recipe(edit_gradients=_drop_embedding_rows(share, late), first=late[0])
        yield Variant(f"{share:.1%} of the embedding rows zeroed, last two steps", "shortcut", recipe, "embedding rows", 0.03 * share * len(late) / steps, "random")
