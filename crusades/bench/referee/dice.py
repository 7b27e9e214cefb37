"""What is drawn in secret: from all 128 bits of a seed."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch


def in_order(values: torch.Tensor) -> torch.Tensor:
    """`values` (n,), on the host, sorted. NumPy takes a fifth of the time that torch does, which sorts their places along."""
    return torch.from_numpy(np.sort(values.numpy()))


class Dice:
    """Random numbers that follow from a seed of 16 bytes or more, and from nothing that is shown of it.

    torch's CPU generator keeps the lower 32 bits of a seed, which a contestant could go through: whoever knows a few of the
    coordinates that are read would know them all. NumPy's Philox takes 128. The batches, which a contestant sees, are drawn
    from the seed itself (`data.py`); its digest is another key.
    """

    def __init__(self, seed: bytes) -> None:
        key = hashlib.sha256(b"secret places" + seed).digest()[:16]
        self._generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))

    def permutation(self, count: int) -> torch.Tensor:
        """0 … count − 1 in random order: int64 (count,)."""
        return torch.from_numpy(self._generator.permutation(count))

    def below(self, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Integers from 0 to high − 1, each as likely: int64 of `shape`."""
        return torch.from_numpy(self._generator.integers(0, high, math.prod(shape), dtype=np.int64)).view(shape)
