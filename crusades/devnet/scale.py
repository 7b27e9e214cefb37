"""The little SCALE that must be exact to the byte; everything else is left to the SDK's own codec.

The codec hands bytes that happen to be UTF-8 out as text, so what a miner committed cannot be told from its spelling.
Where that matters (commitments, sealed weights) the bytes are read here.
"""

from __future__ import annotations

import struct

import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs

SS58_FORMAT = 42


def to_hex(raw: bytes) -> str:
    """`raw` as the 0x-prefixed lower-case hex of JSON-RPC."""
    return "0x" + bytes(raw).hex()


def from_hex(text: str) -> bytes:
    """The bytes of a hex string with or without 0x. Raises ValueError."""
    return bytes.fromhex(text.removeprefix("0x"))


def account(ss58: str) -> bytes:
    """The 32 bytes of an address. Raises ValueError."""
    return bytes(core.ss58_decode(ss58))


def address(raw: bytes) -> str:
    """The SS58 address of 32 bytes."""
    return str(core.ss58_encode(raw, SS58_FORMAT))


def compact(number: int) -> bytes:
    """`number` as a SCALE compact integer."""
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return struct.pack("<H", number << 2 | 1)
    if number < 1 << 30:
        return struct.pack("<I", number << 2 | 2)
    raw = number.to_bytes((number.bit_length() + 7) // 8, "little")
    return bytes([(len(raw) - 4) << 2 | 3]) + raw


def sized(raw: bytes) -> bytes:
    """`Vec<u8>`: the bytes behind their compact length."""
    return compact(len(raw)) + raw


class Reader:
    """Reads SCALE values from a byte string, front to back. Every method raises ValueError when the bytes end too early."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    @property
    def rest(self) -> bytes:
        """What has not been read yet."""
        return self.raw[self.at :]

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if self.at + count > len(self.raw):
            raise ValueError(f"{count} bytes wanted at {self.at}, {len(self.raw) - self.at} left")
        self.at += count
        return self.raw[self.at - count : self.at]

    def uint(self, width: int) -> int:
        """An unsigned little-endian integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def compact(self) -> int:
        """A compact integer."""
        first = self.uint(1)
        mode = first & 3
        if mode == 3:
            return self.uint((first >> 2) + 4)
        width = (1, 2, 4)[mode]
        return (first | self.uint(width - 1) << 8) >> 2

    def sized(self, limit: int | None = None) -> bytes:
        """`Vec<u8>`; longer than `limit` is an error, as for the chain's BoundedVec."""
        length = self.compact()
        if limit is not None and length > limit:
            raise ValueError(f"{length} bytes, at most {limit} allowed")
        return self.take(length)

    def uints(self, width: int) -> list[int]:
        """`Vec` of unsigned integers of `width` bytes."""
        return [self.uint(width) for _ in range(self.compact())]
