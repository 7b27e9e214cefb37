"""`crusades check`: the static rules, printed like a linter's findings, with the line and a caret. Starts no torch.

Exit codes: 0 clean, 1 findings, 2 a file that cannot be read. `-` reads standard input.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from crusades.errors import UsageError
from crusades.records import Finding, to_builtins, to_json
from crusades.rules_apart import scan_forked
from crusades.rules_source import MAX_BYTES, READ_CAP, Unreadable, decode, split_lines

SNIPPET = 160
"""Characters shown of a source line."""


def run(paths: Sequence[str], json: bool = False, *, max_bytes: int = MAX_BYTES) -> int:
    """Check every file; print findings; return the exit code. Raises UsageError for a file that cannot be read."""
    if not paths:
        raise UsageError("name a file: crusades check train.py")
    sources = [(path, _read(path)) for path in paths]
    results = [(path, source, scan_forked(source, max_bytes=max_bytes)) for path, source in sources]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character gets its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    if json:
        documents = [document(path, findings) for path, _, findings in results]
        _put(to_json(documents[0] if len(documents) == 1 else {"files": documents}, indent=2).decode())
    else:
        _put("\n".join(findings_text(path, source, findings) for path, source, findings in results))
    return 1 if any(findings for _, _, findings in results) else 0


def _put(text: str) -> None:
    """Print, or say why that cannot be done: an exit code of 1 would mean findings."""
    if sys.stdout is None:
        raise UsageError("cannot write the findings: standard output is closed")
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered would fail again at the end
        raise UsageError(f"cannot write the findings: {error.strerror}") from error


def document(path: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """The `--json` twin of one file's findings."""
    return {"file": shown_path(path), "clean": not findings, "findings": to_builtins(list(findings))}


def findings_text(path: str, source: bytes, findings: Sequence[Finding]) -> str:
    """`file:line:column: RULE message`, the line with a caret, why, and what to do instead."""
    if not findings:
        return f"{shown_path(path)}: clean"
    lines = _lines(source)
    blocks = [_block(path, finding, lines) for finding in findings]
    return "\n".join([*blocks, f"{shown_path(path)}: {len(findings)} finding{'s' if len(findings) > 1 else ''}"])


def _block(path: str, finding: Finding, lines: list[str]) -> str:
    rows = [f"{shown_path(path)}:{finding.line}:{finding.column}: {finding.rule} {visible(finding.message)}"]
    text = lines[finding.line - 1] if finding.line <= len(lines) else ""
    start = max(0, finding.column - 1 - SNIPPET // 2)
    shown = text[start : start + SNIPPET]
    if shown.strip():
        same_line = finding.end_line == finding.line and finding.end_column is not None
        width = max(1, min((finding.end_column or 0) - finding.column if same_line else 1, SNIPPET))
        before = visible(text[start : finding.column - 1])
        rows += [f"    {visible(shown)}", f"    {' ' * len(before)}{'^' * width}"]
    return "\n".join([*rows, f"    why:     {finding.why}", f"    instead: {finding.instead}"])


def visible(text: str) -> str:
    """`text` with everything that a terminal would obey, or not show, spelled out."""
    return "".join(c if c.isprintable() else " " if c == "\t" else c.encode("unicode_escape").decode() for c in text)


def _lines(source: bytes) -> list[str]:
    try:
        return split_lines(decode(source, READ_CAP))
    except Unreadable:
        return []


def shown_path(path: str) -> str:
    """A file's name for people: whatever bytes it is made of."""
    return visible(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _read(path: str) -> bytes:
    try:
        if path == "-":
            if sys.stdin is None:
                raise UsageError("cannot read '-': standard input is closed")
            return sys.stdin.buffer.read(READ_CAP)
        waits = os.O_NONBLOCK if _is_plain(path) else 0  # files of /proc are regular, and some wait for news all the same
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | waits), "rb") as file:
            read = file.read(READ_CAP)
        if read is None:
            raise UsageError(f"cannot read {shown_path(path)}: it has nothing to read yet")
        return read
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {shown_path(path)}: {getattr(error, 'strerror', None) or error}") from error


def _is_plain(path: str) -> bool:
    """Whether this is a file; False for what the shell itself hands over (`<(…)`, /dev/stdin). Raises UsageError for the rest.

    Reading a pipe or a terminal may wait for ever.
    """
    mode = os.stat(path).st_mode
    if path.startswith(("/dev/fd/", "/proc/self/fd/")) or path == "/dev/stdin":
        return False
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return True
    raise UsageError(f"cannot read {shown_path(path)}: not a regular file; to check what a program prints, pipe it into `crusades check -`")
