"""The chain poller: every head becomes rows in the store. It is the only task that reads commitments.

A read that fails changes nothing: the cursor in the store moves in the same transaction as the rows, so the next look
reads again what this one missed.
"""

from __future__ import annotations

import logging

import msgspec
import trio

from crusades.chain_records import Head
from crusades.context import Context
from crusades.errors import ChainError, ConfigError
from crusades.records import Commitment, Neuron, Status
from crusades.rulebook import FACT

log = logging.getLogger("crusades.poller")

HEAD_DEADLINE = 300.0
"""Seconds without any look at the head and without any known trouble after which the poller counts as hung."""
NEURON_BLOCKS = 10
"""How often the neuron list is read for our own registration: it changes at registrations and epochs."""


async def poll_chain(ctx: Context, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Follow the heads for ever. Outages are waited out in the chain adapter; `chain.problem` says why."""
    ctx.health.expect("chain poller", HEAD_DEADLINE)
    ctx.ready("chain", "waiting for the first head")
    task_status.started()
    ctx.chain.learn(await ctx.store.commitments())
    await _first_contact(ctx)
    last_neurons, done = -NEURON_BLOCKS, None
    async for head in ctx.chain.heads():
        ctx.health.progress("chain poller", f"block {head.best}")  # a chain that stands still is no hang: a restart would not help
        if head == done:
            ctx.problem("chain", ctx.chain.problem)
            continue
        if ctx.block is None:
            await _note_rules(ctx, head.best)
        _note_head(ctx, head)
        try:
            if head.best - last_neurons >= NEURON_BLOCKS or ctx.board.uid is None:
                _note_neurons(ctx, await ctx.chain.neurons(head.best_hash))
                ctx.board.owner_uid = (await ctx.chain.owner(head.best_hash)).uid
                last_neurons = head.best
            await _read_commitments(ctx, head)
        except ChainError as error:
            log.warning("block %s could not be read, the next look repeats it: %s", head.best, error)
            ctx.metrics.reads.labels(result="failed").inc()
            ctx.metrics.count_fault(3002)
            ctx.problem("chain", f"block {head.best} could not be read: {error}")
            continue
        done = head
        ctx.metrics.reads.labels(result="read").inc()
        ctx.read_at = ctx.now()
        ctx.problem("chain", ctx.chain.problem)
        ctx.ready("chain")


async def _first_contact(ctx: Context) -> None:
    """Which chain is this, and is it the one that the state directory belongs to? Raises ConfigError or StoreError if not."""
    while True:
        try:
            facts = await ctx.chain.check()
            break
        except ChainError as error:
            log.warning("the chain does not answer yet: %s", error)
            ctx.problem("chain", str(error))
            ctx.health.progress("chain poller", "first contact")
            await trio.sleep(ctx.hparams.chain.poll_interval)
    if not facts.subnet_exists:
        raise ConfigError(f"subnet {ctx.netuid} does not exist on {facts.network}: check --netuid")
    await ctx.store.identify(genesis=facts.genesis, netuid=ctx.netuid)
    ctx.problem("chain")


async def _note_rules(ctx: Context, block: int) -> None:
    """At the first head of this process: are the rules that it was started with new?"""
    if ctx.rulebook.note(block):
        await ctx.store.set_fact(FACT, [msgspec.to_builtins(edition) for edition in ctx.rulebook.editions])
        newest = ctx.rulebook.editions[-1]
        log.info("rules %s are in force for what is committed from block %s on", newest.version, newest.from_block)


def _note_head(ctx: Context, head: Head) -> None:
    best, finalized = head.best, head.finalized
    if (best, finalized) != (ctx.board.block, ctx.board.finalized_block):
        ctx.metrics.happened("chain_head_age_seconds")
    ctx.board.block, ctx.board.finalized_block = best, finalized
    ctx.metrics.head_block.set(best)
    ctx.metrics.finalized_block.set(finalized)
    ctx.bells.head.ring()


def _note_neurons(ctx: Context, neurons: list[Neuron]) -> None:
    ctx.board.neurons = tuple(neurons)
    me = next((neuron for neuron in neurons if neuron.hotkey == ctx.hotkey), None)
    ctx.board.uid = me.uid if me else None
    ctx.metrics.registered.set(me is not None)
    ctx.metrics.permit.set(me is not None and me.validator_permit)
    ctx.metrics.stake.set(me.stake if me else 0.0)
    missing = f"hotkey {ctx.hotkey} is not registered on subnet {ctx.netuid}"
    ctx.ready("registration", "ready" if me else missing)
    ctx.problem("registration", "" if me else f"{missing}, so no weights can be set: register it from another machine, with the coldkey "
                                              f"(`btcli subnet register --netuid {ctx.netuid}`), or start with another --wallet.hotkey")


def _told(row: Commitment) -> tuple[str, bool, Status]:
    return row.submission_id, row.commit_block_exact, row.state


async def _read_commitments(ctx: Context, head: Head) -> None:
    """Confirmed rows as of the finalised block, and newer ones as of the best head, in one transaction."""
    finalized, best = head.finalized_hash, head.best_hash
    newer = await ctx.chain.commitments(best) if best != finalized else []
    # Last: a seal that ended is told once, and would be lost with the rest when another read failed after it.
    rows = await ctx.chain.commitments(finalized, final=True)
    confirmed = {_told(row) for row in rows}
    rows = [*rows, *(row for row in newer if _told(row) not in confirmed)]
    recorded = await ctx.store.record_commitments(rows, head=head.best, finalized=head.finalized)
    for id_ in recorded.revealed:
        log.info("submission %s is revealed", id_)
    ctx.bells.revealed.ring()
    ctx.bells.fetched.ring()  # a fork may have moved a row back to any stage
    ctx.bells.queue.ring()
    ctx.bells.shown.ring()
