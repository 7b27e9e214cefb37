"""Calls: getattr and its kin, methods that change what is not to be changed. Yields hits."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from crusades import rules_lists as lists
from crusades.rules_access import Access
from crusades.rules_names import Hit, is_harmless, is_true
from crusades.rules_resolve import Resolver
from crusades.rules_roles import Roles
from crusades.rules_scopes import ARGUMENT, EXPR, ITEM, MODULE, PATH, Binding, Facts, Scope
from crusades.rules_strings import Computed

_LIBRARY_CALLS = frozenset(
    {"Library", "impl", "register_kernel", "register_autograd", "register_autocast", "register_torch_dispatch", "register_vmap", "define",
     "fallthrough_kernel", "register_fake", "impl_abstract"}
)  # fmt: skip
_CALLS_OF_INTEREST = _LIBRARY_CALLS | lists.OPTIMIZER_CLASSES | {"make_dataclass"}
_READ_RULES = frozenset({"R106", "R110", "R111", "R201", "R202"})
"""Rules about reading a name, of which it is the worse half to have hidden it."""
_STEP_HOOKS = frozenset(
    {"register_step_pre_hook", "register_step_post_hook", "register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"}
)


class Calls:
    """The rules about calls."""

    def __init__(self, facts: Facts, resolver: Resolver, roles: Roles, access: Access) -> None:
        self._facts, self._resolver, self._roles, self._access = facts, resolver, roles, access

    def run(self) -> Iterator[Hit]:
        """Every call."""
        for node, scope in self._facts.calls:
            function = node.func
            if isinstance(function, ast.Name):
                yield from self._named_call(node, function, scope)
            elif isinstance(function, ast.Attribute):
                yield from self._method_call(node, function, scope)
            if not isinstance(function, ast.Name):
                yield from self._path_call(node, function, scope)

    def _named_call(self, node: ast.Call, function: ast.Name, scope: Scope) -> Iterator[Hit]:
        name = function.id
        if name in ("getattr", "setattr", "delattr", "hasattr"):
            if not self._roles.shadowed(function, scope):
                yield from self._guarded_call(node, name, scope)
        else:
            yield from self._path_call(node, function, scope)

    def _guarded_call(self, node: ast.Call, name: str, scope: Scope) -> Iterator[Hit]:
        if len(node.args) < 2 or any(isinstance(argument, ast.Starred) for argument in node.args[:2]):
            yield Hit("R203", node, f"`{name}` without the name written out")
            return
        base, named = node.args[0], self._resolver.string(node.args[1], scope)
        if name in ("setattr", "delattr") and self._roles.is_optimizer(base, scope):
            yield Hit("R502", node, f"`{name}` on the optimizer")
        elif isinstance(named, str):
            yield from self._guarded_name(node, name, base, named, scope)
        elif isinstance(named, Computed):
            if name in ("setattr", "delattr") and self._foreign(base, scope):
                yield Hit("R302", node, f"`{name}` on something that is not yours")
            elif self._foreign(base, scope) or not (is_harmless(named) or self._roles.is_self(base, scope)):
                yield Hit("R203", node, f"`{name}` with a name that is put together from pieces")
        elif self._foreign(base, scope):
            rule, words = ("R203", "takes from") if name in ("getattr", "hasattr") else ("R302", "changes")
            yield Hit(rule, node, f"`{name}` {words} something that is not yours, by a name that is not written out")

    def _guarded_name(self, node: ast.Call, name: str, base: ast.expr, named: str, scope: Scope) -> Iterator[Hit]:
        hits: Iterator[Hit] = iter(())
        if name in ("getattr", "hasattr"):
            hits = self._access.read(node, base, named, scope)
            if name == "hasattr":
                hits = (hit for hit in hits if hit.rule in ("R202", "R304", "R110", "R111"))
        elif name in ("setattr", "delattr"):
            hits = self._access.store(node, base, named, scope, node.args[2] if len(node.args) > 2 else None)
        literal = isinstance(node.args[1], ast.Constant)
        for hit in hits:
            rule = "R203" if hit.rule in _READ_RULES else hit.rule
            yield hit if literal else Hit(rule, node, f"the name put together here is `{named}`")

    def _foreign(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is a module or class that is not the file's own."""
        return bool(self._resolver.paths(node, scope))

    def _method_call(self, node: ast.Call, function: ast.Attribute, scope: Scope) -> Iterator[Hit]:
        name, base = function.attr, function.value
        if name == "requires_grad_":
            value = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg in ("requires_grad", None)), None)
            if value is not None and not is_true(value):
                yield Hit("R501", node, "`requires_grad_` with anything but True")
        elif name in lists.MUTATORS:
            if self._roles.inside_optimizer(base, scope):
                yield Hit("R502", node, f"`.{name}` changes the optimizer's groups or state")
            elif name == "update" and self._roles.is_model_config(base, scope):
                yield Hit("R403", node, "`model.config.update` changes the model")
        elif name in _STEP_HOOKS:
            yield Hit("R502", node, f"`{name}` changes what optimizer.step() does")

    def _path_call(self, node: ast.Call, function: ast.expr, scope: Scope) -> Iterator[Hit]:
        last = function.attr if isinstance(function, ast.Attribute) else ""
        if isinstance(function, ast.Name):
            home = scope.find(function.id)
            if home is None or not self._roles.remember("followed", home, function.id, _is_followed):
                return
        elif last not in _CALLS_OF_INTEREST:
            return
        for path in self._resolver.paths(function, scope):
            name = path.rsplit(".", 1)[-1]
            if name in lists.OPTIMIZER_CLASSES and path.startswith(("torch.optim.", "transformers.", "torchao.", "apex.")):
                yield Hit("R503", node, f"makes an optimizer of its own (`{path}`)")
            elif path.startswith("torch.library.") and name in _LIBRARY_CALLS and not self._own_namespace(node, name, scope):
                yield Hit("R305", node, f"`{path}` for an operator that is not yours")
            elif name == "make_dataclass":
                yield Hit("R206", node, "`make_dataclass` makes a class from pieces")

    def _own_namespace(self, node: ast.Call, name: str, scope: Scope) -> bool:
        """Whether a torch.library call names an operator outside torch's own namespaces, or hands on an operator or library."""
        if not node.args or isinstance(node.args[0], ast.Starred):
            return False
        named = self._resolver.string(node.args[0], scope)
        if named is None:
            return name not in ("Library", "fallthrough_kernel") and not any(path.startswith("torch.ops.aten") for path in self._resolver.paths(node.args[0], scope))
        text = named.head if isinstance(named, Computed) else named
        return (isinstance(named, str) or "::" in text) and text.split("::")[0] not in lists.TORCH_NAMESPACES


def _is_followed(bindings: list[Binding]) -> bool:
    return any(binding.kind in (PATH, MODULE, EXPR, ITEM, ARGUMENT) for binding in bindings)
