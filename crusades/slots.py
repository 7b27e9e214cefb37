"""Which submission runs on which slot: one pure function, and the small trio shell that carries its decisions out.

A slot is one device (`cuda:0`, or `cpu` where there is no card). The queue is a view of the store, so nothing here
has to survive a restart; what is remembered about a submission's faults only steers *where* it runs next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import trio

from crusades.rulebook import Rules

# ------------------------------------------------------------------------------------------------ pure decisions


class SlotState(StrEnum):
    """What a slot can do right now; the words of `records.SlotView.state`."""

    WARMING = "warming"
    IDLE = "idle"
    RUNNING = "running"
    OUT = "out of service"


@dataclass(frozen=True)
class Waiting:
    """One queued submission, as the decision sees it."""

    id: str
    commit_block: int
    uid: int | None
    requeued: bool = False
    """It was taken out of an evaluation by a fault of ours: it goes in front."""
    not_before: float = 0.0
    """Back-off after such a fault, on the clock of `now`."""
    avoid: frozenset[str] = frozenset()
    """Slots on which it met a fault: another slot in service is preferred, so that we learn whose fault it is."""
    kept_on: str = ""
    """The slot that holds finished runs of it: they count only there."""


@dataclass(frozen=True)
class Place:
    """One slot, as the decision sees it."""

    name: str
    state: SlotState


@dataclass(frozen=True)
class Start:
    """Begin this submission on this slot."""

    submission_id: str
    slot: str


@dataclass(frozen=True)
class Plan:
    """What to do now, the order of service to show, and when to look again though nothing has happened."""

    starts: tuple[Start, ...] = ()
    order: tuple[str, ...] = ()
    wake_at: float | None = None


def service_order(waiting: Waiting) -> tuple[bool, int, float, str]:
    """Re-queued first, then (commit block, uid): never the order of a map. An unknown uid comes last in its block."""
    return (not waiting.requeued, waiting.commit_block, float("inf") if waiting.uid is None else waiting.uid, waiting.id)


def decide(queue: Iterable[Waiting], slots: Iterable[Place], now: float) -> Plan:
    """Assign queued submissions to idle slots.

    Four cases for each submission, in order of service: its back-off has not ended (others pass it); the slot that keeps
    runs of it is about to be ready (it waits for that one, as after every start); an idle slot suits it (it starts there);
    only slots that it avoids are idle (it waits while another slot is in service, and takes what there is when none is).
    """
    places = sorted(slots, key=lambda place: place.name)
    idle = [place.name for place in places if place.state is SlotState.IDLE]
    warming = {place.name for place in places if place.state is SlotState.WARMING}
    in_service = {place.name for place in places if place.state is not SlotState.OUT}
    ordered = sorted(queue, key=service_order)
    starts: list[Start] = []
    for waiting in ordered:
        if waiting.not_before > now:
            continue
        if waiting.kept_on in warming and waiting.kept_on not in waiting.avoid:
            continue
        if (name := _suits(waiting, idle, in_service)) is not None:
            idle.remove(name)
            starts.append(Start(waiting.id, name))
    later = [waiting.not_before for waiting in ordered if waiting.not_before > now]
    return Plan(tuple(starts), tuple(waiting.id for waiting in ordered), min(later, default=None))


def _suits(waiting: Waiting, idle: Sequence[str], in_service: set[str]) -> str | None:
    if not idle:
        return None
    if waiting.kept_on in idle and waiting.kept_on not in waiting.avoid:
        return waiting.kept_on
    for name in idle:
        if name not in waiting.avoid:
            return name
    return idle[0] if in_service <= waiting.avoid else None


# ------------------------------------------------------------------------------------------------ after a fault of ours

INTERRUPTED = 2005
BROKE_DEVICE = 1308
DEVICE = 2003

MAX_INTERRUPTIONS = 20
"""An interruption is nobody's fault and is not counted against a submission's attempts, yet a file that kills the
daemon each time must not do so for ever."""


@dataclass(frozen=True)
class Mishap:
    """One evaluation of one submission that ended in a fault of ours."""

    slot: str
    code: int
    control_passed: bool | None = None
    """Whether our own baseline ran on the same slot right afterwards; None when that was not tried."""


class After(StrEnum):
    """What becomes of a submission after a mishap."""

    REQUEUE = "requeue"
    FAULTED = "faulted"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Judgement:
    """`after_mishap`'s answer; `delay` in seconds."""

    what: After
    delay: float = 0.0
    words: str = ""


