"""Weights: set plainly, or committed sealed and opened an epoch later. Checks in the chain's order."""

from __future__ import annotations

import hashlib

from crusades.devnet import drand, oracle
from crusades.devnet.errors import DispatchFailed
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.pallets import neurons
from crusades.devnet.pallets.env import MECHANISMS, Env, call
from crusades.devnet.pallets.schedule import epoch_index, is_due
from crusades.devnet.scale import Reader, account, address, compact, sized, to_hex

U16_MAX = 0xFFFF
MAX_COMMIT = 5000
"""Bytes of a sealed commit of weights."""
MAX_UNREVEALED = 10
"""Sealed commits of one hotkey in one epoch."""


def storage_index(netuid: int, mechanism: int) -> int:
    """Key of a mechanism's weights."""
    return mechanism * MECHANISMS + netuid


# ------------------------------------------------------------------------------------------------ guards


def _mechanism(extrinsic: Extrinsic) -> tuple[int, int]:
    return int(extrinsic.args["netuid"]), int(extrinsic.args.get("mecid", 0))


def _commit_args(extrinsic: Extrinsic) -> tuple[bytes, int, int]:
    """(ciphertext, round, version), to the byte."""
    reader = Reader(extrinsic.call_bytes)
    reader.take(5 if "mecid" in extrinsic.args else 4)  # pallet, call, netuid and mechanism
    return reader.sized(MAX_COMMIT), reader.uint(8), reader.uint(2)


def _has_stake(env: Env, netuid: int, hotkey: str) -> bool:
    return hotkey == env.get("SubnetOwnerHotkey", netuid) or neurons.stake(env, netuid, hotkey) >= int(env.get("StakeThreshold"))


def _within_rate(env: Env, netuid: int, mechanism: int, uid: int) -> bool:
    last = int(neurons.element(env, "LastUpdate", storage_index(netuid, mechanism), uid))
    return last == 0 or env.block - last >= int(env.get("WeightsSetRateLimit", netuid))


def _guard_rate(env: Env, extrinsic: Extrinsic, error: str) -> None:
    netuid, mechanism = _mechanism(extrinsic)
    uid = neurons.uid_of(env, netuid, extrinsic.signer)
    if uid is not None and not _within_rate(env, netuid, mechanism, uid):
        raise DispatchFailed(error)


def _guard_stake(env: Env, extrinsic: Extrinsic) -> None:
    if not _has_stake(env, int(extrinsic.args["netuid"]), extrinsic.signer):
        raise DispatchFailed("NotEnoughStakeToSetWeights")


def _guard_set(env: Env, extrinsic: Extrinsic) -> None:
    _guard_stake(env, extrinsic)
    if not env.get("CommitRevealWeightsEnabled", int(extrinsic.args["netuid"])):
        _guard_rate(env, extrinsic, "SettingWeightsTooFast")


def _guard_commit(env: Env, extrinsic: Extrinsic) -> None:
    _guard_stake(env, extrinsic)
    _, reveal_round, _ = _commit_args(extrinsic)
    if reveal_round < int(env.state.get("Drand", "LastStoredRound")):
        raise DispatchFailed("InvalidRevealRound")
    _guard_rate(env, extrinsic, "CommittingWeightsTooFast")


def _commit_tags(env: Env, extrinsic: Extrinsic) -> frozenset[str]:
    """Where commits are rate limited the pool keeps one per hotkey and mechanism."""
    netuid, mechanism = _mechanism(extrinsic)
    if not int(env.get("WeightsSetRateLimit", netuid)):
        return frozenset()
    return frozenset({f"weight-commit:{extrinsic.signer}:{storage_index(netuid, mechanism)}"})


# ------------------------------------------------------------------------------------------------ setting


@call("SubtensorModule.set_weights", pays_fee=False, guard=_guard_set)
@call("SubtensorModule.set_mechanism_weights", pays_fee=False, guard=_guard_set)
def set_weights(env: Env, extrinsic: Extrinsic) -> None:
    """Set weights in the clear; refused where commit-reveal is on."""
    netuid, mechanism = _mechanism(extrinsic)
    if env.get("CommitRevealWeightsEnabled", netuid):
        raise DispatchFailed("CommitRevealEnabled")
    args = extrinsic.args
    uids, values = [int(uid) for uid in args["dests"]], [int(value) for value in args["weights"]]
    apply_weights(env, extrinsic.signer, netuid, mechanism, uids, values, int(args["version_key"]))


