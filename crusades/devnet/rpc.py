"""JSON-RPC, without any transport: calls in, answers and notifications out, faults in between."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from crusades.devnet.blocks import Block
from crusades.devnet.calls import CallLog
from crusades.devnet.chain import Chain, Happening
from crusades.devnet.errors import RpcError
from crusades.devnet.faults import Fault, Faults
from crusades.devnet.methods import METHODS, SUBMITTING, runtime_version

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """What a transport gives for each client."""

    number: int

    def send(self, message: dict[str, Any]) -> None:
        """Queue a notification; from any thread, never blocks."""


@dataclass
class Reply:
    """What to do about a call: send this answer, unless a fault says otherwise."""

    answer: dict[str, Any] | None
    fault: Fault | None = None


@dataclass
class _Subscription:
    kind: Literal["new", "finalized", "upgraded", "watch"]
    connection: Connection
    method: str


@dataclass
class Rpc:
    """Answers calls from the chain."""

    chain: Chain
    faults: Faults
    log: CallLog
    _subscriptions: dict[str, _Subscription] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.chain.listeners.append(self._on_block)

    # ------------------------------------------------------------------------------------------------ calls

    def handle(self, message: Any, connection: Connection) -> Reply:
        """Answer one call. Never raises: what goes wrong is answered as a JSON-RPC error."""
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            return Reply({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Invalid request"}})
        method, params, started = message["method"], message.get("params") or [], time.perf_counter()
        fault = self.faults.strike(method)
        base = {"jsonrpc": "2.0", "id": message.get("id")}
        error: dict[str, Any] | None = None
        answer: dict[str, Any] | None = None
        if fault is not None and fault.kind == "error":
            error = {"code": fault.code, "message": fault.message}
        elif fault is not None and fault.kind == "wrong":
            answer = {**base, "result": fault.result}
        elif fault is None or fault.carried_out or fault.kind in ("slow", "lose"):
            answer, error = self._carry_out(base, method, params, connection, lost=fault is not None and fault.kind == "lose")
        if error is not None:
            answer = {**base, "error": error}
        self.log.add(connection.number, method, params, started, error["message"] if error else None, fault.kind if fault else None)
        return Reply(answer, fault)

    def _carry_out(
        self, base: dict[str, Any], method: str, params: Any, connection: Connection, *, lost: bool
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        function = METHODS.get(method)
        if function is None:
            return None, {"code": -32601, "message": f"Method not found: {method}"}
        if not isinstance(params, list):
            return None, {"code": -32602, "message": "Invalid params: a list is expected"}
        try:
            with self.chain.lock:
                if lost and method in SUBMITTING:
                    return {**base, "result": SUBMITTING[method](self, connection, params, lost=True)}, None
                return {**base, "result": function(self, connection, params)}, None
        except RpcError as error:
            return None, error.json()
        except (IndexError, TypeError, ValueError, AttributeError) as error:
            return None, {"code": -32602, "message": f"Invalid params: {error}"}
        except Exception as error:  # a fault of ours must not look like a silent node
            _log.exception("devnet failed to answer %s", method)
            return None, {"code": -32603, "message": f"Internal error in devnet: {type(error).__name__}: {error}"}

    # ------------------------------------------------------------------------------------------------ subscriptions

    def subscribe(self, connection: Connection, kind: Literal["new", "finalized", "upgraded", "watch"], method: str) -> str:
        """Open a subscription and return its id."""
        name = f"devnet{next(self._ids)}"
        self._subscriptions[name] = _Subscription(kind, connection, method)
        return name

    def unsubscribe(self, name: str) -> bool:
        """Close a subscription; False when there is none of that id."""
        with self.chain.lock:
            return self._subscriptions.pop(name, None) is not None

    def forget(self, connection: Connection) -> None:
        """Close every subscription of a client that is gone."""
        with self.chain.lock:
            gone = [name for name, subscription in self._subscriptions.items() if subscription.connection is connection]
            for name in gone:
                del self._subscriptions[name]

    def notify(self, name: str, result: Any) -> None:
        """Push a value to a subscription, if it is still open."""
        subscription = self._subscriptions.get(name)
        if subscription is not None:
            params = {"subscription": name, "result": result}
            subscription.connection.send({"jsonrpc": "2.0", "method": subscription.method, "params": params})

    def _on_block(self, happening: Happening, block: Block) -> None:
        for name, subscription in list(self._subscriptions.items()):
            if subscription.kind == happening:
                self.notify(name, runtime_version(self.chain.spec_version) if happening == "upgraded" else block.header())