def after_mishap(past: Sequence[Mishap], *, max_attempts: int, retry_delay: float) -> Judgement:
    """What to do with a submission whose evaluations ended as `past` says, oldest first.

    A device fault that follows the submission to a second slot while our own baseline passes on both is the
    submission's own: otherwise breaking the card would be a way to roll again. Everything else is ours: tried again
    with doubled delays, `max_attempts` times in all, then `faulted`, which is never charged to the miner.
    """
    counted = [mishap for mishap in past if mishap.code != INTERRUPTED]
    followed = {mishap.slot for mishap in counted if mishap.code == DEVICE and mishap.control_passed}
    if len(followed) >= 2:
        return Judgement(After.REJECTED, words=f"the card failed on {' and '.join(sorted(followed))}, and on each our own baseline ran right afterwards")
    if len(counted) >= max_attempts:
        return Judgement(After.FAULTED, words=f"{len(counted)} evaluations ended in a fault of ours")
    return Judgement(After.REQUEUE, delay=retry_delay * 2 ** (len(counted) - 1) if counted else 0.0)


def keeps_service(control_passed: bool | None, consecutive_faults: int, *, limit: int = 3) -> bool:
    """Whether a slot stays in service after a fault.

    Only our own baseline may condemn a slot, so a hostile submission cannot. Without a control run (its judge could
    not even be started) `limit` starts in a row decide.
    """
    if control_passed is None:
        return consecutive_faults < limit
    return control_passed


# ------------------------------------------------------------------------------------------------ the trio shell


@dataclass
class Seat:
    """The daemon's side of one slot: where its work arrives, and what it is doing."""

    name: str
    state: SlotState = SlotState.WARMING
    submission_id: str | None = None
    failures: int = 0
    """Faults in a row; a verdict ends the row."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled when the device is lost."""
    keeps_runs: bool = False
    """Whether the evaluation under way goes on with its finished runs after a restart, so that a shutdown waits for the one in it."""
    rules: Rules | None = None
    """What its judge is open with, or is to be opened with; None: the rules of today."""
    not_opened: dict[str, int] = field(default_factory=dict)
    """Rules → how often a judge could not be opened with them since it last could."""
    pending: str | None = None
    """A submission that was handed over and waits for a judge with its own rules."""
    inbox: trio.MemorySendChannel[str] = field(init=False)
    work: trio.MemoryReceiveChannel[str] = field(init=False)

    def __post_init__(self) -> None:
        # One place: `decide` gives a slot work only while it is idle, so the place is free or the slot is leaving.
        self.inbox, self.work = trio.open_memory_channel[str](1)

    def hand_over(self, submission_id: str) -> bool:
        """Give the slot its next submission. False when it went out of service in between."""
        if self.state is not SlotState.IDLE:
            return False
        self.inbox.send_nowait(submission_id)
        self.state, self.submission_id = SlotState.RUNNING, submission_id
        return True


@dataclass
class Memory:
    """What this process remembers of a queued submission beside the store."""

    mishaps: tuple[Mishap, ...] = ()
    not_before: float = 0.0
    """On trio's clock."""
    kept_on: str = ""


def waiting(rows: Iterable[tuple[str, int, int | None, int]], memory: Mapping[str, Memory]) -> list[Waiting]:
    """The queue for `decide` from store rows (id, commit block, uid, attempts)."""
    queue = []
    for id_, block, uid, attempts in rows:
        known = memory.get(id_, Memory())
        avoid = frozenset(mishap.slot for mishap in known.mishaps if mishap.slot and mishap.code != INTERRUPTED)
        queue.append(Waiting(id_, block, uid, attempts > 0, known.not_before, avoid, known.kept_on))
    return queue
