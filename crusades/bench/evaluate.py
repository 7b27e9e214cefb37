"""One evaluation from the daemon's side: a slot owns a referee, gives it contestants, and turns reports into a verdict.

Who kills whom: the slot's context kills referee and contestant when it ends; cancelling an evaluation kills the
contestant's PID namespace; the referee sees the channel end and reports, and is itself killed when it does not.
A submission's failure is a `Verdict`; ours is a `SandboxFault`, `RefereeFault` or `DeviceFault`.
"""

from __future__ import annotations

import logging
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from crusades import nvml
from crusades.bench import credit, mfu
from crusades.bench import protocol as p
from crusades.bench.card import MOST_VOIDS, Card, settle
from crusades.bench.contestant import Contestant, Started, start_contestant
from crusades.bench.link import RefereeLink, start_referee
from crusades.errors import CrusadesError, DeviceFault, RefereeFault, SandboxFault
from crusades.faults import fault
from crusades.hparams import HParams, Profile
from crusades.records import Outcome, Reason, Run, SlotView, Source, Verdict, rejected

log = logging.getLogger("crusades.evaluate")
ReportT = TypeVar("ReportT", bound=p.Frame)

NOBODY = 1 << 62
"""A commit block later than any: exams that may serve it are exams that nobody has seen."""


async def _ignore(_: object) -> None:
    return


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
    on_retired: Callable[[tuple[str, ...]], Awaitable[None]] = _ignore
    """Is given the seeds of exams that will never be served again: they may be published (design.md §2)."""

    @property
    def profile(self) -> Profile:
        """The workload."""
        return self.hparams.profile(self.profile_name)


@dataclass(frozen=True)
class Job:
    """One submission to be evaluated."""

    submission_id: str
    source: Source
    commit_block: int
    block: int
    """The chain's head now: an exam's first use."""
    skip_rules: bool = False
    finished_runs: tuple[Run, ...] = ()
    """Scored runs of an interrupted evaluation on this slot: not repeated."""
    on_run: Callable[[Run], Awaitable[None]] = _ignore
    on_progress: Callable[[str], None] = field(default=lambda words: None)


