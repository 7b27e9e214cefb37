"""The JSON-RPC methods of a substrate node that clients use, and our own two.

`crusades_info()` says what this chain is; `crusades_oracle(ciphertext, plaintext)` is described in `oracle`. Each gets the
`Rpc`, the connection and the list of parameters, and runs with the chain's lock held.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crusades.devnet import apis, oracle
from crusades.devnet.blocks import Block
from crusades.devnet.config import CHAIN_NAME, NODE_NAME, NOTICE
from crusades.devnet.drand import SEAL_ROUND
from crusades.devnet.metadata import TRANSACTION_VERSION
from crusades.devnet.pallets import balances
from crusades.devnet.scale import from_hex, to_hex

if TYPE_CHECKING:
    from crusades.devnet.rpc import Connection, Rpc

_MAX_PAGE = 1000
"""Storage keys in one answer, as a node limits them."""

Method = Callable[["Rpc", "Connection", list[Any]], Any]

METHODS: dict[str, Method] = {}
"""Name → method."""


def _method(*names: str) -> Callable[[Method], Method]:
    def register(function: Method) -> Method:
        METHODS.update(dict.fromkeys(names, function))
        return function

    return register


# ------------------------------------------------------------------------------------------------ about the node


@_method("crusades_info")
def _info(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any]:
    config = rpc.chain.config
    return {
        "notice": NOTICE,
        "block_time": config.block_time,
        "reveal_blocks": config.reveal_blocks,
        "seal_round": SEAL_ROUND,
        "netuids": [subnet.netuid for subnet in config.subnets],
        "finality_lag": config.finality_lag,
    }


@_method("crusades_oracle")
def _oracle(rpc: Rpc, connection: Connection, params: list[Any]) -> bool:
    with rpc.chain.patching() as env:
        return oracle.tell(env.state, from_hex(params[0]), from_hex(params[1]))


@_method("rpc_methods")
def _rpc_methods(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any]:
    return {"methods": sorted(METHODS)}


@_method("system_chain")
def _system_chain(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    return CHAIN_NAME


@_method("system_name")
def _system_name(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    return NODE_NAME


@_method("system_version")
def _system_version(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    return f"devnet, runtime {rpc.chain.spec_version}"


@_method("system_chainType")
def _system_chain_type(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    return "Development"


@_method("system_health")
def _system_health(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any]:
    return {"peers": 0, "isSyncing": False, "shouldHavePeers": False}


@_method("system_properties")
def _system_properties(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any]:
    return {"isEthereum": False, "ss58Format": 42, "tokenDecimals": 9, "tokenSymbol": "TAO"}


# ------------------------------------------------------------------------------------------------ blocks


@_method("chain_getHead")
def _head(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    return rpc.chain.head.hash


@_method("chain_getFinalizedHead", "chain_getFinalisedHead")
def _finalized_head(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    return rpc.chain.ledger.finalized.hash


@_method("chain_getBlockHash")
def _block_hash(rpc: Rpc, connection: Connection, params: list[Any]) -> Any:
    if not params or params[0] is None:
        return rpc.chain.head.hash
    if isinstance(params[0], list):
        return [_block_hash(rpc, connection, [number]) for number in params[0]]
    number = int(params[0], 16) if isinstance(params[0], str) else int(params[0])
    return rpc.chain.ledger[number].hash if 0 <= number <= rpc.chain.head.number else None


def _block(rpc: Rpc, params: list[Any]) -> Block | None:
    """The block of an optional hash, whether or not its state is kept."""
    if not params or params[0] is None:
        return rpc.chain.head
    number = rpc.chain.ledger.number(params[0])
    return None if number is None else rpc.chain.ledger[number]


@_method("chain_getHeader")
def _header(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any] | None:
    block = _block(rpc, params)
    return None if block is None else block.header()


@_method("chain_getBlock")
def _get_block(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any] | None:
    block = _block(rpc, params)
    if block is None:
        return None
    body = {"header": block.header(), "extrinsics": [to_hex(raw) for raw in block.extrinsics]}
    return {"block": body, "justifications": None}


@_method("state_getRuntimeVersion", "chain_getRuntimeVersion")
def _runtime_version(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any]:
    pinned = bool(params) and params[0] is not None
    return runtime_version(rpc.chain.ledger[rpc.chain.number_at(params[0])].spec_version if pinned else rpc.chain.spec_version)


def runtime_version(spec: int) -> dict[str, Any]:
    """The version of a runtime as JSON-RPC gives it."""
    return {
        "specName": "node-subtensor",
        "implName": NODE_NAME,
        "authoringVersion": 1,
        "specVersion": spec,
        "implVersion": 1,
        "apis": [],
        "transactionVersion": TRANSACTION_VERSION,
        "stateVersion": 1,
        "systemVersion": 1,
    }


@_method("chain_subscribeNewHeads", "chain_subscribeNewHead")
def _subscribe_new(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    name = rpc.subscribe(connection, "new", "chain_newHead")
    rpc.notify(name, rpc.chain.head.header())
    return name


@_method("chain_subscribeFinalizedHeads", "chain_subscribeFinalisedHeads")
def _subscribe_finalized(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    name = rpc.subscribe(connection, "finalized", "chain_finalizedHead")
    rpc.notify(name, rpc.chain.ledger.finalized.header())
    return name


@_method("state_subscribeRuntimeVersion", "chain_subscribeRuntimeVersion")
def _subscribe_version(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    name = rpc.subscribe(connection, "upgraded", "state_runtimeVersion")
    rpc.notify(name, _runtime_version(rpc, connection, []))
    return name


@_method(
    "chain_unsubscribeNewHeads",
    "chain_unsubscribeNewHead",
    "chain_unsubscribeFinalizedHeads",
    "chain_unsubscribeFinalisedHeads",
    "state_unsubscribeRuntimeVersion",
    "chain_unsubscribeRuntimeVersion",
    "author_unwatchExtrinsic",
)
def _unsubscribe(rpc: Rpc, connection: Connection, params: list[Any]) -> bool:
    return rpc.unsubscribe(params[0])


# ------------------------------------------------------------------------------------------------ state


def _at(rpc: Rpc, params: list[Any], index: int) -> int:
    return rpc.chain.number_at(params[index] if len(params) > index else None)


@_method("state_getMetadata")
def _state_metadata(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    return to_hex(rpc.chain.metadata)


@_method("state_getStorage", "state_getStorageAt")
def _storage(rpc: Rpc, connection: Connection, params: list[Any]) -> str | None:
    value = rpc.chain.storage.get(from_hex(params[0]), _at(rpc, params, 1))
    return None if value is None else to_hex(value)


@_method("state_queryStorageAt")
def _query_storage(rpc: Rpc, connection: Connection, params: list[Any]) -> list[dict[str, Any]]:
    at = _at(rpc, params, 1)
    values = [(key, rpc.chain.storage.get(from_hex(key), at)) for key in params[0]]
    changes = [[key, None if value is None else to_hex(value)] for key, value in values]
    return [{"block": rpc.chain.ledger[at].hash, "changes": changes}]


@_method("state_getKeysPaged", "state_getKeysPagedAt")
def _keys_paged(rpc: Rpc, connection: Connection, params: list[Any]) -> list[str]:
    prefix, count = from_hex(params[0]), min(int(params[1]), _MAX_PAGE)
    after = from_hex(params[2]) if len(params) > 2 and params[2] else None
    keys = rpc.chain.storage.keys(prefix, _at(rpc, params, 3), after if after != prefix else None)
    return [to_hex(key) for key in itertools.islice(keys, count)]


@_method("state_call", "state_callAt")
def _state_call(rpc: Rpc, connection: Connection, params: list[Any]) -> str:
    data = from_hex(params[1]) if params[1] else b""
    return apis.call(rpc.chain.state, rpc.chain.metadata, params[0], data, _at(rpc, params, 2))


# ------------------------------------------------------------------------------------------------ extrinsics


@_method("account_nextIndex", "system_accountNextIndex")
def _next_index(rpc: Rpc, connection: Connection, params: list[Any]) -> int:
    return rpc.chain.next_nonce(params[0])


@_method("payment_queryInfo")
def _query_info(rpc: Rpc, connection: Connection, params: list[Any]) -> dict[str, Any]:
    return {"weight": {"ref_time": 1, "proof_size": 1}, "class": "normal", "partialFee": str(balances.FEE)}


@_method("author_pendingExtrinsics")
def _pending(rpc: Rpc, connection: Connection, params: list[Any]) -> list[str]:
    return [to_hex(pending.extrinsic.raw) for pending in rpc.chain.pool]


def _submit(rpc: Rpc, connection: Connection, params: list[Any], *, lost: bool = False) -> str:
    return rpc.chain.submit(from_hex(params[0]), lost=lost)


def _submit_and_watch(rpc: Rpc, connection: Connection, params: list[Any], *, lost: bool = False) -> str:
    name = rpc.subscribe(connection, "watch", "author_extrinsicUpdate")
    try:
        rpc.chain.submit(from_hex(params[0]), lambda status: rpc.notify(name, status), lost=lost)
    except Exception:
        rpc.unsubscribe(name)
        raise
    return name


SUBMITTING: dict[str, Callable[..., str]] = {
    "author_submitExtrinsic": _submit,
    "author_submitAndWatchExtrinsic": _submit_and_watch,
}
"""Those that hand in an extrinsic; they also take `lost` (`faults`)."""
METHODS.update(SUBMITTING)
