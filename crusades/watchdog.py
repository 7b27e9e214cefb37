"""Whether the daemon makes progress, and who is told: systemd, a heartbeat URL, people.

A heartbeat from a timer proves only that the timer lives. So every subsystem has its own deadline and reports *progress*
(a head seen, a row fetched, a run finished, or "nothing to do, and I looked"); WATCHDOG=1 is sent only while nobody is
late. A subsystem that waits for the outside on purpose (a node that is down) still makes progress: it looked.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
import trio

from crusades.board import Board

log = logging.getLogger("crusades.watchdog")

# ------------------------------------------------------------------------------------------------ progress


@dataclass
class _Pulse:
    deadline: float
    last: float
    doing: str = ""


@dataclass
class Health:
    """Who has made progress when. Only touched from the trio thread."""

    clock: Callable[[], float] = trio.current_time
    _pulses: dict[str, _Pulse] = field(default_factory=dict)

    def expect(self, subsystem: str, deadline: float) -> None:
        """From now on `subsystem` must report progress at least every `deadline` seconds."""
        self._pulses[subsystem] = _Pulse(deadline, self.clock())

    def progress(self, subsystem: str, doing: str = "", *, deadline: float | None = None) -> None:
        """It moved. `doing` is shown to people; `deadline` changes how long the next step may take (an evaluation)."""
        pulse = self._pulses.setdefault(subsystem, _Pulse(deadline or 60.0, 0.0))
        pulse.last, pulse.doing = self.clock(), doing
        if deadline is not None:
            pulse.deadline = deadline

    def retire(self, subsystem: str) -> None:
        """Nothing more is expected of it (its device is gone, the daemon stops)."""
        self._pulses.pop(subsystem, None)

    def ages(self) -> dict[str, float]:
        """Seconds since each subsystem's last progress."""
        now = self.clock()
        return {name: now - pulse.last for name, pulse in self._pulses.items()}

    def late(self) -> dict[str, str]:
        """subsystem → how late and at what, in words; empty while all is well."""
        now = self.clock()
        return {
            name: f"no progress for {now - pulse.last:.0f} s, allowed {pulse.deadline:.0f} s" + (f" ({pulse.doing})" if pulse.doing else "")
            for name, pulse in self._pulses.items()
            if now - pulse.last > pulse.deadline
        }


# ------------------------------------------------------------------------------------------------ the event loop

STALL = 0.05
"""Seconds that one step of a task may hold the event loop (design.md §8)."""


class Stalls(trio.abc.Instrument):
    """Measures every step of every task; about two microseconds per step. `on_stall` gets the task's name, the seconds that
    its step took, and how many of them the thread computed: the rest it waited, for a disk, for another thread of ours, or
    because the machine was busy with others."""

    def __init__(self, on_stall: Callable[[str, float, float], None], limit: float = STALL, clock: Callable[[], float] = time.perf_counter,
                 cpu_clock: Callable[[], float] = time.thread_time) -> None:
        self._on_stall, self._limit, self._clock, self._cpu_clock = on_stall, limit, clock, cpu_clock
        self._begin: float | None = None
        self._begin_cpu = 0.0
        self._longest = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begin_cpu = self._cpu_clock()
        self._begin = self._clock()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._begin is None:
            return  # the step in which this instrument was added
        took = self._clock() - self._begin
        self._longest = max(self._longest, took)
        if took > self._limit:
            self._on_stall(task.name, took, self._cpu_clock() - self._begin_cpu)

    def take_longest(self) -> float:
        """The longest step since the last call."""
        longest, self._longest = self._longest, 0.0
        return longest


# ------------------------------------------------------------------------------------------------ a shutdown that hangs


def leave_within(seconds: float) -> None:
    """After so long, whatever still hangs then: every thread's stack to stderr, and exit code 1. The newest call counts.

    By a thread of the interpreter's that needs no lock of ours: it also ends a process that waits for threads at its exit.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)


# ------------------------------------------------------------------------------------------------ systemd


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """One datagram to systemd (sd_notify(3)): "READY=1", "STATUS=…". False when nobody listens; never raises, never blocks."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    path = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as s:
            s.sendto(state.encode(), path)
    except OSError as error:
        log.debug("systemd did not take %r: %s", state, error)
        return False
    return True


def watchdog_interval(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Seconds between WATCHDOG=1: half of what the unit asks for; None when it asks for nothing, or asks another process."""
    if environment.get("WATCHDOG_PID", str(pid or os.getpid())) != str(pid or os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) else None


def forget_systemd(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Take the notify and watchdog variables out of the environment and return them: children must not speak for us."""
    source = os.environ if environment is None else environment
    return {name: source.pop(name) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID") if name in source}


def status_line(board: Board, weights: str, counts: Mapping[str, int]) -> str:
    """The one line that `systemctl status` shows."""
    running = [f"{view.name} {view.detail or view.state}" for view in board.slots.values() if view.state == "running"]
    warming = [view.name for view in board.slots.values() if view.state == "warming"]
    parts = [f"block {board.block if board.block is not None else 'unknown'}", weights, f"{counts.get('queued', 0)} queued",
             "evaluating " + ", ".join(running) if running else "warming " + ", ".join(warming) if warming else "idle"]
    if board.problems:
        parts.insert(0, "PROBLEM " + "; ".join(f"{name}: {words}" for name, words in sorted(board.problems.items())))
    return " · ".join(part for part in parts if part)[:400]


# ------------------------------------------------------------------------------------------------ telling people

POST_DEADLINE = 10.0
"""Seconds for one heartbeat or webhook: nobody waits for them."""


async def heartbeat(url: str, client: httpx.AsyncClient) -> bool:
    """GET the heartbeat URL; whoever watches it raises the alarm when this stops. False when it could not be reached."""
    return await _send(client, "GET", url, None)


async def tell(url: str, text: str, client: httpx.AsyncClient) -> bool:
    """POST an alert in the one shape that Slack, Mattermost and Discord take. False when it could not be delivered."""
    return await _send(client, "POST", url, {"text": text, "content": text})


async def _send(client: httpx.AsyncClient, method: str, url: str, body: dict[str, str] | None) -> bool:
    try:
        with trio.fail_after(POST_DEADLINE):
            answer = await client.request(method, url, json=body)
    except (httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError) as error:
        # Not the URL: a webhook's address is its password.
        log.warning("%s could not be delivered: %s", "an alert" if body else "the heartbeat", type(error).__name__)
        return False
    if answer.is_error:
        log.warning("%s was refused: %s", "an alert" if body else "the heartbeat", answer.status_code)
    return not answer.is_error
