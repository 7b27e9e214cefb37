"""What each write of the store does, inside its transaction. `store.Store` has the contracts; `store_life` the legal steps."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from crusades import store_reads
from crusades.errors import StoreError
from crusades.faults import fault
from crusades.fees import spends
from crusades.records import Outcome, Payload, Reason, Run, Source, Stage, Status, Submission, Verdict, WeightsView
from crusades.store_life import CHAINS_OWN, DEVICE, INTERRUPTED
from crusades.store_tx import Row, Tx, Withdrawn, encode, fetch_rows, pack, submission_of

log = logging.getLogger("crusades.store")

# ------------------------------------------------------------------------------------------------ the life of a submission


def _same_life(row: Row, *where: Status) -> Row:
    """The row, where whoever works on it has left it. Raises Withdrawn when another branch of the chain has made it start over
    meanwhile, with other content: what was found out about the old content is not to be written."""
    if row.status not in where and row.status in (Status.REVEALED, Status.FETCHED, Status.CHECKED, Status.QUEUED):
        log.info("submission %s has started over, as %s; what was found out about it before is dropped", row.id, row.status)
        raise Withdrawn
    return row


async def transition(tx: Tx, *, id_: str, status: Status, block: int | None, reason: Reason | None, note: str, was: Status | None = None) -> bool:
    """One step that needs nothing else; with `was`, from there only."""
    if status in (Status.RUNNING, Status.SCORED):
        raise StoreError(f"{status} is reached by {'begin_attempt' if status is Status.RUNNING else 'finish'}, not by a plain transition")
    row = await tx.live(id_)
    await tx.move(row if was is None else _same_life(row, was), status, block=block, reason=reason, note=note)
    if status.final:
        await _free_receipts(tx, id_)
    return True


async def save_source(tx: Tx, *, id_: str, source: Source, rules_version: str, asked: Payload | None) -> bool:
    """The file once, that this submission names it, and the rules in force at its commit."""
    await tx.live(id_)
    if asked is not None and await store_reads.payload(tx.db, id_) not in (None, asked):
        log.info("submission %s has started over; the download was of what another branch of the chain held", id_)
        raise Withdrawn
    await tx.all("INSERT OR IGNORE INTO files VALUES (?, ?)", source.sha256, zlib.compress(source.content, 6))
    await tx.all("INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?)", id_, source.sha256, source.url, source.fetched_at)
    await tx.update(id_, sha256=source.sha256, rules_version=rules_version)
    return True


async def same_program(tx: Tx, *, id_: str, sha256: str, fingerprint: str) -> list[Submission]:
    """Note the fingerprint, find the others."""
    me = await tx.live(id_)
    if me.fingerprint != fingerprint:
        await tx.all("UPDATE submissions SET fingerprint = ? WHERE id = ?", fingerprint, id_)
    rows = await fetch_rows(tx.db, "((sha256 = ? AND sha256 != '') OR (fingerprint = ? AND fingerprint != '')) AND id != ? "
                                   "AND id IN (SELECT submission FROM sources) ORDER BY commit_block, n", (sha256, fingerprint, id_))
    return [submission_of(row) for row in rows if not row.withdrawn and not (row.hotkey == me.hotkey and _may_try_again(row))]


def _may_try_again(row: Row) -> bool:
    """Whether the miner of a submission may send the same program once more: it was not judged, for no reason that lies in it."""
    return row.status == Status.FAULTED or (row.status == Status.REJECTED and row.reason_code in CHAINS_OWN)


async def begin_attempt(tx: Tx, *, id_: str, slot: str, block: int | None, keep_runs: bool) -> tuple[Run, ...]:
    """Runs are kept on the slot that made them, if at all; otherwise the evaluation starts anew."""
    row = await tx.live(id_)
    evaluation = row.evaluation + (row.attempts == 0 or row.slot != slot or not keep_runs)
    await tx.move(row, Status.RUNNING, block=block, note=f"on {slot}" if slot else "",
                  columns={"attempts": row.attempts + 1, "slot": slot, "evaluation": evaluation})
    return await store_reads.made_runs(tx.db, id_)


async def add_run(tx: Tx, *, id_: str, run: Run) -> bool:
    """One run of the evaluation under way."""
    row = _same_life(await tx.live(id_), Status.RUNNING)
    if row.status != Status.RUNNING:
        raise StoreError(f"submission {id_} is {row.status}; runs belong to one that is running")
    await tx.all("INSERT INTO runs (submission, evaluation, run) VALUES (?, ?, ?)", id_, row.evaluation, pack(run))
    tx.emit("run", id_, run)
    return True


async def finish(tx: Tx, *, id_: str, verdict: Verdict, block: int | None) -> bool:
    """The verdict; the receipt is spent when the submission was run, and free again when it was not."""
    accepted = verdict.verdict is Outcome.ACCEPTED
    if verdict.verdict is Outcome.FAULT:
        raise StoreError(f"submission {id_}: a fault of ours is no verdict; requeue it")
    if accepted and not (verdict.score_mfu is not None and math.isfinite(verdict.score_mfu) and verdict.score_mfu > 0):
        raise StoreError(f"submission {id_}: an accepted verdict needs a score above zero, not {verdict.score_mfu}")
    row = _same_life(await tx.live(id_), Status.RUNNING)
    if row.status != Status.RUNNING:
        raise StoreError(f"submission {id_} is {row.status}; only one that is running can get a verdict")
    await tx.move(row, Status.SCORED if accepted else Status.REJECTED, block=block, reason=verdict.reason,
                  columns={"score_mfu": verdict.score_mfu if accepted else None, "rules_version": verdict.rules_version or row.rules_version, "device": verdict.device})
    await tx.all("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", id_, tx.at, pack(verdict))
    if verdict.runs:  # the verdict carries them from here on
        await tx.all("DELETE FROM runs WHERE submission = ? AND evaluation = ?", id_, row.evaluation)
    if spends(verdict.verdict, verdict.stage):
        await tx.all("UPDATE receipts SET spent = 1 WHERE submission = ?", id_)
    else:
        await _free_receipts(tx, id_)
    return True


async def requeue(tx: Tx, *, id_: str, reason: Reason, block: int | None, max_attempts: int | None) -> Status:
    """Back in front of the queue, or faulted after so many."""
    if reason.code // 1000 != 2:
        raise StoreError(f"submission {id_} is requeued for faults of ours only, not for code {reason.code}")
    row = await tx.live(id_)
    if row.status not in (Status.RUNNING, Status.FAULTED):
        raise StoreError(f"submission {id_} is {row.status}; only one that is running or faulted goes back into the queue")
    by_hand = row.status == Status.FAULTED
    faults = 0 if by_hand else row.faults + (reason.code != INTERRUPTED)
    status = Status.FAULTED if max_attempts is not None and not by_hand and faults >= max_attempts else Status.QUEUED
    # What a failing card has measured does not count.
    evaluation = row.evaluation + (reason.code == DEVICE)
    await tx.move(row, status, block=block, reason=reason, columns={"faults": faults, "evaluation": evaluation})
    if status is Status.FAULTED:
        await _free_receipts(tx, id_)
    return status


async def recover(tx: Tx) -> list[str]:
    """Whatever was running when the last process ended."""
    why = Reason(code=INTERRUPTED, stage=Stage.RUN, message="The validator stopped during the evaluation; it goes on now.", hint=fault("interrupted").advice)
    rows = await fetch_rows(tx.db, "status = 'running' ORDER BY commit_block, n")
    for row in rows:
        await tx.move(row, Status.QUEUED, block=None, reason=why)
    return [row.id for row in rows]


async def claim_receipt(tx: Tx, *, id_: str, receipt: str) -> str | None:
    """The holder, unless that is now this submission."""
    await tx.live(id_)
    holder = await store_reads.receipt_holder(tx.db, receipt)
    if holder is None:
        await tx.all("INSERT INTO receipts VALUES (?, ?, 0)", receipt, id_)
    return None if holder in (None, id_) else holder


async def _free_receipts(tx: Tx, id_: str) -> None:
    await tx.all("DELETE FROM receipts WHERE submission = ? AND NOT spent", id_)


# ------------------------------------------------------------------------------------------------ weights, facts, events


async def record_weights(tx: Tx, *, asked: Mapping[int, float], block: int, first: int, last: int) -> None:
    """A new row of the journal; whether it was applied is not known yet."""
    old = await store_reads.weights(tx.db)
    view = WeightsView(asked=dict(asked), on_chain=old.on_chain, asked_at=tx.at, asked_block=block)
    await tx.all("INSERT INTO weights (first, last, view) VALUES (?, ?, ?)", first, last, encode(view))
    tx.emit("weights", None, view)


def read_back(old: WeightsView, on_chain: Mapping[int, float], equal: bool | None, block: int) -> WeightsView:
    """`old` with what was read; the first block at which it was equal is where it was applied."""
    applied = old.applied_block if old.applied_block is not None or not equal else block
    return msgspec.structs.replace(old, on_chain=dict(on_chain), equal=equal, applied_block=applied)


async def record_on_chain(tx: Tx, *, on_chain: Mapping[int, float], equal: bool | None, block: int) -> None:
    """Complete the newest row of the journal."""
    view = read_back(await store_reads.weights(tx.db), on_chain, equal, block)
    await tx.all("UPDATE weights SET view = ? WHERE n = (SELECT max(n) FROM weights)", encode(view))
    tx.emit("weights", None, view)


async def identify(tx: Tx, *, facts: Mapping[str, Any], state_dir: Path) -> None:
    """Note the identity, or compare it."""
    known = await store_reads.fact(tx.db, "identity")
    if known is None:
        await tx.set_fact("identity", facts)
    elif known != facts:
        wrong = ", ".join(f"{name} {known.get(name)} (here: {facts.get(name)})" for name in sorted({*known, *facts}) if known.get(name) != facts.get(name))
        raise StoreError(f"the state in {state_dir} belongs to {wrong}: start with another --state-dir")


async def emit(tx: Tx, *, kind: str, data: Any, submission_id: str | None) -> None:
    """An event of the caller's."""
    tx.emit(kind, submission_id, data)
