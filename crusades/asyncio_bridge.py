"""The one asyncio thread of the process: libraries that only speak asyncio are called from trio through here.

    async with open_bridge() as bridge:
        value = await bridge.run(lambda: client.block(), deadline=30.0)

Theory of operation. Trio owns the process; one private thread runs an asyncio loop. `run` starts a task there and
waits for it on a trio event. Three rules make that safe to use like any other trio call:

* Cancellation is real. A cancelled `run` cancels the asyncio task and then waits, shielded, until the task has *ended*
  (a future of `run_coroutine_threadsafe` says "cancelled" before that). So when `run` has returned or raised,
  nothing of the call is left running behind the caller's back. A task that swallows its cancellation is cancelled
  again every second, with a line in the log.
* A deadline is measured on the asyncio side in real time, because what it limits happens in real time, whatever clock
  drives trio in a test.
* What the cancelled task ended with: by default it is dropped and the caller sees `Cancelled` (or `TooSlowError`). With
  `finish_if_done=True` a task that finished all the same, or failed with an error of its own, is reported as it
  ended: that is how the store tells a commit that was already sent from one that was rolled back. Trio delivers the
  pending cancellation at the caller's next checkpoint.

The caller's context variables travel with the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import outcome
import trio

T = TypeVar("T")
log = logging.getLogger(__name__)

CANCEL_AGAIN_AFTER = 1.0
"""Seconds until a task that outlives its cancellation is cancelled again."""

CLOSE_WITHIN = 10.0
"""Seconds that closing the bridge waits for its thread before it leaves the (daemon) thread behind and says so."""


class _Call(Generic[T]):
    """One call: made on the trio thread, lived on the asyncio thread, answered on the trio thread."""

    def __init__(self, make_coro: Callable[[], Awaitable[T]]) -> None:
        self.ended = trio.Event()
        self.outcome: outcome.Outcome[T] | None = None
        self.expired = False
        self._make_coro = make_coro
        self._token = trio.lowlevel.current_trio_token()
        self._task: asyncio.Task[outcome.Outcome[T]] | None = None
        self._timers: list[asyncio.TimerHandle] = []

    # On the asyncio thread.

    def start(self, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(outcome.acapture(self._make_coro))
        self._task.add_done_callback(self._done)
        if deadline is not None:
            self._timers.append(loop.call_later(deadline, self._expire))

    def _expire(self) -> None:
        self.expired = True
        self.cancel()

    def cancel(self, again: bool = False) -> None:
        if self._task is None or self._task.done():
            return
        if again:
            log.warning("an asyncio call has outlived its cancellation by %.0f s; cancelling it again: %r", CANCEL_AGAIN_AFTER, self._make_coro)
        self._task.cancel()
        self._timers.append(asyncio.get_running_loop().call_later(CANCEL_AGAIN_AFTER, self.cancel, True))

    def _done(self, task: asyncio.Task[outcome.Outcome[T]]) -> None:
        for timer in self._timers:
            timer.cancel()
        self.finish(outcome.Error(asyncio.CancelledError()) if task.cancelled() else task.result())

    def finish(self, result: outcome.Outcome[T]) -> None:
        """Also called on the trio thread, for a call whose thread was left behind. The first answer stands."""
        if self.outcome is None:
            self.outcome = result
            with contextlib.suppress(trio.RunFinishedError):  # nobody is left to hear it
                self._token.run_sync_soon(self.ended.set)

    # On the trio thread, after `ended`.

    @property
    def error(self) -> BaseException | None:
        return self.outcome.error if isinstance(self.outcome, outcome.Error) else None

    @property
    def was_cancelled(self) -> bool:
        return isinstance(self.error, asyncio.CancelledError)


class Bridge:
    """Runs coroutines on the asyncio thread. Use it from the trio thread only; get one from `open_bridge`."""

    def __init__(self) -> None:
        self._calls: set[_Call[Any]] = set()
        self._closed = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._thread_main, name="asyncio-bridge", daemon=True)

    def __repr__(self) -> str:
        return f"<Bridge {'closed' if self._closed else 'open'}, {len(self._calls)} calls in flight>"

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return len(self._calls)

    async def run(self, make_coro: Callable[[], Awaitable[T]], *, deadline: float | None = None, finish_if_done: bool = False) -> T:
        """Await `make_coro()` on the asyncio thread and return its value.

        `make_coro` is called there too, so it may make objects that belong to the loop. `deadline` is in seconds of
        real time; None waits for ever.

        Errors: whatever the coroutine raises, with its type; TooSlowError past the deadline (the late error, if any,
        is its cause); ClosedResourceError when the bridge is or gets closed; BrokenResourceError when the coroutine
        was cancelled by someone on the asyncio side.
        Cancellation: see the module's docstring. What the task raises because it was cancelled is not reported,
        unless `finish_if_done`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise trio.ClosedResourceError("the asyncio bridge is closed")
        call = _Call(make_coro)
        self._calls.add(call)
        try:
            self._loop.call_soon_threadsafe(call.start, deadline)
            try:
                await call.ended.wait()
            except trio.Cancelled:
                await self._cancel(call)
                if call.was_cancelled or not finish_if_done:
                    raise
            except BaseException:
                await self._cancel(call)
                raise
        finally:
            self._calls.discard(call)
        return self._answer(call, finish_if_done)

    async def _cancel(self, call: _Call[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: then the call has been answered
            self._loop.call_soon_threadsafe(call.cancel)
        # Bounded by the task itself and by the repeated cancellation; closing the bridge ends it in any case.
        with trio.CancelScope(shield=True):
            await call.ended.wait()

    def _answer(self, call: _Call[T], finish_if_done: bool) -> T:
        assert call.outcome is not None
        if call.expired and (call.was_cancelled or not finish_if_done):
            raise trio.TooSlowError("the call's deadline passed") from (None if call.was_cancelled else call.error)
        if call.was_cancelled:
            if self._closed:
                raise trio.ClosedResourceError("the asyncio bridge was closed during the call")
            raise trio.BrokenResourceError("the call was cancelled on the asyncio side")
        return call.outcome.unwrap()

    # ---------------------------------------------------------------------------------------- life of the thread

    def _thread_main(self) -> None:
        with asyncio.Runner() as runner:  # on exit it cancels what is left, and ends generators and executor
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()

    def _open(self) -> None:
        self._thread.start()
        self._ready.wait()  # microseconds: the thread's first act

    async def _close(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._stop.set)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, CLOSE_WITHIN)
        if self._thread.is_alive():
            log.error("the asyncio thread did not end within %.0f s and is left behind; calls in flight: %s",
                      CLOSE_WITHIN, [call._make_coro for call in self._calls])
        for call in tuple(self._calls):
            call.finish(outcome.Error(asyncio.CancelledError()))


@contextlib.asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """The process's bridge. On exit, calls still in flight are cancelled, waited for, and raise ClosedResourceError."""
    bridge = Bridge()
    bridge._open()
    try:
        yield bridge
    finally:
        await bridge._close()
