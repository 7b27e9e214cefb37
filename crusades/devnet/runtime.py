"""Running blocks: what happens at the start of one, and what an extrinsic does in one."""

from __future__ import annotations

import logging
from typing import Any

from crusades.devnet.config import OWNER, RAO, DevnetConfig
from crusades.devnet.drand import SIGNATURES
from crusades.devnet.errors import CUSTOM_ERRORS, DispatchFailed, Invalid, RpcError
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.pallets import CALLS, Call, Env, balances, commitments, epochs, registration, weights
from crusades.devnet.scale import to_hex
from crusades.devnet.state import State

_log = logging.getLogger(__name__)

_OWNER_RAO = 1_000_000 * RAO
_WEIGHT = {"ref_time": 1, "proof_size": 1}


def build_genesis(state: State, config: DevnetConfig) -> None:
    """Endow the accounts, make the subnets, publish the beacon rounds that we carry."""
    env = Env(state, config, block=0)
    for who, rao in {OWNER: _OWNER_RAO, **config.endowed}.items():
        balances.set_free(state, who, rao)
    env.put("StakeThreshold", value=config.stake_threshold)
    for subnet in config.subnets:
        registration.create_subnet(env, subnet)
    for number, signature in SIGNATURES.items():
        pulse = {"round": number, "randomness": "0x" + "00" * 32, "signature": "0x" + signature}
        state.put("Drand", "Pulses", (number,), pulse)


def initialize_block(env: Env) -> None:
    """The hooks before any extrinsic: sealed weights and epochs per subnet, then sealed commitments."""
    for netuid in epochs.netuids(env):
        weights.open_due(env, netuid)
        epochs.step(env, netuid)
    commitments.open_due(env)


def finalize_block(env: Env, time_ms: int) -> None:
    """Write down the number, the time and the events of the block."""
    env.state.put("System", "Number", (), env.block)
    env.state.put("Timestamp", "Now", (), time_ms)
    env.state.put("System", "EventCount", (), len(env.events))
    env.state.put("System", "Events", (), env.events)


def validate(env: Env, extrinsic: Extrinsic) -> frozenset[str]:
    """What the pool checks beside signature and nonce, against the block to come; returns the tags. Raises RpcError."""
    call = CALLS.get(extrinsic.name)
    if balances.free(env.state, extrinsic.signer) < extrinsic.tip + (balances.FEE if call is None or call.pays_fee else 0):
        raise Invalid("Inability to pay some fees (e.g. account balance too low)")
    if call is None:
        return frozenset()
    try:
        if call.decode is not None:
            call.decode(extrinsic)
        if call.guard is not None and env.config.pool_checks:
            call.guard(env, extrinsic)
        return call.tags(env, extrinsic) if call.tags is not None else frozenset()
    except DispatchFailed as error:
        raise Invalid.custom(CUSTOM_ERRORS.get(error.name, 255)) from error
    except ValueError as error:
        raise RpcError(1002, "Verification Error: Runtime error: Execution failed", f"the call cannot be decoded: {error}") from error


def apply(env: Env, extrinsic: Extrinsic, index: int) -> None:
    """Run one extrinsic of the block: nonce and fee first, then the call, undone if it fails."""
    env.phase = {"ApplyExtrinsic": index}
    call = CALLS.get(extrinsic.name)
    balances.bump_nonce(env.state, extrinsic.signer)
    balances.charge_fee(env, extrinsic.signer, extrinsic.tip, call is None or call.pays_fee)
    info = {"weight": _WEIGHT, "class": "Normal", "pays_fee": "Yes" if call is None or call.pays_fee else "No"}
    before = len(env.events)
    try:
        with env.state.storage.transaction():
            _run(env, call, extrinsic)
    except DispatchFailed as error:
        del env.events[before:]
        env.deposit("System", "ExtrinsicFailed", {"dispatch_error": _module_error(env, error), "dispatch_info": info})
    except Exception:  # a fault of ours fails this extrinsic, not the chain
        _log.exception("devnet failed to run %s", extrinsic.name)
        del env.events[before:]
        env.deposit("System", "ExtrinsicFailed", {"dispatch_error": "Other", "dispatch_info": info})
    else:
        env.deposit("System", "ExtrinsicSuccess", {"dispatch_info": info})


def _run(env: Env, call: Call | None, extrinsic: Extrinsic) -> None:
    if call is None:
        raise DispatchFailed("CallFiltered", "System")
    if call.guard is not None and extrinsic.pallet == "SubtensorModule":
        call.guard(env, extrinsic)
    call.run(env, extrinsic)


def _module_error(env: Env, error: DispatchFailed) -> dict[str, Any]:
    pallet, number = env.state.registry.error(error.pallet, error.name)
    return {"Module": {"index": pallet, "error": to_hex(bytes([number, 0, 0, 0]))}}


def inherent_event(env: Env) -> None:
    """The event of the timestamp, extrinsic 0 of every block."""
    env.phase = {"ApplyExtrinsic": 0}
    env.deposit("System", "ExtrinsicSuccess", {"dispatch_info": {"weight": _WEIGHT, "class": "Mandatory", "pays_fee": "Yes"}})
