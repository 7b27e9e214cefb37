"""What the devnet's tests share: keys that sign for themselves, and the outcome of a call in one word."""

from __future__ import annotations

from typing import Any

import bittensor_core as core

from crusades.devnet.chain import Chain
from crusades.devnet.errors import RpcError
from crusades.devnet.scale import compact, from_hex


def key(name: str) -> Any:
    """The development key //name."""
    return core.Keypair.create_from_uri(f"//{name}")


def address(name: str) -> str:
    """Its SS58 address."""
    return str(key(name).ss58_address)


def signed(chain: Chain, name: str, call: str, *, era: Any = None, nonce: int | None = None, tip: int = 0, spec: Any = None, **args: Any) -> bytes:
    """A signed extrinsic, built by the SDK's codec as the SDK builds it. `era` None = mortal over 64 blocks from the head."""
    runtime, keypair = chain.registry.runtime if spec is None else spec, key(name)
    pallet, function = call.split(".")
    data = bytes(runtime.compose_call(pallet, function, args))
    nonce = chain.next_nonce(keypair.ss58_address) if nonce is None else nonce
    head = chain.head.number
    era = {"period": 64, "phase": head % 64} if era is None else era
    birth = head if era != "00" else 0
    options = {"era": era, "nonce": nonce, "tip": tip, "tip_asset_id": None}
    payload = runtime.signature_payload(
        data, genesis_hash=from_hex(chain.ledger.genesis.hash), era_block_hash=from_hex(chain.ledger[birth].hash), metadata_hash=None, **options
    )
    raw, _ = runtime.encode_signed_extrinsic(
        data, public_key=bytes(keypair.public_key), signature=bytes(keypair.sign(bytes(payload))), signature_version=1, **options
    )
    return bytes(raw)


def outcome(chain: Chain, name: str, call: str, **args: Any) -> str:
    """Submit, make a block, and say what became of it: "ok", the name of the module error, or why the pool refused."""
    try:
        chain.submit(signed(chain, name, call, **args))
    except RpcError as error:
        return str(error.data)
    chain.produce()
    return outcomes(chain)[-1]


def events(chain: Chain) -> list[tuple[str, Any]]:
    """("Pallet.Event", attributes) of the head."""
    return [(f"{row['module_id']}.{row['event_id']}", row["attributes"]) for row in chain.state.get("System", "Events")]


def outcomes(chain: Chain) -> list[str]:
    """What became of each extrinsic of the head, the timestamp left out."""
    names = {(pallet, number): error for (_, error), (pallet, number) in chain.registry._errors.items()}
    found = []
    for event, attributes in events(chain)[1:]:
        if event == "System.ExtrinsicSuccess":
            found.append("ok")
        elif event == "System.ExtrinsicFailed":
            module = attributes["dispatch_error"]["Module"]
            found.append(names[module["index"], from_hex(module["error"])[0]])
    return found


def sealed_fields(ciphertext: bytes, reveal_round: int = 1000) -> dict[str, Any]:
    """The `info` of a commitment with one sealed field."""
    return {"fields": [[{"TimelockEncrypted": {"encrypted": ciphertext, "reveal_round": reveal_round}}]]}


def weights_payload(name: str, uids: list[int], values: list[int], version: int = 0) -> bytes:
    """The plaintext that is sealed when weights are committed."""
    u16s = [compact(len(row)) + b"".join(value.to_bytes(2, "little") for value in row) for row in (uids, values)]
    return compact(32) + bytes(key(name).public_key) + u16s[0] + u16s[1] + version.to_bytes(8, "little")
