"""Epochs: the schedule advances, permits are handed out, and weights become incentive.

Consensus is left out: incentive is the stake-weighted mean of the permitted, active validators' rows. That is enough to see
who would be paid and who would be pruned; it is not Yuma.
"""

from __future__ import annotations

from crusades.devnet.errors import DispatchFailed
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.pallets import neurons
from crusades.devnet.pallets.env import Env, call
from crusades.devnet.pallets.schedule import epoch_index, is_due
from crusades.devnet.pallets.weights import U16_MAX

_EMISSION = 1_000_000_000
"""Alpha (rao) that an epoch hands out per block of tempo; half of it to miners."""


def netuids(env: Env) -> list[int]:
    """The subnets, ascending."""
    return sorted(int(key[-1]) for key, added in env.state.items("SubtensorModule", "NetworksAdded") if added)


def step(env: Env, netuid: int) -> None:
    """Count the block, and run the epoch if it is due. At the start of every block, after weights were opened."""
    tempo = int(env.get("Tempo", netuid))
    env.put("BlocksSinceLastStep", netuid, value=min(int(env.get("BlocksSinceLastStep", netuid)) + 1, tempo + 1))
    if not is_due(env, netuid):
        return
    env.put("BlocksSinceLastStep", netuid, value=0)
    env.put("LastEpochBlock", netuid, value=env.block)
    env.put("LastMechansimStepBlock", netuid, value=env.block)  # spelt so on the chain
    env.put("PendingEpochAt", netuid, value=0)
    env.put("SubnetEpochIndex", netuid, value=epoch_index(env, netuid) + 1)
    _distribute(env, netuid, tempo)


def _distribute(env: Env, netuid: int, tempo: int) -> None:
    hotkeys = neurons.hotkeys(env, netuid)
    stakes = [neurons.stake(env, netuid, hotkey) for hotkey in hotkeys]
    cutoff = int(env.get("ActivityCutoffFactorMilli", netuid)) * tempo // 1000
    updates = neurons.vector(env, "LastUpdate", netuid)
    active = [update + cutoff >= env.block for update in updates]
    permits = neurons.vector(env, "ValidatorPermit", netuid)
    incentive = _incentive(env, netuid, [stake if permits[uid] and active[uid] else 0 for uid, stake in enumerate(stakes)])
    total = sum(incentive)
    share = _EMISSION * tempo // 2
    env.put("Active", netuid, value=active)
    env.put("Incentive", netuid, value=[round(U16_MAX * part / total) if total else 0 for part in incentive])
    env.put("Emission", netuid, value=[int(share * part / total) if total else 0 for part in incentive])
    env.put("ValidatorPermit", netuid, value=_permits(env, netuid, stakes))


def _incentive(env: Env, netuid: int, stakes: list[int]) -> list[float]:
    """Stake-weighted mean weight per uid. A uid that registered after the weights were set is masked, as is one's own."""
    incentive = [0.0] * len(stakes)
    updates = neurons.vector(env, "LastUpdate", netuid)
    born = [int(env.get("BlockAtRegistration", netuid, uid)) for uid in range(len(stakes))]
    owner_hotkey = env.get("SubnetOwnerHotkey", netuid)
    for uid, stake in enumerate(stakes):
        if not stake:
            continue
        own_allowed = env.get("Keys", netuid, uid) == owner_hotkey
        row = [
            (int(target), int(value))
            for target, value in env.get("Weights", netuid, uid)
            if born[target] < updates[uid] and (target != uid or own_allowed)
        ]
        total = sum(value for _, value in row)
        for target, value in row:
            incentive[target] += stake * value / total if total else 0.0
    return incentive


def _permits(env: Env, netuid: int, stakes: list[int]) -> list[bool]:
    """The `MaxAllowedValidators` with the most stake, none without."""
    ranked = sorted((uid for uid, stake in enumerate(stakes) if stake), key=lambda uid: (-stakes[uid], uid))
    chosen = set(ranked[: int(env.get("MaxAllowedValidators", netuid))])
    return [uid in chosen for uid in range(len(stakes))]


@call("SubtensorModule.trigger_epoch", pays_fee=False)
def trigger_epoch(env: Env, extrinsic: Extrinsic) -> None:
    """The owner asks for an epoch before its time; refused while weights are sealed, or when one is near anyway."""
    netuid = int(extrinsic.args["netuid"])
    if env.get("SubnetOwner", netuid) != extrinsic.signer:
        raise DispatchFailed("NotSubnetOwner")
    if env.get("CommitRevealWeightsEnabled", netuid):
        raise DispatchFailed("DynamicTempoBlockedByCommitReveal")
    if int(env.get("PendingEpochAt", netuid)):
        raise DispatchFailed("EpochTriggerAlreadyPending")
    window = int(env.get("AdminFreezeWindow"))
    if int(env.get("LastEpochBlock", netuid)) + int(env.get("Tempo", netuid)) - env.block < window:
        raise DispatchFailed("AutoEpochAlreadyImminent")
    env.put("PendingEpochAt", netuid, value=env.block + window)
    env.deposit("SubtensorModule", "EpochTriggered", {"netuid": netuid, "by": extrinsic.signer, "fires_at": env.block + window})
