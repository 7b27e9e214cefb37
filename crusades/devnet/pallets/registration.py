"""Subnets, and registration for a burn."""

from __future__ import annotations

from crusades.devnet.config import SubnetConfig
from crusades.devnet.errors import DispatchFailed
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.pallets import balances, neurons
from crusades.devnet.pallets.env import Env, call

_BUMP = 1.26
"""Factor of the registration price after each registration (BurnIncreaseMult); it is not decayed here."""


def create_subnet(env: Env, subnet: SubnetConfig) -> None:
    """Make the subnet, its owner's hotkey being uid 0."""
    netuid = subnet.netuid
    settings = {
        "NetworksAdded": True,
        "NetworkRegisteredAt": env.block,
        "Tempo": subnet.tempo,
        "LastEpochBlock": env.block,
        "CommitRevealWeightsEnabled": subnet.commit_reveal,
        "RevealPeriodEpochs": subnet.reveal_period,
        "WeightsSetRateLimit": subnet.weights_rate_limit,
        "MinAllowedWeights": subnet.min_allowed_weights,
        "MaxWeightsLimit": subnet.max_weights_limit,
        "WeightsVersionKey": subnet.weights_version,
        "ImmunityPeriod": subnet.immunity_period,
        "MaxAllowedUids": subnet.max_uids,
        "MaxAllowedValidators": subnet.max_validators,
        "Burn": subnet.burn,
        "NetworkRegistrationAllowed": subnet.registration_allowed,
        "SubnetOwner": subnet.owner,
        "SubnetOwnerHotkey": subnet.owner_hotkey,
        "SubtokenEnabled": True,
        "MinNonImmuneUids": 0,
        "TokenSymbol": "δ".encode(),
        "SubnetworkN": 0,
    }
    for item, value in settings.items():
        env.put(item, netuid, value=list(value) if isinstance(value, bytes) else value)
    env.put("TotalNetworks", value=int(env.get("TotalNetworks")) + 1)
    neurons.register(env, netuid, subnet.owner_hotkey, subnet.owner)


def _register(env: Env, coldkey: str, netuid: int, hotkey: str, limit: int | None = None) -> None:
    if netuid == 0:
        raise DispatchFailed("RegistrationNotPermittedOnRootSubnet")
    if not neurons.exists(env, netuid):
        raise DispatchFailed("SubnetNotExists")
    burn = int(env.get("Burn", netuid))
    if limit is not None and burn > limit:
        raise DispatchFailed("RegistrationPriceLimitExceeded")
    if not env.get("NetworkRegistrationAllowed", netuid):
        raise DispatchFailed("SubNetRegistrationDisabled")
    if neurons.uid_of(env, netuid, hotkey) is not None:
        raise DispatchFailed("HotKeyAlreadyRegisteredInSubNet")
    balances.withdraw(env, coldkey, burn, DispatchFailed("NotEnoughBalanceToStake"))
    neurons.own(env, coldkey, hotkey)
    if env.get("Owner", hotkey) != coldkey:
        raise DispatchFailed("NonAssociatedColdKey")
    uid = neurons.register(env, netuid, hotkey, coldkey)
    env.put("Burn", netuid, value=min(int(burn * _BUMP), int(env.get("MaxBurn", netuid))))
    env.put("RAORecycledForRegistration", netuid, value=int(env.get("RAORecycledForRegistration", netuid)) + burn)
    env.deposit("SubtensorModule", "NeuronRegistered", [netuid, uid, hotkey])


@call("SubtensorModule.burned_register")
def burned_register(env: Env, extrinsic: Extrinsic) -> None:
    """Register a hotkey; the coldkey signs and pays."""
    _register(env, extrinsic.signer, int(extrinsic.args["netuid"]), extrinsic.args["hotkey"])


@call("SubtensorModule.register_limit")
def register_limit(env: Env, extrinsic: Extrinsic) -> None:
    """The same, unless the price has risen above a limit."""
    args = extrinsic.args
    _register(env, extrinsic.signer, int(args["netuid"]), args["hotkey"], int(args["limit_price"]))
