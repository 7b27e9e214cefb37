"""What the daemon's tasks share: settings, store, chain, the live board, and the bells by which they wake each other.

The queue between two stages is the store itself: a stage writes a transition and rings; the next one looks. So nothing
is lost when the process dies between the two, and there is no channel to drain at shutdown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trio

from crusades.board import Board
from crusades.hparams import HParams
from crusades.logs import redactor
from crusades.metrics import Metrics
from crusades.records import SlotView, Source, Verdict
from crusades.rulebook import Rulebook
from crusades.slots import Memory, Seat
from crusades.watchdog import Health


class Bell:
    """Wakes whoever waits, and remembers that it rang: `seen = bell.count; look; await bell.wait(seen)` misses nothing."""

    def __init__(self) -> None:
        self.count = 0
        self._event = trio.Event()

    def ring(self) -> None:
        """Something has changed."""
        self.count += 1
        self._event.set()
        self._event = trio.Event()

    async def wait(self, seen: int, seconds: float = math.inf) -> None:
        """Until it rings after `seen`, or `seconds` have passed."""
        if self.count != seen:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(seconds):
            await self._event.wait()


@dataclass
class Bells:
    """One per consumer."""

    revealed: Bell = field(default_factory=Bell)
    fetched: Bell = field(default_factory=Bell)
    queue: Bell = field(default_factory=Bell)
    head: Bell = field(default_factory=Bell)
    shown: Bell = field(default_factory=Bell)
    health: Bell = field(default_factory=Bell)


class Judge(Protocol):
    """What the daemon needs of a slot (`crusades.bench.evaluate.Slot`); tests hand in a fake."""

    def view(self) -> SlotView: ...
    async def warm(self, *, exams: bool = True) -> None: ...
    async def evaluate(self, job: Any) -> Verdict: ...


OpenSlot = Callable[[Any], AbstractAsyncContextManager[Judge]]


@dataclass
class Context:
    """Everything the tasks of one daemon share. Only touched from the trio thread."""

    hparams: HParams
    profile_name: str
    netuid: int
    hotkey: str
    state_dir: Path
    store: Any
    chain: Any
    board: Board
    health: Health
    metrics: Metrics
    open_slot: OpenSlot
    rulebook: Rulebook
    fingerprint: Callable[[bytes], str]
    """Of the normalised program: two files that differ only in names and comments have the same."""
    control: Source | None = None
    """Our own baseline: it decides whether a slot that saw a fault is broken. None: no control runs."""
    accept_empty_state: bool = False
    accept_foreign_weights: bool = False
    """At this start, take weights on chain that the state knows nothing of for our own."""
    now: Callable[[], float] = time.time
    bells: Bells = field(default_factory=Bells)
    stopping: trio.Event = field(default_factory=trio.Event)
    """Set at SIGTERM: nothing new is begun."""
    counts: dict[str, int] = field(default_factory=dict)
    """Submissions by status, as the watch last saw them."""
    read_at: float | None = None
    backup_at: float | None = None
    """Unix times of the last head that was read whole (of the start, before the first) and of the newest backup."""
    weights_equal: bool | None = None
    """Whether the chain holds what we asked for; None while nothing is due."""
    systemd: dict[str, str] = field(default_factory=dict)
    """Where systemd listens, taken out of the environment that children inherit."""
    web_stop: trio.Event = field(default_factory=trio.Event)
    """Set when everybody else has ended: viewers see the others out."""
    web_stopped: trio.Event = field(default_factory=trio.Event)
    seats: dict[str, Seat] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    """Slots whose card was here and is not any more."""
    memory: dict[str, Memory] = field(default_factory=dict)
    fetching: set[str] = field(default_factory=set)
    """Submissions that a fetcher has in hand."""

    @property
    def block(self) -> int | None:
        """The best head, for transitions."""
        return self.board.block

    def ready(self, subsystem: str, word: str = "ready") -> None:
        """What `/readyz` says of a subsystem."""
        if self.board.ready.get(subsystem) != word:
            self.board.ready[subsystem] = word
            self.bells.health.ring()

    def problem(self, subsystem: str, words: str = "") -> None:
        """Something is wrong (or, with no words, not any more)."""
        if words:
            self.board.problems[subsystem] = redactor.clean(words)  # everybody may read it
        else:
            self.board.problems.pop(subsystem, None)

    def show(self, seat: Seat, device: str = "", detail: str = "") -> SlotView:
        """Put a slot on the board."""
        old = self.board.slots.get(seat.name)
        view = SlotView(name=seat.name, device=device or (old.device if old else seat.name), state=seat.state.value, submission_id=seat.submission_id,
                        detail=detail, since=old.since if old and old.state == seat.state.value and old.submission_id == seat.submission_id else self.now())
        self.board.slots[seat.name] = view
        self.metrics.show_slots({seat.name: view})
        self.bells.shown.ring()
        self.ready(f"slot {seat.name}", "warming" if seat.state.value == "warming" else "ready" if seat.state.value != "out of service" else f"out of service: {detail}")
        return view

    def forget(self, seat: Seat) -> None:
        """Take a slot that has ended off the board; if its device is lost, that stays to be seen."""
        for shown in (self.board.slots, self.seats):
            shown.pop(seat.name, None)
        self.metrics.forget_slot(seat.name)
        self.health.retire(f"slot {seat.name}")
        if seat.name not in self.lost:
            self.board.ready.pop(f"slot {seat.name}", None)

    def lose(self, name: str, words: str = "") -> None:
        """The card of a slot is gone (or, with no words, here again or not missed any more)."""
        self.problem(f"slot {name}", words)
        if words:
            self.lost.add(name)
            self.ready(f"slot {name}", words)
            self.metrics.forget_slot(name, in_service=0)
        else:
            self.lost.discard(name)
            self.board.ready.pop(f"slot {name}", None)
            self.metrics.forget_slot(name)


def retry_delay(attempt: int, first: float, most: float) -> float:
    """Seconds before attempt number `attempt` (1 is the first repetition): doubled each time, up to `most`."""
    return float(min(most, first * 2 ** max(0, min(attempt, 60) - 1)))


def words_of(counts: Mapping[str, int]) -> str:
    """"3 queued, 1 running" for logs."""
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number) or "nothing stored"
