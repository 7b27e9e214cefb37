"""pallet-commitments: one commitment per hotkey and subnet, sealed or plain; seals are opened `reveal_blocks` later.

The one rule that is not the chain's: a real seal opens when the beacon has published its round. Here that is replaced by a
number of blocks, for rounds whose signature we carry (`drand`); a seal to any other round stays closed until the oracle is
told its plaintext. Everything else, failures included, goes as on the chain: the ciphertext is really decrypted.
"""

from __future__ import annotations

from dataclasses import dataclass

from crusades.devnet import drand, oracle
from crusades.devnet.errors import DispatchFailed
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.pallets import neurons
from crusades.devnet.pallets.env import Env, call
from crusades.devnet.scale import Reader, account, address, compact, sized

PALLET = "Commitments"

MAX_FIELDS = 3
MAX_SEALED = 1024
"""Bytes of ciphertext in a TimelockEncrypted field."""
MAX_BIG_RAW = 512
MIN_SPACE = 100
"""Every commitment counts as at least this many bytes of the epoch's quota."""
MAX_REVEALS = 10
"""So many of a hotkey's openings are kept, the newest."""

_NONE, _RAW_0, _RAW_128 = 0, 1, 129
_HASHES = (130, 131, 132, 133)
_SEALED, _RESET_BONDS, _BIG_RAW, _FAILED = 134, 135, 136, 137


@dataclass(frozen=True)
class Field:
    """One field of a commitment: its variant index, its bytes, and for seals the round."""

    variant: int
    body: bytes = b""
    reveal_round: int = 0

    def encode(self) -> bytes:
        """SCALE."""
        head = bytes([self.variant])
        if self.variant in (_SEALED, _FAILED):
            return head + sized(self.body) + self.reveal_round.to_bytes(8, "little")
        return head + (sized(self.body) if self.variant == _BIG_RAW else self.body)


@dataclass(frozen=True)
class Registration:
    """A stored commitment."""

    block: int
    fields: tuple[Field, ...]

    def encode(self) -> bytes:
        """SCALE: deposit (0 here as on the chain), block, fields."""
        body = b"".join(field.encode() for field in self.fields)
        return bytes(8) + self.block.to_bytes(4, "little") + compact(len(self.fields)) + body

    @classmethod
    def decode(cls, raw: bytes) -> Registration:
        """The inverse of `encode`."""
        reader = Reader(raw)
        reader.take(8)
        return cls(reader.uint(4), read_fields(reader))


def read_fields(reader: Reader) -> tuple[Field, ...]:
    """Read the fields of a CommitmentInfo. Raises ValueError for what exceeds the chain's bounds."""
    return tuple(_read_field(reader) for _ in range(reader.compact()))


def _read_field(reader: Reader) -> Field:
    variant = reader.uint(1)
    if _RAW_0 <= variant <= _RAW_128:
        return Field(variant, reader.take(variant - _RAW_0))
    if variant in _HASHES:
        return Field(variant, reader.take(32))
    if variant in (_SEALED, _FAILED):
        return Field(variant, reader.sized(MAX_SEALED), reader.uint(8))
    if variant == _BIG_RAW:
        return Field(variant, reader.sized(MAX_BIG_RAW))
    if variant in (_NONE, _RESET_BONDS):
        return Field(variant)
    raise ValueError(f"no commitment field has the variant {variant}")


# ------------------------------------------------------------------------------------------------ committing


def _guard(env: Env, extrinsic: Extrinsic) -> None:
    netuid = int(extrinsic.args["netuid"])
    if not neurons.exists(env, netuid):
        raise DispatchFailed("SubnetNotExists")
    if neurons.uid_of(env, netuid, extrinsic.signer) is None:
        raise DispatchFailed("HotKeyNotRegisteredInSubNet")


def _fields(extrinsic: Extrinsic) -> tuple[Field, ...]:
    reader = Reader(extrinsic.call_bytes)
    reader.take(4)  # pallet, call, netuid
    return read_fields(reader)


@call("Commitments.set_commitment", pays_fee=False, guard=_guard, decode=_fields)
def set_commitment(env: Env, extrinsic: Extrinsic) -> None:
    """Replace the hotkey's commitment; a seal that was still closed is gone unopened."""
    who, netuid = extrinsic.signer, int(extrinsic.args["netuid"])
    if neurons.uid_of(env, netuid, who) is None:
        raise DispatchFailed("AccountNotAllowedCommit", PALLET)
    fields = _fields(extrinsic)
    if len(fields) > MAX_FIELDS:
        raise DispatchFailed("TooManyFieldsInCommitmentInfo", PALLET)
    if any(field.variant == _FAILED for field in fields):
        raise DispatchFailed("TimelockRevealFailedNotAllowed", PALLET)
    _use_space(env, netuid, who, max(MIN_SPACE, sum(len(field.body) for field in fields)))
    if any(field.variant == _RESET_BONDS for field in fields):
        env.state.put(PALLET, "LastBondsReset", (netuid, who), env.block)
    _store(env, netuid, who, Registration(env.block, fields))
    env.state.put(PALLET, "LastCommitment", (netuid, who), env.block)
    seal = next((field for field in fields if field.variant == _SEALED), None)
    _index(env, netuid, who, sealed=seal is not None)
    if seal is None:
        env.deposit(PALLET, "Commitment", {"netuid": netuid, "who": who})
    else:
        env.deposit(PALLET, "TimelockCommitment", {"netuid": netuid, "who": who, "reveal_round": seal.reveal_round})


