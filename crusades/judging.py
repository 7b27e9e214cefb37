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
from typing import Any

import trio

from crusades import logs
from crusades.context import Context, Judge, retry_delay
from crusades.errors import ConfigError, CrusadesError, StoreError
from crusades.faults import fault
from crusades.intake import settle_copies
from crusades.mishaps import FLUSH, OUR_FAULTS, Reopen, SlotDown, code_of, control_run, our_fault, settle_mishap
from crusades.records import Outcome, Reason, Run, Source, Stage, Status, Submission, Verdict
from crusades.rulebook import FACT, Rules, decode
from crusades.slots import (
    INTERRUPTED,
    MAX_INTERRUPTIONS,
    Memory,
    Mishap,
    Place,
    Seat,
    SlotState,
    decide,
    keeps_service,
    waiting,
)

log = logging.getLogger("crusades.judging")

OPEN_ATTEMPTS = 3
"""Faults of ours, one after the other, after which rules of another time count as not to be had."""
FIRST_REOPEN, MOST_REOPEN = 5.0, 300.0
"""Seconds before a slot is opened again after a fault: doubled from the first to the most."""
IDLE = math.inf
"""An idle slot owes no progress; the scheduler does."""

# ------------------------------------------------------------------------------------------------ after a start


async def recover(ctx: Context) -> None:
    """Before anything else runs: what the last process was evaluating is back in front of the queue, its runs kept."""
    ctx.rulebook.editions = decode(await ctx.store.fact(FACT))
    for id_ in await ctx.store.recover():
        detail = await ctx.store.submission(id_)
        codes = [step.reason.code for step in detail.transitions if step.reason is not None] if detail else []
        if codes.count(INTERRUPTED) > MAX_INTERRUPTIONS:
            why = Reason(code=INTERRUPTED, stage=Stage.RUN, message=f"The validator stopped {codes.count(INTERRUPTED)} times during the evaluation; it is not tried again.")
            await ctx.store.transition(id_, Status.FAULTED, block=ctx.block, reason=why)
            continue
        log.info("submission %s was interrupted; it goes on", id_)
    for id_, slot in (await ctx.store.kept_on()).items():
        ctx.memory[id_] = Memory(kept_on=slot)
    ctx.ready("store")


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


async def serve_slot(ctx: Context, seat: Seat, config: Any) -> None:
    """One slot for as long as its device exists: open the judge, work, open it again after a fault or for other rules."""
    name = f"slot {seat.name}"
    warming = 900.0 + ctx.hparams.profile(ctx.profile_name).deadlines.warmup
    with seat.scope:
        while not ctx.stopping.is_set():
            ctx.health.progress(name, "warming", deadline=warming)
            rules, opened, trial = rules_of(ctx, seat), False, False
            try:
                async with ctx.open_slot(replace(config, profile_name=rules.profile, hparams=rules.hparams)) as judge:
                    opened = True
                    seat.not_opened.pop(rules.version, None)
                    await _work(ctx, seat, judge)
                    continue
            except (ConfigError, *OUR_FAULTS) as error:
                if seat.rules is not None and not opened and _give_up(seat, rules, error):
                    ctx.rulebook.refuse(rules.version, str(error))
                    seat.rules = None
                    continue
                if isinstance(error, ConfigError):
                    raise
                trial = seat.rules is not None and not opened  # of rules of another time: it says nothing about the slot
                ctx.metrics.count_fault(code_of(error))
                why, passed = str(error), None
            except Reopen as error:
                why, passed = str(error), None
            except SlotDown as error:
                why, passed = str(error), False
            seat.failures += not trial
            _after_failure(ctx, seat, why, in_service=keeps_service(passed, seat.failures))
            delay = retry_delay(max(1, seat.failures), FIRST_REOPEN, MOST_REOPEN)
            ctx.health.progress(name, why, deadline=delay + 60.0)
            with trio.move_on_after(delay):
                await ctx.stopping.wait()
    ctx.forget(seat)


def _give_up(seat: Seat, rules: Rules, error: CrusadesError) -> bool:
    """Whether rules of another time cannot be had here. Once is no proof when it was a fault of ours: after one the judge is opened
    with those of today, and only if that goes well is it tried again."""
    seat.not_opened[rules.version] = seat.not_opened.get(rules.version, 0) + 1
    return isinstance(error, ConfigError) or seat.not_opened[rules.version] >= OPEN_ATTEMPTS


def rules_of(ctx: Context, seat: Seat) -> Rules:
    """What a slot's judge is open with."""
    return seat.rules or ctx.rulebook.current


def _after_failure(ctx: Context, seat: Seat, why: str, *, in_service: bool) -> None:
    log.error("slot %s: %s", seat.name, why)
    seat.state, seat.submission_id = SlotState.WARMING if in_service else SlotState.OUT, None
    seat.rules = seat.pending = None
    ctx.show(seat, detail=why[:300])
    ctx.problem(f"slot {seat.name}", "" if in_service else f"out of service: {why[:300]}")
    ctx.bells.queue.ring()


