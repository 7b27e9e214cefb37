"""What the referee does between two steps: how much of it is off the clock, and what its length tells."""

import math

import pytest
import torch

from crusades import hparams
from crusades.bench.referee import anchor as anchors
from crusades.bench.referee import reads
from crusades.bench.referee.anchor import Anchor
from crusades.bench.referee.dice import Dice
from crusades.bench.referee.layout import draw_sample
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.reads import Reader, idle_read

MS = 1_000_000


@pytest.fixture(scope="module")
def reference():
    found = load_reference(hparams.load().profile("tiny").model, "cpu", None)
    yield found
    found.memory.close()


@pytest.fixture(scope="module")
def sample(reference):
    return draw_sample(reference.layout, 1000, 8, Dice(b"1"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what the test adds to `clock.now` (ns)."""

    class Clock:
        now = 0
        tick = 0

        def __call__(self):
            self.now += self.tick
            return self.now

    found = Clock()
    monkeypatch.setattr(reads, "now_ns", found)
    monkeypatch.setattr(anchors, "now_ns", found)
    return found


def slow_gather(monkeypatch, clock, milliseconds):
    """Every gather takes so long: the contestant's work is before it in the queue."""
    gather = torch.index_select

    def slow(*args, **kwargs):
        clock.now += int(milliseconds * MS / 3)
        return gather(*args, **kwargs)

    monkeypatch.setattr(torch, "index_select", slow)


def test_a_read_that_had_to_wait_takes_no_more_off_the_clock_than_an_idle_one(reference, sample, clock, monkeypatch):
    slow_gather(monkeypatch, clock, 30)
    reader = Reader(reference, sample, 2, allowed=0.001)
    reader.read(0)
    started = clock.now
    clock.now += 100 * MS
    reader.read(1)
    assert reader.read_seconds[1] == 0.001
    assert reader.excess[1] == pytest.approx(0.029)
    assert reader.steps_of(started, [clock.now]) == pytest.approx((0.1 + 0.029,))


def test_an_idle_read_is_off_the_clock_whole(reference, sample, clock, monkeypatch):
    slow_gather(monkeypatch, clock, 0.9)
    reader = Reader(reference, sample, 1, allowed=0.001)
    reader.read(1)
    assert reader.read_seconds[1] == pytest.approx(0.0009)
    assert reader.excess[1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kept", [True, False])
def test_a_pause_is_as_long_whether_its_copy_is_kept_or_not(reference, clock, monkeypatch, kept):
    took = {True: 5, False: 3}[kept]
    monkeypatch.setattr(Anchor, "copy", lambda self, step: setattr(clock, "now", clock.now + took * MS))
    clock.tick = MS // 100
    anchor = Anchor(reference, range(1, 3), {1: torch.empty(0)} if kept else {}, pause=0.010)
    anchor.before(1)
    assert clock.now == pytest.approx(10 * MS, abs=3 * clock.tick)


def test_a_pause_is_a_copy_and_no_read(reference, sample, clock, monkeypatch):
    monkeypatch.setattr(Anchor, "copy", lambda self, step: None)
    clock.tick = MS // 100
    reader = Reader(reference, sample, 2, Anchor(reference, range(1, 2), {}, pause=0.010), allowed=0.001)
    reader.read(0)
    reader.read(1)
    assert reader.copy_seconds == [0.0, 0.010, 0.0]
    assert reader.read_seconds[1] < 0.001


def test_a_pause_that_the_contestant_draws_out_is_on_its_clock(reference, sample, clock, monkeypatch):
    monkeypatch.setattr(Anchor, "copy", lambda self, step: setattr(clock, "now", clock.now + 50 * MS))
    reader = Reader(reference, sample, 2, Anchor(reference, range(1, 2), {}, pause=0.010), allowed=0.001)
    reader.read(1)
    assert reader.copy_seconds[1] == 0.010
    assert reader.excess[1] == pytest.approx(0.040)


def test_what_an_idle_read_needs_is_measured(reference, sample):
    assert 0 < idle_read(reference, sample) < math.inf