def apply_weights(env: Env, hotkey: str, netuid: int, mechanism: int, uids: list[int], values: list[int], version_key: int) -> None:
    """Check and store weights, as set or as opened. Raises DispatchFailed with the first error in the chain's order."""
    if netuid == 0:
        raise DispatchFailed("CanNotSetRootNetworkWeights")
    if len(uids) != len(values):
        raise DispatchFailed("WeightVecNotEqualSize")
    _ensure_mechanism(env, netuid, mechanism)
    if len(uids) > neurons.count(env, netuid):
        raise DispatchFailed("UidsLengthExceedUidsInSubNet")
    uid = neurons.uid_of(env, netuid, hotkey)
    if uid is None:
        raise DispatchFailed("HotKeyNotRegisteredInSubNet")
    if not _has_stake(env, netuid, hotkey):
        raise DispatchFailed("NotEnoughStakeToSetWeights")
    required = int(env.get("WeightsVersionKey", netuid))
    if required and version_key < required:
        raise DispatchFailed("IncorrectWeightVersionKey")
    sealed = bool(env.get("CommitRevealWeightsEnabled", netuid))
    if not sealed and not _within_rate(env, netuid, mechanism, uid):
        raise DispatchFailed("SettingWeightsTooFast")
    row = _checked_row(env, netuid, uid, hotkey, uids, values)
    env.put("Weights", storage_index(netuid, mechanism), uid, value=row)
    if not sealed:
        neurons.set_element(env, "LastUpdate", storage_index(netuid, mechanism), uid, env.block)
    env.deposit("SubtensorModule", "WeightsSet", [storage_index(netuid, mechanism), uid])


def _ensure_mechanism(env: Env, netuid: int, mechanism: int) -> None:
    if not neurons.exists(env, netuid) or mechanism >= int(env.get("MechanismCountCurrent", netuid)):
        raise DispatchFailed("MechanismDoesNotExist")


def _checked_row(env: Env, netuid: int, uid: int, hotkey: str, uids: list[int], values: list[int]) -> list[list[int]]:
    """The vector as it is stored, max-upscaled, after the checks of its content."""
    own = len(uids) == 1 and uids[0] == uid
    owner = hotkey == env.get("SubnetOwnerHotkey", netuid)
    if not own and not owner and not neurons.element(env, "ValidatorPermit", netuid, uid):
        raise DispatchFailed("NeuronNoValidatorPermit")
    if len(set(uids)) != len(uids):
        raise DispatchFailed("DuplicateUids")
    total = neurons.count(env, netuid)
    if any(target >= total for target in uids):
        raise DispatchFailed("UidVecContainInvalidOne")
    if not own and len(values) < min(int(env.get("MinAllowedWeights", netuid)), total):
        raise DispatchFailed("WeightVecLengthIsLow")
    values = upscaled(values)
    limit = int(env.get("MaxWeightsLimit", netuid))
    if not own and limit != U16_MAX and any(values) and max(values) * U16_MAX > limit * sum(values):
        raise DispatchFailed("MaxWeightExceeded")
    return [[target, value] for target, value in zip(uids, values, strict=True)]


