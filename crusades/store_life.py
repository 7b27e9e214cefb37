"""Which transitions of a submission are legal: one table, pure. The store refuses everything else.

Three hands move a submission. The daemon moves it forward, stage by stage. The chain (`record_commitments`) opens seals,
withdraws what was not finalised and, when a fork brings something back, revives it. A person may queue what was faulted.
"""

from __future__ import annotations

from enum import StrEnum

from crusades.errors import StoreError
from crusades.faults import fault
from crusades.records import Reason, Status

COPY, WITHDRAWN, INTERRUPTED, DEVICE = (fault(name).code for name in ("copy", "withdrawn", "interrupted", "device"))

CHAINS_OWN = frozenset(fault(name).code for name in ("payload-malformed", "reveal-failed", "overwritten", "not-registered", "withdrawn"))
"""Reasons that a read of the chain gives, and that another read may therefore take back. What was found out about the file
itself stays found out: a fork changes nothing about it."""
BEHIND_A_BACK = CHAINS_OWN | {COPY}
"""Reasons for which a submission is rejected while somebody else may be at work on it."""

_S = Status

DAEMON: dict[Status, frozenset[Status]] = {
    _S.SEALED: frozenset({_S.REJECTED}),
    # REVEALED → REVEALED notes a host that could not be asked; a later stage goes back when its source is missing.
    _S.REVEALED: frozenset({_S.REVEALED, _S.FETCHED, _S.REJECTED, _S.FAULTED}),
    _S.FETCHED: frozenset({_S.CHECKED, _S.REJECTED, _S.FAULTED, _S.REVEALED}),
    _S.CHECKED: frozenset({_S.QUEUED, _S.REJECTED, _S.FAULTED, _S.REVEALED}),
    # RUNNING only by `begin_attempt`; SCORED only by `finish`; RUNNING → QUEUED only by `requeue` and `recover`.
    _S.QUEUED: frozenset({_S.RUNNING, _S.REJECTED, _S.FAULTED, _S.REVEALED}),
    _S.RUNNING: frozenset({_S.QUEUED, _S.SCORED, _S.REJECTED, _S.FAULTED}),
    # Only as a copy: the original was revealed late, or its host was slow.
    _S.SCORED: frozenset({_S.REJECTED}),
    _S.REJECTED: frozenset(),
    # By hand, after whatever was wrong with us has been mended.
    _S.FAULTED: frozenset({_S.QUEUED}),
}

_WAITING = frozenset({_S.SEALED, _S.REVEALED, _S.FETCHED, _S.CHECKED, _S.QUEUED})

CHAIN: dict[Status, frozenset[Status]] = {
    _S.SEALED: frozenset({_S.REVEALED, _S.REJECTED}),
    # → REVEALED: the fork that won holds other content in the same block, so the row starts over.
    **{status: frozenset({_S.REVEALED, _S.REJECTED}) for status in Status if status not in (_S.SEALED, _S.REJECTED)},
    # A provisional or withdrawn row that the chain shows again.
    _S.REJECTED: frozenset({_S.SEALED, _S.REVEALED, _S.REJECTED}),
}


class Hand(StrEnum):
    """Who moves a submission."""

    DAEMON = "daemon"
    CHAIN = "chain"


def check(id_: str, old: Status, new: Status, reason: Reason | None, hand: Hand = Hand.DAEMON) -> None:
    """Raise StoreError unless `old` → `new` is legal and says what it must say."""
    table = DAEMON if hand is Hand.DAEMON else CHAIN
    if new not in table[old]:
        raise StoreError(f"submission {id_} cannot go from {old} to {new}")
    if new in (_S.REJECTED, _S.FAULTED) and reason is None:
        raise StoreError(f"submission {id_} cannot be {new} without a reason")
    if reason is not None and new is _S.REJECTED and reason.code // 1000 != 1:
        raise StoreError(f"submission {id_} cannot be rejected for code {reason.code}, which is not its own fault")
    if hand is Hand.DAEMON and old is _S.SCORED and reason is not None and reason.code != COPY:
        raise StoreError(f"submission {id_} is scored; only a copy is taken back, not code {reason.code}")


def chain_may_reject(status: Status) -> bool:
    """Whether a chain reason (deregistered, overwritten) still stops a submission: not once it is being judged."""
    return status in _WAITING
