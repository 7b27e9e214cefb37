"""From the queue to a verdict: the scheduler, and one task per slot.

The slot task owns its judge: it opens it, warms it, hands it one job at a time, and opens it anew after a fault of ours.
QUEUED → RUNNING is written before the judge sees the submission, each run when it has ended, and the verdict in one
transaction; so whatever kills us, the store says what has to be done again, and only that is.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import replace

import trio

from crusades import logs
from crusades.context import Context, Judge, retry_delay
from crusades.errors import CrusadesError, DeviceFault, RefereeFault, SandboxFault, StoreError
from crusades.faults import FAULTS, fault
from crusades.intake import settle_copies
from crusades.records import Outcome, Reason, Run, Source, Stage, Status, Submission, Verdict, rejected
from crusades.slots import (
    INTERRUPTED,
    MAX_INTERRUPTIONS,
    After,
    Memory,
    Mishap,
    Place,
    Seat,
    SlotState,
    after_mishap,
    decide,
    keeps_service,
    waiting,
)

log = logging.getLogger("crusades.judging")

OUR_FAULTS = (SandboxFault, RefereeFault, DeviceFault)
"""The only exceptions after which a slot is opened anew; anything else is a bug and leaves the daemon."""
FIRST_REOPEN, MOST_REOPEN = 5.0, 300.0
"""Seconds before a slot is opened again after a fault: doubled from the first to the most."""
IDLE = math.inf
"""An idle slot owes no progress; the scheduler does."""
FLUSH = 5.0
"""Seconds that the last write of an interrupted evaluation may take under its shield."""

# ------------------------------------------------------------------------------------------------ after a start


async def recover(ctx: Context) -> None:
    """Before anything else runs: what the last process was evaluating is back in front of the queue, its runs kept."""
    for id_ in await ctx.store.recover():
        detail = await ctx.store.submission(id_)
        codes = [step.reason.code for step in detail.transitions if step.reason is not None] if detail else []
        if codes.count(INTERRUPTED) > MAX_INTERRUPTIONS:
            why = Reason(code=INTERRUPTED, stage=Stage.RUN, message=f"The validator stopped {codes.count(INTERRUPTED)} times during the evaluation; it is not tried again.")
            await ctx.store.transition(id_, Status.FAULTED, block=ctx.block, reason=why)
            continue
        log.info("submission %s was interrupted; it goes on", id_)


# ------------------------------------------------------------------------------------------------ the scheduler


async def schedule(ctx: Context) -> None:
    """Give idle slots the next submissions; looks when something is queued, a slot becomes idle, or a back-off ends."""
    ctx.health.expect("scheduler", 120.0)
    while True:
        seen = ctx.bells.queue.count
        ctx.health.progress("scheduler", "looking")
        taken = {seat.submission_id for seat in ctx.seats.values()}
        rows = [row for row in await ctx.store.in_state(Status.QUEUED) if row.id not in taken]
        queue = waiting(((row.id, row.commit_block, row.uid, row.attempts) for row in rows), ctx.memory)
        plan = decide(queue, [Place(seat.name, seat.state) for seat in ctx.seats.values()], trio.current_time())
        for start in plan.starts:
            ctx.seats[start.slot].hand_over(start.submission_id)
        oldest = min((row.updated_at for row in rows), default=ctx.now())
        ctx.metrics.queue_oldest.set(max(0.0, ctx.now() - oldest))
        # A minute at most, to show that this task lives. Back-offs run on trio's clock: a step of the wall clock changes nothing.
        await ctx.bells.queue.wait(seen, 60.0 if plan.wake_at is None else min(60.0, max(0.1, plan.wake_at - trio.current_time())))


# ------------------------------------------------------------------------------------------------ one slot


class SlotDown(Exception):
    """The slot's own control run failed: it leaves service."""


class Reopen(Exception):
    """After a fault nobody could say whether the slot is sound: open its judge anew."""


async def serve_slot(ctx: Context, seat: Seat, config: object) -> None:
    """One slot for as long as its device exists: open the judge, work, open it again after a fault."""
    name = f"slot {seat.name}"
    warming = 900.0 + ctx.hparams.profile(ctx.profile_name).deadlines.warmup
    with seat.scope:
        while not ctx.stopping.is_set():
            ctx.health.progress(name, "warming", deadline=warming)
            try:
                async with ctx.open_slot(config) as judge:
                    await _work(ctx, seat, judge)
                    continue
            except OUR_FAULTS as error:
                ctx.metrics.count_fault(code_of(error))
                why, passed = str(error), None
            except Reopen as error:
                why, passed = str(error), None
            except SlotDown as error:
                why, passed = str(error), False
            seat.failures += 1
            _after_failure(ctx, seat, why, in_service=keeps_service(passed, seat.failures))
            delay = retry_delay(seat.failures, FIRST_REOPEN, MOST_REOPEN)
            ctx.health.progress(name, why, deadline=delay + 60.0)
            await trio.sleep(delay)
    ctx.forget(seat)


