"""The scanner: source → findings, by the rule table, in one pass. Never raises, whatever it is given.

It reads names, not intentions. What it cannot follow is either judged by what it may be, or left to the import hook and,
in the end, to the audit; see `rules_table` for what it rests on and what rests on it.
"""

from __future__ import annotations

from itertools import islice

from crusades.records import Finding
from crusades.rules_checks import Checker
from crusades.rules_names import Hit
from crusades.rules_resolve import Tangled
from crusades.rules_scopes import collect
from crusades.rules_source import (
    MAX_BYTES,
    Unreadable,
    collector_paused,
    decode,
    folded_names,
    parse,
    split_lines,
    text_problems,
    without_main,
)
from crusades.rules_table import BY_ID

MAX_FINDINGS = 200
"""More say nothing new."""

MAX_MESSAGE = 300
"""Characters."""


def scan(source: bytes | str, *, filename: str = "train.py", max_bytes: int = MAX_BYTES) -> list[Finding]:
    """Every finding in `source`, by line and column. Never raises; empty for a clean file.

    `filename` is for messages only. Takes up to two seconds for 500 kB and holds the GIL: a daemon calls
    `rules_apart.scan_apart` instead.
    """
    try:
        with collector_paused():
            return scan_unguarded(source, max_bytes)
    except (RecursionError, MemoryError):
        return [_finding("R602", 1, 1, "too large or too deep to be analysed")]


def scan_unguarded(source: bytes | str, max_bytes: int) -> list[Finding]:
    """`scan`, but exhaustion shows as what it is: for tests, which must see it."""
    try:
        text = decode(source, max_bytes)
    except Unreadable as error:
        return [_finding(*error.problem)]
    lines = split_lines(text)
    found = [_finding(*problem) for problem in islice(text_problems(lines), MAX_FINDINGS)]
    try:
        tree = parse(text)
    except Unreadable as error:
        return _ordered([*found, _finding(*error.problem)])
    facts = collect(without_main(tree))
    found += [_finding(*problem) for problem in islice(folded_names(lines, frozenset(facts.names)), MAX_FINDINGS)]
    try:
        hits = sorted(Checker(facts).run(), key=lambda hit: (getattr(hit.node, "lineno", 1), getattr(hit.node, "col_offset", 0)))
        found += [_located(hit, lines) for hit in hits[:MAX_FINDINGS]]
    except Tangled:
        found.append(_finding("R602", 1, 1, "names refer to each other in too many ways to be analysed"))
    return _ordered(found)


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Sorted by place, each place once per rule."""
    seen: dict[tuple[int, int, str], Finding] = {}
    for finding in sorted(findings, key=lambda f: (f.line, f.column, f.rule)):
        seen.setdefault((finding.line, finding.column, finding.rule), finding)
    return list(seen.values())[:MAX_FINDINGS]


def _located(hit: Hit, lines: list[str]) -> Finding:
    node = hit.node
    line = getattr(node, "lineno", 1)
    end_line = getattr(node, "end_lineno", None)
    column = _characters(lines, line, getattr(node, "col_offset", 0))
    end_column = _characters(lines, end_line, getattr(node, "end_col_offset", 0) or 0) if end_line is not None else None
    return _finding(hit.rule, line, column, hit.message, end_line, end_column)


def _characters(lines: list[str], line: int, offset: int) -> int:
    """1-based column in characters, from the byte offset that the parser gives."""
    text = lines[line - 1] if 0 < line <= len(lines) else ""
    return offset + 1 if text.isascii() else len(text.encode()[:offset].decode("utf-8", "ignore")) + 1


def _finding(rule: str, line: int, column: int, message: str, end_line: int | None = None, end_column: int | None = None) -> Finding:
    row = BY_ID[rule]
    return Finding(rule=rule, line=line, column=column, message=_shown(message), why=row.why, instead=row.instead, end_line=end_line, end_column=end_column)


def _shown(message: str) -> str:
    """A message quotes the file: nothing in it may move a cursor, reverse a line, or fill a log."""
    cut = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
