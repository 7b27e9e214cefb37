"""The log of calls: the last ones in memory, all of them in a file if asked for."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from crusades.errors import ConfigError

_KEPT = 10_000
_SHOWN = 200
"""Characters of each parameter that the file shows."""


class Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call that a client made."""

    time: float
    """Seconds since the epoch."""
    connection: int
    method: str
    params: Any
    milliseconds: float
    error: str | None = None
    """What it was refused with."""
    fault: str | None = None
    """The kind of fault that it met."""


class CallLog:
    """Collects calls. `calls` holds the newest ten thousand with whole parameters."""

    def __init__(self, path: Path | None) -> None:
        self.calls: deque[Call] = deque(maxlen=_KEPT)
        try:
            self._file = path.open("ab") if path is not None else None
        except OSError as error:
            raise ConfigError(f"cannot write the log of calls {path}: {error.strerror}") from error

    def add(self, connection: int, method: str, params: Any, started: float, error: str | None, fault: str | None) -> None:
        """Record a call that began at `started` (`time.perf_counter`)."""
        took = round((time.perf_counter() - started) * 1000, 3)
        call = Call(time=time.time(), connection=connection, method=method, params=params, milliseconds=took, error=error, fault=fault)
        self.calls.append(call)
        if self._file is not None:
            self._file.write(msgspec.json.encode(msgspec.structs.replace(call, params=_shortened(params))) + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]}… ({len(value)} characters)"
    if isinstance(value, list):
        return [_shortened(item) for item in value[:_SHOWN]]
    return value
