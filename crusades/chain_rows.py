"""From what storage holds about a hotkey to `Commitment` records: pure, so every odd case is a test of a few lines.

What the chain keeps (pallet-commitments): `CommitmentOf` holds the one live commitment of a hotkey with the block of its
extrinsic, until its sealed fields are opened; `RevealedCommitments` holds the last ten opened plaintexts with the block
of the *reveal*; `LastCommitment` holds the block of the newest commitment. The commit block of a revealed row is
therefore not in its row. In order of preference it comes from

1. the sealed sighting (`Sightings`, or rows that the store remembers),
2. `CommitmentOf` as it stood one block before the reveal (needs that block's state: fresh, or an archive endpoint),
3. `LastCommitment`, for the newest reveal of a hotkey that has no live commitment,
4. nowhere: the reveal block stands in, and `Commitment.commit_block_exact` is False.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from crusades.faults import fault
from crusades.payload import parse_payload, read_compact, show_raw
from crusades.records import Commitment, Payload, Reason, Stage, Status


@dataclass(frozen=True)
class Live:
    """`CommitmentOf`: the live commitment of a hotkey."""

    block: int
    rounds: tuple[int, ...] = ()
    """Reveal rounds of the fields that are still sealed."""
    failed: bool = False
    """A sealed field could not be opened (`TimelockRevealFailed`)."""
    clear: tuple[bytes, ...] = ()
    """Contents of fields that were never sealed."""


@dataclass(frozen=True)
class Reveal:
    """One row of `RevealedCommitments`."""

    raw: bytes
    block: int
    commit_block: int | None = None
    """None until somebody knows."""


@dataclass(frozen=True)
class HotkeyState:
    """Everything about one hotkey at one block."""

    hotkey: str
    uid: int | None = None
    registered_block: int = 0
    live: Live | None = None
    reveals: tuple[Reveal, ...] = ()
    last_commitment: int | None = None
    damaged: str = ""
    """Which of its values could not be decoded, and why; empty when all could."""


# ------------------------------------------------------------------------------------------------ decoding


def decode_reveals(raw: bytes) -> tuple[Reveal, ...]:
    """`RevealedCommitments` value: Vec<(Vec<u8>, u64)>, byte for byte. ValueError when it is anything else."""
    count, at = read_compact(raw)
    rows = []
    for _ in range(count):
        length, at = read_compact(raw, at)
        if at + length + 8 > len(raw):
            raise ValueError("a revealed row is cut off")
        rows.append(Reveal(raw=raw[at:at + length], block=int.from_bytes(raw[at + length:at + length + 8], "little")))
        at += length + 8
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes follow the last revealed row")
    return tuple(rows)


def read_live(record: Mapping[str, Any]) -> Live:
    """`CommitmentOf` as the codec decoded it. Unknown kinds of fields are passed over."""
    rounds: list[int] = []
    clear: list[bytes] = []
    failed = False
    for kind, value in _fields(record["info"]["fields"]):
        if kind == "TimelockEncrypted":
            rounds.append(int(value["reveal_round"]))
        elif kind == "TimelockRevealFailed":
            failed = True
        elif kind.startswith(("Raw", "BigRaw")):
            clear.append(_as_bytes(value))
    return Live(block=int(record["block"]), rounds=tuple(rounds), failed=failed, clear=tuple(clear))


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, str):
        yield value, None
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _fields(item)


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return bytes.fromhex(value[2:]) if value.startswith("0x") else value.encode()
        except ValueError:
            return value.encode()
    try:
        return bytes(value or b"")
    except (TypeError, ValueError):
        return str(value).encode()


# ------------------------------------------------------------------------------------------------ rows


def rows_of(netuid: int, state: HotkeyState, *, provisional: bool) -> list[Commitment]:
    """The hotkey's commitments, oldest first, each with its own verdict; a second field of one commitment is not a
    second submission and is left out (the first that was opened counts)."""
    rows = [_revealed(netuid, state, reveal, provisional) for reveal in state.reveals]
    if state.damaged:
        rows.append(Commitment(netuid=netuid, hotkey=state.hotkey, uid=state.uid, commit_block=state.last_commitment or 0, commit_block_exact=False,
                               state=Status.REJECTED, provisional=provisional,
                               reason=reason("payload-malformed", f"The chain holds a damaged value for {state.hotkey}: {state.damaged}.", "malformed")))
    if state.live is not None:
        rows += _live(netuid, state, state.live, provisional)
    kept: dict[tuple[int, bool], Commitment] = {}
    for row in rows:  # one whose block is that of its reveal, for want of a better one, is another than what was committed there
        kept.setdefault((row.commit_block, row.commit_block_exact), row)
    return sorted(kept.values(), key=lambda row: row.commit_block)


def _revealed(netuid: int, state: HotkeyState, reveal: Reveal, provisional: bool) -> Commitment:
    exact = reveal.commit_block is not None
    block = reveal.block if reveal.commit_block is None else reveal.commit_block
    parsed = parse_payload(reveal.raw)
    reason = parsed if isinstance(parsed, Reason) else _registration_problem(state, block, exact)
    return Commitment(
        netuid=netuid, hotkey=state.hotkey, uid=state.uid, commit_block=block, commit_block_exact=exact, reveal_block=reveal.block,
        state=Status.REVEALED if reason is None else Status.REJECTED, payload=parsed if isinstance(parsed, Payload) else None,
        raw=show_raw(reveal.raw), reason=reason, provisional=provisional)


def _live(netuid: int, state: HotkeyState, live: Live, provisional: bool) -> list[Commitment]:
    def row(status: Status, reason: Reason | None, **extra: Any) -> Commitment:
        return Commitment(netuid=netuid, hotkey=state.hotkey, uid=state.uid, commit_block=live.block, state=status, reason=reason,
                          provisional=provisional, **extra)

    if live.rounds:
        problem = _registration_problem(state, live.block, True)
        return [row(Status.SEALED if problem is None else Status.REJECTED, problem, reveal_round=min(live.rounds))]
    if live.failed:
        return [row(Status.REJECTED, reason("reveal-failed", "The chain could not open the sealed commitment and marked it as failed."))]
    for raw in live.clear:
        if isinstance(parse_payload(raw), Payload):
            words = "The payload was committed in the clear, where everybody can copy it before it counts; it must be sealed."
            return [row(Status.REJECTED, reason("payload-malformed", words, rule="malformed"), raw=show_raw(raw))]
    return []  # other programs keep plain commitments on the same pallet: they are nobody's submission


def _registration_problem(state: HotkeyState, commit_block: int, exact: bool) -> Reason | None:
    if state.uid is None:
        return reason("not-registered", f"The hotkey {state.hotkey} is not registered on this subnet.")
    if exact and state.registered_block > commit_block:
        return reason("not-registered", f"The hotkey was registered anew at block {state.registered_block}, after this commitment of "
                                        f"block {commit_block}; commitments of an earlier registration do not count.")
    return None


def reason(name: str, message: str, rule: str = "") -> Reason:
    """A chain-stage reason with the fault table's code and advice."""
    row = fault(name)
    return Reason(code=row.code, stage=Stage.CHAIN, message=message, rule=rule, hint=row.advice)


