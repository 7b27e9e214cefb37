"""Signed extrinsics: taken apart to the byte, signature and mortality checked as the chain checks them."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs

from crusades.devnet.errors import Invalid, RpcError
from crusades.devnet.metadata import TRANSACTION_VERSION
from crusades.devnet.registry import Registry
from crusades.devnet.scale import Reader, address, compact, to_hex

_SIGNED_V4 = 0x84
_SIGNATURE_WIDTHS = {0: 64, 1: 64}
"""MultiSignature variant (the codec's crypto type too) → bytes: ed25519 and sr25519."""


@dataclass(frozen=True)
class Era:
    """How long a signature is good for. `period` 0 = for ever."""

    period: int
    phase: int
    raw: bytes

    def birth(self, block: int) -> int:
        """The block whose hash was signed, for an extrinsic that is looked at in `block`."""
        if self.period == 0:
            return 0
        return (max(block, self.phase) - self.phase) // self.period * self.period + self.phase

    def dies_at(self, block: int) -> int | None:
        """First block in which an extrinsic that was valid in `block` is so no more."""
        return self.birth(block) + self.period if self.period else None


@dataclass(frozen=True)
class Extrinsic:
    """A signed extrinsic; nothing about it has been checked yet."""

    raw: bytes
    """As submitted, length prefix included."""
    hash: str
    signer: str
    scheme: int
    signature: bytes
    era: Era
    nonce: int
    tip: int
    extra: bytes
    """The signed extensions as they stand in the extrinsic."""
    call_bytes: bytes
    pallet: str
    function: str
    args: dict[str, Any]
    """Decoded; bytes may appear as text, so exact ones are read from `call_bytes`."""

    @property
    def name(self) -> str:
        """`Pallet.function`."""
        return f"{self.pallet}.{self.function}"


def parse(registry: Registry, raw: bytes) -> Extrinsic:
    """Take an extrinsic apart. Raises RpcError for what the chain could not decode either."""
    try:
        reader = Reader(raw)
        body = Reader(reader.sized())
        if reader.rest:
            raise ValueError("bytes after the end")
        if body.uint(1) != _SIGNED_V4:
            raise ValueError("not a signed extrinsic of version 4")
        if body.uint(1) != 0:
            raise ValueError("the signer is not given by its account id")
        signer = address(body.take(32))
        scheme = body.uint(1)
        signature = body.take(_SIGNATURE_WIDTHS[scheme])
        extra_at = body.at
        era = _era(body)
        nonce, tip = body.compact(), body.compact()
        if body.uint(1) != 0:
            raise ValueError("a metadata hash is signed, which this chain does not check")
        extra, call_bytes = body.raw[extra_at : body.at], body.rest
        call = registry.runtime.decode_extrinsic(raw, True)["call"]
    except (ValueError, KeyError, IndexError) as error:
        raise RpcError(1002, "Verification Error: Runtime error: Execution failed", f"the extrinsic cannot be decoded: {error}") from error
    return Extrinsic(
        raw=raw,
        hash=to_hex(hashlib.blake2b(raw, digest_size=32).digest()),
        signer=signer,
        scheme=scheme,
        signature=signature,
        era=era,
        nonce=nonce,
        tip=tip,
        extra=extra,
        call_bytes=call_bytes,
        pallet=call["call_module"],
        function=call["call_function"],
        args={arg["name"]: arg["value"] for arg in call["call_args"]},
    )


def _era(body: Reader) -> Era:
    first = body.take(1)
    if first == b"\0":
        return Era(0, 0, first)
    raw = first + body.take(1)
    value = int.from_bytes(raw, "little")
    period = 2 << (value & 15)
    if period < 4:
        raise ValueError("a mortal era has a period of at least four blocks")
    return Era(period, (value >> 4) * max(period >> 12, 1), raw)


def signed_payload(extrinsic: Extrinsic, spec_version: int, genesis: bytes, anchor: bytes) -> bytes:
    """The bytes that must have been signed (of more than 256 bytes, their hash)."""
    implied = struct.pack("<II", spec_version, TRANSACTION_VERSION) + genesis + anchor + b"\0"
    payload = extrinsic.call_bytes + extrinsic.extra + implied
    return hashlib.blake2b(payload, digest_size=32).digest() if len(payload) > 256 else payload


def check_signature(extrinsic: Extrinsic, spec_version: int, genesis: bytes, anchor: bytes) -> None:
    """Raises Invalid when the signature is not the signer's over this call on this chain in this era."""
    payload = signed_payload(extrinsic, spec_version, genesis, anchor)
    try:
        good = core.verify(payload, extrinsic.signature, extrinsic.signer, extrinsic.scheme)
    except ValueError:
        good = False
    if not good:
        raise Invalid("Transaction has a bad signature")


def timestamp_inherent(now_ms: int) -> bytes:
    """The unsigned Timestamp.set that opens every block."""
    body = b"\x04\x02\x00" + compact(now_ms)
    return compact(len(body)) + body
