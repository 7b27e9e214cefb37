"""Which updates of our weights are ours, and what follows from one that is not.

The store journals where an extrinsic of ours may be before it leaves. When the chain shows an update anywhere else, either
another process signs with this hotkey, or this state is older than the process that sent it (a restored backup). The chain
cannot tell the two apart, so a person has to: the daemon ends, and `--accept-foreign-weights` takes that one update for ours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from crusades.chain_records import Failed, Pruned, Sent
from crusades.chain_weights import OnChainWeights, WeightsPlan, Window, arrived, foreign_update, quantise, shares
from crusades.context import Context
from crusades.errors import ChainError, MustNotRestart

log = logging.getLogger("crusades.weights")

GIVE_UP = 256
"""Blocks after which nobody looks any more where an extrinsic was: so long an ordinary node keeps states."""
SEALED_BEFORE = 256
"""Vectors of ours among which one that the chain opened is looked for; more than it keeps sealed on any but the slowest subnet."""


@dataclass
class _UnderWay:
    """An extrinsic of which the final place is not known yet."""

    sent: Sent
    settled_from: int
    """The block whose finality makes it worth to look where it is."""


@dataclass
class Ours:
    """What is known of our own updates. Between two heads."""

    windows: list[Window] = field(default_factory=list)
    """Where extrinsics of ours may be: everything that the store journalled, and what was there when we came."""
    under_way: list[_UnderWay] = field(default_factory=list)
    """Oldest first; more than one where finality lags behind."""
    state_known: bool = True
    """False: the chain knows weights of ours and the store knows nothing: a lost disk, or the wrong folder."""
    journalled: bool = False
    """This state has sent weights, or was told to take an update for its own."""

    async def meet(self, ctx: Context, held: OnChainWeights) -> None:
        """At the start: what the store says we sent, and what the chain says somebody sent. MustNotRestart when they differ."""
        journal = await ctx.store.weights_journal()
        self.journalled = bool(journal)
        self.windows = [Window(first, last) for first, last in journal]
        if (registered := await _registered_at(ctx)) is not None:
            self.windows.append(Window(registered, registered))
        if not foreign_update(held.last_update, self.windows):
            return
        if journal and await self._opened(ctx, held):
            return
        if journal and not ctx.accept_foreign_weights:
            raise MustNotRestart(f"weights of hotkey {ctx.hotkey} were set in block {held.last_update}, and this state knows nothing of it: it is a restored "
                                 "backup, or a second process signs with the same hotkey. Stop the second one if there is one; then start this one once "
                                 "with --accept-foreign-weights.")
        self.state_known = bool(journal) or ctx.accept_empty_state
        # Whoever set these did it before we came; from here on every other update is foreign.
        self.windows.append(Window(held.last_update, held.last_update))
        log.warning("the chain knows weights of ours from block %s, the store does not%s", held.last_update, "; accepted as told" if self.state_known else ": held")
        if self.state_known:  # kept, so that the next start needs no flag
            await ctx.store.record_weights(asked=shares(held.by_uid), block=held.last_update, first=held.last_update, last=held.last_update)
            self.journalled = True

    async def beware(self, ctx: Context, held: OnChainWeights) -> None:
        """At each head. Raises MustNotRestart for an update that nobody here sent."""
        await self._narrow(ctx)
        if not foreign_update(held.last_update, self.windows):
            return
        if await _registered_at(ctx) == held.last_update:  # our hotkey was registered anew while we ran
            self.windows.append(Window(held.last_update, held.last_update))
            return
        if not await self._opened(ctx, held):
            raise _another(ctx, held.last_update)

    async def _opened(self, ctx: Context, held: OnChainWeights) -> bool:
        """Whether the chain itself moved LastUpdate: it opened sealed weights of ours after commit-reveal was switched off. Journalled,
        so that the next start knows it too."""
        if not await _opened_by_chain(ctx, held.last_update):
            return False
        known = [dict(zip(*quantise(sorted(view.asked.items())), strict=True)) for view in await ctx.store.weights_history(SEALED_BEFORE)]
        if not any(arrived(asked, held.by_uid) for asked in known):
            return False  # sealed by another process, or by one whose state this is too old to know
        await ctx.store.record_weights(asked=shares(held.by_uid), block=held.last_update, first=held.last_update, last=held.last_update)
        self.windows.append(Window(held.last_update, held.last_update))
        log.warning("the chain opened sealed weights of ours in block %s, with commit-reveal switched off", held.last_update)
        return True

    async def signed(self, ctx: Context, plan: WeightsPlan, sent: Sent) -> None:
        """Journal an extrinsic that is signed and not sent yet: a crash between the two must not look like a second process."""
        await ctx.store.record_weights(asked=shares(plan.by_uid), block=plan.block, first=sent.first, last=sent.last)
        self.windows.append(Window(sent.first, sent.last))
        self.under_way.append(_UnderWay(sent, settled_from=sent.last))
        self.journalled = True

    def included(self, block: int) -> None:
        """The newest was seen in this block, which may not be final yet."""
        self.under_way[-1].settled_from = block

    async def _narrow(self, ctx: Context) -> None:
        """Once it is final where our weights are, only that block is ours, so that another process that sent within the same
        window is noticed. Asked of the chain and not taken from LastUpdate, which the other one may have moved."""
        final = ctx.board.finalized_block or 0
        for one in [u for u in self.under_way if u.settled_from <= final]:
            try:
                await self._place(ctx, one.sent)
            except Pruned:
                pass  # too late to look: the window stays as wide as it was
            except ChainError as error:
                log.debug("where the weights are is looked up again at the next head: %s", error)
                if final < one.sent.last + GIVE_UP:
                    continue
            self.under_way.remove(one)

    async def _place(self, ctx: Context, sent: Sent) -> None:
        """Where `sent` is for good, and whether somebody else's update came after our last look and before it, or with it: LastUpdate
        does not show that any more."""
        try:
            found = await ctx.chain.resolve(sent, final=True)
        except Failed:
            found = None  # it is there and had no effect
        around = await ctx.chain.weights_around(found) if found else None
        self.windows.remove(Window(sent.first, sent.last))  # one of them: two that were signed under the same finalised head are equal
        if found is None or around is None:
            return
        # A window that is left may be of a process before this one, whose update was still under way when we came.
        if around.together > 1 and foreign_update(found.block, self.windows):
            raise _another(ctx, found.block)
        if foreign_update(around.before, self.windows) and around.before != await _registered_at(ctx) and not await _opened_by_chain(ctx, around.before):
            raise _another(ctx, around.before)
        self.windows.append(Window(found.block, found.block))


def _another(ctx: Context, block: int) -> MustNotRestart:
    return MustNotRestart(f"weights of hotkey {ctx.hotkey} were set in block {block}, and not by this process: another validator signs with "
                          "the same hotkey. Nothing more is sent. Stop the other one, then start this one once with --accept-foreign-weights.")


async def _registered_at(ctx: Context) -> int | None:
    """Registration sets LastUpdate too, and is no second process."""
    return next((neuron.registered_block for neuron in await ctx.chain.neurons() if neuron.hotkey == ctx.hotkey), None)


async def _opened_by_chain(ctx: Context, block: int) -> bool:
    try:
        return bool(await ctx.chain.opened_weights(block))
    except Pruned:
        return False  # nobody can tell any more: a person has to
