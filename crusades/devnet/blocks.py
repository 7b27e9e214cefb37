"""The blocks: headers, hashes, and which hash is which number."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any

from crusades.devnet.config import DEV_GENESIS_PREFIX
from crusades.devnet.scale import compact, from_hex, sized, to_hex

_NO_HASH = bytes(32)


@dataclass(frozen=True)
class Block:
    """One block. `spec_version` is that of the runtime that made it."""

    number: int
    hash: str
    parent: str
    time_ms: int
    extrinsics: tuple[bytes, ...]
    spec_version: int
    seed: bytes = b""
    """Random bytes in the header, so that no two dev chains share a block but genesis."""

    @property
    def digest_item(self) -> bytes:
        """The one log of the header: a pre-runtime item of an engine of our own, with the seed."""
        return b"\x06crus" + sized(self.seed)

    @property
    def extrinsics_root(self) -> bytes:
        """A hash over the extrinsics (a real node's is the root of a trie)."""
        return hashlib.blake2b(b"".join(self.extrinsics), digest_size=32).digest()

    def header(self) -> dict[str, Any]:
        """The header as JSON-RPC gives it."""
        return {
            "parentHash": self.parent,
            "number": hex(self.number),
            "stateRoot": to_hex(_NO_HASH),
            "extrinsicsRoot": to_hex(self.extrinsics_root),
            "digest": {"logs": [to_hex(self.digest_item)] if self.number else []},
        }


def genesis_block(metadata: bytes, time_ms: int, spec_version: int) -> Block:
    """Block 0. Its hash says that this is a devnet, and by which metadata: the SDK caches metadata by genesis and spec."""
    tail = hashlib.blake2b(metadata, digest_size=16).hexdigest()
    return Block(0, DEV_GENESIS_PREFIX + tail, to_hex(_NO_HASH), time_ms, (), spec_version)


def next_block(parent: Block, time_ms: int, extrinsics: tuple[bytes, ...], spec_version: int) -> Block:
    """A child of `parent`; its hash is that of its SCALE-encoded header."""
    draft = Block(parent.number + 1, "", parent.hash, time_ms, extrinsics, spec_version, os.urandom(8))
    header = from_hex(parent.hash) + compact(draft.number) + _NO_HASH + draft.extrinsics_root + compact(1) + draft.digest_item
    return replace(draft, hash=to_hex(hashlib.blake2b(header, digest_size=32).digest()))


class Ledger:
    """The chain of blocks from genesis to the head."""

    def __init__(self, genesis: Block, finality_lag: int) -> None:
        self._blocks = [genesis]
        self._numbers = {genesis.hash: 0}
        self._finality_lag = finality_lag

    @property
    def head(self) -> Block:
        """The newest block."""
        return self._blocks[-1]

    @head.setter
    def head(self, block: Block) -> None:
        self._blocks[-1] = block

    @property
    def genesis(self) -> Block:
        """Block 0."""
        return self._blocks[0]

    @property
    def finalized(self) -> Block:
        """The newest block that no reorganisation touches."""
        return self._blocks[max(0, self.head.number - self._finality_lag)]

    def __getitem__(self, number: int) -> Block:
        return self._blocks[number]

    def number(self, block_hash: str) -> int | None:
        """The number of a block of this chain, None for a hash that is not on it."""
        return self._numbers.get(block_hash.lower())

    def append(self, block: Block) -> None:
        """Add a child of the head."""
        self._blocks.append(block)
        self._numbers[block.hash] = block.number

    def drop(self, depth: int) -> None:
        """Forget the newest `depth` blocks, never genesis."""
        for block in self._blocks[len(self._blocks) - depth :]:
            del self._numbers[block.hash]
        del self._blocks[len(self._blocks) - depth :]