def _after_failure(ctx: Context, seat: Seat, why: str, *, in_service: bool) -> None:
    log.error("slot %s: %s", seat.name, why)
    seat.state, seat.submission_id = SlotState.WARMING if in_service else SlotState.OUT, None
    ctx.show(seat, detail=why[:300])
    ctx.problem(f"slot {seat.name}", "" if in_service else f"out of service: {why[:300]}")
    ctx.bells.queue.ring()


async def _work(ctx: Context, seat: Seat, judge: Judge) -> None:
    """Until we stop. Raises our faults, Reopen, and SlotDown when the control run fails."""
    if seat.failures and await control_run(ctx, seat, judge) is False:
        raise SlotDown("our own baseline fails here")
    while not ctx.stopping.is_set():
        seat.state, seat.submission_id = SlotState.WARMING, None
        ctx.show(seat, device=judge.view().device, detail="preparing")
        await judge.warm()
        ctx.problem(f"slot {seat.name}")
        seat.state = SlotState.IDLE
        ctx.show(seat, device=judge.view().device)
        ctx.health.progress(f"slot {seat.name}", "idle", deadline=IDLE)
        ctx.bells.queue.ring()
        submission_id = await seat.work.receive()
        detail = await ctx.store.submission(submission_id)
        if detail is None or detail.submission.status is not Status.QUEUED:
            continue  # withdrawn between the decision and now
        with logs.bound(submission=submission_id, hotkey=detail.submission.hotkey, block=ctx.block):
            await _evaluate(ctx, seat, judge, detail.submission)


# ------------------------------------------------------------------------------------------------ one evaluation


async def _evaluate(ctx: Context, seat: Seat, judge: Judge, row: Submission) -> None:
    source = await ctx.store.source(row.id)
    if source is None:
        await ctx.store.transition(row.id, Status.REVEALED, block=ctx.block, note="its source is missing from the store")
        ctx.bells.revealed.ring()
        return
    begun = ctx.now()
    kept = await ctx.store.begin_attempt(row.id, slot=seat.name, block=ctx.block)
    if kept is None:
        return  # the chain withdrew it meanwhile
    # Run 0 warms up in every attempt: its point is the state of this process and this card.
    finished = tuple(run for run in kept if run.scored and not run.void)
    with trio.CancelScope() as scope:
        try:
            verdict = await judge.evaluate(_job(ctx, seat, row, source, finished, scope))
        except OUR_FAULTS as error:
            await _our_fault(ctx, seat, judge, row, error)
            return
        except trio.Cancelled:
            await _interrupted(ctx, seat, row)
            raise
    if scope.cancelled_caught:
        return  # asked to stop after the run that was under way; `_interrupted` has written it
    await _judged(ctx, seat, judge, row, source, verdict, ctx.now() - begun)


def _job(ctx: Context, seat: Seat, row: Submission, source: Source, finished: tuple[Run, ...], scope: trio.CancelScope) -> object:
    from crusades.bench.evaluate import Job

    async def on_run(run: Run) -> None:
        kept = await ctx.store.add_run(row.id, run)
        if ctx.stopping.is_set() or not kept:  # staged shutdown: this run is safe, the next one is for the next process
            scope.cancel()  # not kept: the chain withdrew the submission, nobody needs the rest

    return Job(submission_id=row.id, source=source, commit_block=row.commit_block, block=ctx.block or row.commit_block, finished_runs=finished,
               on_run=on_run, on_progress=lambda words: _progress(ctx, seat, row.id, words))


def _progress(ctx: Context, seat: Seat, submission_id: str, words: str) -> None:
    profile = ctx.hparams.profile(ctx.profile_name)
    ctx.board.progress[submission_id] = words
    seat.submission_id = submission_id
    ctx.show(seat, detail=words)
    # The judge has a deadline for every step; ours only catches a judge that does not keep them.
    ctx.health.progress(f"slot {seat.name}", f"{submission_id} {words}", deadline=profile.deadlines.warmup + 2 * profile.deadlines.result + 300.0 + 130.0 * (profile.runs + 3))


async def _interrupted(ctx: Context, seat: Seat, row: Submission) -> None:
    """We are stopping: back in front of the queue, bounded, so that a stuck disk cannot hold the shutdown."""
    ctx.board.progress.pop(row.id, None)
    with trio.move_on_after(FLUSH, shield=True):
        ctx.memory[row.id] = replace(ctx.memory.get(row.id, Memory()), kept_on=seat.name)
        why = Reason(code=fault("interrupted").code, stage=Stage.RUN, message="The validator stopped during the evaluation; it goes on after the restart.")
        with suppress(StoreError):  # a full disk: the next start finds it RUNNING and does the same
            await ctx.store.requeue(row.id, why, block=ctx.block)


