"""The chain itself, without any I/O: storage, blocks, pool, and what follows when an extrinsic or a block comes.

Everything here may be called from any thread; one lock makes it one at a time. Listeners are called with the lock held and
must only take note.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, Protocol

from crusades.devnet import metadata, runtime
from crusades.devnet.blocks import Block, Ledger, genesis_block, next_block
from crusades.devnet.config import DevnetConfig
from crusades.devnet.errors import Invalid, discarded, unknown_block
from crusades.devnet.extrinsic import check_signature, parse, timestamp_inherent
from crusades.devnet.pallets import Env, balances
from crusades.devnet.pool import Pending, Pool, Watch
from crusades.devnet.registry import registry_of
from crusades.devnet.scale import from_hex
from crusades.devnet.state import State, Storage

Happening = Literal["new", "finalized", "upgraded"]
"""A block was made; a block became final; the runtime changed at this block."""
Listener = Callable[[Happening, Block], None]

_PRUNE_EVERY = 64
"""Blocks between two sweeps over the history, where state is not kept for ever."""


class Journal(Protocol):
    """Where the chain is written down (`journal.py`)."""

    def block(self, block: Block, changed: dict[bytes, bytes | None]) -> None:
        """A block was made, with these changes of storage."""

    def patch(self, changed: dict[bytes, bytes | None]) -> None:
        """Storage was changed at the head, outside any block."""

    def cut(self, number: int) -> None:
        """Every block after `number` is void."""

    def upgrade(self, spec_version: int) -> None:
        """The runtime has this version from the head on."""


class Chain:
    """A dev chain. `lock` guards everything; hold it to look at several things at once."""

    def __init__(self, config: DevnetConfig) -> None:
        self.config = config.checked()
        self.lock = threading.RLock()
        self.metadata = metadata.adapted(config.block_time)
        self.spec_version = metadata.SPEC_VERSION
        self.registry = registry_of(self.metadata)
        self.storage = Storage()
        self.state = State(self.registry, self.storage)
        self.pool = Pool()
        self.keep_blocks = config.keep_blocks
        self.listeners: list[Listener] = []
        self.journal: Journal | None = None
        self._unfinal: list[Pending] = []
        self._swept = 0
        """State before this block is gone for good."""
        self._arrived = threading.Condition(self.lock)
        genesis = genesis_block(self.metadata, _now_ms(), self.spec_version)
        self.ledger = Ledger(genesis, config.finality_lag)
        runtime.build_genesis(self.state, config)
        self.storage.changed.clear()

    @property
    def head(self) -> Block:
        """The newest block."""
        return self.ledger.head

    # ------------------------------------------------------------------------------------------------ reading

    def number_at(self, block_hash: str | None) -> int:
        """The block whose state is meant; the head for None. Raises RpcError for an unknown or pruned one."""
        if block_hash is None:
            return self.head.number
        number = self.ledger.number(block_hash)
        if number is None:
            raise unknown_block(block_hash)
        oldest = 0 if self.keep_blocks is None else self.head.number - self.keep_blocks
        if number < max(oldest, self._swept):
            raise discarded(block_hash)
        return number

    def next_nonce(self, who: str) -> int:
        """The account's next nonce, what waits in the pool counted."""
        return self.pool.next_nonce(who, balances.nonce(self.state, who))

    # ------------------------------------------------------------------------------------------------ writing

    @contextmanager
    def patching(self) -> Iterator[Env]:
        """Change the head's state from outside, as no extrinsic could: endowing, registering, hyperparameters."""
        with self.lock:
            with self.storage.transaction():
                yield Env(self.state, self.config, self.head.number)
            if self.journal is not None:
                self.journal.patch(dict(self.storage.changed))
            self.storage.changed.clear()

    def submit(self, raw: bytes, watch: Watch | None = None, *, lost: bool = False) -> str:
        """Take an extrinsic into the pool and return its hash. Raises RpcError as a node would answer.

        `lost` accepts it and never includes it (fault injection).
        """
        with self.lock:
            extrinsic = parse(self.registry, raw)
            block = self.head.number + 1
            anchor = extrinsic.era.birth(block)
            if anchor > self.head.number:
                raise Invalid("Transaction has an ancient birth block")
            check_signature(extrinsic, self.spec_version, from_hex(self.ledger.genesis.hash), from_hex(self.ledger[anchor].hash))
            nonce = balances.nonce(self.state, extrinsic.signer)
            if extrinsic.nonce < nonce:
                raise Invalid("Transaction is outdated")
            tags = runtime.validate(Env(self.state, self.config, block), extrinsic)
            self.pool.add(Pending(extrinsic, extrinsic.era.dies_at(block), tags, watch, lost=lost), nonce)
            self._arrived.notify_all()
            return extrinsic.hash

    def wait_pool(self, count: int, timeout: float) -> bool:
        """Block this thread until `count` extrinsics wait in the pool; False when `timeout` seconds were not enough."""
        with self.lock:
            return self._arrived.wait_for(lambda: len(self.pool) >= count, timeout)

    def produce(self, count: int = 1) -> Block:
        """Make `count` blocks, the first with what waits in the pool, and return the head."""
        with self.lock:
            for _ in range(count):
                self._produce()
            return self.head

    def _produce(self) -> None:
        parent = self.head
        number, time_ms = parent.number + 1, max(_now_ms(), parent.time_ms + 1)
        self.storage.block = number
        env = Env(self.state, self.config, number)
        runtime.initialize_block(env)
        runtime.inherent_event(env)
        included = self.pool.take(number, lambda who: balances.nonce(self.state, who))
        for index, pending in enumerate(included, 1):
            runtime.apply(env, pending.extrinsic, index)
            pending.block = number
        runtime.finalize_block(env, time_ms)
        extrinsics = (timestamp_inherent(time_ms), *(pending.extrinsic.raw for pending in included))
        block = next_block(parent, time_ms, extrinsics, self.spec_version)
        self.ledger.append(block)
        if self.journal is not None:
            self.journal.block(block, dict(self.storage.changed))
        self.storage.changed.clear()
        self._unfinal += included
        self._announce(block, included)
        if self.keep_blocks is not None and number % _PRUNE_EVERY == 0:
            self._swept = max(self._swept, number - self.keep_blocks)
            self.storage.prune(self._swept)

    def _announce(self, block: Block, included: list[Pending]) -> None:
        self._tell("new", block)
        for pending in included:
            pending.tell({"inBlock": block.hash})
        if block.number < self.config.finality_lag:
            return
        finalized = self.ledger.finalized
        self._tell("finalized", finalized)
        for pending in [p for p in self._unfinal if p.block is not None and p.block <= finalized.number]:
            self._unfinal.remove(pending)
            if pending.block is not None:
                pending.tell({"finalized": self.ledger[pending.block].hash})

    def reorganize(self, depth: int, *, keep_extrinsics: bool = True) -> int:
        """Void the newest `depth` blocks, never a finalised one, and return how many went.

        Their extrinsics wait again, or are gone. The next blocks made differ from the voided ones.
        """
        with self.lock:
            depth = min(depth, self.head.number - self.ledger.finalized.number)
            if depth <= 0:
                return 0
            keep = self.head.number - depth
            for number in range(keep + 1, self.head.number + 1):
                for pending in (p for p in self._unfinal if p.block == number):
                    pending.tell({"retracted": self.ledger[number].hash})
            voided = [p for p in self._unfinal if p.block is not None and p.block > keep]
            self._unfinal = [p for p in self._unfinal if p not in voided]
            self.ledger.drop(depth)
            self.spec_version = self.head.spec_version
            self.storage.drop_after(keep)
            if self.journal is not None:
                self.journal.cut(keep)
            if keep_extrinsics:
                for pending in voided:
                    pending.block = None
                self.pool.restore(voided)
            return depth

    def restart(self, genesis: Block, storage: dict[bytes, bytes | None]) -> None:
        """Begin again from this genesis and this state: the first step of playing a journal back."""
        self.ledger = Ledger(genesis, self.config.finality_lag)
        self.storage = Storage()
        self.state.storage = self.storage
        for key, value in storage.items():
            self.storage.put(key, value)

    def replay(self, block: Block, changed: dict[bytes, bytes | None]) -> None:
        """Append a block that was made before, with what it changed."""
        self.storage.block = block.number
        for key, value in changed.items():
            self.storage.put(key, value)
        self.ledger.append(block)
        self.spec_version = block.spec_version

    def upgrade(self, hidden: tuple[str, ...] = ()) -> int:
        """Raise the spec version, and hide the storage items and calls named; returns the new version.

        As on the chain, the head's state has the new runtime though the old one wrote it. Extrinsics signed for the old one
        are invalid from now on; those that wait are dropped. What is hidden is not kept on disk.
        """
        with self.lock:
            self.metadata = metadata.adapted(self.config.block_time, hidden)
            self.set_spec_version(self.spec_version + 1)
            if self.journal is not None:
                self.journal.upgrade(self.spec_version)
            self.pool.clear("invalid")
            self._tell("upgraded", self.head)
            return self.spec_version

    def set_spec_version(self, spec_version: int) -> None:
        """Give the head another runtime version."""
        self.spec_version = spec_version
        self.ledger.head = replace(self.head, spec_version=spec_version)

    def _tell(self, happening: Happening, block: Block) -> None:
        for listener in list(self.listeners):
            listener(happening, block)


def _now_ms() -> int:
    return int(time.time() * 1000)
