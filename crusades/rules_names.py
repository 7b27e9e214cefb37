"""What the scanner's parts share: a hit, the rules about the names of modules and their members, and small questions. Pure."""

from __future__ import annotations

import ast
from typing import NamedTuple

from crusades import rules_lists as lists
from crusades.rules_strings import Computed

_INDIRECT = lists.INTROSPECTION | lists.RAW_MEMORY


class Hit(NamedTuple):
    """A rule, the node that breaks it, and what is wrong there."""

    rule: str
    node: ast.AST
    message: str


def module_rule(name: str) -> str | None:
    """The rule that forbids importing the dotted module `name`; None when it may be imported."""
    parts = name.split(".")
    if "cpp_extension" in parts:
        return "R105"
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    for prefix in prefixes:
        if prefix in lists.ALLOWED_SUBMODULES:
            return None
        if prefix in lists.DENIED_SUBMODULES:
            return lists.DENIED_SUBMODULES[prefix]
    if parts[0] in lists.DENIED_MODULES:
        return lists.DENIED_MODULES[parts[0]]
    return None if parts[0] in lists.ALLOWED_MODULES else "R109"


def member_rule(path: str, name: str) -> tuple[str, str] | None:
    """The rule against taking `name` out of the foreign thing at `path`, and why in words; None when it may be taken."""
    top = path.split(".", 1)[0]
    full = f"{path}.{name}"
    if any(full == allowed or full.startswith(f"{allowed}.") for allowed in lists.ALLOWED_SUBMODULES):
        return None
    rule = lists.DENIED_SUBMODULES.get(full) or lists.DENIED_MEMBERS.get(top, {}).get(name)
    if rule:
        return rule, f"`{full}` is not available to submissions"
    bare = name.lstrip("_")
    if top in lists.ALLOWED_MODULES and bare in lists.BORROWED_MODULES and full not in lists.NAMESAKES:
        return "R110", f"`{full}` is the module {bare}, which submissions may not use"
    return None


def is_super(node: ast.expr) -> bool:
    """`super()`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def is_true(node: ast.expr) -> bool:
    """The constant True."""
    return isinstance(node, ast.Constant) and node.value is True


def is_harmless(name: Computed) -> bool:
    """Whether a name that starts or ends like this is none of the forbidden ones, or is put together as anybody would."""
    head, tail = name.head, name.tail
    if name.written is not None and "__" not in name.written and name.written not in _INDIRECT:
        return True  # what variables bring along is for the import hook to see
    if head and not any(forbidden.startswith(head) for forbidden in _INDIRECT):
        return True
    return len(tail) >= 2 and not any(forbidden.endswith(tail) for forbidden in _INDIRECT)
