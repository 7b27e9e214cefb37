"""After a fault of ours in an evaluation: is the slot broken, and what becomes of the submission?

Only our own baseline, run on the same slot right afterwards, may condemn a slot, so a hostile submission cannot; and only a
device fault that follows a submission to a second sound slot condemns the submission (`slots.after_mishap`).
"""

from __future__ import annotations

import logging

import trio

from crusades import logs
from crusades.context import Context, Judge
from crusades.errors import CrusadesError, DeviceFault, EnvironmentFault, RefereeFault, SandboxFault
from crusades.faults import FAULTS, fault
from crusades.records import Outcome, Reason, Stage, Status, Submission, rejected
from crusades.slots import After, Memory, Mishap, Seat, after_mishap

log = logging.getLogger("crusades.mishaps")

OUR_FAULTS = (SandboxFault, RefereeFault, DeviceFault)
"""The only exceptions after which a slot is opened anew; anything else is a bug and leaves the daemon."""
FLUSH = 5.0
"""Seconds that the last write of an interrupted evaluation may take under its shield."""


class SlotDown(Exception):
    """The slot's own control run failed: it leaves service."""


class Reopen(Exception):
    """After a fault nobody could say whether the slot is sound: open its judge anew."""


def code_of(error: CrusadesError) -> int:
    """The row of the fault table for a fault of ours."""
    names = {SandboxFault: "sandbox", EnvironmentFault: "environment", RefereeFault: "referee", DeviceFault: "device"}
    return fault(next(name for kind, name in names.items() if isinstance(error, kind))).code


async def our_fault(ctx: Context, seat: Seat, judge: Judge, row: Submission, error: CrusadesError) -> None:
    """Ask the control run, write what becomes of the submission. Raises SlotDown or Reopen when the judge must go."""
    log.error("fault of ours: %s", error)
    ctx.board.progress.pop(row.id, None)
    ctx.metrics.count_fault(code_of(error))
    control: bool | None = None
    try:
        if not ctx.stopping.is_set():  # the next process asks: a slot is new there
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
        verdict = await judge.evaluate(Job(submission_id="control", source=ctx.control, commit_block=0, block=ctx.block or 0, second_round=False))
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
        await ctx.store.finish(row.id, rejected(own, rules_version=ctx.rulebook.at(row.commit_block).version), block=ctx.block)
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
