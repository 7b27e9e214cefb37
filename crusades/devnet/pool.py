"""The transaction pool: extrinsics that have been accepted and are in no block yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from crusades.devnet.errors import Invalid, RpcError
from crusades.devnet.extrinsic import Extrinsic

Watch = Callable[[Any], None]
"""Receives the statuses of one extrinsic: "ready", {"inBlock": hash}, {"finalized": hash}, "dropped" …"""


@dataclass
class Pending:
    """An extrinsic that waits, or that is in a block and waits for finality."""

    extrinsic: Extrinsic
    dies_at: int | None
    """Block from which it is void."""
    tags: frozenset[str] = frozenset()
    """What it claims beside its nonce; two with a tag in common cannot both wait."""
    watch: Watch | None = None
    block: int | None = None
    """The block it is in."""
    lost: bool = field(default=False, kw_only=True)
    """Accepted, but never put into a block (fault injection)."""

    def tell(self, status: Any) -> None:
        """Pass the status to whoever watches."""
        if self.watch is not None:
            self.watch(status)


class Pool:
    """Pending extrinsics by signer and nonce, served in order of arrival."""

    def __init__(self) -> None:
        self._waiting: list[Pending] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._waiting)

    def next_nonce(self, signer: str, account_nonce: int) -> int:
        """The nonce to use next: the account's, past all that wait without a gap."""
        taken = {pending.extrinsic.nonce for pending in self._waiting if pending.extrinsic.signer == signer}
        while account_nonce in taken:
            account_nonce += 1
        return account_nonce

    def add(self, pending: Pending, account_nonce: int) -> None:
        """Accept. Raises Invalid for a used nonce and RpcError for one that already waits, or whose tag does."""
        extrinsic = pending.extrinsic
        if extrinsic.nonce < account_nonce:
            raise Invalid("Transaction is outdated")
        for other in self._waiting:
            if other.extrinsic.hash == extrinsic.hash:
                raise RpcError(1013, "Transaction is already imported", f"Already Imported: {extrinsic.hash}")
            same_nonce = (other.extrinsic.signer, other.extrinsic.nonce) == (extrinsic.signer, extrinsic.nonce)
            if same_nonce or other.tags & pending.tags:
                raise RpcError(1014, "Priority is too low: (1 vs 1)", "The transaction has too low priority to replace another one in the pool")
        self._waiting.append(pending)
        pending.tell("ready" if self.next_nonce(extrinsic.signer, account_nonce) > extrinsic.nonce else "future")

    def take(self, block: int, account_nonce: Callable[[str], int]) -> list[Pending]:
        """Remove and return what goes into `block`: in order, no nonce before its turn. The dead are dropped and told."""
        ready: list[Pending] = []
        nonces: dict[str, int] = {}
        while True:
            found = next((p for p in self._waiting if self._is_next(p, block, nonces, account_nonce)), None)
            if found is None:
                break
            self._waiting.remove(found)
            nonces[found.extrinsic.signer] = found.extrinsic.nonce + 1
            ready.append(found)
        self._bury(block)
        return ready

    def _is_next(self, pending: Pending, block: int, nonces: dict[str, int], account_nonce: Callable[[str], int]) -> bool:
        if pending.lost or (pending.dies_at is not None and block >= pending.dies_at):
            return False
        signer = pending.extrinsic.signer
        return pending.extrinsic.nonce == nonces.get(signer, account_nonce(signer))

    def _bury(self, block: int) -> None:
        dead = [p for p in self._waiting if p.dies_at is not None and block >= p.dies_at]
        for pending in dead:
            self._waiting.remove(pending)
            pending.tell("invalid")

    def restore(self, pending: Iterable[Pending]) -> None:
        """Put extrinsics back in front, their block having been dropped by a reorganisation."""
        self._waiting[:0] = list(pending)

    def clear(self, status: str) -> int:
        """Throw everything out, telling watchers `status`; the number thrown out."""
        thrown, self._waiting = self._waiting, []
        for pending in thrown:
            pending.tell(status)
        return len(thrown)
