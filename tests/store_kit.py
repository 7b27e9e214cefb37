"""What the store's tests share: records in a line each, and a store on a real file."""

import hashlib
from contextlib import asynccontextmanager

from crusades import hparams
from crusades.asyncio_bridge import open_bridge
from crusades.faults import fault
from crusades.records import Audit, Commitment, Outcome, Payload, Reason, Run, Source, Stage, Statistic, Status, Verdict, rejected
from crusades.store import open_store

SETTINGS = hparams.Store()


@asynccontextmanager
async def opened(state_dir, settings=SETTINGS):
    """A store with a bridge of its own."""
    async with open_bridge() as bridge, open_store(state_dir, bridge, settings) as store:
        yield store


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def reason(name="audit", stage=Stage.AUDIT, message="half of the work was left out", **more):
    return Reason(code=fault(name).code, stage=stage, message=message, **more)


def sealed(hotkey="5A", block=10, *, uid=1, final=True, **more):
    return Commitment(netuid=7, hotkey=hotkey, uid=uid, commit_block=block, reveal_round=block + 1000, provisional=not final, **more)


def revealed(hotkey="5A", block=10, *, reveal=None, uid=1, final=True, text="the program", exact=True, receipt=None, **more):
    payload = Payload(sha256=sha(text), url=f"https://files.example/{sha(text)[:6]}.py", receipt=receipt)
    return Commitment(netuid=7, hotkey=hotkey, uid=uid, commit_block=block, commit_block_exact=exact, reveal_block=block + 20 if reveal is None else reveal,
                      state=Status.REVEALED, payload=payload, raw=f"c1:{payload.sha256}:{payload.url}", provisional=not final, **more)


def refused(hotkey="5A", block=10, *, name="payload-malformed", final=True, reveal=None, uid=1, **more):
    return Commitment(netuid=7, hotkey=hotkey, uid=uid, commit_block=block, reveal_block=reveal, state=Status.REJECTED, provisional=not final,
                      reason=reason(name, Stage.CHAIN, f"it is {name}"), **more)


def source(text="the program"):
    return Source(sha256=sha(text), content=text.encode(), url="https://files.example/x.py", fetched_at=5.0)


def run(index=0, mfu=40.0, **more):
    audit = Audit(worst="gradient_error", words="the gradient of step 5", statistics=(Statistic(name="gradient_error", value=0.1, limit=0.5),))
    return Run(index=index, scored=index > 0, seconds=1.0, claimed_seconds=1.0, read_seconds=0.0, mfu=mfu, tokens_per_second=9.0, final_loss=2.0, audit=audit, **more)


def accepted(mfu=40.0, runs=()):
    return Verdict(verdict=Outcome.ACCEPTED, score_mfu=mfu, runs=tuple(runs), device="a card", rules_version="1+abc")


def cheat(**more):
    return rejected(reason(), rules_version="1+abc", **more)


async def record(store, *rows, head=100, finalized=90):
    return await store.record_commitments(list(rows), head, finalized)


async def statuses(store):
    """status by id, of everything."""
    return {row.id: row.status for row in (await store.submissions(limit=500)).items}


async def at_stage(store, status, commitment=None, **scored):
    """Bring a (new) submission to a stage by legal steps; returns its id."""
    commitment = commitment or revealed()
    await record(store, commitment)
    id_ = commitment.submission_id
    if status is Status.REVEALED:
        return id_
    await store.save_source(id_, source())
    for step in (Status.FETCHED, Status.CHECKED, Status.QUEUED):
        await store.transition(id_, step, block=1)
        if step is status:
            return id_
    await store.begin_attempt(id_, slot="cpu")
    if status is Status.SCORED:
        await store.finish(id_, accepted(**scored))
    elif status is Status.REJECTED:
        await store.finish(id_, cheat())
    elif status is Status.FAULTED:
        await store.transition(id_, Status.FAULTED, reason=reason("sandbox", Stage.RUN))
    return id_
