"""What is true right now and not worth storing: heads, slots, readiness. The daemon writes it, the web server reads it.

Only ever touched from the trio thread, so it needs no lock; readers take immutable records.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from crusades.records import Neuron, SlotView


@dataclass
class Board:
    """The live facts of one validator process."""

    network: str = ""
    netuid: int = 0
    hotkey: str = ""
    uid: int | None = None
    profile: str = ""
    model: str = ""
    rules_version: str = ""
    notice: str = ""
    started_at: float = field(default_factory=time.time)
    block: int | None = None
    finalized_block: int | None = None
    neurons: tuple[Neuron, ...] = ()
    """The registered keys as last read: who can get weights, and under which uid."""
    owner_uid: int | None = None
    """The subnet owner's uid, which takes the burned share."""
    weights_held: str = ""
    """Why weights are not being set right now; empty when they are."""
    weights_age_tempos: float | None = None
    """Age of our weights on chain at the last look; None while unknown or never set."""
    slots: dict[str, SlotView] = field(default_factory=dict)
    progress: dict[str, str] = field(default_factory=dict)
    """submission id → "run 2 of 5", while it runs."""
    ready: dict[str, str] = field(default_factory=dict)
    """subsystem → "ready", or what it is waiting for ("warming")."""
    problems: dict[str, str] = field(default_factory=dict)
    """subsystem → what is wrong right now; absent when all is well."""

    late: dict[str, str] = field(default_factory=dict)
    """subsystem → how far it is past its own deadline; empty while everybody makes progress."""

    @property
    def is_ready(self) -> bool:
        """Every subsystem that reported says "ready", and at least one has."""
        return bool(self.ready) and all(word == "ready" for word in self.ready.values())