async def _work(ctx: Context, seat: Seat, judge: Judge) -> None:
    """Until we stop, or the next submission needs a judge with other rules. Raises our faults, Reopen, and SlotDown when
    the control run fails."""
    if seat.failures and await control_run(ctx, seat, judge) is False:
        raise SlotDown("our own baseline fails here")
    while not ctx.stopping.is_set():
        submission_id, seat.pending = seat.pending or await _next(ctx, seat, judge), None
        detail = await ctx.store.submission(submission_id)
        if detail is None or detail.submission.status is not Status.QUEUED:
            continue  # withdrawn between the decision and now
        row = detail.submission
        wanted = ctx.rulebook.at(row.commit_block)
        if wanted.version != rules_of(ctx, seat).version:
            log.info("slot %s: submission %s was committed under rules %s; opening a judge for them", seat.name, row.id, wanted.version)
            seat.pending, seat.rules = row.id, None if wanted is ctx.rulebook.current else wanted
            return
        with logs.bound(submission=row.id, hotkey=row.hotkey, block=ctx.block):
            await _evaluate(ctx, seat, judge, row)
        if seat.rules is not None and not await _more_under(ctx, seat.rules):
            seat.rules = None
            return


async def _next(ctx: Context, seat: Seat, judge: Judge) -> str:
    """Warm up, stand idle, take what the scheduler gives."""
    seat.state, seat.submission_id = SlotState.WARMING, None
    ctx.show(seat, device=judge.view().device, detail="preparing")
    await judge.warm(exams=not await ctx.store.in_state(Status.QUEUED))
    ctx.problem(f"slot {seat.name}")
    seat.state = SlotState.IDLE
    ctx.show(seat, device=judge.view().device)
    ctx.health.progress(f"slot {seat.name}", "idle", deadline=IDLE)
    ctx.bells.queue.ring()
    return await seat.work.receive()


async def _more_under(ctx: Context, rules: Rules) -> bool:
    """Whether more of the queue was committed under these rules, so that the judge need not be opened anew."""
    return any(ctx.rulebook.version_at(row.commit_block) == rules.version for row in await ctx.store.in_state(Status.QUEUED))


# ------------------------------------------------------------------------------------------------ one evaluation


async def _evaluate(ctx: Context, seat: Seat, judge: Judge, row: Submission) -> None:
    source = await ctx.store.source(row.id)
    if source is None:
        await ctx.store.transition(row.id, Status.REVEALED, block=ctx.block, note="its source is missing from the store")
        ctx.bells.revealed.ring()
        return
    try:
        await _attempt(ctx, seat, judge, row, source)
    except trio.Cancelled:  # wherever it was: also between the verdict and its writing
        await _interrupted(ctx, seat, row)
        raise
    finally:
        seat.keeps_runs = False


async def _attempt(ctx: Context, seat: Seat, judge: Judge, row: Submission, source: Source) -> None:
    begun, rules = ctx.now(), rules_of(ctx, seat)
    # Where steps are anchored nothing is kept: the anchors have died with the attempt, and its runs would never be compared with them.
    # Nor where today's rules stand for those of then: the runs were made and judged by others.
    same = ctx.rulebook.version_at(row.commit_block) == rules.version
    seat.keeps_runs = same and not rules.hparams.profile(rules.profile).audit.anchored_runs
    kept = await ctx.store.begin_attempt(row.id, slot=seat.name, block=ctx.block, keep_runs=seat.keeps_runs)
    if kept is None:
        return  # the chain withdrew it meanwhile
    # Run 0 warms up in every attempt: its point is the state of this process and this card.
    finished = tuple(run for run in kept if run.scored and not run.void and run.audit.passed)
    with trio.CancelScope() as scope:
        try:
            verdict = await judge.evaluate(_job(ctx, seat, row, source, finished, scope))
        except OUR_FAULTS as error:
            await our_fault(ctx, seat, judge, row, error)
            return
    if scope.cancelled_caught:  # asked to stop after the run that was under way
        await _interrupted(ctx, seat, row)
        return
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
    rules = rules_of(ctx, seat)
    profile = rules.hparams.profile(rules.profile)
    ctx.board.progress[submission_id] = words
    seat.submission_id = submission_id
    ctx.show(seat, detail=words)
    # The judge has a deadline for every step; ours only catches a judge that does not keep them.
    ctx.health.progress(f"slot {seat.name}", f"{submission_id} {words}", deadline=profile.deadlines.warmup + 2 * profile.deadlines.result + 300.0 + 130.0 * (profile.runs + 3))


async def _interrupted(ctx: Context, seat: Seat, row: Submission) -> None:
    """We are stopping, or the device is gone: back in front of the queue, bounded, so that a stuck disk cannot hold us up."""
    ctx.board.progress.pop(row.id, None)
    with trio.move_on_after(FLUSH, shield=True), suppress(StoreError):  # a full disk: the next start finds it RUNNING and does the same
        detail = await ctx.store.submission(row.id)
        if detail is None or detail.submission.status is not Status.RUNNING:
            return  # what becomes of it has been written
        ctx.memory[row.id] = replace(ctx.memory.get(row.id, Memory()), kept_on=seat.name)
        words = ("The validator stopped during the evaluation; it goes on after the restart." if ctx.stopping.is_set()
                 else f"The device of slot {seat.name} was lost during the evaluation; it goes on as soon as there is a slot.")
        why = Reason(code=fault("interrupted").code, stage=Stage.RUN, message=words, hint=fault("interrupted").advice)
        await ctx.store.requeue(row.id, why, block=ctx.block)


async def _judged(ctx: Context, seat: Seat, judge: Judge, row: Submission, source: Source, verdict: Verdict, seconds: float) -> None:
    ctx.board.progress.pop(row.id, None)
    ctx.metrics.evaluation_seconds.observe(seconds)
    ctx.metrics.evaluations.labels(outcome=verdict.verdict.value).inc()
    if verdict.rounds > 1:
        ctx.metrics.second_rounds.inc()
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
