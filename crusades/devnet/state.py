"""Storage: every key with every value it ever had, by block; and the typed view that the pallets use.

Old blocks stay readable until they are pruned, a failed extrinsic is undone, and a reorganisation drops the newest blocks.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crusades.devnet.registry import Registry

SUBTENSOR = "SubtensorModule"

Value = bytes | None


class Storage:
    """Key → (blocks, values), both ascending by block. A value of None is a deletion."""

    def __init__(self) -> None:
        self.block = 0
        """Writes are dated with this block."""
        self.changed: dict[bytes, Value] = {}
        """What was written since the owner last emptied it: what the journal needs."""
        self._history: dict[bytes, tuple[list[int], list[Value]]] = {}
        self._keys: list[bytes] = []
        self._undo: list[tuple[bytes, bool, Value]] | None = None

    def put(self, key: bytes, value: Value) -> None:
        """Set or delete the key at the current block."""
        entry = self._history.get(key)
        if entry is None:
            entry = self._history[key] = ([], [])
            bisect.insort(self._keys, key)
        blocks, values = entry
        again = bool(blocks) and blocks[-1] == self.block
        if self._undo is not None:
            self._undo.append((key, again, values[-1] if again else None))
        if again:
            values[-1] = value
        else:
            blocks.append(self.block)
            values.append(value)
        self.changed[key] = value

    def get(self, key: bytes, at: int | None = None) -> Value:
        """The value as of block `at` (default: now), None when there is none."""
        entry = self._history.get(key)
        if entry is None:
            return None
        blocks, values = entry
        if at is None:
            return values[-1] if values else None
        index = bisect.bisect_right(blocks, at) - 1
        return values[index] if index >= 0 else None

    def keys(self, prefix: bytes, at: int | None = None, after: bytes | None = None) -> Iterator[bytes]:
        """Keys with the prefix that have a value, in order, those after `after` only."""
        start = bisect.bisect_left(self._keys, prefix) if after is None else bisect.bisect_right(self._keys, after)
        for index in range(start, len(self._keys)):
            key = self._keys[index]
            if not key.startswith(prefix):
                return
            if self.get(key, at) is not None:
                yield key

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo every write of the block when it leaves with an exception. Not reentrant."""
        self._undo = []
        try:
            yield
        except BaseException:
            for key, again, before in reversed(self._undo):
                blocks, values = self._history[key]
                if again:
                    values[-1] = before
                else:
                    blocks.pop()
                    values.pop()
                self.changed[key] = self.get(key)
            raise
        finally:
            self._undo = None

    def drop_after(self, block: int) -> None:
        """Forget everything written after `block`, which becomes the current one."""
        for blocks, values in self._history.values():
            keep = bisect.bisect_right(blocks, block)
            del blocks[keep:], values[keep:]
        self.block = block
        self.changed.clear()

    def prune(self, block: int) -> None:
        """Forget the values that were replaced before `block`."""
        for blocks, values in self._history.values():
            gone = bisect.bisect_right(blocks, block) - 1
            if gone > 0:
                del blocks[:gone], values[:gone]


class State:
    """Storage by pallet, item and key, in the codec's Python values. `at` is a block; None = now."""

    def __init__(self, registry: Registry, storage: Storage) -> None:
        self.registry = registry
        self.storage = storage

    def key(self, pallet: str, item: str, *params: Any) -> bytes:
        """The storage key; with fewer parameters than the map has, the prefix of the rest."""
        if not params:
            return bytes(self.registry.runtime.storage_prefix(pallet, item)) if self.registry.entry(pallet, item).param_types else bytes(
                self.registry.runtime.storage_key(pallet, item, [])
            )
        return bytes(self.registry.runtime.storage_key(pallet, item, list(params)))

    def put(self, pallet: str, item: str, params: tuple[Any, ...], value: Any) -> None:
        """Encode and set; None deletes."""
        raw = None if value is None else bytes(self.registry.runtime.encode(self.registry.entry(pallet, item).value_type, value))
        self.storage.put(self.key(pallet, item, *params), raw)

    def get(self, pallet: str, item: str, *params: Any, at: int | None = None) -> Any:
        """The decoded value; the item's default, or None for an optional one, when there is none."""
        entry = self.registry.entry(pallet, item)
        raw = self.storage.get(self.key(pallet, item, *params), at)
        if raw is None:
            if entry.modifier != "Default":
                return None
            raw = bytes(entry.default_bytes)
        return self.registry.runtime.decode(entry.value_type, raw, True)

    def has(self, pallet: str, item: str, *params: Any, at: int | None = None) -> bool:
        """Whether the key has a value of its own."""
        return self.storage.get(self.key(pallet, item, *params), at) is not None

    def map_keys(self, pallet: str, item: str, *params: Any, at: int | None = None) -> list[list[Any]]:
        """The remaining key parameters of every entry of a map, in storage order."""
        decode = self.registry.runtime.decode_storage_key_params
        return [decode(pallet, item, key, len(params)) for key in self.storage.keys(self.key(pallet, item, *params), at)]

    def items(self, pallet: str, item: str, *params: Any, at: int | None = None) -> list[tuple[Any, Any]]:
        """(remaining key parameters, value) of a map, in storage order."""
        entry = self.registry.entry(pallet, item)
        runtime = self.registry.runtime
        found = []
        for key in self.storage.keys(self.key(pallet, item, *params), at):
            raw = self.storage.get(key, at)
            named = runtime.decode_storage_key_params(pallet, item, key, len(params))
            found.append((named, runtime.decode(entry.value_type, raw, True)))
        return found

    def module(self, item: str, *params: Any, at: int | None = None) -> Any:
        """`get` in the pallet that nearly everything is in."""
        return self.get(SUBTENSOR, item, *params, at=at)

    def set_module(self, item: str, *params: Any, value: Any) -> None:
        """`put` in the pallet that nearly everything is in."""
        self.put(SUBTENSOR, item, params, value)
