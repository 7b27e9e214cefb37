"""The chain on disk: a journal that is appended to with every block and played back at the next start.

The file holds frames, each a length (4 bytes, little-endian) and a msgpack value. The first frame names the format and the
genesis; the others are blocks, changes made from outside, and cuts by reorganisations. A frame that is cut off at the end (the
process was killed while it wrote) is dropped. The pool is not kept: a node that restarts has lost it too.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from crusades.devnet.blocks import Block, genesis_block
from crusades.devnet.chain import Chain
from crusades.errors import ConfigError

_FORMAT = "crusades-devnet-journal-1"

Changes = dict[bytes, bytes | None]


class Start(msgspec.Struct, tag="start", array_like=True, frozen=True):
    """First frame."""

    format: str
    genesis_hash: str
    genesis_time_ms: int
    changed: Changes


class Made(msgspec.Struct, tag="block", array_like=True, frozen=True):
    """A block and what it changed."""

    number: int
    hash: str
    parent: str
    time_ms: int
    extrinsics: tuple[bytes, ...]
    spec_version: int
    seed: bytes
    changed: Changes


class Patch(msgspec.Struct, tag="patch", array_like=True, frozen=True):
    """Changes at the head from outside."""

    changed: Changes


class Cut(msgspec.Struct, tag="cut", array_like=True, frozen=True):
    """Every block after this one is void."""

    number: int


class Upgrade(msgspec.Struct, tag="upgrade", array_like=True, frozen=True):
    """The head has this runtime version."""

    spec_version: int


Frame = Start | Made | Patch | Cut | Upgrade

_decoder = msgspec.msgpack.Decoder(Frame)


class FileJournal:
    """An open journal. Every frame is handed to the operating system before the call returns."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def _write(self, frame: Frame) -> None:
        body = msgspec.msgpack.encode(frame)
        self._file.write(struct.pack("<I", len(body)) + body)
        self._file.flush()

    def start(self, genesis: Block, changed: Changes) -> None:
        """Begin an empty journal."""
        self._write(Start(_FORMAT, genesis.hash, genesis.time_ms, changed))

    def block(self, block: Block, changed: Changes) -> None:
        """A block was made, with these changes of storage."""
        fields = (block.number, block.hash, block.parent, block.time_ms, block.extrinsics, block.spec_version, block.seed)
        self._write(Made(*fields, changed))

    def patch(self, changed: Changes) -> None:
        """Storage was changed at the head, outside any block."""
        if changed:
            self._write(Patch(changed))

    def cut(self, number: int) -> None:
        """Every block after `number` is void."""
        self._write(Cut(number))

    def upgrade(self, spec_version: int) -> None:
        """The runtime has this version from the head on."""
        self._write(Upgrade(spec_version))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def attach(chain: Chain, path: Path) -> FileJournal:
    """Play the journal back into a fresh chain, or begin one; the chain goes on writing to it.

    Raises ConfigError for a file that is no journal, is held by another devnet, or belongs to another genesis.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    except OSError as error:
        raise ConfigError(f"cannot open the state file {path}: {error.strerror}") from error
    try:
        _lock(file, path)
        end = 0
        for frame, after in _frames(file.read(), path):
            _play(chain, frame, path)
            end = after
        file.seek(end)
        file.truncate()
    except BaseException:
        file.close()
        raise
    journal = FileJournal(file)
    if end == 0:
        everything = {key: chain.storage.get(key) for key in chain.storage.keys(b"")}
        journal.start(chain.ledger.genesis, everything)
    chain.storage.changed.clear()
    chain.journal = journal
    return journal


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"another devnet keeps its state in {path}") from error


def _frames(raw: bytes, path: Path) -> Iterator[tuple[Frame, int]]:
    """(frame, offset after it), up to the first that is cut off."""
    at = 0
    while at + 4 <= len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        if at + 4 + size > len(raw):
            return
        try:
            frame = _decoder.decode(raw[at + 4 : at + 4 + size])
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path} is no state file of a devnet, or is damaged at byte {at}: {error}") from error
        if (at == 0) != isinstance(frame, Start):
            raise ConfigError(f"{path} is no state file of a devnet")
        at += 4 + size
        yield frame, at


def _play(chain: Chain, frame: Frame, path: Path) -> None:
    match frame:
        case Start():
            if frame.format != _FORMAT or frame.genesis_hash != chain.ledger.genesis.hash:
                raise ConfigError(f"{path} holds another dev chain (started with another block time or version); use another file")
            chain.restart(genesis_block(chain.metadata, frame.genesis_time_ms, chain.spec_version), frame.changed)
        case Made():
            block = Block(frame.number, frame.hash, frame.parent, frame.time_ms, frame.extrinsics, frame.spec_version, frame.seed)
            chain.replay(block, frame.changed)
        case Patch():
            for key, value in frame.changed.items():
                chain.storage.put(key, value)
        case Cut():
            chain.ledger.drop(chain.head.number - frame.number)
            chain.storage.drop_after(frame.number)
        case Upgrade():
            chain.set_spec_version(frame.spec_version)
