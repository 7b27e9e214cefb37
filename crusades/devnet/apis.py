"""Runtime APIs: what clients ask by `state_call`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crusades.devnet.config import RAO
from crusades.devnet.errors import RpcError
from crusades.devnet.metadata import SPEC_VERSION, TRANSACTION_VERSION
from crusades.devnet.pallets import balances
from crusades.devnet.pallets.schedule import next_start
from crusades.devnet.scale import compact, to_hex
from crusades.devnet.state import State

Api = Callable[[State, int, list[Any]], Any]
"""(state, block, decoded arguments) → value for the codec; None is answered as Option::None."""

_APIS: dict[str, Api] = {}


def _api(name: str) -> Callable[[Api], Api]:
    def register(function: Api) -> Api:
        _APIS[name] = function
        return function

    return register


def call(state: State, metadata: bytes, method: str, data: bytes, at: int) -> str:
    """Answer a runtime API call in hex. What the metadata declares and we do not know is answered empty. Raises RpcError."""
    if method.startswith("Metadata_"):
        return _metadata(metadata, method, data)
    registry = state.registry
    description = registry.api(method)
    if description is None:
        raise RpcError(4003, "Client error: Execution failed", f"Exported method {method} is not found")
    arguments = [] if method.startswith("TransactionPayment") else _arguments(state, description["inputs"], data)
    function = _APIS.get(method)
    value = function(state, at, arguments) if function is not None else registry.zero(int(description["output"].split("::")[1]))
    return "0x00" if value is None else to_hex(registry.runtime.encode(description["output"], value))


def _metadata(metadata: bytes, method: str, data: bytes) -> str:
    if method == "Metadata_metadata_versions":
        return to_hex(compact(1) + (15).to_bytes(4, "little"))
    if method == "Metadata_metadata_at_version":
        return to_hex(b"\x01" + compact(len(metadata)) + metadata) if data == (15).to_bytes(4, "little") else "0x00"
    return to_hex(compact(len(metadata)) + metadata)


def _arguments(state: State, inputs: list[tuple[str, str]], data: bytes) -> list[Any]:
    runtime = state.registry.runtime
    values: list[Any] = []
    try:
        for _, kind in inputs:
            value = runtime.decode(kind, data, False)
            data = data[len(runtime.encode(kind, value)) :]
            values.append(value)
    except ValueError as error:
        raise RpcError(4003, "Client error: Execution failed", f"Bad input data: {error}") from error
    return values


# ------------------------------------------------------------------------------------------------ accounts and fees


@_api("AccountNonceApi_account_nonce")
def _account_nonce(state: State, at: int, arguments: list[Any]) -> int:
    return balances.nonce(state, arguments[0], at)


@_api("TransactionPaymentApi_query_info")
def _query_info(state: State, at: int, arguments: list[Any]) -> dict[str, Any]:
    return {"weight": {"ref_time": 1, "proof_size": 1}, "class": "Normal", "partial_fee": balances.FEE}


@_api("SwapRuntimeApi_current_alpha_price")
def _alpha_price(state: State, at: int, arguments: list[Any]) -> int:
    return RAO


@_api("Core_version")
def _version(state: State, at: int, arguments: list[Any]) -> dict[str, Any]:
    blank = state.registry.zero(int(state.registry.apis["Core"]["version"]["output"].split("::")[1]))
    return {**blank, "spec_name": "node-subtensor", "spec_version": SPEC_VERSION, "transaction_version": TRANSACTION_VERSION}


# ------------------------------------------------------------------------------------------------ neurons


def _rows(state: State, netuid: int, at: int) -> list[dict[str, Any]]:
    vectors = {
        item: list(state.module(item, netuid, at=at) or [])
        for item in ("ValidatorPermit", "LastUpdate", "Active", "Incentive", "Dividends", "Emission", "Consensus", "ValidatorTrust")
    }
    rows = []
    for uid in range(int(state.module("SubnetworkN", netuid, at=at))):
        hotkey = state.module("Keys", netuid, uid, at=at)
        row = {item: values[uid] if uid < len(values) else 0 for item, values in vectors.items()}
        row |= {
            "uid": uid,
            "hotkey": hotkey,
            "coldkey": state.module("Owner", hotkey, at=at),
            "stake": int(state.module("TotalHotkeyAlpha", hotkey, netuid, at=at)),
            "axon": state.module("Axons", netuid, hotkey, at=at),
            "born": int(state.module("BlockAtRegistration", netuid, uid, at=at)),
        }
        rows.append(row)
    return rows


def _neuron(state: State, method: str, netuid: int, row: dict[str, Any]) -> dict[str, Any]:
    known = {
        "hotkey": row["hotkey"],
        "coldkey": row["coldkey"],
        "uid": row["uid"],
        "netuid": netuid,
        "active": row["Active"],
        "stake": [[row["coldkey"], row["stake"]]],
        "emission": row["Emission"],
        "incentive": row["Incentive"],
        "dividends": row["Dividends"],
        "last_update": row["LastUpdate"],
        "validator_permit": row["ValidatorPermit"],
    }
    blank = state.registry.blank(method)
    return {**blank, **known, "axon_info": row["axon"] or blank["axon_info"]}


@_api("NeuronInfoRuntimeApi_get_neurons_lite")
def _neurons_lite(state: State, at: int, arguments: list[Any]) -> list[dict[str, Any]]:
    netuid = int(arguments[0])
    return [_neuron(state, "NeuronInfoRuntimeApi_get_neurons_lite", netuid, row) for row in _rows(state, netuid, at)]


@_api("NeuronInfoRuntimeApi_get_neurons")
def _neurons(state: State, at: int, arguments: list[Any]) -> list[dict[str, Any]]:
    netuid = int(arguments[0])
    method = "NeuronInfoRuntimeApi_get_neurons"
    return [
        {**_neuron(state, method, netuid, row), "weights": [list(pair) for pair in state.module("Weights", netuid, row["uid"], at=at)]}
        for row in _rows(state, netuid, at)
    ]


# ------------------------------------------------------------------------------------------------ subnets

_HYPERPARAMETERS = {
    "tempo": ("Tempo", "U16"),
    "weights_rate_limit": ("WeightsSetRateLimit", "U64"),
    "weights_version": ("WeightsVersionKey", "U64"),
    "min_allowed_weights": ("MinAllowedWeights", "U16"),
    "max_weights_limit": ("MaxWeightsLimit", "U16"),
    "immunity_period": ("ImmunityPeriod", "U16"),
    "max_validators": ("MaxAllowedValidators", "U16"),
    "commit_reveal_weights_enabled": ("CommitRevealWeightsEnabled", "Bool"),
    "registration_allowed": ("NetworkRegistrationAllowed", "Bool"),
    "kappa": ("Kappa", "U16"),
    "rho": ("Rho", "U16"),
    "activity_cutoff": ("ActivityCutoff", "U16"),
    "serving_rate_limit": ("ServingRateLimit", "U64"),
    "min_burn": ("MinBurn", "TaoBalance"),
    "max_burn": ("MaxBurn", "TaoBalance"),
}
"""Name in the API → (storage item, variant in version 3 of it)."""


def _exists(state: State, netuid: int, at: int) -> bool:
    return bool(state.module("NetworksAdded", netuid, at=at))


@_api("SubnetInfoRuntimeApi_get_subnet_hyperparams_v3")
def _hyperparameters(state: State, at: int, arguments: list[Any]) -> list[dict[str, Any]] | None:
    netuid = int(arguments[0])
    if not _exists(state, netuid, at):
        return None
    rows = [(name, kind, state.module(item, netuid, at=at)) for name, (item, kind) in _HYPERPARAMETERS.items()]
    rows.append(("commit_reveal_period", "U64", state.module("RevealPeriodEpochs", netuid, at=at)))
    return [{"name": list(name.encode()), "value": {kind: value}} for name, kind, value in rows]


def _hyperparameter_struct(method: str) -> Api:
    def answer(state: State, at: int, arguments: list[Any]) -> dict[str, Any] | None:
        netuid = int(arguments[0])
        if not _exists(state, netuid, at):
            return None
        blank = state.registry.blank(method)
        known = {name: state.module(item, netuid, at=at) for name, (item, _) in _HYPERPARAMETERS.items() if name in blank}
        return {**blank, **known, "commit_reveal_period": state.module("RevealPeriodEpochs", netuid, at=at)}

    return answer


for _method in ("SubnetInfoRuntimeApi_get_subnet_hyperparams", "SubnetInfoRuntimeApi_get_subnet_hyperparams_v2"):
    _APIS[_method] = _hyperparameter_struct(_method)


@_api("SubnetInfoRuntimeApi_get_next_epoch_start_block")
def _next_epoch(state: State, at: int, arguments: list[Any]) -> int | None:
    netuid = int(arguments[0])
    tempo, last, pending = (int(state.module(item, netuid, at=at)) for item in ("Tempo", "LastEpochBlock", "PendingEpochAt"))
    return next_start(tempo, last, pending)


def _graph(method: str) -> Api:
    """The metagraph, in any of the shapes that clients ask for."""

    def answer(state: State, at: int, arguments: list[Any]) -> dict[str, Any] | None:
        netuid = int(arguments[0])
        if not _exists(state, netuid, at):
            return None
        blank = state.registry.blank(method)
        known = _subnet_fields(state, netuid, at) | _neuron_columns(_rows(state, netuid, at), blank)
        return {**blank, **{name: value for name, value in known.items() if name in blank}}

    return answer


def _subnet_fields(state: State, netuid: int, at: int) -> dict[str, Any]:
    fields = {name: state.module(item, netuid, at=at) for name, (item, _) in _HYPERPARAMETERS.items()}
    return fields | {
        "netuid": netuid,
        "name": list(b"devnet"),
        "symbol": list("δ".encode()),
        "block": at,
        "last_step": state.module("LastMechansimStepBlock", netuid, at=at),
        "blocks_since_last_step": state.module("BlocksSinceLastStep", netuid, at=at),
        "network_registered_at": state.module("NetworkRegisteredAt", netuid, at=at),
        "owner_hotkey": state.module("SubnetOwnerHotkey", netuid, at=at),
        "owner_coldkey": state.module("SubnetOwner", netuid, at=at),
        "num_uids": state.module("SubnetworkN", netuid, at=at),
        "max_uids": state.module("MaxAllowedUids", netuid, at=at),
        "burn": state.module("Burn", netuid, at=at),
        "commit_reveal_period": state.module("RevealPeriodEpochs", netuid, at=at),
    }


def _neuron_columns(rows: list[dict[str, Any]], blank: dict[str, Any]) -> dict[str, Any]:
    empty_axon = dict.fromkeys(("block", "version", "ip", "port", "placeholder1", "placeholder2"), 0) | {"ip_type": 4, "protocol": 4}
    zeros = [0] * len(rows)
    columns = dict.fromkeys(
        ("pruning_score", "trust", "rank", "tao_stake", "collateral_locked", "collateral_min", "collateral_earned"), zeros
    )
    return columns | {
        "hotkeys": [row["hotkey"] for row in rows],
        "coldkeys": [row["coldkey"] for row in rows],
        "identities": [None] * len(rows),
        "axons": [row["axon"] or empty_axon for row in rows],
        "active": [row["Active"] for row in rows],
        "validator_permit": [row["ValidatorPermit"] for row in rows],
        "last_update": [row["LastUpdate"] for row in rows],
        "emission": [row["Emission"] for row in rows],
        "dividends": [row["Dividends"] for row in rows],
        "incentives": [row["Incentive"] for row in rows],
        "consensus": [row["Consensus"] for row in rows],
        "block_at_registration": [row["born"] for row in rows],
        "alpha_stake": [row["stake"] for row in rows],
        "total_stake": [row["stake"] for row in rows],
    }


for _method in ("get_metagraph", "get_mechagraph", "get_selective_metagraph", "get_selective_mechagraph", "get_subnet_state"):
    _APIS[f"SubnetInfoRuntimeApi_{_method}"] = _graph(f"SubnetInfoRuntimeApi_{_method}")
