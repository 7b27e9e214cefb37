"""One slot: a device with its referee, and the sandboxes that are started for it. What is done with them is `evaluate`.

Who kills whom: the slot's context kills referee and contestant when it ends; the referee sees the channel end and reports,
and is itself killed when it does not.
"""

from __future__ import annotations

import logging
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from crusades.bench import protocol as p
from crusades.bench.card import MOST_VOIDS, Card
from crusades.bench.contestant import Contestant, Started, start_contestant
from crusades.bench.entries import with_absolute_paths
from crusades.bench.link import RefereeLink, start_referee
from crusades.errors import CrusadesError, DeviceFault, EnvironmentFault, RefereeFault, SandboxFault
from crusades.faults import fault
from crusades.hparams import HParams, Profile
from crusades.records import SlotView

log = logging.getLogger("crusades.slot")
ReportT = TypeVar("ReportT", bound=p.Frame)

NOBODY = 1 << 62
"""A commit block later than any: exams that may serve it are exams that nobody has seen."""


async def ignore(_: object) -> None:
    """For whoever wants to be told nothing."""


@dataclass(frozen=True)
class SlotConfig:
    """What a slot is."""

    name: str
    """"cpu", "cuda:0"."""
    device: str
    """"cpu" or "cuda"."""
    index: int
    profile_name: str
    hparams: HParams
    workdir: Path
    """The slot's own folder: logs of the referee, folders of contestants. Emptied at start."""
    sandboxed: bool = True
    cache_dir: Path | None = None
    keeps_warm: bool = False
    """Whether another submission is to be expected: then the next sandbox starts while the last one's anchored steps are compared."""
    on_retired: Callable[[tuple[str, ...]], Awaitable[None]] = ignore
    """Is given the seeds of exams that will never be served again: they may be published (design.md §2)."""

    @property
    def profile(self) -> Profile:
        """The workload."""
        return self.hparams.profile(self.profile_name)


