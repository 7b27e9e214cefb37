"""A state that has never sent weights waits until it has judged what was there before it came.

Otherwise a fresh validator would give everything to the first submission that happens to score, while the one that every
other validator pays is still in its queue. It waits once in the life of a state, for what was revealed and final when it
began to look, and a day at the longest: whatever is committed later, or cannot be judged, holds nothing up.
"""

from __future__ import annotations

from dataclasses import dataclass

from crusades.context import Context
from crusades.records import Status

CATCHING_UP = "catching up"
"""How the reason begins. A young state is no problem."""
MOST_BLOCKS = 7_200
"""A day. A host that is down has its own grace window, a fraction of this."""
UNJUDGED = tuple(status for status in Status if not status.final and status is not Status.SEALED)
"""A seal may stay closed for a year: it is not waited for."""


@dataclass
class CatchUp:
    """Whether the wait is over."""

    over: bool = True
    ends: int = 0
    horizon: int = 0
    """What was committed up to this block is waited for."""

    def begin(self, block: int, finalized: int) -> None:
        """At the first look of a state that has never sent weights."""
        self.over, self.ends, self.horizon = False, block + MOST_BLOCKS, finalized

    async def waits(self, ctx: Context, block: int) -> str:
        """Why weights wait, in words; empty when they need not, and from then on."""
        if self.over:
            return ""
        cursor = await ctx.store.cursor()
        what = "the chain's commitments are being read" if cursor is None or cursor < self.horizon else await self._unjudged(ctx)
        if not what or block >= self.ends:
            self.over = True
            return ""
        return f"{CATCHING_UP}: {what}; weights wait for it, until block {self.ends} at the longest (start with --accept-empty-state to send at once)"

    async def _unjudged(self, ctx: Context) -> str:
        rows = [row for row in await ctx.store.in_state(*UNJUDGED) if row.commit_block <= self.horizon and not row.provisional]
        return f"not judged yet of what was there at block {self.horizon}: {len(rows)}" if rows else ""
