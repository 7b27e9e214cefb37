"""How the card's memory is divided, and who is charged when it is full."""

import pytest
import torch

from crusades.bench.referee import room
from crusades.bench.referee.room import Room, ballast_of
from crusades.errors import ConfigError

GB = 10**9


def test_exactly_what_is_promised_is_left():
    assert ballast_of(60 * GB, 48 * GB) == 12 * GB


def test_a_promise_of_nothing_leaves_everything():
    assert ballast_of(60 * GB, 0) == 0


def test_a_card_that_cannot_keep_the_promise_is_a_clear_error_with_both_numbers():
    with pytest.raises(ConfigError, match=r"promised 48\.0 GB .* leaves 30\.0 GB"):
        ballast_of(30 * GB, 48 * GB)


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
