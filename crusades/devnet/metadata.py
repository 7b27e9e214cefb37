"""The runtime metadata that clients decode everything by: a real node's, adapted in memory.

Three changes are made to the blob of spec 461 when it is loaded, none to the file:
the storage item SubnetEpochConsensus, which SDK 11.3.0 reads before it sets weights and which is newer than this spec, is
added; Aura's slot duration becomes our block time; and for tests, items can be hidden to play an incompatible upgrade.
"""

from __future__ import annotations

import lzma
import re
from functools import cache
from importlib import resources

from crusades.devnet.scale import compact

SPEC_VERSION = 461
TRANSACTION_VERSION = 1

_FILE = "metadata_v15_spec461.xz"
_IDENTITY_MAP = b"\x01\x01\x04\x06"  # default modifier, map, one hasher, which is Identity
_U8_TYPE = 2


@cache
def load() -> bytes:
    """The V15 metadata as it ships, decompressed."""
    return lzma.decompress(resources.files("crusades.devnet").joinpath(_FILE).read_bytes())


@cache
def adapted(block_time: float, hidden: tuple[str, ...] = ()) -> bytes:
    """The metadata of a devnet with this block time (seconds) and without the storage items and calls named in `hidden`."""
    blob = _with_slot_duration(_with_epoch_consensus(load()), max(1, round(block_time * 1000)))
    for name in hidden:
        blob = _without(blob, name)
    return blob


def _name(text: str) -> bytes:
    return compact(len(text)) + text.encode()


def _with_epoch_consensus(blob: bytes) -> bytes:
    """Insert `SubnetEpochConsensus: map NetUid → u8`, 0 (Yuma) by default, modelled on a map with the same key."""
    if _name("SubnetEpochConsensus") in blob:
        return blob
    like = blob.index(_name("CommitRevealWeightsEnabled") + _IDENTITY_MAP) + len(_name("CommitRevealWeightsEnabled") + _IDENTITY_MAP)
    key_type = blob[like : like + _compact_width(blob[like])]
    entry = _name("SubnetEpochConsensus") + _IDENTITY_MAP + key_type + compact(_U8_TYPE) + compact(1) + b"\0" + compact(0)
    pallet = _name("SubtensorModule")
    count_at = blob.index(pallet + b"\x01" + pallet) + 2 * len(pallet) + 1  # name, Some(storage), prefix, then the entries
    width = _compact_width(blob[count_at])
    count = int.from_bytes(blob[count_at : count_at + width], "little") >> 2
    return blob[:count_at] + compact(count + 1) + entry + blob[count_at + width :]


def _with_slot_duration(blob: bytes, milliseconds: int) -> bytes:
    found = re.search(re.escape(_name("SlotDuration")) + b"[\x00-\xff]\x20([\x00-\xff]{8})", blob, re.DOTALL)
    if found is None:
        raise ValueError("the metadata has no constant SlotDuration of eight bytes")
    return blob[: found.start(1)] + milliseconds.to_bytes(8, "little") + blob[found.end(1) :]


def _without(blob: bytes, name: str) -> bytes:
    """Give `name` another spelling of the same length wherever it is declared: to a client it is gone."""
    if _name(name) not in blob:
        raise ValueError(f"the metadata declares no {name}")
    return blob.replace(_name(name), compact(len(name)) + (name[:-1] + "~").encode())


def _compact_width(first: int) -> int:
    return (1, 2, 4)[first & 3]
