"""The weight setter: what scoring says, on chain, proven by reading it back.

Inclusion is not application, and silence is how operators lose money. So: every head, our row of the weight matrix is read
and its age shown; each epoch the whole duty is rehearsed without sending; before anything is sent the store knows about it;
and afterwards the chain is read until it holds what was asked. Weights are held, loudly, on any doubt: an empty state, a
runtime that lacks something, a provisional leader. When the chain shows an update that we did not send, another process
signs with this hotkey, and the only safe thing is to stop and stay stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import trio

from crusades.chain_records import Sent
from crusades.chain_weights import OnChainWeights, WeightsPlan, arrived, quantise, shares
from crusades.context import Context
from crusades.errors import ChainError, ChainIncompatible, OutcomeUnknown
from crusades.weights_catch_up import CATCHING_UP, CatchUp
from crusades.weights_ours import Ours
from crusades.weights_proof import Proof

log = logging.getLogger("crusades.weights")

NOTHING_SCORED = "no confirmed submission has scored yet"
"""A young subnet is no problem."""
RETRY_BLOCKS = 2
"""Blocks between two attempts after one that failed."""
RANK_APART = 500
"""Scored submissions above which the ranking is made in a thread: 500 take about four milliseconds."""


# ------------------------------------------------------------------------------------------------ pure


@dataclass(frozen=True)
class Situation:
    """What the decision looks at, at one head."""

    block: int
    vector: Mapping[str, float]
    """hotkey → share, from scoring over confirmed rows; empty when there is nobody to pay."""
    why_empty: str
    on_chain_empty: bool
    on_chain_equal: bool
    """The chain holds exactly this vector already."""
    last_update: int
    pending: int
    on_its_way: bool
    """Exactly this vector is sealed and waits to be opened."""
    tempo: int
    interval: int
    never_before: int = -1
    """First block at which another attempt makes sense (rate limit, or a failed attempt)."""
    state_known: bool = True
    """False: the chain knows weights of ours and the store knows nothing: a lost disk, or the wrong folder."""
    accept_empty_state: bool = False


@dataclass(frozen=True)
class Choice:
    """Send now, or not, and why in words for the operator (empty: nothing is due)."""

    send: bool
    held: str = ""


def choose(s: Situation) -> Choice:
    """Whether to send now.

    Equal weights, and such as are sealed already, are sent again once each tempo, because a validator whose last update is
    old leaves consensus; a changed vector goes out as soon as the interval allows.
    """
    if not s.state_known and not s.accept_empty_state:
        return Choice(False, "the chain holds weights of this hotkey, and the state directory knows of none: restore it, or start once with --accept-empty-state")
    if not s.vector:
        return Choice(False, s.why_empty or NOTHING_SCORED)
    if s.block < s.never_before:
        return Choice(False)
    since = s.block - s.last_update if s.last_update else None
    due = since is None or since >= s.interval
    if not due or (s.pending and s.on_chain_empty):
        return Choice(False)
    stale = since is None or since >= s.tempo
    return Choice(stale or not (s.on_chain_equal or s.on_its_way))


# ------------------------------------------------------------------------------------------------ the task


@dataclass
class _Setter:
    """What the task remembers between heads."""

    ours: Ours = field(default_factory=Ours)
    proof: Proof = field(default_factory=Proof)
    catch_up: CatchUp = field(default_factory=CatchUp)
    never_before: int = -1
    trouble: str = ""
    """Why the last attempt failed, until the next one."""
    rehearsed_epoch: int = -1
    rehearsed_block: int | None = None
    acquainted: bool = False


async def set_weights(ctx: Context) -> None:
    """At every head: look, rehearse once each epoch, send when due, read back. Raises MustNotRestart for a doppelganger."""
    ctx.health.expect("weight setter", 900.0)
    ctx.ready("weights", "waiting for the chain")
    me = _Setter()
    while True:
        seen = ctx.bells.head.count
        if ctx.block is not None:
            await _one_head(ctx, me)
        ctx.health.progress("weight setter", f"block {ctx.block}")
        # Without heads there is nothing to decide; the wake-up only proves that this task lives.
        await ctx.bells.head.wait(seen, 300.0)


async def _one_head(ctx: Context, me: _Setter) -> None:
    try:
        held = await _look_and_act(ctx, me)
    except ChainIncompatible as error:
        held = str(error)
        ctx.metrics.weights_attempts.labels(outcome="held").inc()
    except OutcomeUnknown as error:
        log.warning("weights: %s", error)
        me.never_before = (ctx.block or 0) + RETRY_BLOCKS
        ctx.metrics.weights_attempts.labels(outcome="unknown").inc()
        held = me.trouble = f"sent, outcome unknown: {error}"
    except ChainError as error:
        log.warning("weights: %s", error)
        me.never_before = (ctx.block or 0) + RETRY_BLOCKS
        ctx.metrics.weights_attempts.labels(outcome="failed").inc()
        held = me.trouble = f"the last attempt failed: {error}"
    ctx.ready("weights")
    ctx.metrics.weights_held.set(bool(held))
    ctx.board.weights_held = held
    young = held == NOTHING_SCORED or held.startswith(CATCHING_UP)
    ctx.problem("weights", held if ctx.block and me.acquainted and not young else "")


async def _look_and_act(ctx: Context, me: _Setter) -> str:
    """One head. Returns why weights are held, or nothing."""
    held = await ctx.chain.read_weights()
    if not me.acquainted:
        await _acquaint(ctx, me, held)
    await me.ours.beware(ctx, held)
    _show(ctx, held)
    await _read_back(ctx, me, held)
    vector, why_empty = await _vector(ctx)
    plan = await ctx.chain.preflight_weights(vector) if vector else None
    await _rehearse(ctx, me, plan, held)
    if me.ours.state_known and plan is not None and (waits := await me.catch_up.waits(ctx, held.block)):
        return waits
    choice = choose(_situation(ctx, me, vector, why_empty, plan, held))
    if not choice.send or plan is None:
        return choice.held or (me.trouble if held.block < me.never_before else "")
    if plan.refused:
        me.never_before = plan.retry_block or held.block + RETRY_BLOCKS
        me.trouble = "" if plan.retry_block is not None else "; ".join(plan.refused)
        return me.trouble
    await _send(ctx, me, plan)
    me.trouble = ""
    return ""


def _situation(ctx: Context, me: _Setter, vector: Mapping[str, float], why_empty: str, plan: WeightsPlan | None, held: OnChainWeights) -> Situation:
    # What was asked for last and reached the chain is what will apply; one that was signed and never got there is not under way.
    sealed = bool(held.pending_commits) and held.last_update > (me.proof.asked_block or 0)
    asked = plan is not None and plan.by_uid == me.proof.asked
    return Situation(
        block=held.block, vector=vector, why_empty=why_empty, on_chain_empty=not held.by_uid,
        on_chain_equal=plan is not None and arrived(plan.by_uid, held.by_uid) and not (sealed and not asked), on_its_way=sealed and asked,
        last_update=held.last_update if me.proof.asked_block is not None or held.by_uid else 0, pending=held.pending_commits, tempo=held.tempo,
        interval=ctx.hparams.chain.weights_interval, never_before=me.never_before, state_known=me.ours.state_known, accept_empty_state=ctx.accept_empty_state)


async def _acquaint(ctx: Context, me: _Setter, held: OnChainWeights) -> None:
    """At the start: whose weights are on chain, and go on reading back what the last process sent."""
    await me.ours.meet(ctx, held)
    if not (me.ours.journalled or ctx.accept_empty_state):
        me.catch_up.begin(held.block, ctx.board.finalized_block or 0)
    last = await ctx.store.weights()
    if last.asked_block is not None:
        me.proof.resume(dict(zip(*quantise(sorted(last.asked.items())), strict=True)), last.asked_block, applied=last.applied_block is not None)
    me.acquainted = True


def _show(ctx: Context, held: OnChainWeights) -> None:
    if held.age_blocks is not None:
        ctx.metrics.weights_age_blocks.set(held.age_blocks)
        ctx.metrics.weights_age_tempos.set(held.age_tempos or 0.0)
    ctx.board.weights_age_tempos = held.age_tempos


async def _read_back(ctx: Context, me: _Setter, held: OnChainWeights) -> None:
    """Whether the chain holds what was asked; the first head at which it does is where it was applied."""
    if me.proof.asked_block is None:
        return
    equal, overdue = me.proof.look(held), me.proof.overdue(held)
    ctx.metrics.weights_equal.set(equal)
    ctx.metrics.weights_overdue.set(bool(overdue))
    ctx.weights_equal = True if equal else False if overdue else None  # sealed weights apply an epoch later: no alarm before
    ctx.problem("weights on chain", f"for {overdue} blocks the chain has held no vector that we asked for, though they are sent: look at /api/v1/weights and the "
                                    "log, and whether the subnet's commit-reveal settings have changed" if overdue else "")
    if equal and not me.proof.applied:
        me.proof.applied = True
        log.info("weights are applied, as read back at block %s", held.block)
    await ctx.store.record_on_chain(on_chain=shares(held.by_uid), equal=equal, block=held.block, age_blocks=held.age_blocks)


async def _vector(ctx: Context) -> tuple[dict[str, float], str]:
    """Scoring over confirmed rows, and why it pays nobody when it does."""
    from crusades.scoring import standings

    scored = [row for row in await ctx.store.scored() if not row.provisional]
    if not scored:
        return {}, NOTHING_SCORED
    owner = await ctx.chain.owner()
    rank = partial(standings, scored, ctx.hparams.scoring, await ctx.chain.neurons(), owner.uid)
    # Thousands take tens of milliseconds at every head: then in a thread, so that the event loop does not wait.
    found = await trio.to_thread.run_sync(rank) if len(scored) > RANK_APART else rank()
    return dict(found.weights), "; ".join(found.reasons)


async def _rehearse(ctx: Context, me: _Setter, plan: WeightsPlan | None, held: OnChainWeights) -> None:
    """Once each epoch: would it work now? The chart of these shows trouble before the window; so it is done on a young subnet
    too, where nobody has scored, with the same share for everybody, which no rule about the shape of a vector refuses."""
    if plan is None:
        if me.rehearsed_block is not None and held.block - me.rehearsed_block < held.tempo:
            return
        plan = await ctx.chain.preflight_weights({neuron.hotkey: 1.0 for neuron in await ctx.chain.neurons()})
    if plan.epoch.index == me.rehearsed_epoch:
        return
    me.rehearsed_epoch, me.rehearsed_block = plan.epoch.index, plan.block
    trouble = "; ".join(plan.refused) if plan.retry_block is None else ""
    if not trouble:
        try:
            await ctx.chain.rehearse(plan)
        except ChainError as error:
            trouble = str(error)
    ctx.metrics.rehearsals.labels(result="miss" if trouble else "hit").inc()
    if trouble:
        log.warning("rehearsal of epoch %s: weights would be refused: %s", plan.epoch.index, trouble)


async def _send(ctx: Context, me: _Setter, plan: WeightsPlan) -> None:
    async def signed(sent: Sent) -> None:
        await me.ours.signed(ctx, plan, sent)
        me.proof.ask(plan.by_uid, plan.block)

    with trio.fail_after(ctx.hparams.chain.weights_deadline * 2 + 60.0):  # the adapter has its own deadline; this one catches a bug
        outcome = await ctx.chain.set_weights(plan, signed=signed)
    me.ours.included(outcome.block)
    ctx.metrics.weights_attempts.labels(outcome="included").inc()
    log.info("weights are in block %s%s", outcome.block, ", sealed" if outcome.sealed else "")
