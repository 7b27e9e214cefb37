"""The memory that referee and contestant share: weights and AdamW's two moments, in one allocation of the referee's.

CPU: a memfd, sealed against SHRINK, GROW and SEAL before anyone else sees it (an unsealed one lets a contestant's
ftruncate kill the reader with SIGBUS). CUDA: one dedicated cudaMalloc, shared by a cudaIpcMemHandle; never a block of
torch's caching allocator, whose handle would export its neighbours (CUDA C++ Programming Guide, interprocess
communication). The contestant can write anything there at any time: that is what is audited.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from crusades.bench.protocol import Attach
from crusades.bench.referee.layout import Layout
from crusades.errors import ConfigError, DeviceFault

CUDA_GRANULE = 2 << 20
"""cudaMalloc hands out 2 MiB pages; smaller requests may share one with other allocations."""
CUDA_FULL = 2
"""cudaErrorMemoryAllocation."""
LEFT_OVER = 4 << 30
"""Bytes of host memory that pinned buffers leave for the system, the daemon and a submission at rest."""


class Memory(Protocol):
    """Three flat segments of `Layout.elements` each."""

    weights: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    fd: int | None
    """What is passed along by SCM_RIGHTS; None when the handle in the frame says it all."""

    def attach_frame(self) -> Attach:
        """What the contestant is told."""
        ...

    def clear(self) -> None:
        """Zero all of it, the room between the segments too: nobody finds there what another has left. On a card it is asked for
        when this returns, and done before whatever else is asked of it in this stream."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


def _segments(nbytes: int, align: int) -> tuple[tuple[int, int, int], int]:
    stride = -(-nbytes // align) * align
    return (0, stride, 2 * stride), 3 * stride


class HostMemory:
    """A sealed memfd. Raises ConfigError when the machine has not enough memory: the kernel would promise it all the same, and kill
    somebody when it is touched."""

    def __init__(self, layout: Layout) -> None:
        self.offsets, self.nbytes = _segments(layout.nbytes, mmap.PAGESIZE)
        _refuse_what_is_not_there(self.nbytes, available_memory())
        self.fd: int | None = os.memfd_create("crusades-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.nbytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._map = mmap.mmap(self.fd, self.nbytes, mmap.MAP_SHARED)
        flat = torch.frombuffer(self._map, dtype=torch.uint8)
        self._whole = flat
        self.weights, self.exp_avg, self.exp_avg_sq = (flat[o : o + layout.nbytes].view(layout.dtype) for o in self.offsets)

    def clear(self) -> None:
        self._whole.zero_()

    def attach_frame(self) -> Attach:
        return Attach(kind="memfd", nbytes=self.nbytes, segments=self.offsets)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class _IpcHandle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * 64),)


def cudart() -> Any:
    """The CUDA runtime that torch has loaded, by ctypes. Raises DeviceFault when it cannot be found."""
    torch.cuda.init()
    torch.empty(1, device="cuda")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split()[-1] for line in maps if "libcudart" in line}
    if not paths:
        raise DeviceFault("torch has not loaded libcudart; is this a CUDA build?")
    return ctypes.CDLL(min(paths))


def check(runtime: Any, status: int, what: str) -> None:
    """Turn a cudaError_t into a DeviceFault."""
    if status != 0:
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        raise DeviceFault(f"{what}: CUDA error {status} ({runtime.cudaGetErrorString(status).decode()})")


class CudaMemory:
    """One dedicated cudaMalloc with an IPC handle. Raises DeviceFault when the card has not enough memory."""

    fd: int | None = None

    def __init__(self, layout: Layout) -> None:
        self.offsets, self.nbytes = _segments(layout.nbytes, CUDA_GRANULE)
        self._runtime = cudart()
        pointer, handle = ctypes.c_void_p(), _IpcHandle()
        status = self._runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(self.nbytes))
        if status == CUDA_FULL:
            self._runtime.cudaGetLastError()  # else it is the next call's error too
            raise _card_is_full(self.nbytes, *torch.cuda.mem_get_info())
        check(self._runtime, status, f"allocating {self.nbytes / 1e9:.1f} GB of weights and moments")
        check(self._runtime, self._runtime.cudaIpcGetMemHandle(ctypes.byref(handle), pointer), "exporting the memory")
        self._pointer, self._handle = pointer, bytes(handle)
        flat = torch.as_tensor(_CudaArray(int(pointer.value or 0), self.nbytes), device="cuda")
        self._whole = flat
        self.weights, self.exp_avg, self.exp_avg_sq = (flat[o : o + layout.nbytes].view(layout.dtype) for o in self.offsets)

    def clear(self) -> None:
        self._whole.zero_()

    def attach_frame(self) -> Attach:
        return Attach(kind="cuda", nbytes=self.nbytes, segments=self.offsets, handle=self._handle.hex())

    def close(self) -> None:
        del self.weights, self.exp_avg, self.exp_avg_sq, self._whole
        check(self._runtime, self._runtime.cudaFree(self._pointer), "freeing the shared memory")