def _use_space(env: Env, netuid: int, who: str, needed: int) -> None:
    usage = env.state.get(PALLET, "UsedSpaceOf", netuid, who)
    epoch = int(env.get("SubnetEpochIndex", netuid))
    used = int(usage["used_space"]) if usage is not None and int(usage["last_epoch"]) == epoch else 0
    if used + needed > int(env.state.get(PALLET, "MaxSpace")):
        raise DispatchFailed("SpaceLimitExceeded", PALLET)
    env.state.put(PALLET, "UsedSpaceOf", (netuid, who), {"last_epoch": epoch, "used_space": used + needed})


def _store(env: Env, netuid: int, who: str, registration: Registration | None) -> None:
    key = env.state.key(PALLET, "CommitmentOf", netuid, who)
    env.state.storage.put(key, None if registration is None else registration.encode())


def _index(env: Env, netuid: int, who: str, *, sealed: bool) -> None:
    entries = set(_sealed(env))
    if sealed:
        entries.add((netuid, account(who)))
    else:
        entries.discard((netuid, account(who)))
    body = b"".join(n.to_bytes(2, "little") + raw for n, raw in sorted(entries))
    env.state.storage.put(env.state.key(PALLET, "TimelockedIndex"), compact(len(entries)) + body)


def _sealed(env: Env) -> list[tuple[int, bytes]]:
    """(netuid, account) of everything that waits to be opened, in the chain's order."""
    raw = env.state.storage.get(env.state.key(PALLET, "TimelockedIndex"))
    if raw is None:
        return []
    reader = Reader(raw)
    return [(reader.uint(2), reader.take(32)) for _ in range(reader.compact())]


# ------------------------------------------------------------------------------------------------ opening


def open_due(env: Env) -> None:
    """Open what has been sealed for `reveal_blocks`, at the start of a block."""
    for netuid, who in [(netuid, address(raw)) for netuid, raw in _sealed(env)]:
        raw = env.state.storage.get(env.state.key(PALLET, "CommitmentOf", netuid, who))
        if raw is None:
            _index(env, netuid, who, sealed=False)
            continue
        registration = Registration.decode(raw)
        if env.block >= registration.block + env.config.reveal_blocks:
            _open(env, netuid, who, registration)


def _open(env: Env, netuid: int, who: str, registration: Registration) -> None:
    remaining: list[Field] = []
    revealed: list[bytes] = []
    for field in registration.fields:
        if field.variant != _SEALED:
            remaining.append(field)
            continue
        plaintext = _plaintext(env, netuid, who, field)
        if isinstance(plaintext, Field):
            remaining.append(plaintext)
        else:
            revealed.append(plaintext)
    if tuple(remaining) == registration.fields:
        return
    if revealed:
        _reveal(env, netuid, who, revealed)
    _store(env, netuid, who, Registration(registration.block, tuple(remaining)) if remaining else None)
    _index(env, netuid, who, sealed=any(field.variant == _SEALED for field in remaining))


def _plaintext(env: Env, netuid: int, who: str, field: Field) -> bytes | Field:
    """What the seal holds; or the field to keep: itself while its round is unknown, marked as failed when it cannot be opened."""
    known = oracle.lookup(env.state, field.body)
    if known is not None:
        return known
    if field.reveal_round not in drand.SIGNATURES:
        return field
    try:
        return drand.unseal(field.body, field.reveal_round)
    except drand.OpenFailed as failure:
        event = {"netuid": netuid, "who": who, "reveal_round": field.reveal_round, "error": failure.kind}
        env.deposit(PALLET, "CommitmentRevealFailed", event)
        return Field(_FAILED, field.body, field.reveal_round)


def _reveal(env: Env, netuid: int, who: str, texts: list[bytes]) -> None:
    rows = read_reveals(env.state.storage.get(env.state.key(PALLET, "RevealedCommitments", netuid, who)))
    for text in texts:
        rows.append((text, env.block))
        env.deposit(PALLET, "CommitmentRevealed", {"netuid": netuid, "who": who})
    put_reveals(env, netuid, who, rows)


def read_reveals(raw: bytes | None) -> list[tuple[bytes, int]]:
    """(plaintext, block it was opened in), oldest first."""
    if raw is None:
        return []
    reader = Reader(raw)
    return [(reader.sized(), reader.uint(8)) for _ in range(reader.compact())]


def put_reveals(env: Env, netuid: int, who: str, rows: list[tuple[bytes, int]]) -> None:
    """Store a hotkey's openings, the newest `MAX_REVEALS`."""
    kept = rows[-MAX_REVEALS:]
    body = b"".join(sized(text) + block.to_bytes(8, "little") for text, block in kept)
    env.state.storage.put(env.state.key(PALLET, "RevealedCommitments", netuid, who), compact(len(kept)) + body)
