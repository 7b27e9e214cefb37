"""The two populations of `crusades calibrate`: honest arithmetic in many forms, and shortcuts of many kinds and sizes.

`work` is the share of a run's arithmetic that a shortcut leaves out, by counting products (forward : input gradients :
weight gradients = 1 : 1 : 1), not by timing. Every dimension has a random and a least visible choice where the two
differ: lowest-loss tokens, smallest-gradient rows, layers and heads. "late" shortcuts act in the last steps only, where
Adam's update forgives most (the known weak spot of comparing final weights).
"""

from __future__ import annotations

from collections.abc import Iterator

from crusades.bench.referee.recipe import SIZES, Recipe, Variant
from crusades.bench.referee.variants_attacks import attacks
from crusades.bench.referee.variants_tokens import token_shortcuts
from crusades.bench.referee.variants_weights import weight_shortcuts


def everything(steps: int, layers: int, batch: int, *, cuda: bool, low_precision: bool, heads: int = 0, matrices: int = 0, sizes: tuple[float, ...] = SIZES) -> list[Variant]:
    """All variants for a workload. `low_precision`: the weights are bf16, so bf16 products are honest. `heads` of a layer and
    `matrices` of the blocks: 0 leaves those families out. `sizes`: which of `SIZES` the graded families come in."""
    found = [*_honest(batch, cuda=cuda), *token_shortcuts(steps, batch, sizes), *weight_shortcuts(steps, layers, heads, matrices, sizes)]
    found += attacks(steps, batch, low_precision=low_precision)
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
        # With a mask: heads that share keys have no kernel there, and transformers repeats the keys only beside one.
        yield honest("memory-efficient attention", attention="EFFICIENT_ATTENTION", window=lambda step: 1 << 30, micro=2)
        yield honest("cudnn attention", attention="CUDNN_ATTENTION")
    yield honest("foreach optimizer", foreach=True)
    yield honest("single-tensor optimizer", foreach=False)
    yield honest("full window as a mask", window=lambda step: 1 << 30, micro=2)
    yield honest("compile", compile="default")
    yield honest("compile, micro-batch 2", compile="default", micro=2)
    yield honest("compile, reduce-overhead, micro-batch 2", compile="reduce-overhead", micro=2)  # whole batches as CUDA graphs, and their gradients, take 80 GB