async def _judged(ctx: Context, seat: Seat, judge: Judge, row: Submission, source: Source, verdict: Verdict, seconds: float) -> None:
    ctx.board.progress.pop(row.id, None)
    ctx.metrics.evaluation_seconds.observe(seconds)
    ctx.metrics.evaluations.labels(outcome=verdict.verdict.value).inc()
    if verdict.code:
        ctx.metrics.count_fault(verdict.code)
    if verdict.verdict is Outcome.FAULT:
        reason = verdict.reason
        assert reason is not None
        control = await control_run(ctx, seat, judge)
        await settle_mishap(ctx, row, Mishap(seat.name, reason.code, control), reason.message)
        if control is False:
            raise SlotDown("our own baseline fails here")
        return
    if not await ctx.store.finish(row.id, verdict, block=ctx.block):
        log.info("withdrawn by the chain while it was judged")
    elif verdict.verdict is Outcome.ACCEPTED:
        await settle_copies(ctx, row, source)  # an earlier commit may have been revealed while this one ran
    ctx.memory.pop(row.id, None)
    seat.failures = 0
    log.info("%s: %s", verdict.verdict.value, f"{verdict.score_mfu:.3f} % MFU" if verdict.score_mfu is not None else verdict.message)
    ctx.bells.head.ring()  # the weight setter may have a new leader to think about


# ------------------------------------------------------------------------------------------------ faults of ours


def code_of(error: CrusadesError) -> int:
    """The row of the fault table for a fault of ours."""
    names = {SandboxFault: "sandbox", RefereeFault: "referee", DeviceFault: "device"}
    return fault(next(name for kind, name in names.items() if isinstance(error, kind))).code


async def _our_fault(ctx: Context, seat: Seat, judge: Judge, row: Submission, error: CrusadesError) -> None:
    log.error("fault of ours: %s", error)
    ctx.board.progress.pop(row.id, None)
    ctx.metrics.count_fault(code_of(error))
    control: bool | None = None
    try:
        with logs.bound(stage="control"):
            control = await control_run(ctx, seat, judge)
    finally:
        with trio.move_on_after(FLUSH, shield=True):
            await settle_mishap(ctx, row, Mishap(seat.name, code_of(error), control), str(error))
    if control is False:
        raise SlotDown(f"our own baseline fails here after: {error}")
    if control is None:
        raise Reopen(str(error))


async def control_run(ctx: Context, seat: Seat, judge: Judge) -> bool | None:
    """Whether our own baseline is accepted on this slot now. None when there is no baseline or no judge to ask."""
    if ctx.control is None:
        return None
    from crusades.bench.evaluate import Job

    seat.submission_id = None
    ctx.show(seat, detail="control run")
    ctx.health.progress(f"slot {seat.name}", "control run", deadline=3600.0)
    try:
        verdict = await judge.evaluate(Job(submission_id="control", source=ctx.control, commit_block=0, block=ctx.block or 0))
    except OUR_FAULTS as error:
        log.warning("the control run could not be made: %s", error)
        return False
    log.info("control run: %s", verdict.verdict.value)
    return verdict.verdict is Outcome.ACCEPTED


async def settle_mishap(ctx: Context, row: Submission, mishap: Mishap, message: str) -> None:
    """Write what becomes of a submission after a fault of ours: again, faulted, or (design.md §2.2) its own failure."""
    known = ctx.memory.get(row.id, Memory())
    mishaps = (*known.mishaps, mishap)
    settings = ctx.hparams.daemon
    judged = after_mishap(mishaps, max_attempts=settings.max_attempts, retry_delay=settings.retry_delay)
    if judged.what is After.REJECTED:
        log.warning("rejected: %s", judged.words)
        own = Reason(code=fault("broke-device").code, stage=Stage.RUN, message=f"{message} ({judged.words})", hint=fault("broke-device").advice)
        await ctx.store.finish(row.id, rejected(own, rules_version=ctx.board.rules_version), block=ctx.block)
        ctx.memory.pop(row.id, None)
        return
    reason = Reason(code=mishap.code, stage=Stage.RUN, message=message, hint=FAULTS[mishap.code].advice)
    # The store counts attempts, so a restart does not grant new ones; this process adds where and when to try again.
    status = await ctx.store.requeue(row.id, reason, block=ctx.block, max_attempts=settings.max_attempts)
    if status is not Status.QUEUED:
        log.warning("%s: %s", status.value if status else "withdrawn", message)
        ctx.memory.pop(row.id, None)
        return
    ctx.memory[row.id] = Memory(mishaps, trio.current_time() + judged.delay, "")
    ctx.bells.queue.ring()
