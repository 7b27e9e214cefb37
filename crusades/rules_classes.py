"""Classes made by a call instead of a class statement: `type("A", (), {…})` under whatever name. Yields hits."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from crusades.rules_names import Hit
from crusades.rules_resolve import METACLASS, Resolver
from crusades.rules_roles import Roles
from crusades.rules_scopes import CLASS, Facts, Scope

_MAKERS = frozenset({"abc.ABCMeta", "enum.EnumMeta", "enum.EnumType", METACLASS})
_MAKER_NAMES = frozenset({"ABCMeta", "EnumMeta", "EnumType", "__class__", "__new__", "__call__"})
"""Last names of attributes that are worth resolving."""
_LOOKS_ONLY = frozenset({"isinstance", "issubclass", "print", "Union", "cast"})
"""Functions that do nothing with a class but look at it."""
_DEPTH = 8


class Classes:
    """The rule about classes that a call makes."""

    def __init__(self, facts: Facts, resolver: Resolver, roles: Roles) -> None:
        self._facts, self._resolver, self._roles = facts, resolver, roles

    def run(self) -> Iterator[Hit]:
        """Every call that makes a class, or hands on something that does."""
        for node, scope in self._facts.calls:
            if _has_several_arguments(node) and self._is_maker(node.func, scope):
                yield Hit("R206", node, "a call with a name, bases and members makes a class")
            elif not _only_looks(node):
                handed = next((argument for argument in node.args if isinstance(argument, ast.Name | ast.Attribute) and self._is_maker(argument, scope)), None)
                if handed is not None:
                    yield Hit("R206", handed, "hands on what makes classes: `type(x)` and `isinstance(x, type)` are fine")
        for node, scope in self._facts.attributes:
            if node.attr in ("__new__", "__call__") and self._is_maker(node.value, scope):
                yield Hit("R206", node, f"`{node.attr}` of what makes classes")

    def _is_maker(self, node: ast.expr, scope: Scope, depth: int = 0) -> bool:
        """Whether calling `node` with three arguments makes a class."""
        if isinstance(node, ast.Name):
            return self._roles.is_type(node, scope) or not _MAKERS.isdisjoint(self._resolver.name_paths(node.id, scope)) or self._is_own_maker(node, scope, depth)
        if isinstance(node, ast.Attribute) and node.attr not in _MAKER_NAMES:
            return False
        return not _MAKERS.isdisjoint(self._resolver.paths(node, scope))

    def _is_own_maker(self, node: ast.Name, scope: Scope, depth: int) -> bool:
        """Whether the name is a class of the file that descends from `type`."""
        home = scope.find(node.id)
        if home is None or depth > _DEPTH:
            return False
        if depth:  # a chain of bases is followed by itself; from the outside each name is answered once
            return any(self._descends(binding.value, home, depth) for binding in home.names[node.id] if binding.kind == CLASS)
        return bool(self._roles.remember("maker", home, node.id, lambda bindings: any(self._descends(b.value, home, 1) for b in bindings if b.kind == CLASS)))

    def _descends(self, node: ast.ClassDef, scope: Scope, depth: int) -> bool:
        return any(self._is_maker(base, scope, depth + 1) for base in node.bases[:_DEPTH])


def _has_several_arguments(node: ast.Call) -> bool:
    return len(node.args) + len(node.keywords) > 1 or any(isinstance(argument, ast.Starred) for argument in node.args)


def _only_looks(node: ast.Call) -> bool:
    """`isinstance(x, type)`, `map(type, batch)`."""
    function = node.func
    name = function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    return name in _LOOKS_ONLY or (name == "map" and len(node.args) == 2)