class Slot:
    """One device with its referee. `evaluate` one job at a time; `warm` when idle. Not to be used after its context."""

    def __init__(self, config: SlotConfig) -> None:
        self.config, self._profile = config, config.profile
        self._referee: RefereeLink | None = None
        self._facts: p.Configured | None = None
        self._contestant: Contestant | None = None
        self._next: Started | None = None
        self._card = Card(config.index if config.device == "cuda" else None)
        self._lock = trio.Lock()
        self._state, self._detail, self._since, self._submission = "warming", "", time.time(), ""
        self._stuck: SandboxFault | None = None
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
        """Take the card, start the referee and let it load the model. Raises RefereeFault, DeviceFault or ConfigError."""
        await trio.to_thread.run_sync(self._card.open)
        shutil.rmtree(self.config.workdir, ignore_errors=True)
        self.config.workdir.mkdir(parents=True)
        await self._start_referee()
        self._say("idle")

    async def _start_referee(self) -> None:
        self._say("warming", "loading the model")
        self._referee = start_referee(self.config.workdir, self.config.index if self.config.device == "cuda" else None)
        order = p.Configure(profile=self._profile, profile_name=self.config.profile_name, device=self.config.device, cache_dir=str(self.config.cache_dir or ""))
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

    # ---------------------------------------------------------------- an evaluation

    async def evaluate(self, job: Job) -> Verdict:
        """Judge one submission. Raises our faults; whatever happens, the contestant is dead when this returns, or `warm` says that it is not."""
        async with self._lock:
            self._say("running", "starting", job.submission_id)
            verdict = None
            try:
                verdict = await self._evaluate(job)
            finally:
                with trio.CancelScope(shield=True):
                    try:
                        await self._clean_up()
                    except SandboxFault as error:
                        if verdict is None:
                            raise
                        # What was found stands: else who dies slowly has made a verdict that he did not like our fault.
                        log.error("slot %s: %s", self.config.name, error)
                        self._stuck = error
                self._say("idle")
            return verdict

    async def _evaluate(self, job: Job) -> Verdict:
        await self._ready_referee()
        planned = self._profile.runs + 1 - len(job.finished_runs)
        job.on_progress("preparing exams")
        await self._prepare(job.submission_id, job.commit_block, self._exams_for(planned))
        job.on_progress("starting the sandbox")
        if self._contestant is None or not self._contestant.alive():
            await self._drop_contestant()
            await self._connect()
        assert self._contestant is not None
        path = self._contestant.put(job.source.content)
        rules: dict[str, object] = {}
        if not job.skip_rules:
            from crusades.rules import hook_table

            rules = hook_table()
        job.on_progress("loading")
        order = p.LoadSubmission(path=path, rules=rules, submission_id=job.submission_id, commit_block=job.commit_block, runs=planned)
        loaded = await self._ask(order, p.SubmissionLoaded, 2 * self._profile.deadlines.load + 30)
        if loaded.reason:
            return await self._verdict(job, [], loaded.reason, gone=loaded.contestant_gone)
        return await self._runs(job)

    async def _runs(self, job: Job) -> Verdict:
        runs: list[Run] = []
        done, made, voids = len(job.finished_runs), 0, 0
        index = 0  # of this process: 0 warms up
        while index < self._profile.runs + 1 - done:
            words = f"run {done + index} of {self._profile.runs}" if index else "warm-up"
            job.on_progress(words)
            self._say("running", words, job.submission_id)
            # The contestant counts what it does itself, so that nothing tells it that runs of it were kept or repeated.
            ran, made = await self._one_run(job, made, index and index + done, repeats=bool(runs and runs[-1].void)), made + 1
            if ran.run:
                runs.append(ran.run)
                if not ran.reason:  # else it is no run to go on with, and the verdict has it
                    await job.on_run(ran.run)
            if ran.reason:
                return await self._verdict(job, [*job.finished_runs, *runs], ran.reason, gone=ran.contestant_gone)
            if ran.run and ran.run.void:
                voids += 1
                job.on_progress(f"{words} is void: {ran.run.void}")
                if voids > MOST_VOIDS:
                    raise DeviceFault(f"{voids} runs of one evaluation were void; the last: {ran.run.void}")
                continue
            index += 1
        runs, reason = await self._compare_anchors(job, runs)
        return await self._verdict(job, runs, reason)

    async def _compare_anchors(self, job: Job, runs: list[Run]) -> tuple[list[Run], Reason | None]:
        """The contestant has done its part: end it, and have one step of some runs compared at its own weights. Returns all runs
        of the evaluation, with what their time is worth then."""
        if not self._profile.audit.anchored_runs:
            return [*job.finished_runs, *runs], None
        assert self._contestant is not None
        job.on_progress("comparing anchored steps")
        await self._contestant.kill()
        if self.config.keeps_warm and self._next is None:
            try:
                self._next = self._start_contestant()  # what it imports takes seconds, and no clock is running now
            except (SandboxFault, OSError) as error:  # no reason to lose this one's runs; `_connect` will try again, and say
                log.warning("slot %s: the next sandbox could not be started ahead: %s", self.config.name, error)
        compared = await self._ask(p.CompareAnchors(), p.AnchorsCompared, 60.0 + 120.0 * self._profile.audit.anchored_runs)
        audits = {found.place: found.audit for found in compared.runs}
        runs = [msgspec.structs.replace(run, audit=audits.get(place, run.audit)) for place, run in enumerate(runs)]
        anchored = {len(job.finished_runs) + found.place: found.step for found in compared.runs}
        runs = credit.credited([*job.finished_runs, *runs], anchored, self._profile.audit.anchor_tolerance)
        return runs, next((found.reason for found in compared.runs if found.reason), None)

    async def _one_run(self, job: Job, place: int, number: int, *, repeats: bool) -> p.Ran:
        """Run `number` of the evaluation, which is at `place` among those of this contestant."""
        assert self._referee is not None
        assert self._contestant is not None
        order = p.DoRun(index=place, scored=place > 0, submission_id=job.submission_id, commit_block=job.commit_block, block=job.block, repeats=repeats)
        with self._card.window(frozenset({self._referee.pid, self._contestant.pid})) as seen:
            ran = await self._ask(order, p.Ran, self._run_deadline(place))
            if ran.reason and self._card.watched:
                await trio.sleep(nvml.LATE)  # a failure is told sooner than the driver's word on whose it was
        ran = msgspec.structs.replace(ran, run=ran.run and msgspec.structs.replace(ran.run, index=number))
        return settle(ran, seen.blame, seen.telemetry)

    def _run_deadline(self, index: int) -> float:
        limits = self._profile.deadlines
        return (limits.run if index else limits.warmup) + 2 * limits.result + 120.0

    async def _verdict(self, job: Job, runs: list[Run], reason: Reason | None, *, gone: bool = False) -> Verdict:
        contestant, facts = self._contestant, self._facts
        assert contestant is not None
        assert facts is not None
        if reason and gone:
            reason = await contestant.explain_exit(reason)
        notes = (*(("rules were not applied: judged by the audit alone",) if job.skip_rules else ()), *contestant.notes, *credit.words(runs))
        extra: dict[str, Any] = {
            "runs": tuple(runs), "device": facts.device, "peak_tflops": facts.peak_tflops, "peak_source": facts.peak_source, "model": facts.model,
            "profile": self.config.profile_name, "rules_version": self.config.hparams.rules_version(self.config.profile_name),
            "environment": {**facts.versions, **contestant.versions, "driver": self._card.driver,
                            **{f"limit.{k}": v for k, v in contestant.limits.items()}, "source_sha256": job.source.sha256},
            "output_tail": contestant.output_tail(), "notes": notes,
        }  # fmt: skip
        if reason:
            return rejected(reason, **extra)
        score = mfu.score([r.mfu for r in runs if r.scored and not r.void])
        return Verdict(verdict=Outcome.ACCEPTED, message="accepted", score_mfu=score, **extra)

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
        return DeviceFault(error.message) if error.code == fault("device").code else RefereeFault(error.message)

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


@asynccontextmanager
async def open_slot(config: SlotConfig) -> AsyncIterator[Slot]:
    """A started slot; everything it owns is dead when the context ends."""
    slot = Slot(config)
    try:
        await slot.start()
        yield slot
    finally:
        await slot.stop()
