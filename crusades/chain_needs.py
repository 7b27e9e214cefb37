"""What we need of a chain's runtime: every storage item, call and runtime API, checked against its metadata. Pure.

A storage item is named with the number of its keys, a call with its arguments: a runtime that keeps the name and changes
the shape is as foreign as one that drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

STORAGE: dict[str, dict[str, int]] = {
    "System": {"Account": 1, "Events": 0},
    "Commitments": {"CommitmentOf": 2, "RevealedCommitments": 2, "LastCommitment": 2, "UsedSpaceOf": 2, "MaxSpace": 0},
    "SubtensorModule": {
        "NetworksAdded": 1, "Uids": 2, "Owner": 1, "BlockAtRegistration": 2, "Tempo": 1, "LastUpdate": 1, "Weights": 2,
        "CommitRevealWeightsEnabled": 1, "CommitRevealWeightsVersion": 0, "WeightsSetRateLimit": 1, "WeightsVersionKey": 1,
        "MinAllowedWeights": 1, "MaxWeightsLimit": 1, "StakeThreshold": 0, "SubnetOwner": 1, "SubnetOwnerHotkey": 1,
        "RevealPeriodEpochs": 1, "LastEpochBlock": 1, "PendingEpochAt": 1, "SubnetEpochIndex": 1, "BlocksSinceLastStep": 1,
        "TimelockedWeightCommits": 2,
    },
}
"""pallet → item → number of keys."""

CALLS: dict[str, dict[str, tuple[str, ...]]] = {
    "Commitments": {"set_commitment": ("netuid", "info")},
    "SubtensorModule": {
        "set_mechanism_weights": ("netuid", "mecid", "dests", "weights", "version_key"),
        "commit_timelocked_mechanism_weights": ("netuid", "mecid", "commit", "reveal_round", "commit_reveal_version"),
    },
    "Balances": {"transfer_keep_alive": ("dest", "value")},
}
"""pallet → call → names of its arguments."""

APIS: dict[str, tuple[str, ...]] = {"SubnetInfoRuntimeApi": ("get_metagraph",)}
"""runtime API → methods."""


def missing(metadata: Mapping[str, Any], keys_of: Callable[[str, str], int]) -> tuple[str, ...]:
    """What the runtime lacks, in words; empty when it has everything.

    `metadata` is the codec's intermediate form (pallets with storage and calls, runtime_apis); `keys_of(pallet, item)` is
    the number of keys of a storage item that exists.
    """
    pallets = {p["name"]: p for p in metadata["pallets"]}
    apis = {a["name"]: _names(a["methods"]) for a in metadata["runtime_apis"]}
    lacking: list[str] = []
    for pallet, items in STORAGE.items():
        there = _names(pallets.get(pallet, {}).get("storage", ()))
        for item, count in items.items():
            if item not in there:
                lacking.append(f"storage {pallet}.{item}")
            elif keys_of(pallet, item) != count:
                lacking.append(f"storage {pallet}.{item} with {count} keys (it has {keys_of(pallet, item)})")
    for pallet, calls in CALLS.items():
        known = {c["name"]: tuple(a["name"] for a in c["args"]) for c in pallets.get(pallet, {}).get("calls", ())}
        for call, arguments in calls.items():
            if call not in known:
                lacking.append(f"call {pallet}.{call}")
            elif known[call] != arguments:
                lacking.append(f"call {pallet}.{call}({', '.join(arguments)}) (it takes {', '.join(known[call])})")
    lacking += [f"runtime API {api}.{method}" for api, methods in APIS.items() for method in methods if method not in apis.get(api, ())]
    return tuple(lacking)


def _names(rows: Any) -> set[str]:
    if isinstance(rows, Mapping):
        return set(rows)
    return {row if isinstance(row, str) else row["name"] for row in rows}
