"""What passes between the chain adapter and everybody else: plain records and two errors. Pure; no SDK."""

from __future__ import annotations

from typing import Any

from crusades.chain_link import Refused
from crusades.errors import ChainError, OutcomeUnknown
from crusades.records import Record


class Head(Record, frozen=True, kw_only=True):
    """The best and the finalised block, which is never the later one."""

    best: int
    best_hash: str
    finalized: int
    finalized_hash: str


class ChainFacts(Record, frozen=True, kw_only=True):
    """What `check` found."""

    network: str
    endpoint: str
    genesis: str
    is_dev: bool
    spec_version: int
    netuid: int
    subnet_exists: bool
    head: Head
    missing: tuple[str, ...] = ()
    """What we use and the runtime lacks: not empty means that weights and commits are held."""


class Owner(Record, frozen=True, kw_only=True):
    """Who owns the subnet, and which uid a burn share therefore goes to."""

    hotkey: str
    coldkey: str
    uid: int | None


class Committed(Record, frozen=True, kw_only=True):
    """A commitment is in a block."""

    block: int
    block_hash: str
    extrinsic: str
    """`<block>-<index>`."""
    reveal_round: int
    reveal_block_estimate: int


class CommitFacts(Record, frozen=True, kw_only=True):
    """What decides whether this hotkey may commit now."""

    hotkey: str
    head: int
    uid: int | None
    registered_block: int = 0
    pending_block: int | None = None
    """Commit block of a seal that is not opened yet; a new commitment would destroy it."""
    pending_round: int | None = None
    last_commitment: int | None = None
    used_bytes: int = 0
    """Of this epoch's quota."""
    max_bytes: int = 0
    epoch_ends: int = 0
    """Block at which the quota starts anew."""
    coldkey: str = ""
    balance_rao: int = 0
    """Free balance of the coldkey."""


class Receipt(Record, frozen=True, kw_only=True):
    """A fee transfer as the chain shows it."""

    id: str
    """`<block>-<index>`: each counts for one submission, ever."""
    block: int
    signer: str
    destination: str
    amount_rao: int
    success: bool


class Sent(Record, frozen=True, kw_only=True):
    """An extrinsic that left this machine."""

    hash: str
    what: str
    first: int
    last: int
    """It can only be in a block of [first, last]."""


class Included(Record, frozen=True, kw_only=True):
    """An extrinsic that is in a block and did what it should."""

    block: int
    block_hash: str
    extrinsic: str
    events: tuple[Any, ...] = ()


class Unresolved(OutcomeUnknown):
    """An extrinsic may or may not be in a block. `resolve(sent)` before anything is sent again."""

    def __init__(self, message: str, sent: Sent) -> None:
        super().__init__(message)
        self.sent = sent


class Pruned(ChainError):
    """The node no longer keeps the state or block that was asked for; an archive endpoint does."""


class NoArchive(ChainError):
    """The node has pruned what was asked for, and an endpoint that may still have it cannot be asked just now."""


class Expired(ChainError):
    """An extrinsic was never included and can no longer be: sending again is safe."""


class Failed(Refused):
    """An extrinsic is in a block and failed there: it had no effect, and the chain says why."""
