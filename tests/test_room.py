"""How the card's memory is divided, and who is charged when it is full."""

import mmap

import pytest
import torch
from torch import nn

from crusades.bench.referee import memory, room
from crusades.bench.referee.layout import layout_of
from crusades.bench.referee.room import Room, ballast_of
from crusades.errors import ConfigError, DeviceFault

GB = 10**9


def test_exactly_what_is_promised_is_left():
    assert ballast_of(60 * GB, 48 * GB) == 12 * GB


def test_a_promise_of_nothing_leaves_everything():
    assert ballast_of(60 * GB, 0) == 0


def test_a_card_that_cannot_keep_the_promise_is_a_clear_error_with_both_numbers():
    with pytest.raises(ConfigError, match=r"promised 48\.0 GB .* leaves 30\.0 GB"):
        ballast_of(30 * GB, 48 * GB)


def test_what_the_kernel_says_is_available_is_read(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:       64 kB\nMemFree:  1 kB\nMemAvailable:    3 kB\n")
    assert memory.available_memory(tmp_path / "meminfo") == 3072
    assert 0 < memory.available_memory() < 1 << 50


def test_a_kernel_that_does_not_say_is_a_clear_error(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:       64 kB\n")
    with pytest.raises(DeviceFault, match="does not say how much memory is available"):
        memory.available_memory(tmp_path / "meminfo")


def test_a_copy_of_the_weights_that_would_take_the_hosts_last_memory_is_refused_with_both_numbers():
    memory._refuse_the_last(6 * GB, 6 * GB + memory.LEFT_OVER, "a copy of the weights")
    with pytest.raises(DeviceFault, match=r"6\.0 GB of host memory for a copy of the weights .*: 10\.0 GB are available, of which 4\.3 are left .* fewer slots"):
        memory._refuse_the_last(6 * GB, 10 * GB, "a copy of the weights")


TINY = layout_of(nn.Linear(300, 300), torch.float32)
_, TAKEN = memory._segments(TINY.nbytes, mmap.PAGESIZE)


def test_weights_that_the_host_has_no_room_for_are_refused_before_they_are_taken(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * TAKEN - 1)
    monkeypatch.setattr(memory.os, "memfd_create", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(ConfigError, match=r"take 0\.0 GB .* as much again, .* are available: take a smaller profile"):
        memory.allocate(TINY, "cpu")


def test_a_small_model_needs_no_more_than_twice_its_own_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * TAKEN)
    memory.allocate(TINY, "cpu").close()


def test_the_refusal_of_weights_has_both_numbers():
    memory._refuse_what_is_not_there(18 * GB, 36 * GB)
    with pytest.raises(ConfigError, match=r"take 18\.0 GB .* 36\.0 GB; 19\.5 GB are available"):
        memory._refuse_what_is_not_there(18 * GB, 195 * GB // 10)


class Runtime:
    """Of a card that has no memory left."""

    def __init__(self, status):
        self.status, self.forgotten = status, False
        self.cudaGetErrorString = lambda status: b"no"

    def cudaMalloc(self, *_):
        return self.status

    def cudaGetLastError(self):
        self.forgotten = True


def test_a_full_card_says_what_is_free_what_is_needed_and_what_to_do(monkeypatch):
    runtime = Runtime(memory.CUDA_FULL)
    monkeypatch.setattr(memory, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * GB, 24 * GB))
    with pytest.raises(DeviceFault, match=r"take 0\.0 GB, and of the card's 24\.0 GB 3\.0 are free: stop .*nvidia-smi.*larger card or a smaller profile"):
        memory.CudaMemory(TINY)
    assert runtime.forgotten


def test_another_failure_of_the_card_is_no_want_of_memory(monkeypatch):
    monkeypatch.setattr(memory, "cudart", lambda: Runtime(999))
    with pytest.raises(DeviceFault, match=r"allocating .*: CUDA error 999 \(no\)"):
        memory.CudaMemory(TINY)


FULL, EMPTY = room.STARVED // 2, 40 * GB


@pytest.mark.parametrize(
    ("error", "free", "starved"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), FULL, True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), FULL, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), FULL, True),
        (torch.OutOfMemoryError("CUDA out of memory."), EMPTY, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), FULL, False),
    ],
)
def test_the_referees_want_of_memory_is_the_contestants_only_where_the_card_is_full(monkeypatch, error, free, starved):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80 * GB))
    assert Room("cuda", 0).starved(error) is starved


def test_a_cpu_is_never_starved():
    assert not Room("cpu", 0).starved(torch.OutOfMemoryError("no"))
