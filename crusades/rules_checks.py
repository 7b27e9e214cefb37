"""All rules over the facts of one file: contract, imports, names and strings here; attributes and calls in modules of their own.

Each part yields hits; none knows of text or columns.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from crusades import rules_lists as lists
from crusades.rules_access import Access, interpreter_name
from crusades.rules_calls import Calls
from crusades.rules_classes import Classes
from crusades.rules_names import Hit, member_rule, module_rule
from crusades.rules_resolve import Resolver
from crusades.rules_roles import Roles
from crusades.rules_scopes import DEF, EXPR, ITEM, MODULE, PATH, Binding, Facts, Scope

_FORMAT_FIELD = re.compile(r"\{[^{}]*\._{2}\w+_{2}")
_PATH_PARTS = re.compile(r"[.\[\]]")
_PATH_CAP = 200
_INTERNAL_NAMES = frozenset(name for name in lists.INTROSPECTION | lists.LAZY_METHODS if "_" in name) | {"__build_class__"}


class Checker:
    """All rules."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._resolver = Resolver(facts)
        self._roles = Roles(facts, self._resolver)
        self._access = Access(facts, self._resolver, self._roles)
        self._calls = Calls(facts, self._resolver, self._roles, self._access)

    def run(self) -> Iterator[Hit]:
        """Every hit, in no particular order. The contract comes first: it says which name is the optimizer."""
        yield from self._contract()
        yield from self._imports()
        yield from self._bindings()
        yield from self._names()
        yield from self._strings()
        yield from self._access.attributes()
        yield from self._access.patterns()
        yield from self._access.writes()
        yield from self._calls.run()
        yield from Classes(self._facts, self._resolver, self._roles).run()

    def _contract(self) -> Iterator[Hit]:
        bindings = self._facts.module.names.get("inner_steps")
        if not bindings:
            yield Hit("R701", ast.Module(body=[], type_ignores=[]), "no function inner_steps is defined")
            return
        definitions = [binding.value for binding in bindings if binding.kind == DEF]
        for function in definitions:
            self._roles.remember_arguments(function)
            if isinstance(function, ast.AsyncFunctionDef):
                yield Hit("R702", function, "inner_steps is a coroutine; it must be a plain function")
            elif (problem := _signature_problem(function.args)) is not None:
                yield Hit("R702", function, problem)

    def _imports(self) -> Iterator[Hit]:
        for node, _ in self._facts.imports:
            yield from self._plain_import(node) if isinstance(node, ast.Import) else self._from_import(node)

    def _plain_import(self, node: ast.Import) -> Iterator[Hit]:
        for alias in node.names:
            rule = module_rule(alias.name)
            if rule:
                yield Hit(rule, alias, f"`import {alias.name}`: {_not_for_submissions(rule, alias.name)}")
            elif alias.name == "torch" and alias.asname not in (None, "torch"):
                yield Hit("R107", alias, f"torch is imported as `{alias.asname}`")

    def _from_import(self, node: ast.ImportFrom) -> Iterator[Hit]:
        module = node.module or ""
        if node.level:
            yield Hit("R109", node, "a relative import: a submission is one file")
            return
        rule = module_rule(module)
        for alias in node.names:
            if alias.name == "*":
                yield Hit("R108", node, f"`from {module} import *`")
            if rule and (f"{module}.{alias.name}" not in lists.ALLOWED_SUBMODULES):
                yield Hit(rule, alias if alias.name != "*" else node, f"`from {module} import {alias.name}`: {_not_for_submissions(rule, module)}")
            elif not rule and (broken := member_rule(module, alias.name)):
                yield Hit(broken[0], alias, broken[1])
            elif alias.name in lists.RAW_MEMORY or alias.name in lists.INTROSPECTION:
                yield interpreter_name(alias, alias.name)

    def _bindings(self) -> Iterator[Hit]:
        for name, node, scope in self._facts.bound:
            if name in lists.MODULE_VARIABLES and scope.kind != "comprehension":
                yield Hit("R205", node, f"binds `{name}`")
            if name in lists.LAZY_METHODS and scope.kind in ("class", "module"):
                yield Hit("R303", node, f"defines `{name}`")
            elif name in lists.RAW_MEMORY and scope.kind == "class":
                yield Hit("R304", node, f"defines `{name}`")

    def _names(self) -> Iterator[Hit]:
        for node, scope in self._facts.loads:
            if node.id in lists.DENIED_BUILTINS or node.id in lists.GUARDED_BUILTINS:
                yield from self._builtin(node, scope)
            else:
                yield from self._module_as_value(node, scope)
        for node, scope in self._facts.bases:
            if node.id in lists.DENIED_BUILTINS:
                yield from self._builtin(node, scope)

    def _builtin(self, node: ast.Name, scope: Scope) -> Iterator[Hit]:
        if self._roles.shadowed(node, scope):
            return
        if node.id in lists.DENIED_BUILTINS:
            yield Hit("R201", node, f"`{node.id}` is not available to submissions")
        else:
            yield Hit("R203", node, f"`{node.id}` is used as a value; call it with the name written out")

    def _module_as_value(self, node: ast.Name, scope: Scope) -> Iterator[Hit]:
        home = scope.find(node.id)
        if home is None or (id(node) in self._facts.defaults and "torch" not in self._resolver.name_paths(node.id, scope)):
            return  # a default is followed: `def f(x, lib=F)`
        if self._roles.remember("module", home, node.id, _is_module) or (
            self._roles.remember("torch", home, node.id, _may_be_torch) and "torch" in self._resolver.name_paths(node.id, scope)
        ):
            yield Hit("R107", node, f"the module {node.id} is used as a value")

    def _strings(self) -> Iterator[Hit]:
        for node, _ in self._facts.strings:
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            yield from self._spelled(node, text)

    def _spelled(self, node: ast.AST, text: str) -> Iterator[Hit]:
        bare = text.strip()
        if bare in _INTERNAL_NAMES or bare in lists.RAW_MEMORY:
            yield Hit("R204", node, f"the string spells `{bare}`")
        elif "._" in text and _FORMAT_FIELD.search(text):
            yield Hit("R204", node, "the format string reads an attribute of the interpreter's machinery")
        elif "." in bare and len(bare) < _PATH_CAP and " " not in bare and not _INTERNAL_NAMES.isdisjoint(_PATH_PARTS.split(bare)):
            yield Hit("R204", node, f"the string spells the path `{bare}`")


def _is_module(bindings: list[Binding]) -> bool:
    return any(binding.kind == MODULE or (binding.kind == PATH and binding.value in lists.KNOWN_MODULES) for binding in bindings)


def _may_be_torch(bindings: list[Binding]) -> bool:
    return any(binding.kind in (EXPR, ITEM) for binding in bindings)


def _not_for_submissions(rule: str, name: str) -> str:
    if rule == "R109":
        return f"{name.split('.')[0] or 'it'} is not on the list of allowed modules"
    return "not available to submissions"


def _signature_problem(spec: ast.arguments) -> str | None:
    positional = len(spec.posonlyargs) + len(spec.args)
    if positional < 5 and spec.vararg is None:
        return f"inner_steps takes {positional} positional arguments; it is called with five"
    if positional - len(spec.defaults) > 5:
        return f"inner_steps requires {positional - len(spec.defaults)} positional arguments; it is called with five"
    if any(default is None for default in spec.kw_defaults):
        return "inner_steps requires keyword arguments; it is called with five positional ones"
    return None
