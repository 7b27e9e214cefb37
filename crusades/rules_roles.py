"""Who is who in a file: which names are builtins, the optimizer, the data iterator, the model's configuration. Pure."""

from __future__ import annotations

import ast
from collections.abc import Callable

from crusades import rules_lists as lists
from crusades.rules_resolve import Resolver
from crusades.rules_scopes import ARGUMENT, EXPR, GONE, ITEM, Binding, Facts, Scope

_FEW = 8
"""Bindings of one name that are followed where each may lead further."""
_DEPTH = 12


class Roles:
    """Answers for one file."""

    def __init__(self, facts: Facts, resolver: Resolver) -> None:
        self._facts, self._resolver = facts, resolver
        self._memo: dict[tuple[str, int, str], bool | int] = {}
        self._optimizers: set[tuple[int, str]] = set()
        self._iterators: set[tuple[int, str]] = set()
        self._models: set[tuple[int, str]] = set()

    def remember_arguments(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Note the first three parameters of inner_steps."""
        scope = self._facts.scope_of[id(function)]
        parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        if parameters:
            self._models.add((id(scope), parameters[0]))
        if len(parameters) > 1:
            self._iterators.add((id(scope), parameters[1]))
        if len(parameters) > 2:
            self._optimizers.add((id(scope), parameters[2]))

    def remember(self, what: str, home: Scope, name: str, find: Callable[[list[Binding]], bool | int]) -> bool | int:
        """`find` over all bindings of a name, once: a name may be bound and read ten thousand times."""
        key = (what, id(home), name)
        if key not in self._memo:
            self._memo[key] = find(home.names[name])
        return self._memo[key]

    def shadowed(self, node: ast.Name, scope: Scope) -> bool:
        """Whether the name certainly is the file's own: bound in a function, or by the module or class itself before its use."""
        home = scope.find(node.id)
        if home is None:
            return False
        if home.kind in ("function", "comprehension"):
            return True
        if self.remember("gone", home, node.id, _is_gone):
            return False
        sure = self.remember("sure", home, node.id, _first_sure_line)
        if sure and (sure < node.lineno or (home.kind == "module" and _runs_later(scope))):
            return True
        loops = [binding for binding in home.names[node.id][:_FEW] if binding.sure and binding.until]
        return not _runs_later(scope) and any(loop.line < node.lineno <= loop.until for loop in loops)

    def is_type(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is the builtin `type`, possibly under another name."""
        for _ in range(_FEW):
            if not isinstance(node, ast.Name):
                return False
            if node.id == "type" and not self.shadowed(node, scope):
                return True
            home = scope.find(node.id)
            if home is None:
                return False
            values = [binding.value for binding in home.names[node.id][:_FEW] if binding.kind == EXPR and isinstance(binding.value, ast.Name)]
            if not values:
                return False
            node, scope = values[0], home
        return False

    def _is_argument(self, node: ast.expr, scope: Scope, arguments: set[tuple[int, str]], names: frozenset[str]) -> bool:
        for _ in range(_FEW):
            if isinstance(node, ast.NamedExpr):
                node = node.value
            if not isinstance(node, ast.Name):
                return False
            home = scope.find(node.id)
            if home is None:
                return False
            if (id(home), node.id) in arguments or (home.kind == "function" and node.id in names and _is_parameter(home, node.id)):
                return True
            led = next((place for place in map(_leads_to, home.names[node.id][:_FEW]) if place is not None), None)
            if led is None:
                return False
            node, scope = led[0], led[1] or home
        return False

    def is_optimizer(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is the optimizer: by its place among the parameters, by its usual names in helpers."""
        if isinstance(node, ast.Attribute) and node.attr in ("optimizer", "optim"):
            return not self._resolver.paths(node, scope)
        return self._is_argument(node, scope, self._optimizers, lists.OPTIMIZER_NAMES)

    def may_be_optimizer(self, node: ast.expr, scope: Scope) -> bool:
        """The same, but also for a parameter called `opt`, which as often holds options."""
        return self.is_optimizer(node, scope) or self._is_argument(node, scope, self._optimizers, frozenset({"opt"}))

    def is_iterator(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is the data iterator."""
        return self._is_argument(node, scope, self._iterators, frozenset({"data_iterator"}))

    def is_parameter_of_model(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is a name that goes over somebody's parameters: `for name, p in model.named_parameters()`."""
        home = scope.find(node.id) if isinstance(node, ast.Name) else None
        return home is not None and isinstance(node, ast.Name) and bool(self.remember("parameters", home, node.id, _goes_over_parameters))

    def inside_optimizer(self, node: ast.expr, scope: Scope, depth: int = 0) -> bool:
        """Whether `node` lies within param_groups or the state: `optimizer.param_groups[0]`, `group["params"]`, `state["exp_avg"]`."""
        while depth < _DEPTH:
            self._resolver.spend()
            depth += 1
            if isinstance(node, ast.Subscript):
                if isinstance(node.slice, ast.Constant) and node.slice.value in lists.OPTIMIZER_FIELDS:
                    return True
                node = node.value
            elif isinstance(node, ast.Attribute):
                if node.attr == "param_groups":
                    return not self.is_own(node.value, scope)
                return node.attr == "state" and self.may_be_optimizer(node.value, scope)
            elif isinstance(node, ast.Name):
                home = scope.find(node.id)
                if home is None:
                    return False
                return any(
                    binding.kind in (EXPR, ITEM) and isinstance(binding.value, ast.Subscript | ast.Attribute | ast.Name)
                    and self.inside_optimizer(binding.value, home, depth)
                    for binding in home.names[node.id][:_FEW]
                )  # fmt: skip
            else:
                return False
        return False

    def is_self(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is the `self` of a method."""
        home = scope.find("self") if isinstance(node, ast.Name) and node.id == "self" else None
        return home is not None and home.kind == "function" and _is_parameter(home, "self") and home.parent is not None and home.parent.kind == "class"

    def is_own(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is `self`, something of it, or an object of a class of the file."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return (isinstance(node, ast.Name) and node.id in ("self", "ctx", "cls")) or self._resolver.is_own_object(node, scope)

    def is_model_config(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is the `config` of something that is, or is called, a model."""
        if isinstance(node, ast.Attribute):
            return node.attr in ("config", "text_config") and self._is_model(node.value, scope)
        if not isinstance(node, ast.Name):
            return False
        home = scope.find(node.id)
        return home is not None and any(
            binding.kind == EXPR and isinstance(binding.value, ast.Attribute) and self.is_model_config(binding.value, home)
            for binding in home.names[node.id][:_FEW]
        )

    def _is_model(self, node: ast.expr, scope: Scope) -> bool:
        """A model, or a part of one: `model`, `net.module`, `model.layers[0].mlp`."""
        for _ in range(_DEPTH):
            if isinstance(node, ast.Attribute):
                if node.attr in lists.MODEL_NAMES or node.attr in ("config", "text_config"):
                    return not (isinstance(node.value, ast.Name) and node.value.id == "self")
            elif isinstance(node, ast.Name) and (node.id in lists.MODEL_NAMES or self._is_argument(node, scope, self._models, lists.MODEL_NAMES)):
                return True
            if not isinstance(node, ast.Attribute | ast.Subscript):
                return False
            node = node.value
        return False


def _first_sure_line(bindings: list[Binding]) -> int:
    """0: none is certain."""
    return min((binding.line for binding in bindings if binding.sure and not binding.until), default=0)


def _leads_to(binding: Binding) -> tuple[ast.expr, Scope | None] | None:
    """Another name that this binding stands for, and where that is read; None as the place: where the binding stands."""
    if binding.kind == ARGUMENT:
        return (binding.value.node, binding.value.scope) if isinstance(binding.value.node, ast.Name) else None
    return (binding.value, None) if binding.kind == EXPR and isinstance(binding.value, ast.Name | ast.NamedExpr) else None


def _is_gone(bindings: list[Binding]) -> bool:
    """Whether the name is deleted somewhere: then the builtin shines through again."""
    return any(binding.kind == GONE for binding in bindings)


def _goes_over_parameters(bindings: list[Binding]) -> bool:
    return any(
        binding.kind == ITEM and isinstance(binding.value, ast.Call) and isinstance(binding.value.func, ast.Attribute)
        and binding.value.func.attr in ("parameters", "named_parameters")
        for binding in bindings
    )  # fmt: skip


def _is_parameter(scope: Scope, name: str) -> bool:
    spec = getattr(scope.node, "args", None)
    return spec is not None and any(argument.arg == name for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs))


def _runs_later(scope: Scope | None) -> bool:
    """Whether code in `scope` runs when the file has been loaded."""
    while scope is not None and scope.kind != "function":
        scope = scope.parent
    return scope is not None
