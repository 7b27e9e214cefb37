"""Which networks there are: endpoints by name, and which genesis belongs to which. Reads the SDK's own table of networks."""

from __future__ import annotations

import os

from bittensor import settings as sdk

from crusades import hparams
from crusades.errors import ConfigError

DEV_URL = "ws://127.0.0.1:9944"
DEV_GENESIS = "0x" + b"crusades-devnet\0".hex()
"""How the genesis hash of every dev chain begins; no real chain can have it."""


def endpoints_of(network: str, settings: hparams.Chain) -> tuple[list[str], list[str]]:
    """(endpoints in order, those that are asked for what one has forgotten). ConfigError for an unknown network."""
    if network == "dev":
        return [os.environ.get("CRUSADES_DEV_URL", DEV_URL)], []
    if not network.startswith(("ws://", "wss://")) and network not in ("finney", "test", "local"):
        raise ConfigError(f"unknown network {network!r}: use finney, test, local, dev or a ws:// address")
    label, own = sdk.resolve_endpoint(network)
    endpoints = dict.fromkeys([own, *settings.endpoints, *sdk.default_fallback_endpoints(label)])
    return list(endpoints), list(dict.fromkeys([*settings.endpoints, *sdk.default_archive_endpoints(label)]))


def wrong_chain(network: str, genesis: str) -> str | None:
    """Why a chain with this genesis hash is not the network that was asked for; None when it may be."""
    finney, dev = genesis == sdk.FINNEY_GENESIS_HASH, genesis.startswith(DEV_GENESIS)
    if (network == "finney") != finney and (network == "finney" or network in ("test", "local", "dev")):
        return f"it is {'finney' if finney else 'not finney'} (genesis {genesis[:18]}…)"
    if (network == "dev" and not dev) or (network == "test" and dev):
        return f"it is {'a' if dev else 'no'} crusades dev chain (genesis {genesis[:18]}…)"
    return None
