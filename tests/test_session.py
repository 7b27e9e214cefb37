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


def test_the_harness_tells_its_peak():
    program = "import sys, json; sys.path.insert(0, sys.argv[1]); import harness; print(json.dumps(harness.failure_of(MemoryError('no'), 'run', 'train.py').fields))"
    told = json.loads(subprocess.run([sys.executable, "-I", "-c", program, str(INSIDE)], check=True, capture_output=True, text=True).stdout)
    assert (told["kind"], told["message"]) == ("memory", "MemoryError: no")
    assert 50 << 20 < told["peak_memory"] < 50 << 30
