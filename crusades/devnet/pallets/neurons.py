"""The uids of a subnet: who holds which, and the vectors that run along them."""

from __future__ import annotations

from typing import Any

from crusades.devnet.errors import DispatchFailed
from crusades.devnet.pallets.env import Env

_VECTORS: dict[str, Any] = {
    "Active": True,
    "Emission": 0,
    "Consensus": 0,
    "Incentive": 0,
    "Dividends": 0,
    "ValidatorTrust": 0,
    "ValidatorPermit": False,
}
"""Per-uid vectors and what a new neuron has in them. LastUpdate starts at the block of registration."""


def exists(env: Env, netuid: int) -> bool:
    """Whether there is such a subnet."""
    return bool(env.get("NetworksAdded", netuid))


def count(env: Env, netuid: int) -> int:
    """Number of uids in use."""
    return int(env.get("SubnetworkN", netuid))


def uid_of(env: Env, netuid: int, hotkey: str) -> int | None:
    """The hotkey's uid, None when it is not registered."""
    uid = env.get("Uids", netuid, hotkey)
    return None if uid is None else int(uid)


def stake(env: Env, netuid: int, hotkey: str) -> int:
    """Stake weight of a hotkey in rao."""
    return int(env.get("TotalHotkeyAlpha", hotkey, netuid))


def vector(env: Env, item: str, netuid: int) -> list[Any]:
    """A per-uid vector."""
    return list(env.get(item, netuid) or [])


def set_element(env: Env, item: str, netuid: int, uid: int, value: Any) -> None:
    """Set one element, extending the vector if it is short."""
    values = vector(env, item, netuid)
    values += [_VECTORS.get(item, 0)] * (uid + 1 - len(values))
    values[uid] = value
    env.put(item, netuid, value=values)


def element(env: Env, item: str, netuid: int, uid: int) -> Any:
    """One element; the default when the vector is short."""
    values = vector(env, item, netuid)
    return values[uid] if uid < len(values) else _VECTORS.get(item, 0)


def hotkeys(env: Env, netuid: int) -> list[str]:
    """Hotkeys by uid."""
    return [str(env.get("Keys", netuid, uid)) for uid in range(count(env, netuid))]


def register(env: Env, netuid: int, hotkey: str, coldkey: str) -> int:
    """Give the hotkey a uid, a new one or that of the neuron to prune. Raises DispatchFailed(NoNeuronIdAvailable)."""
    if count(env, netuid) < int(env.get("MaxAllowedUids", netuid)):
        uid = _append(env, netuid)
    else:
        found = to_prune(env, netuid)
        if found is None:
            raise DispatchFailed("NoNeuronIdAvailable")
        uid = found
        vacate(env, netuid, uid)
    _settle(env, netuid, uid, hotkey, coldkey)
    return uid


def occupy(env: Env, netuid: int, uid: int, hotkey: str, coldkey: str) -> None:
    """Give an uid that is in use to another hotkey."""
    vacate(env, netuid, uid)
    _settle(env, netuid, uid, hotkey, coldkey)


def _settle(env: Env, netuid: int, uid: int, hotkey: str, coldkey: str) -> None:
    for item, value in _VECTORS.items():
        set_element(env, item, netuid, uid, value)
    env.put("Keys", netuid, uid, value=hotkey)
    env.put("Uids", netuid, hotkey, value=uid)
    env.put("BlockAtRegistration", netuid, uid, value=env.block)
    env.put("IsNetworkMember", hotkey, netuid, value=True)
    set_element(env, "LastUpdate", netuid, uid, env.block)
    own(env, coldkey, hotkey)


def own(env: Env, coldkey: str, hotkey: str) -> None:
    """Pair the keys, if the hotkey has no owner yet."""
    if env.state.has("SubtensorModule", "Owner", hotkey):
        return
    env.put("Owner", hotkey, value=coldkey)
    owned = list(env.get("OwnedHotkeys", coldkey) or [])
    env.put("OwnedHotkeys", coldkey, value=[*owned, hotkey])


def _append(env: Env, netuid: int) -> int:
    uid = count(env, netuid)
    env.put("SubnetworkN", netuid, value=uid + 1)
    return uid


def vacate(env: Env, netuid: int, uid: int) -> None:
    """Take the uid from its holder and clear its weights, as replacing a neuron does. Its commitments stay, as on the chain."""
    old = str(env.get("Keys", netuid, uid))
    env.put("Uids", netuid, old, value=None)
    env.put("IsNetworkMember", old, netuid, value=None)
    env.put("Axons", netuid, old, value=None)
    env.put("Weights", netuid, uid, value=None)
    for key, row in env.state.items("SubtensorModule", "Weights", netuid):
        if any(target == uid and value for target, value in row):
            env.put("Weights", netuid, key[-1], value=[[target, 0 if target == uid else value] for target, value in row])


def to_prune(env: Env, netuid: int) -> int | None:
    """The uid that makes room: least emission, then longest registered, then lowest; the immune only if nothing else is left,
    the owner's never."""
    owner_hotkey = str(env.get("SubnetOwnerHotkey", netuid))
    immunity = int(env.get("ImmunityPeriod", netuid))
    emission = vector(env, "Emission", netuid)
    mortal: list[tuple[int, int, int]] = []
    immune: list[tuple[int, int, int]] = []
    for uid, hotkey in enumerate(hotkeys(env, netuid)):
        if hotkey == owner_hotkey:
            continue
        registered = int(env.get("BlockAtRegistration", netuid, uid))
        rank = (int(emission[uid]) if uid < len(emission) else 0, registered, uid)
        (immune if env.block - registered < immunity else mortal).append(rank)
    if len(mortal) > int(env.get("MinNonImmuneUids", netuid)):
        return min(mortal)[2]
    return min(immune)[2] if immune else None
