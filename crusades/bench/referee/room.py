"""The card's memory, divided: what the referee keeps so that no contestant can take it, and what a contestant is promised.

On a CPU there is nothing to divide: every method of `Room` does nothing.
"""

from __future__ import annotations

import gc
import time

import torch

from crusades.errors import ConfigError, DeviceFault

FREE_MARGIN = 1 << 30
"""Bytes of device memory left alone when free memory is overwritten."""
FILL = 0xA5
"""What free memory is overwritten with."""
WORKSPACE = 2 << 30
"""Bytes the referee keeps in its allocator during an evaluation, so that a contestant that fills the card fails itself."""
SMALL_BLOCKS, SMALL_BYTES = 64, 512 << 10
"""Of tensors up to 1 MiB, which torch's allocator takes from blocks of their own (c10/cuda/CUDACachingAllocator.cpp)."""
OWN_GROWTH = 1 << 30
"""Bytes by which the referee's own context may grow during an evaluation: kernels are loaded when first used."""
RELEASE_TIMEOUT = 30.0
"""Seconds a dead contestant's device memory may take to come back."""
STARVED = 512 << 20
"""Bytes: with less than this free, a card is full."""
_WANT = ("out of memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUSOLVER_STATUS_NOT_INITIALIZED")
"""How torch, cuBLAS and cuSOLVER say that they could not allocate."""


def ballast_of(free: int, promised: int) -> int:
    """Bytes to hold so that exactly `promised` of `free` are left; none where nothing is promised. Raises ConfigError when the
    promise cannot be kept."""
    if free < promised:
        raise ConfigError(f"a submission is promised {promised / 1e9:.1f} GB beside weights and moments (guaranteed_bytes), but the referee leaves {free / 1e9:.1f} GB of this card: "
                          "take a larger card, a smaller promise, or anchored_runs = 0")  # fmt: skip
    return free - promised if promised else 0


class Room:
    """`settle` before a contestant, `reclaim` before a reference pass, `wait` after a contestant's death."""

    def __init__(self, device: str, promised: int) -> None:
        self._cuda, self._promised = device == "cuda", promised
        self._ballast: torch.Tensor | None = None
        self._baseline = 0

    def reclaim(self) -> None:
        """Give up what was held, so that a reference pass may use the whole card."""
        self._ballast = None
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def settle(self) -> None:
        """Overwrite the card's free memory, keep the workspace, and leave what is promised. Raises ConfigError."""
        gc.collect()
        self.reclaim()
        if not self._cuda:
            return
        self._baseline = torch.cuda.mem_get_info()[0]
        held = [torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")]
        held += [torch.empty(SMALL_BYTES, dtype=torch.uint8, device="cuda") for _ in range(SMALL_BLOCKS)]
        if ballast := ballast_of(torch.cuda.mem_get_info()[0], self._promised):
            self._ballast = torch.empty(ballast, dtype=torch.uint8, device="cuda")
        for own in (*held, self._ballast):
            if own is not None:
                own.fill_(FILL)
        self._overwrite()  # what others will find; last, because the driver takes its time with memory that was freed
        del held  # stays in our allocator's cache: nobody else can have it

    @staticmethod
    def _overwrite() -> None:
        free = torch.cuda.mem_get_info()[0] - FREE_MARGIN
        if free > 0:
            waste = torch.empty(free, dtype=torch.uint8, device="cuda")
            waste.fill_(FILL)
            torch.cuda.synchronize()
            del waste
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """The card gives a dead process's memory back a moment after its death. Raises DeviceFault when it does not."""
        self.reclaim()
        deadline = time.monotonic() + RELEASE_TIMEOUT
        while self._cuda and torch.cuda.mem_get_info()[0] < self._baseline - OWN_GROWTH:
            if time.monotonic() > deadline:
                missing = self._baseline - torch.cuda.mem_get_info()[0]
                raise DeviceFault(f"{missing / 1e9:.1f} GB of the card are still taken {RELEASE_TIMEOUT:.0f} s after the contestant was killed")
            time.sleep(0.02)

    def starved(self, error: RuntimeError) -> bool:
        """Whether `error` is ours only because a living contestant has filled the card: what we need lies in our own
        reserve, so whoever took the rest took more than was promised."""
        wanting = isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _WANT)
        return wanting and self._cuda and torch.cuda.mem_get_info()[0] < STARVED
