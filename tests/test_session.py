"""The referee's side of a contestant's channel: what a claim becomes in a reason."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crusades import hparams
from crusades.bench import protocol as p
from crusades.bench.referee.session import Charged, Session
from crusades.bench.referee.wire import Wire
from crusades.records import Stage

INSIDE = Path(p.__file__).parent / "inside"


@pytest.fixture
def channel():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session = Session(Wire(ours, header_cap=p.CONTESTANT_HEADER_CAP, payload_cap=p.CONTESTANT_PAYLOAD_CAP), None, hparams.load().profile("tiny"))
        session.hostile = True
        yield session, theirs


def reason_of(channel, claim):
    session, theirs = channel
    theirs.sendall(p.encode(claim))
    with pytest.raises(Charged) as caught:
        session._expect(p.Loaded, Stage.RUN, 5.0)
    return caught.value.reason


def test_out_of_memory_says_the_peak_that_was_reached(channel):
    reason = reason_of(channel, p.Failed(stage="run", kind="memory", message="CUDA out of memory.", line=7, peak_memory=3 << 30))
    assert (reason.code, reason.measured) == (1305, "3.00 GiB")
    assert reason.message == "line 7: out of memory after a peak of 3.00 GiB (as claimed): CUDA out of memory."


def test_another_failure_has_no_peak(channel):
    reason = reason_of(channel, p.Failed(stage="run", kind="exception", message="ValueError: x", peak_memory=3 << 30))
    assert (reason.code, reason.measured, reason.message) == (1302, None, "ValueError: x")


FAILURE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import harness, torch
try:
    exec(sys.argv[2])
except BaseException as error:
    print(json.dumps(harness.failure_of(error, "run", "train.py").fields))
"""


def told_of(source):
    """What the harness would say of a submission that does this."""
    return json.loads(subprocess.run([sys.executable, "-I", "-c", FAILURE, str(INSIDE), source], check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise MemoryError('no')", "MemoryError: no"),
        ("bytearray(1 << 60)", "MemoryError"),
        ("torch.empty(1 << 45)", "DefaultCPUAllocator: can't allocate memory"),
        ("torch.ones(4, 1).expand(4, 1 << 43).contiguous()", "DefaultCPUAllocator: can't allocate memory"),
        ("raise torch.OutOfMemoryError('CUDA out of memory.')", "CUDA out of memory."),
    ],
)
def test_the_harness_tells_its_peak(channel, source, words):
    told = told_of(source)
    assert told["kind"] == "memory"
    assert words in told["message"]
    assert 50 << 20 < told["peak_memory"] < 50 << 30
    reason = reason_of(channel, p.Failed(**told))
    assert reason.code == 1305
    assert f"out of memory after a peak of {told['peak_memory'] / 2**30:.2f} GiB" in reason.message


@pytest.mark.parametrize("source", ["raise RuntimeError('no')", "torch.ones(2) @ torch.ones(3)", "raise ValueError('DefaultCPUAllocator: no')"])
def test_what_failed_for_another_reason_is_not_called_out_of_memory(source):
    told = told_of(source)
    assert (told["kind"], told["peak_memory"]) == ("exception", None)


def test_where_a_card_has_memory_and_the_host_has_none_the_peak_is_the_hosts():
    assert told_of("torch.cuda.is_initialized = lambda: True; torch.cuda.max_memory_allocated = lambda: 7; torch.empty(1 << 45)")["peak_memory"] > 50 << 20
    assert told_of("torch.cuda.is_initialized = lambda: True; torch.cuda.max_memory_allocated = lambda: 7; raise torch.OutOfMemoryError('CUDA')")["peak_memory"] == 7
