"""How the card's memory is divided, and who is charged when it is full."""

import pytest
import torch

from crusades.bench.referee import memory, room
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
    memory._refuse_the_last(6 * GB, 6 * GB + memory.LEFT_OVER)
    with pytest.raises(DeviceFault, match=r"6\.0 GB of host memory .*: 10\.0 GB are available, of which 4\.3 are left .* fewer slots"):
        memory._refuse_the_last(6 * GB, 10 * GB)


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