class _CudaArray:
    """Foreign device memory as torch.as_tensor reads it (numba's CUDA array interface, version 3)."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (pointer, False), "version": 3}


class _PinnedPages(mmap.mmap):
    """Anonymous memory that the driver knows: it must forget it before the kernel does."""

    pinned: tuple[Any, ctypes.c_void_p] | None = None

    def pin(self, flat: torch.Tensor) -> None:
        """Raises DeviceFault."""
        runtime, address = cudart(), ctypes.c_void_p(flat.data_ptr())
        check(runtime, runtime.cudaHostRegister(address, ctypes.c_size_t(len(flat)), ctypes.c_uint(0)), f"pinning {len(flat) / 1e9:.1f} GB of host memory")
        self.pinned = runtime, address

    def __del__(self) -> None:
        if self.pinned:
            runtime, address = self.pinned
            runtime.cudaHostUnregister(address)  # at the end of the process the driver may be gone, and all with it


def host_buffer(elements: int, dtype: torch.dtype, device: str, what: str = "a copy of the weights") -> torch.Tensor:
    """Host memory for `what`; pinned where `device` is a card.

    torch's own pinned memory comes in powers of two and in pages of 4 KiB: 6.2 GB take 8.6 GB, and seven seconds for every
    buffer. Raises DeviceFault when the machine has no room for it, or the driver will not pin it.
    """
    if device != "cuda":
        return torch.empty(elements, dtype=dtype)
    nbytes = elements * dtype.itemsize
    _refuse_the_last(nbytes, available_memory(), what)
    try:
        pages = _PinnedPages(-1, -(-nbytes // CUDA_GRANULE) * CUDA_GRANULE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise DeviceFault(f"{nbytes / 1e9:.1f} GB of host memory for {what} cannot be had: {error.strerror}") from error
    for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK):  # few large pages; none copied when a process forks
        with contextlib.suppress(OSError):  # a kernel that knows no such advice: slower, nothing else
            pages.madvise(advice)
    flat = torch.frombuffer(pages, dtype=torch.uint8).zero_()  # taken now, by all cores, and not page by page when it is pinned
    pages.pin(flat)
    return flat[:nbytes].view(dtype)


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of host memory that can be had without swapping, as the kernel estimates it."""
    found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    if found is None:
        raise DeviceFault(f"{meminfo} does not say how much memory is available: is /proc mounted, and the kernel newer than 3.14?")
    return 1024 * int(found[1])


def _refuse_the_last(nbytes: int, available: int, what: str) -> None:
    """Pinned memory is taken at once and never given back: better no slot than a kernel that chooses whom to kill. Raises DeviceFault."""
    if available < nbytes + LEFT_OVER:
        raise DeviceFault(
            f"{nbytes / 1e9:.1f} GB of host memory for {what} cannot be had: {available / 1e9:.1f} GB are available, of which "
            f"{LEFT_OVER / 1e9:.1f} are left for everything else. Every slot pins a copy of the weights for each set of exams and for each of audit.anchored_runs, "
            "and what it keeps of each exam: give the machine more memory, stop what else uses it, or run fewer slots here")


def _refuse_what_is_not_there(nbytes: int, available: int) -> None:
    """Beside the three segments every profile takes as much again: the first weights, an exam's, the reference's gradients. Counted
    so, and not as a sum that is left over, a small profile fits a small machine. Raises ConfigError."""
    if available < 2 * nbytes:
        raise ConfigError(
            f"weights and moments of this profile take {nbytes / 1e9:.1f} GB of host memory and what works with them as much again, "
            f"{2 * nbytes / 1e9:.1f} GB; {available / 1e9:.1f} GB are available: take a smaller profile, stop what else uses the memory, or run "
            "where there is more. A profile that is made for a card belongs on one")


def _card_is_full(nbytes: int, free: int, total: int) -> DeviceFault:
    return DeviceFault(
        f"weights and moments of this profile take {nbytes / 1e9:.1f} GB, and of the card's {total / 1e9:.1f} GB {free / 1e9:.1f} are free: stop what "
        "else uses the card (`nvidia-smi` names it), take a larger card or a smaller profile. What guaranteed_bytes promises a submission comes on top")


class Beside:
    """Copies beside whatever else `device` does; on a CPU they are over when they return."""

    def __init__(self, device: str) -> None:
        self._stream = torch.cuda.Stream() if device == "cuda" else None

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """What is asked of the device inside begins when all that was asked of it before is done."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What is asked of the device from now on finds it done."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def finish(self) -> None:
        """Wait for it."""
        if self._stream is not None:
            self._stream.synchronize()


def allocate(layout: Layout, device: str) -> Memory:
    """The shared memory for a model on `device` ("cpu" or "cuda")."""
    return CudaMemory(layout) if device == "cuda" else HostMemory(layout)
