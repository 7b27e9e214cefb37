"""The assignment of work to slots: order, back-off, where a submission may run after a fault, and who is blamed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crusades.slots import (
    After,
    Memory,
    Mishap,
    Place,
    Seat,
    SlotState,
    Start,
    Waiting,
    after_mishap,
    decide,
    keeps_service,
    waiting,
)

IDLE, RUNNING, OUT, WARMING = SlotState.IDLE, SlotState.RUNNING, SlotState.OUT, SlotState.WARMING


def test_order_is_commit_block_then_uid_whatever_the_order_of_the_queue():
    queue = [Waiting("c", 12, 1), Waiting("b", 10, 7), Waiting("a", 10, 3), Waiting("d", 10, None)]
    plan = decide(queue, [Place("cpu", IDLE)], now=0.0)
    assert plan.order == ("a", "b", "d", "c")
    assert plan.starts == (Start("a", "cpu"),)


def test_requeued_work_goes_in_front_of_older_commits():
    plan = decide([Waiting("old", 1, 1), Waiting("again", 50, 2, requeued=True)], [Place("cpu", IDLE)], now=0.0)
    assert plan.starts == (Start("again", "cpu"),)


def test_a_submission_in_back_off_is_passed_and_names_the_time_to_look_again():
    plan = decide([Waiting("again", 1, 1, requeued=True, not_before=30.0), Waiting("next", 2, 2)], [Place("cpu", IDLE)], now=10.0)
    assert plan.starts == (Start("next", "cpu"),)
    assert plan.wake_at == 30.0


def test_a_submission_goes_to_another_slot_after_a_fault():
    slots = [Place("cuda:0", IDLE), Place("cuda:1", IDLE)]
    assert decide([Waiting("x", 1, 1, avoid=frozenset({"cuda:0"}))], slots, 0.0).starts == (Start("x", "cuda:1"),)


def test_it_waits_for_the_other_slot_while_that_is_busy_and_lets_others_pass():
    slots = [Place("cuda:0", IDLE), Place("cuda:1", RUNNING)]
    plan = decide([Waiting("x", 1, 1, requeued=True, avoid=frozenset({"cuda:0"})), Waiting("y", 2, 2)], slots, 0.0)
    assert plan.starts == (Start("y", "cuda:0"),)


def test_it_returns_to_the_slot_it_avoids_when_no_other_is_in_service():
    slots = [Place("cuda:0", IDLE), Place("cuda:1", OUT)]
    assert decide([Waiting("x", 1, 1, avoid=frozenset({"cuda:0"}))], slots, 0.0).starts == (Start("x", "cuda:0"),)


def test_finished_runs_draw_a_submission_back_to_their_slot():
    slots = [Place("cuda:0", IDLE), Place("cuda:1", IDLE)]
    assert decide([Waiting("x", 1, 1, kept_on="cuda:1")], slots, 0.0).starts == (Start("x", "cuda:1"),)


def test_it_waits_for_the_slot_that_keeps_its_runs_while_that_warms_up_and_lets_others_pass():
    slots = [Place("cuda:0", IDLE), Place("cuda:1", WARMING)]
    plan = decide([Waiting("x", 1, 1, requeued=True, kept_on="cuda:1"), Waiting("y", 2, 2)], slots, 0.0)
    assert plan.starts == (Start("y", "cuda:0"),)


@pytest.mark.parametrize("state", [RUNNING, OUT])
def test_it_does_not_wait_for_a_slot_that_is_busy_or_out_of_service(state):
    slots = [Place("cuda:0", IDLE), Place("cuda:1", state)]
    assert decide([Waiting("x", 1, 1, kept_on="cuda:1")], slots, 0.0).starts == (Start("x", "cuda:0"),)


@pytest.mark.parametrize("state", [WARMING, RUNNING, OUT])
def test_only_idle_slots_get_work(state):
    assert decide([Waiting("x", 1, 1)], [Place("cpu", state)], 0.0).starts == ()


_waiting = st.builds(
    Waiting, id=st.uuids().map(str), commit_block=st.integers(0, 50), uid=st.none() | st.integers(0, 255), requeued=st.booleans(),
    not_before=st.sampled_from([0.0, 5.0, 50.0]), avoid=st.frozensets(st.sampled_from(["cuda:0", "cuda:1", "cuda:2"])),
    kept_on=st.sampled_from(["", "cuda:0", "cuda:2"]),
)
_places = st.lists(st.builds(Place, st.sampled_from(["cuda:0", "cuda:1", "cuda:2"]), st.sampled_from(SlotState)), unique_by=lambda place: place.name)


@given(st.lists(_waiting, unique_by=lambda w: w.id), _places)
def test_no_slot_and_no_submission_is_ever_used_twice_and_no_suitable_slot_stays_idle(queue, slots):
    plan = decide(queue, slots, now=10.0)
    idle = {place.name for place in slots if place.state is IDLE}
    used = [start.slot for start in plan.starts]
    begun = {start.submission_id for start in plan.starts}
    assert len(set(used)) == len(used)
    assert set(used) <= idle
    assert len(begun) == len(plan.starts)
    left = idle - set(used)
    warming = {place.name for place in slots if place.state is WARMING}
    assert not [w for w in queue if w.id not in begun and w.not_before <= 10.0 and left - w.avoid and w.kept_on not in warming - w.avoid]


# ------------------------------------------------------------------------------------------------ after a fault of ours


def test_a_fault_of_ours_is_tried_again_with_doubled_delays_then_faulted():
    past = []
    seen = []
    for _ in range(3):
        past.append(Mishap("cpu", 2002))
        seen.append(after_mishap(past, max_attempts=3, retry_delay=10.0))
    assert [(j.what, j.delay) for j in seen] == [(After.REQUEUE, 10.0), (After.REQUEUE, 20.0), (After.FAULTED, 0.0)]


def test_interruptions_cost_no_attempt_and_no_delay():
    judged = after_mishap([Mishap("cpu", 2005)] * 10 + [Mishap("cpu", 2002)], max_attempts=2, retry_delay=10.0)
    assert (judged.what, judged.delay) == (After.REQUEUE, 10.0)


def test_a_device_fault_that_follows_to_a_second_slot_is_the_submissions_own():
    past = [Mishap("cuda:0", 2003, control_passed=True), Mishap("cuda:1", 2003, control_passed=True)]
    judged = after_mishap(past, max_attempts=5, retry_delay=1.0)
    assert judged.what is After.REJECTED
    assert "cuda:0 and cuda:1" in judged.words


@pytest.mark.parametrize("second", [Mishap("cuda:0", 2003, True), Mishap("cuda:1", 2003, False), Mishap("cuda:1", 2002, True)])
def test_nothing_weaker_blames_the_submission(second):
    assert after_mishap([Mishap("cuda:0", 2003, True), second], max_attempts=5, retry_delay=1.0).what is After.REQUEUE


def test_only_the_control_run_condemns_a_slot():
    assert keeps_service(True, consecutive_faults=99)
    assert not keeps_service(False, consecutive_faults=1)
    assert keeps_service(None, 2)
    assert not keeps_service(None, 3)


# ------------------------------------------------------------------------------------------------ the shell


async def test_a_seat_takes_work_only_while_idle():
    seat = Seat("cpu")
    assert not seat.hand_over("x")
    seat.state = IDLE
    assert seat.hand_over("x")
    assert not seat.hand_over("y")
    assert await seat.work.receive() == "x"
    assert (seat.state, seat.submission_id) == (RUNNING, "x")


def test_the_queue_carries_what_the_process_remembers():
    memory = {"x": Memory(mishaps=(Mishap("cuda:0", 2002), Mishap("cuda:1", 2005)), not_before=7.0, kept_on="cuda:1")}
    assert waiting([("x", 4, 2, 1), ("y", 5, None, 0)], memory) == [
        Waiting("x", 4, 2, True, 7.0, frozenset({"cuda:0"}), "cuda:1"), Waiting("y", 5, None)]
