"""The asyncio bridge: values, errors, cancellation at every point, deadlines, shutdown. Real threads, no real sleeps beyond milliseconds."""

import asyncio
import contextlib
import contextvars
import threading

import pytest
import trio
import trio.testing

from crusades import asyncio_bridge
from crusades.asyncio_bridge import open_bridge


@pytest.fixture
async def bridge():
    async with open_bridge() as bridge:
        yield bridge


class Boom(Exception):
    pass


async def never():
    await asyncio.Event().wait()


async def wait_until(condition):
    """Yield to real threads until `condition` holds."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - the other side is a thread, it cannot set a trio event
            await trio.sleep(0.001)


async def test_a_value_comes_back_from_the_other_thread(bridge):
    async def where():
        await asyncio.sleep(0)
        return threading.get_ident()

    assert await bridge.run(where) != threading.get_ident()


async def test_an_exception_passes_with_its_type_and_leaves_the_bridge_usable(bridge):
    async def fail():
        raise Boom("the message")

    with pytest.raises(Boom, match="the message"):
        await bridge.run(fail)
    assert await bridge.run(lambda: asyncio.sleep(0, "fine")) == "fine"


async def test_a_coroutine_function_that_raises_before_its_coroutine_exists(bridge):
    def broken():
        raise Boom

    with pytest.raises(Boom):
        await bridge.run(broken)


async def test_system_exit_of_a_library_does_not_kill_the_thread(bridge):
    async def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await bridge.run(leave)
    assert await bridge.run(lambda: asyncio.sleep(0, 1)) == 1


async def test_context_variables_travel(bridge):
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("from trio")

    async def read():
        return variable.get()

    assert await bridge.run(read) == "from trio"


async def test_the_deadline_cancels_the_task_and_raises_too_slow(bridge):
    ended = threading.Event()

    async def slow():
        try:
            await never()
        finally:
            ended.set()

    with pytest.raises(trio.TooSlowError):
        await bridge.run(slow, deadline=0.01)
    assert ended.is_set()
    assert bridge.in_flight == 0


async def test_the_deadline_is_real_time_whatever_clock_drives_trio(bridge, autojump_clock):
    async def brief():
        await asyncio.sleep(0.02)
        return "in time"

    with trio.move_on_after(3600):  # the virtual clock may jump to here; the call's own deadline may not
        assert await bridge.run(brief, deadline=30) == "in time"


async def test_an_error_after_the_deadline_is_the_cause_of_too_slow(bridge):
    async def sore_loser():
        try:
            await never()
        except asyncio.CancelledError:
            raise Boom from None

    with pytest.raises(trio.TooSlowError) as caught:
        await bridge.run(sore_loser, deadline=0.01)
    assert isinstance(caught.value.__cause__, Boom)


async def test_cancel_returns_only_after_the_task_has_ended(bridge):
    steps = []

    async def slow_to_end():
        steps.append("started")
        try:
            await never()
        finally:
            await asyncio.sleep(0.03)
            steps.append("ended")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, slow_to_end)
        await wait_until(lambda: steps)
        nursery.cancel_scope.cancel()
    assert steps == ["started", "ended"]
    assert bridge.in_flight == 0


@pytest.mark.parametrize("point", range(8))
async def test_cancelled_at_every_point_the_task_is_never_left_running(bridge, point):
    """A task of six steps is cancelled once before it starts, at each await, and after its end."""
    reached, ended = [], []

    async def steps():
        try:
            for step in range(6):
                reached.append(step)
                await (never() if step + 1 == point else asyncio.sleep(0))
            return "done"
        finally:
            ended.append(True)

    got = None
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def call():
                nonlocal got
                got = await bridge.run(steps)

            if point == 0:
                scope.cancel()
            nursery.start_soon(call)
            if 0 < point < 7:
                await wait_until(lambda: len(reached) == point)
                scope.cancel()
            elif point == 7:
                await wait_until(lambda: got)
                scope.cancel()
    assert bridge.in_flight == 0
    assert len(ended) == (1 if reached else 0), "what started has ended"
    assert (got == "done") == (point == 7)


async def test_cancelled_in_the_same_breath_as_started(bridge):
    """Cancelled between hand-over and first step: the coroutine is not even made."""
    made = []
    gate = threading.Event()
    bridge._loop.call_soon_threadsafe(gate.wait)  # holds the loop, so that start and cancel arrive together

    async def body():
        made.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, body)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        threading.Timer(0.05, gate.set).start()  # by then the cancelled caller waits for the task's end
    assert not made


async def commits_despite_cancel(sent):
    sent.set()
    try:
        await never()
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
    return "committed"


async def run_and_cancel(bridge, make, sent, **how):
    got = []

    async def call():
        got.append(await bridge.run(make, **how))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_until(sent.is_set)
        nursery.cancel_scope.cancel()
    return got


async def test_finish_if_done_reports_what_was_finished_in_spite_of_the_cancel(bridge):
    sent = threading.Event()
    assert await run_and_cancel(bridge, lambda: commits_despite_cancel(sent), sent, finish_if_done=True) == ["committed"]


async def test_without_finish_if_done_a_cancelled_caller_sees_only_the_cancel(bridge):
    sent = threading.Event()
    assert await run_and_cancel(bridge, lambda: commits_despite_cancel(sent), sent) == []


async def test_finish_if_done_still_cancels_what_rolled_back(bridge):
    sent = threading.Event()

    async def rolls_back():
        sent.set()
        await never()

    assert await run_and_cancel(bridge, rolls_back, sent, finish_if_done=True) == []


async def test_finish_if_done_reports_the_tasks_own_error(bridge):
    sent = threading.Event()

    async def fails():
        sent.set()
        try:
            await never()
        except asyncio.CancelledError:
            raise Boom from None

    with pytest.RaisesGroup(Boom):
        await run_and_cancel(bridge, fails, sent, finish_if_done=True)


async def test_finish_if_done_past_the_deadline(bridge):
    sent = threading.Event()
    assert await bridge.run(lambda: commits_despite_cancel(sent), deadline=0.01, finish_if_done=True) == "committed"


async def test_a_task_that_swallows_its_cancellation_is_cancelled_again(bridge, monkeypatch, caplog):
    monkeypatch.setattr(asyncio_bridge, "CANCEL_AGAIN_AFTER", 0.01)
    swallowed = []

    async def stubborn():
        while len(swallowed) < 3:
            try:
                await never()
            except asyncio.CancelledError:
                swallowed.append(True)

    with pytest.raises(trio.TooSlowError):
        await bridge.run(stubborn, deadline=0.01)
    assert "outlived its cancellation" in caplog.text


async def test_a_cancel_on_the_asyncio_side_never_leaks_into_trio(bridge):
    async def cancels_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with pytest.raises(trio.BrokenResourceError):
        await bridge.run(cancels_itself)


async def test_500_concurrent_calls(bridge):
    results = []

    async def call(number):
        results.append(await bridge.run(lambda: asyncio.sleep(0.01, number), deadline=10))

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(call, number)
    assert sorted(results) == list(range(500))


async def test_shutdown_with_calls_in_flight_ends_them_and_says_so():
    ended = []

    async def slow():
        try:
            await never()
        finally:
            ended.append(True)

    refused = []

    async def call(bridge):
        with pytest.raises(trio.ClosedResourceError):
            await bridge.run(slow)
        refused.append(True)

    async with trio.open_nursery() as nursery, open_bridge() as bridge:
        for _ in range(10):
            nursery.start_soon(call, bridge)
        await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == len(refused) == 10
    assert not bridge._thread.is_alive()
    with pytest.raises(trio.ClosedResourceError):
        await bridge.run(never)


async def test_shutdown_leaves_a_task_that_will_not_die_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(asyncio_bridge, "CLOSE_WITHIN", 0.05)
    release = threading.Event()

    async def blocks_the_loop():
        release.wait()

    async def call(bridge):
        with pytest.raises(trio.ClosedResourceError):
            await bridge.run(blocks_the_loop)

    async with trio.open_nursery() as nursery, open_bridge() as bridge:
        nursery.start_soon(call, bridge)
        await trio.testing.wait_all_tasks_blocked()
    assert "left behind" in caplog.text
    release.set()
    await trio.to_thread.run_sync(bridge._thread.join)


async def test_background_tasks_of_a_library_end_with_the_bridge():
    ended = []

    async def background():
        try:
            await never()
        finally:
            ended.append(True)

    async with open_bridge() as bridge:
        async def spawn():
            asyncio.get_running_loop().background = asyncio.create_task(background())
            await asyncio.sleep(0)

        await bridge.run(spawn)
    assert ended == [True]


async def test_no_thread_is_left_after_50_bridges():
    before = threading.active_count()
    for _ in range(50):
        async with open_bridge() as bridge:
            await bridge.run(lambda: asyncio.sleep(0))
    names = [thread.name for thread in threading.enumerate()]
    assert "asyncio-bridge" not in names
    assert threading.active_count() <= before + 1  # trio keeps one idle worker for a while


async def test_the_bodys_exception_passes_through_the_bridge():
    with contextlib.suppress(Boom):
        async with open_bridge():
            raise Boom
    names = [thread.name for thread in threading.enumerate()]
    assert "asyncio-bridge" not in names
