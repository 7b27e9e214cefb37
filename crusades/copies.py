"""Who copied whom: pure. Direction comes from commit blocks, which nobody can choose afterwards; without it, nobody is accused.

A copy detector that guesses has zeroed victims elsewhere. So of two equal programs the later *commit* is the copy, though
it may have been revealed first; when the order cannot be known (same block, or a commit block that is only known to be no
later than the reveal), both are judged, and the margin keeps the second from taking the lead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """One submission of a program."""

    id: str
    hotkey: str
    commit_block: int
    exact: bool = True
    """False: the commit block is an upper bound."""


def surely_before(first: Known, second: Known) -> bool:
    """Whether `first` was certainly committed before `second`. An upper bound below an exact block is certain; an upper
    bound of `second` says nothing about how much earlier it was."""
    return second.exact and first.commit_block < second.commit_block


def find_original(candidate: Known, same: Iterable[Known]) -> Known | None:
    """The earliest submission of which `candidate` is certainly a copy, or None."""
    earlier = [other for other in same if other.id != candidate.id and surely_before(other, candidate)]
    return min(earlier, key=lambda other: (other.commit_block, other.id), default=None)


def find_copies(original: Known, same: Iterable[Known]) -> list[Known]:
    """Every submission that is certainly a copy of `original`: it was revealed earlier and judged before the original came."""
    return sorted((other for other in same if other.id != original.id and surely_before(original, other)), key=lambda other: (other.commit_block, other.id))
