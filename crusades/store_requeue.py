"""`crusades store requeue`: a person takes a faulted submission back into the queue, once what was wrong with us is mended.

By the store's own transition, so that history, queue and events agree, and under its lock: the daemon must be stopped.
"""

from __future__ import annotations

from pathlib import Path

import trio

from crusades import hparams
from crusades.asyncio_bridge import open_bridge
from crusades.errors import CrusadesError, StoreError
from crusades.faults import fault
from crusades.records import Reason, Stage, Status
from crusades.store import open_store
from crusades.store_schema import DATABASE


def run_requeue(state_dir: Path, id_: str) -> None:
    """Queue a faulted submission in front, with its count of faults at 0. StateLocked while a validator runs, StoreError for a
    submission that is not there, not faulted, or that faulted before the rules were checked. Not from within trio."""
    if not (state_dir / DATABASE).is_file():
        raise StoreError(f"there is no database {state_dir / DATABASE}; name the state directory with --state-dir")
    try:
        trio.run(_requeue, state_dir, id_)
    except* CrusadesError as group:  # from the nurseries of bridge and store
        raise _first(group) from None


async def _requeue(state_dir: Path, id_: str) -> None:
    async with open_bridge() as bridge, open_store(state_dir, bridge, hparams.Store()) as store:
        found = await store.submission(id_)
        if found is None:
            raise StoreError(f"there is no submission {id_} in {state_dir}")
        status = found.submission.status
        if status is not Status.FAULTED:
            raise StoreError(f"submission {id_} is {status.value}; only a faulted one is queued again")
        if not _checked([step.status for step in found.transitions]):  # the queue would judge it without the rules
            raise StoreError(f"submission {id_} faulted before the rules were checked, so it cannot be queued: its miner has to submit it again")
        why = Reason(code=fault("interrupted").code, stage=Stage.RUN, message="queued again by hand, after a fault of ours")
        await store.requeue(id_, why)


def _checked(history: list[Status]) -> bool:
    """Since it was revealed for the last time: a fork may have brought other content."""
    since = len(history) - history[::-1].index(Status.REVEALED) if Status.REVEALED in history else 0
    return Status.CHECKED in history[since:]


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
