"""Logging: one JSON object a line under systemd, readable lines on a terminal, never a secret.

Fields (`submission`, `hotkey`, `stage`, `block`) are bound to the running task with `bound(...)` and appear on every
line it logs, also from worker threads (trio hands the context on). Redaction has one choke point, the formatter's
last step: whatever a message, an argument or a traceback contains has to pass it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO
from urllib.parse import urlsplit

FIELDS = ("submission", "hotkey", "stage", "block")
"""What operators filter by, in the order in which people see them."""

_bound: ContextVar[dict[str, object]] = ContextVar("log_fields", default={})  # noqa: B039 - never mutated, always replaced

# ------------------------------------------------------------------------------------------------ fields


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Put fields on every line logged inside the block. A field that is None is left out."""
    token = _bound.set(_bound.get() | {key: value for key, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _bound.reset(token)


# ------------------------------------------------------------------------------------------------ redaction

MASK = "[redacted]"
_SECRET_VARIABLES = ("HF_TOKEN", "BT_WALLET_PASSWORD", "HUGGING_FACE_HUB_TOKEN", "BT_PW")
_MIN_SECRET = 6
"""Shorter strings would mask ordinary words."""

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # A key file's own fields: the JSON of a hotkey, or a repr of it.
    (re.compile(r"""(["']?(?:secret_?seed|secret_?phrase|private_?key|mnemonic|password|passphrase)["']?\s*[:=]\s*)(["'])(?:\\.|(?!\2).)*\2""", re.IGNORECASE), rf"\1\2{MASK}\2"),
    # key=value and --key value without quotes.
    (re.compile(r"\b((?:password|passphrase|secret|token|api_?key|mnemonic|private_?key|secret_?seed)\s*[=:]\s*)[^\s\"',;&]+", re.IGNORECASE), rf"\1{MASK}"),
    # 64-byte expanded private keys. A 32-byte value looks like any hash and is only masked where a name above says what it is.
    (re.compile(r"\b0x[0-9a-f]{128}\b", re.IGNORECASE), MASK),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), MASK),
    # user:password@ in any URL
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@:]+:[^\s/@]+@", re.IGNORECASE), rf"\1{MASK}@"),
)


class Redactor:
    """Replaces known secrets and everything that looks like one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._secrets: set[str] = set()
        for name in _SECRET_VARIABLES:
            self.add(environment.get(name, ""))

    def add(self, secret: str) -> None:
        """Mask this string from now on (a wallet's seed, a webhook's URL). A secret of several lines is masked line by line."""
        self._secrets.update(line.strip() for line in secret.splitlines() if len(line.strip()) >= _MIN_SECRET)

    def add_address(self, url: str) -> None:
        """Mask path and query of an address from now on: the key of a private node stands there."""
        parts = urlsplit(url)
        for secret in (parts.path.rstrip("/"), parts.query):
            self.add(secret)

    def clean(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


redactor = Redactor()
"""The process's one choke point; crash reports and alerts use it too."""

# ------------------------------------------------------------------------------------------------ formats


class JsonLines(logging.Formatter):
    """One JSON object a line: `at` (UTC), `level`, `logger`, `message`, the bound fields, `error` with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "message": _one_line(record),
        }
        told |= {key: value for key, value in _fields(record).items() if key not in told}
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        # Cleaned before it is encoded: escaping would hide a quote or a line break from the patterns.
        return json.dumps(_clean(told), ensure_ascii=False, default=str)


class Terminal(logging.Formatter):
    """`12:00:01 INFO poller: message  submission=… block=…`, local time, traceback below."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        line = f"{at} {record.levelname:<7} {record.name.removeprefix('crusades.')}: {_one_line(record)}" + (f"  {fields}" if fields else "")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redactor.clean(line)


def _one_line(record: logging.LogRecord) -> str:
    # A submission's words may reach a message: it must not be able to forge a second line or move the cursor.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in record.getMessage())


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = dict(_bound.get())
    return {key: fields[key] for key in FIELDS if key in fields} | {key: value for key, value in fields.items() if key not in FIELDS}


def _clean(value: object) -> object:
    if isinstance(value, str):
        return redactor.clean(value)
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------------------------ set-up


def under_systemd(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether our stderr goes to the journal: systemd then sets JOURNAL_STREAM to its device and inode."""
    stream = environment.get("JOURNAL_STREAM", "")
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}"


def configure(*, json_lines: bool | None = None, level: str = "INFO", stream: TextIO | None = None) -> logging.Handler:
    """Send the process's logs to stderr in the right form; called once, by an entry point. Returns the handler.

    `json_lines` None means: JSON exactly when stderr is the journal. Libraries speak from WARNING on.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    as_json = under_systemd() if json_lines is None else json_lines
    handler.setFormatter(JsonLines() if as_json else Terminal())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("crusades").setLevel(level)
    return handler
