"""One evaluation from the daemon's side: a slot gives its referee a contestant, and turns reports into a verdict.

Cancelling an evaluation kills the contestant's PID namespace. A submission's failure is a `Verdict`; ours is a
`SandboxFault`, `RefereeFault` or `DeviceFault`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from crusades import nvml
from crusades.bench import credit, mfu
from crusades.bench import protocol as p
from crusades.bench.card import MOST_VOIDS, settle
from crusades.bench.slot import DeviceSlot, SlotConfig, ignore
from crusades.errors import DeviceFault, RefereeFault, SandboxFault
from crusades.records import Outcome, Reason, Run, Source, Verdict, rejected

log = logging.getLogger("crusades.evaluate")


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
    second_round: bool = True
    """Whether uneven runs are made once more; a control run only asks whether it is accepted."""
    on_run: Callable[[Run], Awaitable[None]] = ignore
    on_progress: Callable[[str], None] = field(default=lambda words: None)


@dataclass(frozen=True)
class _Made:
    """What came of a round: all its runs so far, and why there are no more, if it ended early."""

    runs: list[Run]
    reason: Reason | None = None
    gone: bool = False
    """Whether the contestant had ended by itself then."""


def _counted(runs: Sequence[Run]) -> list[float]:
    """MFU, in percent, of the runs that make the score."""
    return [run.mfu for run in runs if run.scored and not run.void]


class Slot(DeviceSlot):
    """`evaluate` one job at a time; `warm` when idle. Not to be used after its context."""

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
        """One round, and a second where the first one's runs are uneven: something kept the card waiting, and nobody can see what. The
        score is the median of all runs, never of the better round."""
        kept = tuple(run for run in job.finished_runs if run.index <= self._profile.runs)  # what was made of a second round is made anew
        made = await self._round(job, kept)
        verdict = await self._verdict(job, made)
        gap = 0.0 if made.reason else mfu.unevenness(_counted(made.runs))
        if not (job.second_round and gap > self._profile.uneven > 0):
            return verdict
        note = f"the fastest run was {gap:.1%} faster than the median of {len(_counted(made.runs))} (at most {self._profile.uneven:.1%}): "
        log.warning("slot %s: %s: %sjudged once more", self.config.name, job.submission_id, note)
        job.on_progress(f"{note}judging once more")
        try:
            await self._clean_up()
            again = await self._round(job, (), first=self._profile.runs + 1)
        except (SandboxFault, RefereeFault, DeviceFault) as error:  # ours, and no reason to throw a verdict away
            log.error("slot %s: no second round: %s", self.config.name, error)
            self._stuck = error
            return msgspec.structs.replace(verdict, notes=(*verdict.notes, f"{note}it was to be judged once more, and our fault prevented that"))
        return await self._verdict(job, _Made([*made.runs, *again.runs], again.reason, again.gone), f"{note}judged once more, the score is the median of all")

    async def _round(self, job: Job, kept: tuple[Run, ...], first: int = 0) -> _Made:
        """Load the submission into a contestant of its own and make the warm-up and all runs but those `kept`; they are numbered from `first`."""
        await self._ready_referee()
        planned = self._profile.runs + 1 - len(kept)
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
            return _Made([*kept], loaded.reason, loaded.contestant_gone)
        return await self._runs(job, kept, first)

    async def _runs(self, job: Job, kept: tuple[Run, ...], first: int) -> _Made:
        runs: list[Run] = []
        done, made, voids = len(kept), 0, 0
        index = 0  # of this process: 0 warms up
        while index < self._profile.runs + 1 - done:
            words = (f"run {done + index} of {self._profile.runs}" if index else "warm-up") + (", once more" if first else "")
            job.on_progress(words)
            self._say("running", words, job.submission_id)
            # The contestant counts what it does itself, so that nothing tells it that runs of it were kept or repeated.
            ran, made = await self._one_run(job, made, first + (index and index + done), repeats=bool(runs and runs[-1].void)), made + 1
            if ran.run:
                runs.append(ran.run)
                if not ran.reason:  # else it is no run to go on with, and the verdict has it
                    await job.on_run(ran.run)
            if ran.reason:
                return _Made([*kept, *runs], ran.reason, ran.contestant_gone)
            if ran.run and ran.run.void:
                voids += 1
                job.on_progress(f"{words} is void: {ran.run.void}")
                if voids > MOST_VOIDS:
                    raise DeviceFault(f"{voids} runs of one round were void; the last: {ran.run.void}")
                continue
            index += 1
        return await self._compare_anchors(job, kept, runs)

    async def _compare_anchors(self, job: Job, kept: tuple[Run, ...], runs: list[Run]) -> _Made:
        """The contestant has done its part: end it, and have one step of some runs compared at its own weights. What is made has all
        runs, with what their time is worth then."""
        if not self._profile.audit.anchored_runs:
            return _Made([*kept, *runs])
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
        anchored = {len(kept) + found.place: found.step for found in compared.runs}
        runs = credit.credited([*kept, *runs], anchored, self._profile.audit.anchor_tolerance)
        return _Made(runs, next((found.reason for found in compared.runs if found.reason), None))

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

    async def _verdict(self, job: Job, made: _Made, *notes: str) -> Verdict:
        contestant, facts, reason = self._contestant, self._facts, made.reason
        assert contestant is not None
        assert facts is not None
        if reason and made.gone:
            reason = await contestant.explain_exit(reason)
        notes = (*(("rules were not applied: judged by the audit alone",) if job.skip_rules else ()), *notes, *contestant.notes, *credit.words(made.runs))
        extra: dict[str, Any] = {
            "runs": tuple(made.runs), "device": facts.device, "peak_tflops": facts.peak_tflops, "peak_source": facts.peak_source, "model": facts.model,
            "profile": self.config.profile_name, "rules_version": self.config.hparams.rules_version(self.config.profile_name),
            "environment": {**facts.versions, **contestant.versions, "driver": self._card.driver,
                            **{f"limit.{k}": v for k, v in contestant.limits.items()}, "source_sha256": job.source.sha256},
            "output_tail": contestant.output_tail(), "notes": notes,
        }  # fmt: skip
        if reason:
            return rejected(reason, **extra)
        score = mfu.score(_counted(made.runs))
        return Verdict(verdict=Outcome.ACCEPTED, message="accepted", score_mfu=score, **extra)


@asynccontextmanager
async def open_slot(config: SlotConfig) -> AsyncIterator[Slot]:
    """A started slot; everything it owns is dead when the context ends."""
    slot = Slot(config)
    try:
        await slot.start()
        yield slot
    finally:
        await slot.stop()
