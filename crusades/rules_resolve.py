"""What an expression may stand for: dotted paths of foreign things. Pure.

Approximated from above (a set of everything it could be), and bounded: past a fixed depth or size the answer is "unknown",
which is an answer the rules can judge.
"""

from __future__ import annotations

import ast
import builtins
from typing import Final

from crusades.rules_scopes import ARGUMENT, CLASS, DEF, EXPR, GUARDED, ITEM, MODULE, OTHER, PATH, Facts, Scope
from crusades.rules_strings import Strings

_DEPTH: Final = 24
_WIDTH: Final = 16
_BUDGET: Final = 400_000
"""Expressions followed in one file: half a second. An honest file of the largest allowed size needs a sixth of it."""

ANY_CLASS: Final = "?class"
"""The path of `type(x)` and `x.__class__`: a class, nobody knows which."""

METACLASS: Final = "?type"
"""The path of `type` and of the class of a class: what makes classes."""

NOTHING: Final[frozenset[str]] = frozenset()
_TYPE: Final = frozenset({METACLASS})
_CLASSES: Final = frozenset(name for name, value in vars(builtins).items() if isinstance(value, type))


class Tangled(Exception):
    """Names lead to each other in more ways than anybody will follow; nothing that a person wrote does that."""


class Resolver:
    """Answers for one file; memoises per scope and name."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._steps = _BUDGET
        self.string = Strings(self.spend).string
        """The string that an expression makes, if it makes one."""

    def spend(self) -> None:
        """Count one step. Raises Tangled when the file's budget is used up."""
        self._steps -= 1
        if self._steps < 0:
            raise Tangled

    # ---------------------------------------------------------------- paths

    def paths(self, node: ast.AST, scope: Scope, depth: int = 0) -> frozenset[str]:
        """Dotted paths that `node` may stand for; empty when it is the file's own or nobody knows."""
        self.spend()
        if depth > _DEPTH:
            return NOTHING
        match node:
            case ast.Name():
                return self.name_paths(node.id, scope, depth)
            case ast.Attribute():
                if node.attr == "__class__":
                    return self._class_of(node.value, scope)
                if isinstance(node.value, ast.Name | ast.Call) and (own := self._own_member(node.value, node.attr, scope, depth + 1)):
                    return own
                return self._member(self.paths(node.value, scope, depth + 1), node.attr)
            case ast.IfExp():
                return self.paths(node.body, scope, depth + 1) | self.paths(node.orelse, scope, depth + 1)
            case ast.BoolOp():
                return self._union(node.values, scope, depth)
            case ast.NamedExpr() | ast.Starred() | ast.Await():
                return self.paths(node.value, scope, depth + 1)
            case ast.Subscript():
                return self.items(node.value, scope, depth + 1)
            case ast.Call():
                return self._call_paths(node, scope, depth)
        return NOTHING

    def name_paths(self, name: str, scope: Scope, depth: int = 0) -> frozenset[str]:
        """What a name stands for, read in `scope`."""
        home = scope.find(name)
        if home is None:
            return _TYPE if name == "type" else NOTHING
        known = home.memo.get(name)
        if known is not None:
            return known
        home.memo[name] = NOTHING  # a name bound through itself adds nothing
        found: set[str] = set()
        for binding in home.names[name]:
            if binding.kind in (PATH, MODULE):
                found.add(binding.value)
            elif binding.kind == EXPR and binding.value is not None:
                found |= self.paths(binding.value, home, depth + 1)
            elif binding.kind == ITEM and binding.value is not None:
                found |= self.items(binding.value, home, depth + 1)
            elif binding.kind == ARGUMENT:
                found |= self.paths(binding.value.node, binding.value.scope, depth + 1)
            if len(found) > _WIDTH:
                break
        home.memo[name] = frozenset(found)
        return home.memo[name]

    def _own_member(self, node: ast.Name | ast.Call, name: str, scope: Scope, depth: int) -> frozenset[str]:
        """What attribute `name` of a class of the file, of its objects, or of a SimpleNamespace stands for."""
        self.spend()
        if depth > _DEPTH:
            return NOTHING
        if isinstance(node, ast.Call):
            given = [keyword.value for keyword in node.keywords[:_WIDTH] if keyword.arg == name]
            return self._union(given, scope, depth) if given else self._own_member(node.func, name, scope, depth + 1) if isinstance(node.func, ast.Name) else NOTHING
        home, found = scope.find(node.id), NOTHING
        for binding in home.names[node.id][:_WIDTH] if home is not None else ():
            if binding.kind == CLASS and name in (inner := self._facts.scope_of[id(binding.value)]).names:
                found |= self.name_paths(name, inner, depth)
            elif binding.kind == EXPR and isinstance(binding.value, ast.Call) and home is not None:
                found |= self._own_member(binding.value, name, home, depth + 1)
        return found

    def _class_of(self, node: ast.expr, scope: Scope) -> frozenset[str]:
        """What `type(node)` stands for; nothing where it is a class of the file."""
        if isinstance(node, ast.Name):
            home = scope.find(node.id)
            if (home is None and node.id in _CLASSES) or self.is_own_class(node, scope):
                return _TYPE
            if node.id == "self" or self.is_own_object(node, scope):
                return NOTHING
        elif isinstance(node, ast.Attribute) and node.attr[:1].isupper() and self.paths(node, scope):
            return _TYPE
        return frozenset({ANY_CLASS})

    def _member(self, bases: frozenset[str], attribute: str) -> frozenset[str]:
        if attribute == "__class__":
            return frozenset({ANY_CLASS})
        return frozenset(f"{base}.{attribute}" for base in bases if base.count(".") < _DEPTH) if bases else NOTHING

    def _union(self, nodes: list[ast.expr], scope: Scope, depth: int) -> frozenset[str]:
        found: frozenset[str] = NOTHING
        for node in nodes[:_WIDTH]:
            found |= self.paths(node, scope, depth + 1)
        return found

    def items(self, node: ast.AST, scope: Scope, depth: int = 0) -> frozenset[str]:
        """What the elements of a literal container may stand for."""
        self.spend()
        if depth > _DEPTH:
            return NOTHING
        match node:
            case ast.Tuple() | ast.List() | ast.Set():
                found = self._union(node.elts, scope, depth)
                for element in node.elts[:_WIDTH]:  # pairs: for name, module in [("a", torch)]
                    if isinstance(element, ast.Tuple | ast.List):
                        found |= self._union(element.elts, scope, depth)
                return found
            case ast.Dict():
                return self._union(node.values, scope, depth)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                return self.paths(node.elt, self._facts.scope_of[id(node)], depth + 1)
            case ast.DictComp():
                return self.paths(node.value, self._facts.scope_of[id(node)], depth + 1)
            case ast.Name():
                home = scope.find(node.id)
                found = NOTHING
                for binding in home.names[node.id][:_WIDTH] if home is not None else ():
                    if binding.kind in (EXPR, ITEM) and binding.value is not None and home is not None:
                        found |= self.items(binding.value, home, depth + 1)
                return found
            case ast.Call(func=ast.Attribute(value=inner, attr="values" | "items" | "copy" | "get" | "pop")):
                return self.items(inner, scope, depth + 1)
            case ast.Call(func=ast.Name(id="map" | "filter"), args=[function, first, *_]):
                made = self._returned(function, depth + 1) if isinstance(function, ast.Lambda) else NOTHING
                return self.items(first, scope, depth + 1) | made
            case ast.Call(func=ast.Name(), args=[first, *_]):
                return self.items(first, scope, depth + 1)  # list(…), tuple(…), iter(…), enumerate(…)
        return NOTHING

    def _call_paths(self, node: ast.Call, scope: Scope, depth: int) -> frozenset[str]:
        function = node.func
        if isinstance(function, ast.Name):
            if function.id == "type" and _is_no_local("type", scope) and len(node.args) == 1:
                return self._class_of(node.args[0], scope)
            if function.id == "getattr" and len(node.args) >= 2:
                name = self.string(node.args[1], scope)
                return self._member(self.paths(node.args[0], scope, depth + 1), name) if isinstance(name, str) else NOTHING
            if function.id in GUARDED:
                return NOTHING
            if function.id in ("next", "iter", "max", "min") and node.args:
                return self.items(node.args[0], scope, depth + 1)
        if isinstance(function, ast.Lambda):
            return self._returned(function, depth)
        if isinstance(function, ast.Name):
            home = scope.find(function.id)
            found: frozenset[str] = NOTHING
            for binding in home.names[function.id][:_WIDTH] if home is not None else ():
                if binding.kind == DEF or isinstance(binding.value, ast.Lambda):
                    found |= self._returned(binding.value, depth)
            return found
        if isinstance(function, ast.Attribute) and function.attr in ("get", "pop", "setdefault"):
            return self.items(function.value, scope, depth + 1)
        return NOTHING

    def _returned(self, function: ast.AST, depth: int) -> frozenset[str]:
        inner = self._facts.scope_of.get(id(function))
        return self._union(inner.returns, inner, depth) if inner is not None and inner.returns else NOTHING

    def is_own_class(self, node: ast.AST, scope: Scope) -> bool:
        """Whether `node` names a class that the file defines."""
        if not isinstance(node, ast.Name):
            return False
        home = scope.find(node.id)
        return home is not None and any(binding.kind == CLASS for binding in home.names[node.id])

    def is_own_object(self, node: ast.AST, scope: Scope, depth: int = 0) -> bool:
        """Whether `node` certainly is an object of a class that the file defines: all that it is bound to is one."""
        self.spend()
        if isinstance(node, ast.Call):
            return self.is_own_class(node.func, scope)
        home = scope.find(node.id) if isinstance(node, ast.Name) and depth < _WIDTH else None
        if home is None or not isinstance(node, ast.Name):
            return False
        bindings = home.names[node.id]
        passed = any(binding.kind == ARGUMENT for binding in bindings)
        bindings = [binding for binding in bindings if not (passed and binding.kind == OTHER)]
        return len(bindings) <= _WIDTH and all(
            self.is_own_object(binding.value, home, depth + 1) if binding.kind == EXPR
            else binding.kind == ARGUMENT and self.is_own_object(binding.value.node, binding.value.scope, depth + 1)
            for binding in bindings
        )  # fmt: skip


def _is_no_local(name: str, scope: Scope) -> bool:
    """Whether no function has a `name` of its own here: outside functions it may still be the builtin, at least at times."""
    home = scope.find(name)
    return home is None or home.kind in ("module", "class")