def order(rows: Iterable[Commitment]) -> list[Commitment]:
    """Order of service: commit block, then uid (unregistered last), then hotkey."""
    return sorted(rows, key=lambda row: (row.commit_block, row.uid if row.uid is not None else 1 << 16, row.hotkey))


# ------------------------------------------------------------------------------------------------ what was seen before


@dataclass
class Sightings:
    """What earlier reads taught us: which block a revealed row was committed in, and which seals we have seen.

    Memory of one process; the store's rows (`learn`) fill it after a restart. It grows by one entry per commitment.
    """

    sealed: dict[tuple[str, int], Commitment] = field(default_factory=dict)
    firm: dict[tuple[str, int], int | None] = field(default_factory=dict)
    """(hotkey, reveal block) → commit block, looked up in finalised state; None: the chain no longer says."""
    tentative: dict[tuple[str, int], int | None] = field(default_factory=dict)
    """The same, looked up at a best head that may still be replaced."""

    def learn(self, rows: Iterable[Commitment]) -> None:
        """Take over what the store knows: seals that were not opened yet, and the commit blocks of opened ones, so that
        a restart neither asks the archive again nor gives a submission another name."""
        for row in rows:
            if row.state is Status.SEALED:
                self.sealed.setdefault((row.hotkey, row.commit_block), row)
            elif row.reveal_block is not None and not row.provisional:
                self.firm[row.hotkey, row.reveal_block] = row.commit_block if row.commit_block_exact else None

    def unknown(self, state: HotkeyState, *, final: bool) -> list[Reveal]:
        """Reveals of this hotkey whose commit block nobody has looked up yet."""
        keys = {(state.hotkey, r.block): r for r in state.reveals}
        return [r for key, r in keys.items() if key not in self.firm and (final or key not in self.tentative)]

    def remember(self, hotkey: str, reveal: Reveal, commit_block: int | None, *, final: bool) -> None:
        """Note a look-up's result; None: the chain no longer says."""
        (self.firm if final else self.tentative)[hotkey, reveal.block] = commit_block
        if final:
            self.tentative.pop((hotkey, reveal.block), None)

    def with_commit_blocks(self, state: HotkeyState, *, final: bool) -> HotkeyState:
        """`state` with what is known about its reveals filled in; a seal that was seen stands in where the chain forgot."""
        return replace(state, reveals=tuple(replace(r, commit_block=self._commit_block(state.hotkey, r, final)) for r in state.reveals))

    def _commit_block(self, hotkey: str, reveal: Reveal, final: bool) -> int | None:
        key = (hotkey, reveal.block)
        known = self.firm.get(key) if key in self.firm or final else self.tentative.get(key)
        if known is not None:
            return known
        return max((block for who, block in self.sealed if who == hotkey and block < reveal.block), default=None)

    def gone(self, rows: Sequence[Commitment], states: Mapping[str, HotkeyState], *, block: int, final: bool, hotkey: str | None = None) -> list[Commitment]:
        """Seals seen before that are missing at `block`, as rejected rows; and note the seals that are there.

        Only a finalised read says "withdrawn": at the best head a seal may be back one fork later. With `hotkey`, the read
        was about that one alone.
        """
        here = {(row.hotkey, row.commit_block) for row in rows if row.commit_block_exact}
        damaged = {name for name, state in states.items() if state.damaged}  # what cannot be read today says nothing about a seal
        lost = []
        for key, row in list(self.sealed.items()):
            if key in here or row.commit_block > block or hotkey not in (None, row.hotkey):
                continue
            if row.hotkey in damaged:
                continue
            why = _why_gone(row, states.get(row.hotkey, HotkeyState(row.hotkey)))
            if why is not None or final:
                why = why or reason("withdrawn", f"The commitment of block {row.commit_block} is on no finalised block.")
                state = states.get(row.hotkey)
                lost.append(Commitment(netuid=row.netuid, hotkey=row.hotkey, uid=state.uid if state else row.uid, commit_block=row.commit_block,
                                       reveal_round=row.reveal_round, state=Status.REJECTED, reason=why, provisional=not final))
            if final:
                del self.sealed[key]
        for row in rows:
            if row.state is Status.SEALED:
                self.sealed[row.hotkey, row.commit_block] = row
            elif final and row.commit_block_exact and row.hotkey not in damaged:
                self.sealed.pop((row.hotkey, row.commit_block), None)
        return lost


def _why_gone(row: Commitment, state: HotkeyState) -> Reason | None:
    later = [b for b in (state.live.block if state.live else None, state.last_commitment, *(r.commit_block for r in state.reveals)) if b is not None]
    newest = max(later, default=0)
    if newest > row.commit_block:
        return reason("overwritten", f"The commitment of block {newest} replaced this one of block {row.commit_block} before it was opened.")
    if state.last_commitment == row.commit_block:
        return reason("reveal-failed", f"The chain dropped the commitment of block {row.commit_block} without opening it.")
    return None
