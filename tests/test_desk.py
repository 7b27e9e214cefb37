"""The referee's desk and the contestant's session, without a model."""

import socket

import pytest
import torch

from crusades.bench import protocol as p
from crusades.bench.referee.desk import Desk
from crusades.bench.referee.session import Session
from crusades.bench.referee.wire import Wire
from crusades.errors import ConfigError, DeviceFault, RefereeFault, SandboxFault


@pytest.mark.parametrize(
    ("error", "code"),
    [(SandboxFault("x"), 2001), (RefereeFault("x"), 2002), (DeviceFault("x"), 2003), (torch.OutOfMemoryError("x"), 2003), (ConfigError("x"), 2006), (ValueError("harness"), 2002)],
)
def test_a_failure_of_ours_is_told_by_its_code(error, code):
    assert Desk.code_of(error) == code


def test_a_harness_that_ends_before_any_submission_is_the_sandboxs_failure():
    ours, theirs = socket.socketpair()
    session = Session(Wire(ours, header_cap=p.CONTESTANT_HEADER_CAP, payload_cap=p.CONTESTANT_PAYLOAD_CAP), None, None)
    theirs.close()
    with pytest.raises(SandboxFault, match="harness failed"):
        session.build({}, 5.0)
    session.close()


@pytest.mark.parametrize(("settled", "connected", "cleaned"), [(True, False, 0), (False, False, 1), (False, True, 1)])
def test_a_card_is_cleaned_after_a_contestant_and_not_twice(monkeypatch, settled, connected, cleaned):
    """Comparing anchors cleans it already; a contestant that was connected since, or a computation that failed, has not."""
    desk, done = Desk(None, ""), []
    desk._device, desk._settled = "cuda", settled
    desk._room = type("Room", (), {"wait": lambda self: done.append("waited")})()
    desk._session = type("Session", (), {"close": lambda self: done.append("closed")})() if connected else None
    monkeypatch.setattr(desk, "_settle", lambda: done.append("cleaned"))
    desk.handle(p.Release())
    assert done.count("cleaned") == cleaned == done.count("waited")
    assert desk._session is None


def test_the_first_runs_weights_come_while_the_contestant_maps_the_memory():
    """And not before the memory was cleared for it; what a set that cannot serve it starts from is not brought."""
    said = []
    foretold = {("mine", 7): torch.zeros(3)}
    desk = Desk(None, "")
    desk._keeper = type("Keeper", (), {"begin": lambda self, runs: said.append("drawn")})()
    desk._reference = type("Reference", (), {"begin_restore": lambda self, initial: said.append(initial)})()
    desk._pool = type("Pool", (), {"initial_for": lambda self, *who: foretold.get(who)})()
    desk._session = type("Session", (), {"load": lambda self, path, rules, meanwhile: (said.append("cleared"), meanwhile(), said.append("mapped"))})()
    for who in (("mine", 7), ("mine", 8)):
        assert desk.handle(p.LoadSubmission(path="train.py", rules={}, submission_id=who[0], commit_block=who[1], runs=2)).reason is None
    assert said == ["drawn", "cleared", foretold["mine", 7], "mapped", "drawn", "cleared", "mapped"]
