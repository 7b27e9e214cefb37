"""The control socket: JSON lines on a second loopback port, by which another process steers the devnet.

    → {"id": 1, "method": "produce_blocks", "params": {"count": 3}}
    ← {"id": 1, "result": 12}
    ← {"id": 1, "error": "…"}

The methods are those of `Devnet` that `METHODS` names, with their parameters by name. Whoever can connect owns the chain,
which is why it is on loopback and off by default.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import TYPE_CHECKING, Any

import msgspec

from crusades.devnet.faults import Fault
from crusades.errors import CrusadesError

if TYPE_CHECKING:
    from crusades.devnet.net import Devnet

METHODS = (
    "info",
    "produce_blocks",
    "reorganize",
    "drop_pool",
    "fund",
    "balance",
    "register",
    "set_stake",
    "replace",
    "uid",
    "set_hyperparameter",
    "weights",
    "drop_connections",
    "mute",
    "stall",
    "prune",
)
"""Methods of Devnet that need nothing but a call. The rest is spelt out in `_carry_out`."""


class Control:
    """Carries out commands on a devnet."""

    def __init__(self, net: Devnet) -> None:
        self._net = net

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's commands, one after the other, until it ends."""
        try:
            while line := await reader.readline():
                if not line.startswith(b"{"):  # a browser's POST must not reach a command in its body
                    break
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # the other side is gone, or sent a line beyond the reader's limit
            return
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        number = None
        try:
            command = json.loads(line)
            number = command.get("id")
            result = await self._carry_out(command["method"], command.get("params") or {})
            return {"id": number, "result": result}
        except (AttributeError, KeyError, TypeError, ValueError, CrusadesError, msgspec.ValidationError) as error:
            return {"id": number, "error": f"{type(error).__name__}: {error}"}

    async def _carry_out(self, method: str, params: dict[str, Any]) -> Any:
        server = self._net._server
        match method:
            case "fault":
                return self._net.faults.add(msgspec.convert(params, Fault))
            case "faults":
                return msgspec.to_builtins(self._net.faults.active())
            case "upgrade":
                return self._net.upgrade(*params.get("hidden", ()))
            case "vanish":
                return await server.vanish()
            case "appear":
                return await server.listen()
            case "close_connections":
                return await server.close_all()
            case "clear_faults":
                self._net.behave()
                return await server.listen()
        if method not in METHODS:
            raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
        function = getattr(self._net, method)
        inspect.signature(function).bind(**params)
        return function(**params)
