"""A devnet in a thread, the bridge, wallets and the adapter, for tests that drive the real SDK over a real socket.

The devnet makes blocks when an extrinsic arrives (with those that finalise it) or when a test says so; nothing waits for
the wall clock but the few milliseconds that sockets take.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from crusades import chain as chains
from crusades import hparams
from crusades.asyncio_bridge import open_bridge
from crusades.devnet import Devnet, DevnetConfig, SubnetConfig, open_devnet
from crusades.devnet.faults import Fault
from crusades.payload import format_payload
from crusades.records import Payload

NETUID = 1
REVEAL = 12
"""Blocks between a commitment and its opening: more than the handful that `instant` sealing makes per extrinsic."""
URL = "https://example.org/train.py"
SETTINGS = hparams.Chain(call_deadline=5.0, redial_first=0.05, redial_max=0.4, poll_interval=0.1, weights_deadline=10.0)


def payload(letter: str = "a", receipt: str | None = None) -> bytes:
    """A good payload; the letter makes it one of its own."""
    return format_payload(Payload(sha256=letter * 64, url=URL, receipt=receipt))


@dataclass
class World:
    """What a test holds."""

    net: Devnet
    bridge: Any
    chain: chains.Chain
    validator: Any
    miner: Any
    folder: Path

    def wallet(self, name: str, *, register: bool = True) -> Any:
        """A wallet of its own, registered and with a little money."""
        wallet = chains.create_wallet(name, "default", str(self.folder))
        self.net.fund(wallet.coldkeypub.ss58_address, 10**12)
        if register:
            self.net.register(NETUID, wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address)
        return wallet

    def fault(self, kind: str, *methods: str, **more: Any) -> None:
        """Put a fault in force."""
        self.net.faults.add(Fault(kind=kind, methods=methods or ("*",), **more))

    def calls(self, method: str) -> int:
        """How often clients called this method."""
        return sum(1 for call in self.net.calls if call.method == method)

    @asynccontextmanager
    async def another(self, wallet: Any = None, **changes: Any) -> AsyncIterator[chains.Chain]:
        """A second adapter on the same chain, as after a restart."""
        settings = msgspec.structs.replace(SETTINGS, **changes)
        async with chains.open_chain(settings, self.net.url, NETUID, self.bridge, wallet=wallet or self.validator) as chain:
            yield chain

    async def blocks(self, count: int = 1) -> None:
        """Make blocks now."""
        await trio.to_thread.run_sync(self.net.produce_blocks, count)


@asynccontextmanager
async def open_world(folder: Path, settings: hparams.Chain = SETTINGS, **config: Any) -> AsyncIterator[World]:
    """A fresh chain with a validator (staked, permitted) and a miner, and an adapter that signs as the validator."""
    subnet = {k: config.pop(k) for k in list(config) if k in SubnetConfig.__struct_fields__}
    config = {"sealing": "instant", "block_time": 0.02, "finality_lag": 2, "reveal_blocks": REVEAL, **config}
    config["subnets"] = (SubnetConfig(netuid=NETUID, **{"tempo": 20, **subnet}),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(folder / "runtime-cache"))
        async with open_devnet(DevnetConfig(**config)) as net, open_bridge() as bridge:
            validator = chains.create_wallet("validator", "default", str(folder))
            miner = chains.create_wallet("miner", "default", str(folder))
            for wallet, permit in ((validator, True), (miner, False)):
                net.fund(wallet.coldkeypub.ss58_address, 10**12)
                net.register(NETUID, wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address, permit=permit)
            async with chains.open_chain(settings, net.url, NETUID, bridge, wallet=validator) as chain:
                yield World(net, bridge, chain, validator, miner, folder)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """`open_world` with its defaults."""
    async with open_world(tmp_path) as made:
        yield made
