"""A devnet in process: what tests and the demo hold in their hand."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from crusades.devnet import journal
from crusades.devnet.calls import Call, CallLog
from crusades.devnet.chain import Chain
from crusades.devnet.config import NOTICE, OWNER, RAO, DevnetConfig, check_address
from crusades.devnet.control import Control
from crusades.devnet.errors import DispatchFailed
from crusades.devnet.faults import Fault, Faults
from crusades.devnet.pallets import Env, balances, commitments
from crusades.devnet.pallets import neurons as neuron_pallet
from crusades.devnet.rpc import Rpc
from crusades.devnet.server import Server
from crusades.errors import UsageError

VALIDATOR_STAKE = 1000 * RAO
"""What `register(permit=True)` stakes when no stake is given: a permit is only kept with one."""


class Devnet:
    """A chain with its server. All methods may be called from any thread; none waits for a client."""

    def __init__(self, config: DevnetConfig) -> None:
        self.config = config.checked()
        self.chain = Chain(config)
        self.faults = Faults()
        self._log = CallLog(config.log)
        self._journal = journal.attach(self.chain, config.state) if config.state is not None else None
        self._rpc = Rpc(self.chain, self.faults, self._log)
        control = Control(self)
        self._server = Server(self.chain, self._rpc, control.serve if config.control_port is not None else None)

    def start(self) -> None:
        """Listen. Raises ConfigError when the port cannot be had."""
        self._server.start()

    def stop(self) -> None:
        """Close every connection, the journal and the log."""
        self._server.stop()
        if self._journal is not None:
            self._journal.close()
        self._log.close()

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"ws://{host}:{self._server.port}"

    @property
    def control_port(self) -> int | None:
        """Port of the control socket, None without one."""
        return self._server.control_port

    @property
    def calls(self) -> deque[Call]:
        """The calls that clients made, oldest first."""
        return self._log.calls

    def info(self) -> dict[str, Any]:
        """What the command prints when it listens."""
        with self.chain.lock:
            facts: dict[str, Any] = {
                "url": self.url,
                "notice": NOTICE,
                "genesis": self.chain.ledger.genesis.hash,
                "block": self.chain.head.number,
                "finalized": self.chain.ledger.finalized.number,
                "spec_version": self.chain.spec_version,
                "netuids": [subnet.netuid for subnet in self.config.subnets],
                "block_time": self.config.block_time,
                "reveal_blocks": self.config.reveal_blocks,
            }
        return facts if self.control_port is None else {**facts, "control_port": self.control_port}

    # ------------------------------------------------------------------------------------------------ blocks

    def produce_blocks(self, count: int = 1) -> int:
        """Make blocks now, the first with what waits in the pool; returns the head's number."""
        return self.chain.produce(count).number

    def reorganize(self, depth: int, *, keep_extrinsics: bool = True) -> int:
        """Void the newest blocks, down to the finalised one; returns how many. See `Chain.reorganize`."""
        return self.chain.reorganize(depth, keep_extrinsics=keep_extrinsics)

    def drop_pool(self, status: str = "dropped") -> int:
        """Throw out what waits in the pool, telling its watchers `status`; returns how many."""
        with self.chain.lock:
            return self.chain.pool.clear(status)

    # ------------------------------------------------------------------------------------------------ accounts

    def fund(self, ss58: str, rao: int) -> None:
        """Set the free balance of an account."""
        with self.chain.patching() as env:
            balances.set_free(env.state, check_address(ss58), rao)

    def balance(self, ss58: str) -> int:
        """Free balance in rao."""
        with self.chain.lock:
            return balances.free(self.chain.state, check_address(ss58))

    def register(self, netuid: int, hotkey: str, coldkey: str = OWNER, *, stake: int | None = None, permit: bool = False) -> int:
        """Register without paying; returns the uid. On a full subnet a neuron is replaced, as the chain would.

        Raises UsageError when there is no such subnet, the hotkey is registered, or nobody can be replaced.
        """
        with self.chain.patching() as env:
            if not neuron_pallet.exists(env, netuid):
                raise UsageError(f"devnet has no subnet {netuid}")
            if neuron_pallet.uid_of(env, netuid, check_address(hotkey)) is not None:
                raise UsageError(f"{hotkey} is registered on {netuid} already")
            try:
                uid = neuron_pallet.register(env, netuid, hotkey, check_address(coldkey))
            except DispatchFailed as error:
                raise UsageError(f"nobody on subnet {netuid} can be replaced: {error}") from error
            _set_stake(env, netuid, hotkey, (VALIDATOR_STAKE if permit else 0) if stake is None else stake)
            neuron_pallet.set_element(env, "ValidatorPermit", netuid, uid, permit)
            return uid

    def set_stake(self, netuid: int, hotkey: str, rao: int) -> None:
        """Set the stake weight of a hotkey; permits follow at the next epoch."""
        with self.chain.patching() as env:
            _set_stake(env, netuid, check_address(hotkey), rao)

    def replace(self, netuid: int, uid: int, hotkey: str, coldkey: str = OWNER) -> None:
        """Deregister whoever holds the uid and give it to another hotkey, as a registration on a full subnet does."""
        with self.chain.patching() as env:
            if not 0 <= uid < neuron_pallet.count(env, netuid):
                raise UsageError(f"subnet {netuid} has no uid {uid}")
            if neuron_pallet.uid_of(env, netuid, check_address(hotkey)) is not None:
                raise UsageError(f"{hotkey} is registered on {netuid} already")
            neuron_pallet.occupy(env, netuid, uid, hotkey, check_address(coldkey))

    def uid(self, netuid: int, hotkey: str) -> int | None:
        """The hotkey's uid, None when it is not registered."""
        with self.chain.lock:
            uid = self.chain.state.module("Uids", netuid, check_address(hotkey))
            return None if uid is None else int(uid)

    # ------------------------------------------------------------------------------------------------ state

    def get(self, item: str, *params: Any, pallet: str = "SubtensorModule") -> Any:
        """A storage item at the head, decoded."""
        with self.chain.lock:
            return self.chain.state.get(pallet, item, *params)

    def put(self, item: str, params: tuple[Any, ...], value: Any, *, pallet: str = "SubtensorModule") -> None:
        """Set a storage item at the head, from Python values; None deletes. Raises UsageError for what it cannot hold."""
        with self.chain.patching() as env:
            try:
                env.state.put(pallet, item, params, value)
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f"{pallet}.{item}{list(params)} cannot be set to {value!r}: {error}") from error

    def set_hyperparameter(self, netuid: int, item: str, value: Any) -> None:
        """Set a per-subnet item by its storage name: Tempo, WeightsSetRateLimit, CommitRevealWeightsEnabled, …"""
        self.put(item, (netuid,), value)

    def weights(self, netuid: int, uid: int, mechanism: int = 0) -> dict[int, int]:
        """The weights a uid has set, by target."""
        row = self.get("Weights", mechanism * 4096 + netuid, uid)
        return {int(target): int(value) for target, value in row}

    def set_reveals(self, netuid: int, hotkey: str, rows: list[tuple[bytes, int]]) -> None:
        """Write a hotkey's opened commitments, (plaintext, block), without anybody having committed: any bytes at all."""
        with self.chain.patching() as env:
            commitments.put_reveals(env, netuid, check_address(hotkey), rows)

    # ------------------------------------------------------------------------------------------------ misbehaving

    def fault(self, kind: str, *methods: str, **settings: Any) -> None:
        """Put a fault in force (`faults.Fault`): net.fault("drop", "author_*", carried_out=True)."""
        self.faults.add(Fault(kind=kind, methods=methods or ("*",), **settings))  # type: ignore[arg-type]  # checked on the control socket

    def clear_faults(self) -> None:
        """No faults, not mute, not stalled, state kept as configured, and listening."""
        self.behave()
        self.appear()

    def behave(self) -> None:
        """`clear_faults` but for listening."""
        self.faults.clear()
        self._server.mute = False
        self._server.stalled = False
        self.prune(self.config.keep_blocks)

    def drop_connections(self) -> None:
        """Cut every connection abruptly (1006)."""
        self._server.call(self._server.cut)

    def close_connections(self) -> None:
        """Close every connection cleanly (1001), as a node that restarts."""
        self._server.wait(self._server.close_all)

    def vanish(self) -> None:
        """Stop listening and cut every connection; blocks go on being made."""
        self._server.wait(self._server.vanish)

    def appear(self) -> None:
        """Listen again, on the same port."""
        self._server.wait(self._server.listen)

    def mute(self, on: bool = True) -> None:
        """Keep connections open and answer nothing, push nothing."""
        self._server.mute = on

    def stall(self, on: bool = True) -> None:
        """Make no blocks by the clock: a node that has lost its peers."""
        self._server.stalled = on

    def prune(self, keep_blocks: int | None) -> None:
        """Discard state older than so many blocks; None keeps what is left."""
        with self.chain.lock:
            self.chain.keep_blocks = keep_blocks

    def upgrade(self, *hidden: str) -> int:
        """Raise the spec version, hiding these storage items and calls from clients; returns the new version."""
        return self.chain.upgrade(hidden)


def _set_stake(env: Env, netuid: int, hotkey: str, rao: int) -> None:
    env.put("TotalHotkeyAlpha", hotkey, netuid, value=rao)


@contextmanager
def run_devnet(config: DevnetConfig) -> Iterator[Devnet]:
    """A listening devnet for the length of the block, without any async library."""
    net = Devnet(config)
    try:
        net.start()
        yield net
    finally:
        net.stop()


@asynccontextmanager
async def open_devnet(config: DevnetConfig) -> AsyncIterator[Devnet]:
    """A listening devnet for the length of the block, from trio. It runs in a thread of its own, whatever the clock does."""
    net = await trio.to_thread.run_sync(Devnet, config)
    try:
        await trio.to_thread.run_sync(net.start)
        yield net
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(net.stop)
