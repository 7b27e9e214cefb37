"""Reading and writing attributes and entries: who may touch what of whom. Yields hits."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from crusades import rules_lists as lists
from crusades.rules_names import Hit, is_super, is_true, member_rule
from crusades.rules_resolve import ANY_CLASS, Resolver
from crusades.rules_roles import Roles
from crusades.rules_scopes import CLASS, DEF, EXPR, PATH, Facts, Scope

_DEFINED_ELSEWHERE = frozenset({"__doc__", "__name__", "__qualname__", "__module__", "__annotations__", "__wrapped__"})
"""Dunder attributes that a function of one's own may be given."""

_DEPTH = 8
_OPTIMIZER_PARTS = lists.OPTIMIZER_MEMBERS | {"step", "zero_grad", "param_groups"}

_MEMBER_NAMES = frozenset(
    {name for members in lists.DENIED_MEMBERS.values() for name in members}
    | {path.rsplit(".", 1)[-1] for path in lists.DENIED_SUBMODULES}
    | lists.BORROWED_MODULES
    | {f"_{name}" for name in lists.BORROWED_MODULES}
)
"""Names whose base is worth resolving."""


class Access:
    """The rules about attributes."""

    def __init__(self, facts: Facts, resolver: Resolver, roles: Roles) -> None:
        self._facts, self._resolver, self._roles = facts, resolver, roles
        self._called = {id(place.node.func) for place in facts.calls}

    def attributes(self) -> Iterator[Hit]:
        """Every attribute that is read."""
        for node, scope in self._facts.attributes:
            yield from self.read(node, node.value, node.attr, scope)

    def patterns(self) -> Iterator[Hit]:
        """Attributes that `match` reads."""
        for node, _ in self._facts.patterns:
            for name in node.kwd_attrs:
                if name in lists.INTROSPECTION or name in lists.RAW_MEMORY:
                    yield interpreter_name(node, name)

    def writes(self) -> Iterator[Hit]:
        """Every attribute and entry that is set or deleted."""
        for node, scope in self._facts.writes:
            if isinstance(node, ast.Attribute):
                yield from self.store(node, node.value, node.attr, scope, self._facts.assigned.get(id(node)))
            else:
                yield from self._store_item(node, scope)

    def read(self, node: ast.AST, base: ast.expr, name: str, scope: Scope) -> Iterator[Hit]:
        """Reading attribute `name` of `base`, written out or through getattr."""
        if name in lists.INTROSPECTION or name in lists.RAW_MEMORY:
            if name in lists.PASSED_ON and is_super(base):
                return
            yield interpreter_name(node, name)
            return
        if name in lists.FILE_METHODS:
            yield Hit("R106", node, f"`.{name}` reads or writes files")
            return
        if name in lists.KERNEL_SETTERS:
            yield Hit("R305", node, f"`.{name}` replaces an operator's kernel")
            return
        if name in _MEMBER_NAMES:
            for path in self._resolver.paths(base, scope):
                broken = member_rule(path, name)
                if broken:
                    yield Hit(broken[0], node, broken[1])
                    return
        if isinstance(base, ast.Name) and name not in ("__next__", "__iter__", "__class__") and self._roles.is_iterator(base, scope):
            yield Hit("R504", node, f"`data_iterator.{name}`")
        elif name in lists.OPTIMIZER_MEMBERS and self._roles.may_be_optimizer(base, scope):
            yield Hit("R502", node, f"`optimizer.{name}`")
        elif name == "requires_grad_" and id(node) not in self._called:
            yield Hit("R501", node, "`requires_grad_` is used as a value; call it")
        elif name == "detach_" and self._roles.is_parameter_of_model(base, scope):
            yield Hit("R501", node, "`detach_` switches the parameter's requires_grad off")

    def store(self, node: ast.AST, base: ast.expr, name: str, scope: Scope, value: ast.expr | None) -> Iterator[Hit]:
        """Setting or deleting attribute `name` of `base`."""
        if name == "requires_grad":
            if value is None or not is_true(value):
                yield Hit("R501", node, "`requires_grad` set to anything but True")
            return
        if name == "__class__":
            yield Hit("R302", node, "assigns `__class__`: the object becomes another kind of thing")
            return
        if name in lists.INTROSPECTION:
            yield Hit("R202", node, f"changes `{name}`")
            return
        if name in lists.RAW_MEMORY:
            yield Hit("R304", node, f"sets `{name}`")
            return
        paths = self._resolver.paths(base, scope)
        if paths:
            yield from self._foreign_store(node, name, paths)
            return
        own = isinstance(base, ast.Name) and base.id in ("self", "ctx", "cls")
        if name in lists.CLOCK_NAMES_ANYWHERE and not own and self._may_be_function(value, base, scope):
            yield Hit("R301", node, f"replaces `{name}`")
        elif self._roles.is_optimizer(base, scope) or (name in _OPTIMIZER_PARTS and self._roles.may_be_optimizer(base, scope)):
            yield Hit("R502", node, f"sets `optimizer.{name}`")
        elif self._roles.is_iterator(base, scope):
            yield Hit("R504", node, f"sets `{name}` of the data iterator")
        elif self._roles.is_model_config(base, scope) and name not in lists.MODEL_CONFIG_ALLOWED:
            yield Hit("R403", node, f"sets `config.{name}` of the model")
        elif name.startswith("__") and name.endswith("__") and name not in _DEFINED_ELSEWHERE and not own and not self._resolver.is_own_class(base, scope):
            yield Hit("R302", node, f"replaces `{name}` of an object")

    def _may_be_function(self, value: ast.expr | None, base: ast.expr, scope: Scope, depth: int = 0) -> bool:
        """Whether what is put into an attribute may be called; of one's own objects' attributes only if it certainly may."""
        if isinstance(value, ast.Lambda):
            return True
        unknown = not self._roles.is_own(base, scope)
        home = scope.find(value.id) if isinstance(value, ast.Name) else None
        if home is None or not isinstance(value, ast.Name):
            return isinstance(value, ast.Name) or (unknown and not isinstance(value, ast.Constant | ast.BinOp | ast.UnaryOp))
        return depth > _DEPTH or any(
            binding.kind in (DEF, CLASS, PATH) or (self._may_be_function(binding.value, base, home, depth + 1) if binding.kind == EXPR else unknown)
            for binding in home.names[value.id][:_DEPTH]
        )

    def _foreign_store(self, node: ast.AST, name: str, paths: frozenset[str]) -> Iterator[Hit]:
        for path in sorted(paths):
            full = f"{path}.{name}"
            if path == ANY_CLASS or ANY_CLASS in path:
                yield Hit("R302", node, f"sets `{name}` of a class that is not yours")
            elif full.startswith(lists.OPEN_CONFIGS):
                continue
            elif path.startswith("torch.backends"):
                if name not in lists.BACKEND_SETTINGS_ALLOWED:
                    yield Hit("R401", node, f"sets `{full}`")
                    return
            elif name in lists.CLOCK_NAMES and (path.startswith(("time", "torch.cuda")) or name in lists.CLOCK_NAMES_ANYWHERE):
                yield Hit("R301", node, f"replaces the clock `{full}`")
                return
            else:
                yield Hit("R302", node, f"sets `{full}`, which is not yours")
                return

    def _store_item(self, node: ast.Subscript, scope: Scope) -> Iterator[Hit]:
        if self._roles.inside_optimizer(node.value, scope):
            yield Hit("R502", node, "changes the optimizer's groups or state")
            return
        paths = self._resolver.paths(node.value, scope)
        if any(path.startswith(("torch.", "triton.", "transformers.", "numpy.")) and not path.startswith(lists.OPEN_CONFIGS) for path in paths):
            yield Hit("R302", node, f"changes an entry of `{min(paths)}`, which is not yours")


def interpreter_name(node: ast.AST, name: str) -> Hit:
    """The hit for a name on the lists of the interpreter's machinery and of raw memory."""
    if name in lists.RAW_MEMORY:
        return Hit("R304", node, f"`{name}` gives access to memory by address")
    return Hit("R202", node, f"`{name}` belongs to the interpreter's machinery")
