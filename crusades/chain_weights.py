"""The chain's rules for weights, pure: what would be refused, which numbers go on chain, and whether they arrived.

The order of the checks is the pallet's (`internal_set_weights`), so the first refusal here is the error the chain would
give. Everything is decided from one `WeightsFacts`, read at one block; nothing is clipped or repaired on the way: the
vector that scoring asked for goes on chain as it is, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from crusades.payload import compact
from crusades.records import Neuron, Record

U16 = 65_535
COMMIT_REVEAL_VERSION = 4
"""The one commit-reveal protocol this program speaks (timelocked, opened by the chain itself)."""
MAX_PENDING = 10
"""Unrevealed weight commits that the chain accepts per hotkey and epoch."""


class Epoch(Record, frozen=True, kw_only=True):
    """The subnet's epoch schedule: what the reveal round of sealed weights is computed from. Blocks."""

    tempo: int
    last_epoch_block: int = 0
    pending_epoch_at: int = 0
    index: int = 0
    blocks_since_last_step: int = 0
    reveal_period: int = 1


class WeightsFacts(Record, frozen=True, kw_only=True):
    """What the chain's checks look at, all at one block."""

    netuid: int
    hotkey: str
    block: int
    block_hash: str = ""
    exists: bool
    neurons: tuple[Neuron, ...]
    owner_hotkey: str = ""
    commit_reveal: bool = False
    commit_reveal_version: int = COMMIT_REVEAL_VERSION
    version_key: int = 0
    rate_limit: int = 0
    min_allowed: int = 0
    max_weight: int = U16
    stake_threshold: float = 0.0
    """In alpha as the chain weighs it."""
    pending_commits: int = 0
    null_consensus: bool = False
    """One permit holder and no exemptions (newer runtimes)."""
    epoch: Epoch

    def neuron(self) -> Neuron | None:
        """Ourselves."""
        return next((n for n in self.neurons if n.hotkey == self.hotkey), None)


class WeightsPlan(Record, frozen=True, kw_only=True):
    """What would be sent. `refused` empty means that every rule of the chain is met at `block`."""

    netuid: int
    block: int
    block_hash: str
    uid: int | None
    """Our own uid."""
    asked: dict[str, float]
    """hotkey → share of 1."""
    uids: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    """u16, the largest 65,535."""
    commit_reveal: bool = False
    version_key: int = 0
    epoch: Epoch
    refused: tuple[str, ...] = ()
    """Every rule that would refuse it, in the chain's order, in words."""
    retry_block: int | None = None
    """First block at which the only obstacle, the rate limit, is gone."""

    @property
    def by_uid(self) -> dict[int, int]:
        """uid → u16 value."""
        return dict(zip(self.uids, self.values, strict=True))


class WeightsOutcome(Record, frozen=True, kw_only=True):
    """An extrinsic with weights is in a block. With commit-reveal they apply later: read them back."""

    block: int
    block_hash: str
    extrinsic: str
    """`<block>-<index>`."""
    by_uid: dict[int, int]
    sealed: bool
    reveal_round: int | None = None


class WeightsAround(Record, frozen=True, kw_only=True):
    """What there was of our weights around an extrinsic of ours."""

    before: int
    """LastUpdate as of the block before it; 0 = never."""
    together: int
    """Extrinsics with weights of ours in its block, itself included."""


class OnChainWeights(Record, frozen=True, kw_only=True):
    """Our row of the weight matrix as the chain holds it."""

    block: int
    uid: int | None
    by_uid: dict[int, int]
    """uid → u16 value; empty when none are set."""
    last_update: int
    """Block of our newest set or commit; 0 = never. It moves when sealed weights are committed, not when they apply."""
    pending_commits: int
    """Sealed weights of ours that are not opened yet."""
    tempo: int = 360
    reveal_period: int = 1
    """Epochs until sealed weights are opened."""

    @property
    def age_blocks(self) -> int | None:
        """Blocks since the last update; None = never updated."""
        return self.block - self.last_update if self.last_update else None

    @property
    def age_tempos(self) -> float | None:
        """The same in tempos."""
        return None if self.age_blocks is None else self.age_blocks / max(1, self.tempo)


# ------------------------------------------------------------------------------------------------ planning


def plan_weights(weights: Mapping[str, float], facts: WeightsFacts, *, version_key: int = 0) -> WeightsPlan:
    """Resolve hotkeys to uids at the facts' block, quantise, and list everything that the chain would refuse."""
    uid_of = {n.hotkey: n.uid for n in facts.neurons}
    missing = sorted(h for h, share in weights.items() if share and h not in uid_of)
    pairs = sorted((uid_of[h], share) for h, share in weights.items() if h in uid_of)
    sound = all(math.isfinite(share) and share >= 0 for share in weights.values())
    uids, values = quantise(pairs) if sound else ((), ())
    refused: list[str] = []
    if not sound:
        refused.append("a weight is negative or not a number")
    elif not uids:
        refused.append("every weight is zero: nothing is set from an empty result")
    me = facts.neuron()
    refused += _about_us(facts, me, version_key)
    wait = _too_soon(facts, me)
    if wait is not None:
        refused.append(f"weights were set {facts.block - (me.last_update if me else 0)} blocks ago; the subnet allows it each "
                       f"{facts.rate_limit} blocks: next at block {wait}")
    refused += _permit(facts, me, uids)
    if missing:
        refused.append(f"not registered any more: {', '.join(missing)}; the vector must be computed again")
    refused += _shape(facts, me, uids, values)
    return WeightsPlan(
        netuid=facts.netuid, block=facts.block, block_hash=facts.block_hash, uid=me.uid if me else None, asked=dict(weights), uids=uids,
        values=values, commit_reveal=facts.commit_reveal, version_key=version_key, epoch=facts.epoch, refused=tuple(refused),
        retry_block=wait if len(refused) == 1 else None)


