"""What a pallet works with, and the table of calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crusades.devnet.config import DevnetConfig
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.state import State

MECHANISMS = 4096
"""Storage index of a mechanism = its id × this + netuid."""


@dataclass
class Env:
    """One block being made (or, for a pool check, the block that would be next)."""

    state: State
    config: DevnetConfig
    block: int
    events: list[dict[str, Any]] = field(default_factory=list)
    phase: Any = "Initialization"

    def deposit(self, pallet: str, event: str, value: Any) -> None:
        """Record an event of the current phase."""
        self.events.append({"phase": self.phase, "event": {pallet: {event: value}}, "topics": []})

    def get(self, item: str, *params: Any) -> Any:
        """Read SubtensorModule storage."""
        return self.state.module(item, *params)

    def put(self, item: str, *params: Any, value: Any) -> None:
        """Write SubtensorModule storage; None deletes."""
        self.state.set_module(item, *params, value=value)


Run = Callable[[Env, Extrinsic], None]
"""Carries a call out. Raises DispatchFailed, and then nothing it wrote remains."""
Guard = Callable[[Env, Extrinsic], None]
"""Checks that the pool makes and that are made again before the call runs. Raises DispatchFailed."""
Tags = Callable[[Env, Extrinsic], frozenset[str]]
"""What the extrinsic claims in the pool beside its nonce."""
Decode = Callable[[Extrinsic], object]
"""Reads the arguments that have bounds. Raises ValueError for what the chain could not decode."""


@dataclass(frozen=True)
class Call:
    """One callable function."""

    run: Run
    pays_fee: bool = True
    guard: Guard | None = None
    tags: Tags | None = None
    decode: Decode | None = None


CALLS: dict[str, Call] = {}
"""`Pallet.function` → call."""


def call(
    name: str, *, pays_fee: bool = True, guard: Guard | None = None, tags: Tags | None = None, decode: Decode | None = None
) -> Callable[[Run], Run]:
    """Register the decorated function as the call `Pallet.function`."""

    def register(run: Run) -> Run:
        CALLS[name] = Call(run, pays_fee, guard, tags, decode)
        return run

    return register
