"""Whether what we ask for reaches the chain: "sent" and "in a block" are not "applied". Pure.

Sealed weights apply an epoch or more after they are sent, and meanwhile newer ones are asked for. So the question is never how
old the newest request is: each attempt would make that young again. It is for how long nothing that we asked for has arrived.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crusades.chain_weights import OnChainWeights, arrived


@dataclass
class Proof:
    """What was asked, and since when the chain holds nothing of it."""

    asked: dict[int, int] = field(default_factory=dict)
    """The last vector sent, by uid."""
    asked_block: int | None = None
    applied: bool = False
    unmet_since: int | None = None
    """Since this block no vector that we asked for has come to be on chain; None while the newest one is."""
    _older: list[dict[int, int]] = field(default_factory=list)
    """Asked for since the newest was last on chain: that one of these arrives is a sign of life too."""
    _held: dict[int, int] | None = None

    def resume(self, asked: dict[int, int], block: int, *, applied: bool) -> None:
        """What the last process asked for."""
        self.asked, self.asked_block, self.applied = asked, block, applied
        self.unmet_since = None if applied else block

    def ask(self, by_uid: dict[int, int], block: int) -> None:
        """A vector is signed and on its way."""
        if self.asked not in self._older:
            self._older.append(self.asked)
        self.asked, self.asked_block, self.applied = by_uid, block, False

    def look(self, held: OnChainWeights) -> bool:
        """Whether the chain holds the newest vector that we asked for."""
        equal = arrived(self.asked, held.by_uid)
        moved = self._held is not None and self._held != held.by_uid
        self._held = held.by_uid
        if equal:
            self.unmet_since = None
            self._older.clear()
        elif self.unmet_since is None or (moved and any(arrived(one, held.by_uid) for one in self._older)):
            self.unmet_since = held.block
        return equal

    def overdue(self, held: OnChainWeights) -> int:
        """Blocks without anything of ours, once these are more than sealed weights take; else 0."""
        unmet = held.block - self.unmet_since if self.unmet_since is not None else 0
        # Up to an epoch until they are sent, the reveal period, and one for what the chain itself is late.
        return unmet if unmet > (1 + held.reveal_period + 1) * held.tempo else 0
