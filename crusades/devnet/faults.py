"""Misbehaviour on demand: what a bad node, a bad network or a bad gateway does to a client."""

from __future__ import annotations

import fnmatch
import threading
from typing import Any, Literal

import msgspec

from crusades.errors import UsageError

Kind = Literal["drop", "close", "silence", "slow", "error", "wrong", "lose"]


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One rule: calls of these methods meet this.

    drop: the connection is aborted (1006). close: it is closed cleanly (1001), as by a node that restarts. silence: no answer
    ever. slow: the answer comes `seconds` late. error: the JSON-RPC error `code`, `message` instead of the answer. wrong:
    `result` instead of the true answer. lose: an extrinsic is accepted and never included.
    """

    kind: Kind
    methods: tuple[str, ...] = ("*",)
    """Shell patterns."""
    count: int | None = 1
    """How many calls it strikes; None = every one until it is cleared."""
    skip: int = 0
    """So many matching calls pass first."""
    carried_out: bool = False
    """The call takes effect first and only its answer is lost (drop, close, silence)."""
    seconds: float = 1.0
    code: int = -32000
    message: str = "injected fault"
    result: Any = None

    def matches(self, method: str) -> bool:
        """Whether the rule is about this method."""
        return any(fnmatch.fnmatchcase(method, pattern) for pattern in self.methods)


class Faults:
    """The rules in force. The first that matches a call strikes; safe to change from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Fault] = []
        self.struck = 0
        """How often a rule has struck."""

    def add(self, fault: Fault) -> None:
        """Put a rule in force, after those that are. Raises UsageError for numbers that make no sense."""
        if (fault.count is not None and fault.count < 1) or fault.skip < 0 or fault.seconds < 0:
            raise UsageError("a fault needs a count of at least 1 (or none), and skip and seconds of at least 0")
        with self._lock:
            self._rules.append(msgspec.structs.replace(fault))

    def clear(self) -> None:
        """Behave."""
        with self._lock:
            self._rules.clear()

    def strike(self, method: str) -> Fault | None:
        """The fault that this call meets, used up by one; None for an honest answer."""
        with self._lock:
            for rule in self._rules:
                if not rule.matches(method):
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                self._use(rule)
                self.struck += 1
                return rule
        return None

    def _use(self, rule: Fault) -> None:
        if rule.count is None:
            return
        rule.count -= 1
        if not rule.count:
            self._rules = [other for other in self._rules if other is not rule]

    def active(self) -> list[Fault]:
        """Copies of the rules in force."""
        with self._lock:
            return [msgspec.structs.replace(rule) for rule in self._rules]
