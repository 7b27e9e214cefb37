"""What the card did during a run, and what the run comes to; fake cards through the binding's own names."""

import msgspec
import pytest
from test_nvml import FakeNvml

from crusades.bench import protocol as p
from crusades.bench.card import Card, hold, settle
from crusades.errors import DeviceFault
from crusades.nvml import Blame
from crusades.records import Audit, Reason, Run, Stage

RUN = Run(index=1, scored=True, seconds=1.0, claimed_seconds=1.0, read_seconds=0.0, mfu=50.0, tokens_per_second=1.0, final_loss=1.0, audit=Audit(worst="", words="", statistics=()))
PASSED = p.Ran(run=RUN)
SHIRKED = p.Ran(run=RUN, reason=Reason(code=1401, stage=Stage.AUDIT, message="half of it is missing"))
RAISED = p.Ran(reason=Reason(code=1302, stage=Stage.RUN, message="CUDA error"))
LATE = p.Ran(reason=Reason(code=1304, stage=Stage.RUN, message="no answer"))
HOT, LOST = Blame(void="hardware thermal slowdown"), Blame(void="Xid 79", broken="Xid 79")


def test_a_quiet_run_stays_as_it_is_and_gets_its_telemetry():
    assert settle(PASSED, Blame(), {"samples": 3.0}) == msgspec.structs.replace(PASSED, run=msgspec.structs.replace(RUN, telemetry={"samples": 3.0}))


@pytest.mark.parametrize("blame", [HOT, LOST])
def test_a_run_on_a_disturbed_card_is_void(blame):
    assert settle(PASSED, blame, {}).run.void == blame.void


def test_a_warm_up_is_not_scored_and_so_never_void():
    warm_up = p.Ran(run=msgspec.structs.replace(RUN, index=0, scored=False))
    assert settle(warm_up, HOT, {}).run.void == ""


@pytest.mark.parametrize("blame", [HOT, Blame(own="Xid 13"), Blame()])
@pytest.mark.parametrize("ran", [SHIRKED, RAISED])
def test_what_heat_cannot_cause_it_does_not_excuse(ran, blame):
    assert settle(ran, blame, {}).reason == ran.reason


@pytest.mark.parametrize("ran", [SHIRKED, RAISED, LATE])
def test_broken_hardware_is_nobodys_failure(ran):
    with pytest.raises(DeviceFault, match="Xid 79"):
        settle(ran, LOST, {})


def test_a_slow_card_excuses_a_late_run():
    with pytest.raises(DeviceFault, match="thermal"):
        settle(LATE, HOT, {})


def test_a_bad_kernel_is_the_submissions_own_even_when_the_run_looks_well():
    assert settle(PASSED, Blame(own="Xid 31"), {}).reason.code == 1308


def test_an_unknown_error_beside_a_failure_is_left_to_a_control_run():
    with pytest.raises(DeviceFault, match="Xid 999"):
        settle(RAISED, Blame(unknown="Xid 999"), {})


def test_an_unknown_error_beside_a_good_run_changes_nothing():
    assert settle(PASSED, Blame(unknown="Xid 999"), {}) == PASSED


# ------------------------------------------------------------------------------------------------ a card


def test_a_card_has_one_holder():
    with hold("GPU-one-holder"), pytest.raises(DeviceFault, match="in use by another crusades process"):
        hold("GPU-one-holder")


def test_a_card_is_free_when_its_holder_is_gone():
    hold("GPU-two-holders").close()
    hold("GPU-two-holders").close()


def test_an_open_card_is_held_and_watched():
    card = Card(0, FakeNvml())
    card.open()
    try:
        with card.window(frozenset()) as seen:
            assert seen.telemetry == {}
        assert seen.telemetry["sm_clock_mhz"] == 1980
        with pytest.raises(DeviceFault, match="in use"):
            Card(0, FakeNvml()).open()
    finally:
        card.close()


def test_an_open_card_tells_its_node_and_its_driver():
    card = Card(0, FakeNvml())
    card.open()
    card.close()
    assert (card.minor, card.driver) == (3, "570.86")


def test_a_card_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DeviceFault, match=r"there is no cuda:7 here; this machine has cuda:0"):
        Card(7, FakeNvml()).open()


def test_a_machine_without_a_driver_says_so(monkeypatch):
    monkeypatch.setattr("crusades.nvml.load", lambda: None)
    with pytest.raises(DeviceFault, match="no NVIDIA driver"):
        Card(0).open()


def test_a_cpu_is_neither_held_nor_watched():
    card = Card(None)
    card.open()
    with card.window(frozenset()) as seen:
        pass
    assert seen.telemetry == {}
    card.close()