def upscaled(values: list[int]) -> list[int]:
    """Scaled so that the largest is 65,535, rounded half up."""
    top = max(values, default=0)
    return [(value * U16_MAX * 2 + top) // (2 * top) for value in values] if top else values


# ------------------------------------------------------------------------------------------------ committing


@call("SubtensorModule.commit_timelocked_weights", pays_fee=False, guard=_guard_commit, tags=_commit_tags, decode=_commit_args)
@call("SubtensorModule.commit_timelocked_mechanism_weights", pays_fee=False, guard=_guard_commit, tags=_commit_tags, decode=_commit_args)
def commit_weights(env: Env, extrinsic: Extrinsic) -> None:
    """Store sealed weights under the current epoch. LastUpdate moves now, not when they are opened."""
    netuid, mechanism = _mechanism(extrinsic)
    ciphertext, reveal_round, version = _commit_args(extrinsic)
    who = extrinsic.signer
    _ensure_mechanism(env, netuid, mechanism)
    if not env.get("CommitRevealWeightsEnabled", netuid):
        raise DispatchFailed("CommitRevealDisabled")
    if version != int(env.get("CommitRevealWeightsVersion")):
        raise DispatchFailed("IncorrectCommitRevealVersion")
    uid = neurons.uid_of(env, netuid, who)
    if uid is None:
        raise DispatchFailed("HotKeyNotRegisteredInSubNet")
    if not _within_rate(env, netuid, mechanism, uid):
        raise DispatchFailed("CommittingWeightsTooFast")
    index = storage_index(netuid, mechanism)
    rows = read_commits(env, index, epoch_index(env, netuid))
    if len([row for row in rows if row[0] == who]) >= MAX_UNREVEALED:
        raise DispatchFailed("TooManyUnrevealedCommits")
    _put_commits(env, index, epoch_index(env, netuid), [*rows, (who, env.block, ciphertext, reveal_round)])
    digest = to_hex(hashlib.blake2b(ciphertext, digest_size=32).digest())
    env.deposit("SubtensorModule", "TimelockedWeightsCommitted", [who, index, digest, reveal_round])
    neurons.set_element(env, "LastUpdate", index, uid, env.block)


Commit = tuple[str, int, bytes, int]
"""(hotkey, block of the commit, ciphertext, round)."""


def read_commits(env: Env, index: int, epoch: int) -> list[Commit]:
    """The sealed commits of an epoch, oldest first."""
    raw = env.state.storage.get(env.state.key("SubtensorModule", "TimelockedWeightCommits", index, epoch))
    if raw is None:
        return []
    reader = Reader(raw)
    return [(address(reader.take(32)), reader.uint(8), reader.sized(), reader.uint(8)) for _ in range(reader.compact())]


def _put_commits(env: Env, index: int, epoch: int, rows: list[Commit]) -> None:
    body = b"".join(account(who) + block.to_bytes(8, "little") + sized(text) + r.to_bytes(8, "little") for who, block, text, r in rows)
    key = env.state.key("SubtensorModule", "TimelockedWeightCommits", index, epoch)
    env.state.storage.put(key, compact(len(rows)) + body if rows else None)


# ------------------------------------------------------------------------------------------------ opening


def open_due(env: Env, netuid: int) -> None:
    """Open the commits of `reveal period` epochs ago, and forget older ones; at the start of every block.

    What cannot be opened yet waits for the next block of the same epoch and is dropped with it.
    """
    epoch = epoch_index(env, netuid) + (1 if is_due(env, netuid) else 0)
    period = int(env.get("RevealPeriodEpochs", netuid))
    for mechanism in range(int(env.get("MechanismCountCurrent", netuid))):
        index = storage_index(netuid, mechanism)
        for (stored,) in env.state.map_keys("SubtensorModule", "TimelockedWeightCommits", index):
            if int(stored) < epoch - period:
                _put_commits(env, index, int(stored), [])
        if epoch < period:
            continue
        rows = read_commits(env, index, epoch - period)
        waiting = [row for row in rows if not _open(env, netuid, mechanism, row)]
        if rows and waiting != rows:
            _put_commits(env, index, epoch - period, waiting)


def _open(env: Env, netuid: int, mechanism: int, row: Commit) -> bool:
    """Open one commit; False when its round is not known yet. One that does not open, or breaks a rule, vanishes silently."""
    who, _, ciphertext, reveal_round = row
    plaintext = oracle.lookup(env.state, ciphertext)
    if plaintext is None:
        if reveal_round not in drand.SIGNATURES:
            return False
        try:
            plaintext = drand.unseal(ciphertext, reveal_round)
        except drand.OpenFailed:
            return True
    payload = _payload(plaintext, who)
    if payload is None:
        return True
    try:
        apply_weights(env, who, netuid, mechanism, *payload)
    except DispatchFailed:
        return True
    env.deposit("SubtensorModule", "TimelockedWeightsRevealed", [storage_index(netuid, mechanism), who])
    return True


def _payload(plaintext: bytes, who: str) -> tuple[list[int], list[int], int] | None:
    """(uids, values, version key), or None for bytes that are none or are another hotkey's."""
    try:
        reader = Reader(plaintext)
        hotkey = reader.sized()
        payload = reader.uints(2), reader.uints(2), reader.uint(8)
    except ValueError:
        return None
    return payload if hotkey == account(who) else None
