"""The SDK's codec over our metadata, with what it lacks: empty values of any type, and errors by name."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs

from crusades.devnet.metadata import SPEC_VERSION, TRANSACTION_VERSION
from crusades.devnet.scale import SS58_FORMAT, address


@lru_cache(maxsize=4)
def registry_of(metadata: bytes) -> Registry:
    """The registry of this metadata, made once: it never changes, and making it takes as long as a hundred blocks."""
    return Registry(metadata)


class Registry:
    """Encodes and decodes by the metadata it was made from."""

    def __init__(self, metadata: bytes) -> None:
        self.metadata = metadata
        self.runtime = core.Runtime(metadata, SPEC_VERSION, TRANSACTION_VERSION, SS58_FORMAT)
        self.apis: dict[str, dict[str, dict[str, Any]]] = self.runtime.runtime_api_map()
        self._types: dict[int, dict[str, Any]] = {row["id"]: row["type"] for row in json.loads(self.runtime.registry_json())["types"]}
        self._errors = {
            (pallet["name"], error["name"]): (int(pallet["index"]), int(error["index"]))
            for pallet in self.runtime.metadata_ir()["pallets"]
            for error in pallet["errors"]
        }
        self._entries: dict[tuple[str, str], Any] = {}

    def entry(self, pallet: str, item: str) -> Any:
        """The storage entry's description, cached: the codec builds a new one each time."""
        found = self._entries.get((pallet, item))
        if found is None:
            found = self._entries[pallet, item] = self.runtime.storage_entry(pallet, item)
        return found

    def error(self, pallet: str, name: str) -> tuple[int, int]:
        """(pallet index, error index) of a module error."""
        return self._errors[pallet, name]

    def api(self, method: str) -> dict[str, Any] | None:
        """Description of a runtime API by its wire name `Api_method`, or None."""
        api, _, name = method.partition("_")
        return self.apis.get(api, {}).get(name)

    # ------------------------------------------------------------------------------------------------ empty values

    def zero(self, type_id: int) -> Any:
        """An empty value of the type: 0, false, "", [], None, the first variant, a struct of such."""
        shape = self._types[type_id]["def"]
        kind = next(iter(shape))
        body = shape[kind]
        match kind:
            case "primitive":
                return {"bool": False, "str": ""}.get(body, 0)
            case "compact":
                return self.zero(body["type"])
            case "sequence":
                return []
            case "array":
                return self._zero_array(body)
            case "tuple":
                return [self.zero(part) for part in body]
            case "variant":
                return self._zero_variant(type_id, body)
            case _:
                return self._zero_struct(type_id, body)

    def _zero_array(self, body: dict[str, Any]) -> Any:
        if self._types[body["type"]]["def"].get("primitive") == "u8":
            return "0x" + "00" * body["len"]
        return [self.zero(body["type"])] * body["len"]

    def _zero_variant(self, type_id: int, body: dict[str, Any]) -> Any:
        if self._path(type_id) == "Option":
            return None
        first = body["variants"][0]
        fields = first.get("fields") or []
        return {first["name"]: self._zero_fields(fields)} if fields else first["name"]

    def _zero_struct(self, type_id: int, body: dict[str, Any]) -> Any:
        if self._path(type_id) == "AccountId32":
            return address(bytes(32))
        return self._zero_fields(body.get("fields") or [])

    def _zero_fields(self, fields: list[dict[str, Any]]) -> Any:
        if fields and fields[0].get("name"):
            return {field["name"]: self.zero(field["type"]) for field in fields}
        values = [self.zero(field["type"]) for field in fields]
        return values[0] if len(values) == 1 else values

    def _path(self, type_id: int) -> str:
        path = self._types[type_id].get("path") or [""]
        return str(path[-1])

    # ------------------------------------------------------------------------------------------------ answers

    def blank(self, method: str) -> dict[str, Any]:
        """An empty struct of what the runtime API returns, `Option` and `Vec` unwrapped, its own options filled in."""
        type_id = self._inner(self._output(method))
        value = self.zero(type_id)
        for field in self._types[type_id]["def"]["composite"]["fields"]:
            if value[field["name"]] is None and field["name"] != "identity":
                value[field["name"]] = self.zero(self._some(field["type"]))
        return dict(value)

    def _output(self, method: str) -> int:
        description = self.api(method)
        if description is None:
            raise KeyError(method)
        return int(description["output"].split("::")[1])

    def _inner(self, type_id: int) -> int:
        shape = self._types[type_id]["def"]
        if "sequence" in shape:
            return self._inner(shape["sequence"]["type"])
        return self._inner(self._some(type_id)) if self._path(type_id) == "Option" else type_id

    def _some(self, type_id: int) -> int:
        return int(self._types[type_id]["def"]["variant"]["variants"][1]["fields"][0]["type"])
