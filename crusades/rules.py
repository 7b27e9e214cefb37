"""The rules of the competition: the table, the scanner built on it, and what the import hook is told. Pure; imports no torch.

Theory of operation. One table (`rules_table`) says what is forbidden, why, and what to do instead; one set of lists
(`rules_lists`) says by which names. The scanner (`scan`) reads a file before anybody pays for it and prints what it finds
like a linter; the import hook (`sandbox/inside/hook.py`, told by `hook_table`) refuses the same names while the file runs,
for what a scanner cannot follow. Neither is what the score rests on: that is the audit, in another process.

`rules_source` turns bytes into a tree, `rules_scopes` walks it once, `rules_resolve`, `rules_strings` and `rules_roles` say
what a name may stand for, `rules_checks`, `rules_access`, `rules_calls` and `rules_classes` judge, `rules_scan` puts it
together, `rules_apart` does so in a process of its own, `rules_fingerprint` compares programs. `python -m crusades.rules`
prints the page `docs/rules.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crusades import faults
from crusades import rules_lists as lists
from crusades.records import Finding, Reason, Stage
from crusades.rules_fingerprint import fingerprint
from crusades.rules_scan import scan
from crusades.rules_table import BY_ID, RULES, Rule, rule

__all__ = ["BY_ID", "RULES", "Finding", "Rule", "fingerprint", "first_reason", "hook_table", "rule", "scan"]


def first_reason(findings: Sequence[Finding]) -> Reason:
    """The reason of a rejection: the first broken rule, else what is missing. `findings` must not be empty."""
    first = next((finding for finding in findings if BY_ID[finding.rule].fault == "rule"), findings[0])
    row = BY_ID[first.rule]
    more = f" ({len(findings) - 1} more: `crusades check train.py`)" if len(findings) > 1 else ""
    return Reason(
        code=faults.fault(row.fault).code, stage=Stage.CHECK, rule=first.rule, line=first.line, hint=first.instead,
        message=f"line {first.line}: {first.message}. {first.why}{more}",
    )  # fmt: skip


def hook_table() -> dict[str, Any]:
    """What the import hook needs to know, as JSON-ready data."""
    return {
        "version": 1,
        "allowed": sorted(lists.ALLOWED_MODULES),
        "denied": lists.DENIED_MODULES,
        "denied_submodules": lists.DENIED_SUBMODULES,
        "allowed_submodules": sorted(lists.ALLOWED_SUBMODULES),
        "members": lists.DENIED_MEMBERS,
        "builtins": lists.DENIED_BUILTINS,
        "introspection": sorted(lists.INTROSPECTION),
        "raw_memory": sorted(lists.RAW_MEMORY),
        "clocks": sorted(lists.CLOCK_NAMES_ANYWHERE),
        "open_configs": list(lists.OPEN_CONFIGS),
        "backend_settings": sorted(lists.BACKEND_SETTINGS_ALLOWED),
        "events": lists.AUDIT_EVENTS,
        "rules": {row.id: {"what": row.what, "instead": row.instead} for row in RULES},
    }


if __name__ == "__main__":
    from crusades.rules_page import page

    print(page(), end="")