class DeviceSlot:
    """One device with its referee and its contestant."""

    def __init__(self, config: SlotConfig) -> None:
        self.config, self._profile = config, config.profile
        self._referee: RefereeLink | None = None
        self._facts: p.Configured | None = None
        self._contestant: Contestant | None = None
        self._next: Started | None = None
        self._card = Card(config.index if config.device == "cuda" else None)
        self._lock = trio.Lock()
        self._state, self._detail, self._since, self._submission = "warming", "", time.time(), ""
        self._stuck: SandboxFault | RefereeFault | DeviceFault | None = None
        self.exam_seconds: list[tuple[int, float]] = []
        """(exams prepared, seconds) of every preparation, for the benchmarks."""

    def view(self) -> SlotView:
        """What the slot is doing, for people."""
        device = self._facts.device if self._facts else self.config.device
        return SlotView(name=self.config.name, device=device, state=self._state, submission_id=self._submission or None, detail=self._detail, since=self._since)

    def _say(self, state: str, detail: str = "", submission: str = "") -> None:
        self._state, self._detail, self._submission, self._since = state, detail, submission, time.time()

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Take the card, start the referee and let it load the model. Raises RefereeFault (EnvironmentFault where a person must act) or DeviceFault."""
        await trio.to_thread.run_sync(self._card.open)
        shutil.rmtree(self.config.workdir, ignore_errors=True)
        self.config.workdir.mkdir(parents=True)
        await self._start_referee()
        self._say("idle")

    async def _start_referee(self) -> None:
        self._say("warming", "loading the model")
        self._referee = start_referee(self.config.workdir, self.config.index if self.config.device == "cuda" else None)
        order = p.Configure(profile=with_absolute_paths(self._profile), profile_name=self.config.profile_name, device=self.config.device, cache_dir=str(self.config.cache_dir or ""))
        self._facts = await self._ask(order, p.Configured, 600.0)

    async def stop(self) -> None:
        """Kill everything that belongs to the slot and let go of the card. Never raises; safe to call twice."""
        try:
            with trio.CancelScope(shield=True):
                for drop in (self._drop_contestant, self._drop_next):
                    try:
                        await drop()
                    except SandboxFault as error:  # whoever ends the slot has a reason of their own; the rest must go all the same
                        log.error("slot %s: %s", self.config.name, error)
                await self._end_referee()
                self._referee = None
        finally:
            self._card.close()

    async def warm(self, *, exams: bool = True) -> None:
        """While idle: unused exams in host memory, and a sandbox with torch imported and the model built. Idempotent. Without
        `exams` where a submission waits already: it may be served exams that others had, and gets what it lacks by itself."""
        async with self._lock:
            if (stuck := self._stuck) is not None:
                self._stuck = None
                raise stuck  # the last evaluation has its verdict; whether the slot is sound is another question
            self._say("warming", "preparing exams")
            await self._ready_referee()
            if exams:
                await self._prepare("", NOBODY, self._exams_for(self._profile.runs + 1))
            if self._contestant is None or not self._contestant.alive():
                self._say("warming", "starting a sandbox")
                await self._drop_contestant()
                await self._connect()
            self._say("idle")

    # ---------------------------------------------------------------- parts

    def _exams_for(self, runs: int) -> int:
        """One for each run, and for each that may be void."""
        return runs + (MOST_VOIDS if self._card.watched else 0)

    async def _prepare(self, submission_id: str, commit_block: int, wanted: int) -> None:
        ready = await self._ask(p.PrepareExams(submission_id=submission_id, commit_block=commit_block, wanted=wanted), p.ExamsReady, 120.0 * wanted)
        if ready.prepared:
            self.exam_seconds.append((ready.prepared, ready.seconds))
        if ready.retired_seeds:
            await self.config.on_retired(ready.retired_seeds)

    def _start_contestant(self) -> Started:
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as unless_started:
            unless_started.enter_context(ours)
            started = Started(start_contestant(self.config, theirs, self._card.minor), ours)
            unless_started.pop_all()
        return started

    async def _connect(self) -> None:
        """Let the referee meet the contestant that was started ahead, or a new one."""
        if self._next is not None and not self._next.contestant.alive():
            await self._drop_next()
        started, self._next = self._next or self._start_contestant(), None
        self._contestant = started.contestant
        deadline = self.config.hparams.sandbox.start_deadline
        with started.channel:
            connected = await self._ask(p.Connect(deadline=deadline), p.Connected, 3 * deadline, fd=started.channel.fileno())
        self._contestant.met(connected)

    async def _ready_referee(self) -> None:
        if self._referee is None or not self._referee.usable():
            if self._referee is not None:
                await self._referee.kill()
            await self._drop_contestant()
            await self._start_referee()

    async def _ask(self, order: p.Order, kind: type[ReportT], deadline: float, *, fd: int | None = None) -> ReportT:
        assert self._referee is not None
        try:
            with trio.fail_after(deadline):
                report = await self._referee.ask(order, fd=fd)
        except trio.TooSlowError as error:
            await self._end_referee()
            raise RefereeFault(f"the referee did not answer {type(order).__name__} within {deadline:.0f} s") from error
        if isinstance(report, p.RefereeError):
            await self._end_referee()
            raise self._fault_of(report)
        if not isinstance(report, kind):
            await self._end_referee()
            raise RefereeFault(f"the referee answered {type(order).__name__} with {type(report).__name__}")
        return report

    async def _end_referee(self) -> None:
        """Kill it. One that does not die is no news beside the reason that it was killed for: whoever wants the next one is told."""
        if self._referee is not None:
            try:
                await self._referee.kill()
            except RefereeFault as error:
                log.error("slot %s: %s", self.config.name, error)

    def _fault_of(self, error: p.RefereeError) -> CrusadesError:
        if error.code == fault("sandbox").code:
            tail = self._contestant.output_tail()[-2000:] if self._contestant is not None else ""
            return SandboxFault(error.message + (f"; the sandbox's last words: {tail}" if tail else ""))
        kinds = {fault("device").code: DeviceFault, fault("environment").code: EnvironmentFault}
        return kinds.get(error.code, RefereeFault)(error.message)

    async def _drop_contestant(self) -> None:
        contestant, self._contestant = self._contestant, None  # also one that does not die: it is never used again
        if contestant is not None:
            await contestant.kill()

    async def _drop_next(self) -> None:
        started, self._next = self._next, None
        if started is not None:
            await started.kill()

    async def _clean_up(self) -> None:
        """Kill the contestant, let the referee clean the card. A referee that cannot is killed; the next use restarts it."""
        try:
            await self._drop_contestant()
        except SandboxFault:
            await self._end_referee()  # it may wait for the one that does not die
            raise
        if self._referee is None:
            return
        if not self._referee.usable():  # dead, or we were cancelled amid an order, exams say, that nobody waits for any more
            await self._end_referee()
            return
        with trio.move_on_after(60.0) as scope:
            try:
                await self._ask(p.Release(), p.Released, 45.0)
            except (RefereeFault, DeviceFault, SandboxFault) as error:
                self._detail = str(error)
                await self._end_referee()
        if scope.cancelled_caught:
            await self._end_referee()
