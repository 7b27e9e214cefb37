"""What the card said while a run was timed, and what follows for the run (design.md §2.2).

A void run is repeated and recorded, at most `MOST_VOIDS` times in a round; a void must never be a way to roll
again, so what a program can cause by itself (a bad kernel's Xid, an audit that fails on a hot card) voids nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from crusades import nvml
from crusades.bench import protocol as p
from crusades.errors import DeviceFault
from crusades.faults import fault
from crusades.records import Reason, Stage

MOST_VOIDS = 2
"""Repeated runs per round of an evaluation (design.md §2.2), and the exams kept in reserve for them."""


# ------------------------------------------------------------------------------------------------ pure


def settle(ran: p.Ran, blame: nvml.Blame, telemetry: dict[str, float]) -> p.Ran:
    """What a run comes to, given what the card did meanwhile. Raises DeviceFault when its failure is not the submission's
    or nobody can tell: the control run and a second slot then decide (`crusades.slots`)."""
    run = ran.run and msgspec.structs.replace(ran.run, telemetry=telemetry)
    if ran.reason is None:
        if blame.own:
            row = fault("broke-device")
            return msgspec.structs.replace(ran, run=run, reason=Reason(code=row.code, stage=Stage.RUN, message=f"{row.title}: {blame.own}", hint=row.advice))
        return msgspec.structs.replace(ran, run=run and msgspec.structs.replace(run, void=blame.void if run.scored else ""))
    slow = blame.void and ran.reason.code == fault("timeout").code
    if excuse := blame.broken or (blame.void if slow else "") or ("" if blame.own else blame.unknown):
        raise DeviceFault(f"{excuse}, while the run failed: {ran.reason.message}")
    return msgspec.structs.replace(ran, run=run)


# ------------------------------------------------------------------------------------------------ one slot's card


@dataclass
class Seen:
    """Filled when the window has closed."""

    telemetry: dict[str, float] = field(default_factory=dict)
    blame: nvml.Blame = field(default_factory=nvml.Blame)


class Card:
    """One slot's device: held against other validators from `open` to `close`, and watched. A CPU is neither."""

    def __init__(self, index: int | None, library: Any | None = None) -> None:
        self._index, self._library = index, library
        self._sampler: nvml.Sampler | None = None
        self._held: socket.socket | None = None
        self.minor: int | None = None
        """Of its node, once it is open."""
        self.driver: str | None = None
        """The driver's version, likewise."""

    def open(self) -> None:
        """Raises DeviceFault when the card does not exist, does not answer, or is another validator's."""
        if self._index is None or self._held is not None:
            return
        library = self._library or nvml.load()
        if library is None:
            raise DeviceFault(f"cuda:{self._index}: no NVIDIA driver answers here; `crusades doctor` says what is missing")
        found = {device.index: device for device in nvml.devices(library)}
        if self._index not in found:
            raise DeviceFault(f"there is no cuda:{self._index} here; this machine has {', '.join(d.slot for d in found.values()) or 'no card that answers'}")
        self._held = hold(found[self._index].uuid)
        self.minor, self.driver = found[self._index].minor, nvml.driver_version(library)
        self._sampler = nvml.Sampler(self._index, library)
        self._sampler.start()

    @property
    def watched(self) -> bool:
        """Whether a run on it can turn out void."""
        return self._sampler is not None

    def close(self) -> None:
        """Let go of the card; idempotent."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
        if self._held is not None:
            self._held.close()
            self._held = None

    @contextmanager
    def window(self, ours: frozenset[int]) -> Iterator[Seen]:
        """What happens on the card inside the block; `ours` are the processes that belong there."""
        seen = Seen()
        if self._sampler is None:
            yield seen
            return
        with self._sampler.window() as window:
            yield seen
        seen.telemetry, seen.blame = window.telemetry(), window.blame(ours)


def hold(uuid: str) -> socket.socket:
    """The one holder's token of a card: a name in the kernel's abstract socket space, gone with its process however that
    ends, and seen by every user of the machine. Raises DeviceFault when somebody else has it."""
    token = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        token.bind(f"\0crusades-card-{uuid}")
    except OSError as error:
        with suppress(OSError):
            token.close()
        raise DeviceFault(f"card {uuid} is in use by another crusades process of this machine; one validator or bench per card") from error
    return token