def quantise(pairs: Sequence[tuple[int, float]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(uids, u16 values): the largest becomes 65,535, zeros are left out. As the chain itself upscales, so what is read
    back is equal and not just close."""
    top = max((share for _, share in pairs), default=0.0)
    if top <= 0:
        return (), ()
    scaled = [(uid, round(share / top * U16)) for uid, share in pairs]
    kept = [(uid, value) for uid, value in scaled if value]
    return tuple(uid for uid, _ in kept), tuple(value for _, value in kept)


def _about_us(facts: WeightsFacts, me: Neuron | None, version_key: int) -> list[str]:
    refused = []
    if not facts.exists or facts.netuid == 0:
        refused.append(f"subnet {facts.netuid} does not exist or takes no weights")
    if me is None:
        refused.append(f"the hotkey {facts.hotkey} is not registered on subnet {facts.netuid}: register it, or name another wallet")
    elif me.stake < facts.stake_threshold and facts.hotkey != facts.owner_hotkey:
        refused.append(f"the hotkey's stake weight is {me.stake:,.2f}; the chain asks for {facts.stake_threshold:,.2f}: add stake")
    if facts.version_key and version_key < facts.version_key:
        refused.append(f"the subnet asks for weights version key {facts.version_key}; set chain.version_key in hparams.toml (now {version_key})")
    if facts.commit_reveal and facts.commit_reveal_version != COMMIT_REVEAL_VERSION:
        refused.append(f"the chain runs commit-reveal version {facts.commit_reveal_version}; this program speaks {COMMIT_REVEAL_VERSION}: update it")
    if facts.commit_reveal and facts.pending_commits >= MAX_PENDING:
        refused.append(f"{facts.pending_commits} sealed weight vectors wait to be opened in this epoch; the chain takes {MAX_PENDING}")
    return refused


def _too_soon(facts: WeightsFacts, me: Neuron | None) -> int | None:
    """First block at which the rate limit allows it; None when it does now."""
    if me is None or not me.last_update or facts.block + 1 - me.last_update >= facts.rate_limit:
        return None  # the extrinsic is checked in the next block at the earliest
    return me.last_update + facts.rate_limit


def _permit(facts: WeightsFacts, me: Neuron | None, uids: Sequence[int]) -> list[str]:
    if me is None or me.validator_permit:
        return []
    exempt = tuple(uids) == (me.uid,) or facts.hotkey == facts.owner_hotkey
    if exempt and not facts.null_consensus:
        return []
    return [f"uid {me.uid} holds no validator permit: permits go to the largest stakes, anew each epoch"]


def _shape(facts: WeightsFacts, me: Neuron | None, uids: Sequence[int], values: Sequence[int]) -> list[str]:
    if not uids or (me is not None and tuple(uids) == (me.uid,)):
        return []  # a lone weight on oneself is exempt from both
    refused = []
    least = min(facts.min_allowed, len(facts.neurons))
    if len(uids) < least:
        refused.append(f"the subnet asks for at least {least} weights, scoring gives {len(uids)}: set scoring.runners_up in hparams.toml")
    if facts.max_weight < U16 and max(values) * U16 > facts.max_weight * sum(values):
        refused.append(f"the largest weight is {max(values) / sum(values):.1%} of the sum; the subnet allows {facts.max_weight / U16:.1%}: "
                       "lower scoring.winner_share in hparams.toml or have the subnet's owner raise the limit")
    return refused


def dev_plaintext(public_key: bytes, plan: WeightsPlan) -> bytes:
    """The SCALE plaintext inside sealed weights (hotkey, uids, values, version key), as the chain's own decoder reads it."""
    def vector(numbers: Sequence[int]) -> bytes:
        return compact(len(numbers)) + b"".join(number.to_bytes(2, "little") for number in numbers)

    return compact(len(public_key)) + public_key + vector(plan.uids) + vector(plan.values) + plan.version_key.to_bytes(8, "little")


# ------------------------------------------------------------------------------------------------ afterwards


def arrived(asked: Mapping[int, int], held: Mapping[int, int]) -> bool:
    """Whether the chain holds exactly what was asked (the chain may scale all values by one factor)."""
    if set(asked) != set(held) or not asked:
        return False
    return quantise(sorted(held.items())) == quantise(sorted(asked.items()))


def shares(by_uid: Mapping[int, int]) -> dict[int, float]:
    """u16 values as shares of 1."""
    total = sum(by_uid.values())
    return {uid: value / total for uid, value in by_uid.items()} if total else {}


class Window(msgspec.Struct, frozen=True):
    """The blocks in which an extrinsic of ours may have been included: [first, last]."""

    first: int
    last: int


def foreign_update(last_update: int, ours: Iterable[Window]) -> bool:
    """Whether our LastUpdate moved at a block at which we sent nothing: another process signs with this hotkey.

    `ours` must hold the window of everything ever sent that the store journals *before* sending. `last_update` 0 is "never".
    """
    return bool(last_update) and not any(w.first <= last_update <= w.last for w in ours)


def owner_uid(neurons: Iterable[Neuron], owner_hotkey: str, owner_coldkey: str) -> int | None:
    """The uid that burns: the owner's hotkey, else the lowest uid of the owner's coldkey, else None.

    A share for anybody else would be a gift and not a burn.
    """
    rows = sorted(neurons, key=lambda n: n.uid)
    for row in rows:
        if row.hotkey == owner_hotkey:
            return row.uid
    return next((row.uid for row in rows if owner_coldkey and row.coldkey == owner_coldkey), None)
