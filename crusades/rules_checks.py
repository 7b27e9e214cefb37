"""One method per rule, or per kind of place that several rules share. Each yields hits; none knows of text or columns."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from crusades import rules_lists as lists
from crusades.rules_resolve import ANY_CLASS, Computed, Resolver
from crusades.rules_scopes import DEF, EXPR, ITEM, MODULE, PATH, Binding, Facts, Scope

_FORMAT_FIELD = re.compile(r"\{[^{}]*\._{2}\w+_{2}")
_PATH_PARTS = re.compile(r"[.\[\]]")
_PATH_CAP = 200
_INTERNAL_NAMES = frozenset(name for name in lists.INTROSPECTION | lists.LAZY_METHODS if "_" in name) | {"__build_class__"}
_DEFINED_ELSEWHERE = frozenset({"__doc__", "__name__", "__qualname__", "__module__", "__annotations__", "__wrapped__"})
"""Dunder attributes that a function of one's own may be given."""


_FEW = 8
"""Bindings of one name that are followed where each may lead further."""
_DEPTH = 12


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
    if top in lists.ALLOWED_MODULES and bare in lists.BORROWED_MODULES:
        return "R110", f"`{full}` is the module {bare}, which submissions may not use"
    return None


class Checker:
    """All rules over the facts of one file."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._resolver = Resolver(facts)
        self._member_names = {name for members in lists.DENIED_MEMBERS.values() for name in members}
        self._member_names |= {path.rsplit(".", 1)[-1] for path in lists.DENIED_SUBMODULES}
        self._member_names |= lists.BORROWED_MODULES | {f"_{name}" for name in lists.BORROWED_MODULES}
        self._memo: dict[tuple[str, int, str], bool | int] = {}
        self._optimizers: set[tuple[int, str]] = set()
        self._iterators: set[tuple[int, str]] = set()

    def run(self) -> Iterator[Hit]:
        """Every hit, in no particular order."""
        yield from self._contract()
        yield from self._imports()
        yield from self._bindings()
        yield from self._names()
        yield from self._attributes()
        yield from self._strings()
        yield from self._calls()
        yield from self._writes()
        yield from self._patterns()
        yield from self._methods()

    # ---------------------------------------------------------------- R7xx: the contract

    def _contract(self) -> Iterator[Hit]:
        bindings = self._facts.module.names.get("inner_steps")
        if not bindings:
            yield Hit("R701", ast.Module(body=[], type_ignores=[]), "no function inner_steps is defined")
            return
        definitions = [binding.value for binding in bindings if binding.kind == DEF]
        for function in definitions:
            self._remember_arguments(function)
            if isinstance(function, ast.AsyncFunctionDef):
                yield Hit("R702", function, "inner_steps is a coroutine; it must be a plain function")
            elif (problem := _signature_problem(function.args)) is not None:
                yield Hit("R702", function, problem)

    def _remember_arguments(self, function: ast.FunctionDef) -> None:
        scope = self._facts.scope_of[id(function)]
        parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        if len(parameters) > 1:
            self._iterators.add((id(scope), parameters[1]))
        if len(parameters) > 2:
            self._optimizers.add((id(scope), parameters[2]))

    # ---------------------------------------------------------------- R10x: imports

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
                yield from self._name_of_attribute(alias, alias.name)

    # ---------------------------------------------------------------- names

    def _bindings(self) -> Iterator[Hit]:
        for name, node, scope in self._facts.bound:
            if name in lists.MODULE_VARIABLES and scope.kind != "comprehension":
                yield Hit("R205", node, f"binds `{name}`")

    def _names(self) -> Iterator[Hit]:
        for node, scope in self._facts.loads:
            if node.id in lists.DENIED_BUILTINS or node.id in lists.GUARDED_BUILTINS:
                yield from self._builtin(node, scope, called=False)
            else:
                yield from self._module_as_value(node, scope)
        for node, scope in self._facts.bases:
            if node.id in lists.DENIED_BUILTINS:
                yield from self._builtin(node, scope, called=False)

    def _builtin(self, node: ast.Name, scope: Scope, *, called: bool) -> Iterator[Hit]:
        if self._shadowed(node, scope):
            return
        if node.id in lists.DENIED_BUILTINS:
            yield Hit("R201", node, f"`{node.id}` is not available to submissions")
        elif not called:
            yield Hit("R203", node, f"`{node.id}` is used as a value; call it with the name written out")

    def _shadowed(self, node: ast.Name, scope: Scope) -> bool:
        """Whether the name certainly is the file's own: bound in a function, or at the top of the file before its use."""
        home = scope.find(node.id)
        if home is None:
            return False
        if home.kind in ("function", "comprehension"):
            return True
        if home.kind == "class":  # until it is bound, the class body reads the builtin
            return self._remember("first", home, node.id, _first_line) < node.lineno
        sure = self._remember("sure", home, node.id, _first_sure_line)
        return bool(sure) and (scope.kind == "function" or sure < node.lineno)

    def _remember(self, what: str, home: Scope, name: str, find: Callable[[list[Binding]], bool | int]) -> bool | int:
        """`find` over all bindings of a name, once: a name may be bound and read ten thousand times."""
        key = (what, id(home), name)
        if key not in self._memo:
            self._memo[key] = find(home.names[name])
        return self._memo[key]

    def _module_as_value(self, node: ast.Name, scope: Scope) -> Iterator[Hit]:
        home = scope.find(node.id)
        if home is None:
            return
        if self._remember("module", home, node.id, _is_module) or (
            self._remember("torch", home, node.id, _may_be_torch) and "torch" in self._resolver.name_paths(node.id, scope)
        ):
            yield Hit("R107", node, f"the module {node.id} is used as a value")

    # ---------------------------------------------------------------- attributes

    def _attributes(self) -> Iterator[Hit]:
        for node, scope in self._facts.attributes:
            yield from self._read(node, node.value, node.attr, scope)

    def _read(self, node: ast.AST, base: ast.expr, name: str, scope: Scope) -> Iterator[Hit]:
        """Reading attribute `name` of `base`, written out or through getattr."""
        if name in lists.INTROSPECTION or name in lists.RAW_MEMORY:
            if name in lists.PASSED_ON and _is_super(base):
                return
            yield from self._name_of_attribute(node, name)
            return
        if name in lists.FILE_METHODS:
            yield Hit("R106", node, f"`.{name}` reads or writes files")
            return
        if name in self._member_names:
            for path in self._resolver.paths(base, scope):
                broken = member_rule(path, name)
                if broken:
                    yield Hit(broken[0], node, broken[1])
                    return
        if isinstance(base, ast.Name) and name not in ("__next__", "__iter__", "__class__") and self._is_iterator(base, scope):
            yield Hit("R504", node, f"`data_iterator.{name}`")
        elif name in lists.OPTIMIZER_MEMBERS and self._is_optimizer(base, scope):
            yield Hit("R502", node, f"`optimizer.{name}`")

    def _name_of_attribute(self, node: ast.AST, name: str) -> Iterator[Hit]:
        if name in lists.RAW_MEMORY:
            yield Hit("R304", node, f"`{name}` gives access to memory by address")
        else:
            yield Hit("R202", node, f"`{name}` belongs to the interpreter's machinery")

    def _patterns(self) -> Iterator[Hit]:
        for node, _ in self._facts.patterns:
            for name in node.kwd_attrs:
                if name in lists.INTROSPECTION or name in lists.RAW_MEMORY:
                    yield from self._name_of_attribute(node, name)

    # ---------------------------------------------------------------- strings

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

    # ---------------------------------------------------------------- calls

    def _calls(self) -> Iterator[Hit]:
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
            if not self._shadowed(function, scope):
                yield from self._guarded_call(node, name, scope)
        elif self._is_type(function, scope):
            if len(node.args) + len(node.keywords) > 1 or any(isinstance(argument, ast.Starred) for argument in node.args):
                yield Hit("R206", node, "`type` called with a name, bases and members makes a class")
        else:
            yield from self._path_call(node, function, scope)

    def _is_type(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is the builtin `type`, possibly under another name."""
        for _ in range(_FEW):
            if not isinstance(node, ast.Name):
                return False
            home = scope.find(node.id)
            if home is None:
                return node.id == "type"
            values = [binding.value for binding in home.names[node.id][:_FEW] if binding.kind == EXPR and isinstance(binding.value, ast.Name)]
            if not values:
                return False
            node, scope = values[0], home
        return False

    def _guarded_call(self, node: ast.Call, name: str, scope: Scope) -> Iterator[Hit]:
        if len(node.args) < 2 or any(isinstance(argument, ast.Starred) for argument in node.args[:2]):
            yield Hit("R203", node, f"`{name}` without the name written out")
            return
        base, named = node.args[0], self._resolver.string(node.args[1], scope)
        if name in ("setattr", "delattr") and self._is_optimizer(base, scope):
            yield Hit("R502", node, f"`{name}` on the optimizer")
        elif isinstance(named, str):
            yield from self._guarded_name(node, name, base, named, scope)
        elif isinstance(named, Computed):
            if name in ("setattr", "delattr") and self._foreign(base, scope):
                yield Hit("R302", node, f"`{name}` on something that is not yours")
            elif not _harmless(named) or self._foreign(base, scope):
                yield Hit("R203", node, f"`{name}` with a name that is put together from pieces")
        elif self._foreign(base, scope):
            rule, words = ("R203", "takes from") if name in ("getattr", "hasattr") else ("R302", "changes")
            yield Hit(rule, node, f"`{name}` {words} something that is not yours, by a name that is not written out")

    def _guarded_name(self, node: ast.Call, name: str, base: ast.expr, named: str, scope: Scope) -> Iterator[Hit]:
        hits: Iterator[Hit] = iter(())
        if name in ("getattr", "hasattr"):
            hits = self._read(node, base, named, scope)
            if name == "hasattr":
                hits = (hit for hit in hits if hit.rule in ("R202", "R304", "R110", "R111"))
        elif name in ("setattr", "delattr"):
            hits = self._store(node, base, named, scope, node.args[2] if len(node.args) > 2 else None)
        literal = isinstance(node.args[1], ast.Constant)
        for hit in hits:
            yield hit if literal else Hit("R203" if hit.rule in ("R202", "R110", "R111", "R106", "R201") else hit.rule, node, f"the name put together here is `{named}`")

    def _method_call(self, node: ast.Call, function: ast.Attribute, scope: Scope) -> Iterator[Hit]:
        name, base = function.attr, function.value
        if name == "requires_grad_":
            value = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg in ("requires_grad", None)), None)
            if value is not None and not _is_true(value):
                yield Hit("R501", node, "`requires_grad_` with anything but True")
        elif name in lists.MUTATORS:
            if self._inside_optimizer(base, scope):
                yield Hit("R502", node, f"`.{name}` changes the optimizer's groups or state")
            elif name == "update" and self._is_model_config(base, scope):
                yield Hit("R403", node, "`model.config.update` changes the model")
        elif name in ("register_step_pre_hook", "register_step_post_hook", "register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"):
            yield Hit("R502", node, f"`{name}` changes what optimizer.step() does")

    def _path_call(self, node: ast.Call, function: ast.expr, scope: Scope) -> Iterator[Hit]:
        last = function.attr if isinstance(function, ast.Attribute) else ""
        if isinstance(function, ast.Name):
            home = scope.find(function.id)
            if home is None or not self._remember("followed", home, function.id, _is_followed):
                return
        elif last not in _CALLS_OF_INTEREST:
            return
        for path in self._resolver.paths(function, scope):
            name = path.rsplit(".", 1)[-1]
            if name in lists.OPTIMIZER_CLASSES and path.startswith(("torch.optim.", "transformers.", "torchao.", "apex.")):
                yield Hit("R503", node, f"makes an optimizer of its own (`{path}`)")
            elif path.startswith("torch.library.") and name in _LIBRARY_CALLS and not _own_namespace(node, name):
                yield Hit("R305", node, f"`{path}` for an operator that is not yours")
            elif name == "make_dataclass":
                yield Hit("R206", node, "`make_dataclass` makes a class from pieces")

    # ---------------------------------------------------------------- writes

    def _writes(self) -> Iterator[Hit]:
        for node, scope in self._facts.writes:
            if isinstance(node, ast.Attribute):
                yield from self._store(node, node.value, node.attr, scope, self._facts.assigned.get(id(node)))
            else:
                yield from self._store_item(node, scope)

    def _store(self, node: ast.AST, base: ast.expr, name: str, scope: Scope, value: ast.expr | None) -> Iterator[Hit]:
        """Setting or deleting attribute `name` of `base`."""
        if name == "requires_grad":
            if value is None or not _is_true(value):
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
        if name in lists.CLOCK_NAMES_ANYWHERE and not own:
            yield Hit("R301", node, f"replaces `{name}`")
        elif self._is_optimizer(base, scope):
            yield Hit("R502", node, f"sets `optimizer.{name}`")
        elif self._is_iterator(base, scope):
            yield Hit("R504", node, f"sets `{name}` of the data iterator")
        elif self._is_model_config(base, scope) and name not in lists.MODEL_CONFIG_ALLOWED:
            yield Hit("R403", node, f"sets `config.{name}` of the model")
        elif name.startswith("__") and name.endswith("__") and name not in _DEFINED_ELSEWHERE and not own:
            yield Hit("R302", node, f"replaces `{name}` of an object")

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
        if self._inside_optimizer(node.value, scope) or self._is_optimizer(node.value, scope):
            yield Hit("R502", node, "changes the optimizer's groups or state")
            return
        paths = self._resolver.paths(node.value, scope)
        if any(path.startswith(("torch.", "triton.", "transformers.", "numpy.")) and not path.startswith(lists.OPEN_CONFIGS) for path in paths):
            yield Hit("R302", node, f"changes an entry of `{min(paths)}`, which is not yours")

    # ---------------------------------------------------------------- R303: methods that act by themselves

    def _methods(self) -> Iterator[Hit]:
        for name, node, scope in self._facts.bound:
            if name in lists.LAZY_METHODS and scope.kind in ("class", "module"):
                yield Hit("R303", node, f"defines `{name}`")
            elif name in lists.RAW_MEMORY and scope.kind == "class":
                yield Hit("R304", node, f"defines `{name}`")

    # ---------------------------------------------------------------- who is who

    def _foreign(self, node: ast.expr, scope: Scope) -> bool:
        """Whether `node` is a module or class that is not the file's own."""
        return bool(self._resolver.paths(node, scope))

    def _is_argument(self, node: ast.expr, scope: Scope, arguments: set[tuple[int, str]], names: frozenset[str]) -> bool:
        for _ in range(8):
            if isinstance(node, ast.NamedExpr):
                node = node.value
            if not isinstance(node, ast.Name):
                return False
            home = scope.find(node.id)
            if home is None:
                return False
            if (id(home), node.id) in arguments or (home.kind == "function" and node.id in names and _is_parameter(home, node.id)):
                return True
            values = [binding.value for binding in home.names[node.id][:_FEW] if binding.kind == EXPR and isinstance(binding.value, ast.Name | ast.NamedExpr)]
            if not values:
                return False
            node, scope = values[0], home
        return False

    def _is_optimizer(self, node: ast.expr, scope: Scope) -> bool:
        if isinstance(node, ast.Attribute) and node.attr in ("optimizer", "optim"):
            return not self._resolver.paths(node, scope)
        return self._is_argument(node, scope, self._optimizers, lists.OPTIMIZER_NAMES)

    def _is_iterator(self, node: ast.expr, scope: Scope) -> bool:
        return self._is_argument(node, scope, self._iterators, frozenset({"data_iterator"}))

    def _inside_optimizer(self, node: ast.expr, scope: Scope, depth: int = 0) -> bool:
        """Whether `node` lies within param_groups or the state: `optimizer.param_groups[0]`, `group["params"]`, `state["exp_avg"]`."""
        while depth < _DEPTH:
            self._resolver.spend()
            depth += 1
            if isinstance(node, ast.Subscript):
                if isinstance(node.slice, ast.Constant) and node.slice.value in lists.OPTIMIZER_FIELDS:
                    return True
                node = node.value
            elif isinstance(node, ast.Attribute):
                return node.attr == "param_groups" or (node.attr == "state" and self._is_optimizer(node.value, scope))
            elif isinstance(node, ast.Name):
                home = scope.find(node.id)
                if home is None:
                    return False
                return any(
                    binding.kind in (EXPR, ITEM) and isinstance(binding.value, ast.Subscript | ast.Attribute | ast.Name)
                    and self._inside_optimizer(binding.value, home, depth)
                    for binding in home.names[node.id][:_FEW]
                )  # fmt: skip
            else:
                return False
        return False

    def _is_model_config(self, node: ast.expr, scope: Scope) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr in ("config", "text_config") and not (isinstance(node.value, ast.Name) and node.value.id == "self")
        if not isinstance(node, ast.Name):
            return False
        home = scope.find(node.id)
        return home is not None and any(
            binding.kind == EXPR and isinstance(binding.value, ast.Attribute) and self._is_model_config(binding.value, home)
            for binding in home.names[node.id][:_FEW]
        )


_LIBRARY_CALLS = frozenset({"Library", "impl", "register_kernel", "register_autograd", "define", "fallthrough_kernel", "register_fake", "impl_abstract"})
_CALLS_OF_INTEREST = _LIBRARY_CALLS | lists.OPTIMIZER_CLASSES | {"make_dataclass"}


def _own_namespace(node: ast.Call, name: str) -> bool:
    """Whether a torch.library call names an operator outside torch's own namespaces."""
    if not node.args:
        return False
    first = node.args[0]
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        space = first.value.split("::")[0]
        return space not in ("aten", "prims", "prim", "c10d", "quantized", "_", "higher_order", "inductor", "triton")
    return name in ("register_autograd", "register_fake", "register_kernel", "impl", "impl_abstract", "define") and not isinstance(first, ast.BinOp | ast.JoinedStr)


def _is_followed(bindings: list[Binding]) -> bool:
    return any(binding.kind in (PATH, MODULE, EXPR, ITEM) for binding in bindings)


def _is_module(bindings: list[Binding]) -> bool:
    return any(binding.kind == MODULE or (binding.kind == PATH and binding.value in lists.KNOWN_MODULES) for binding in bindings)


def _may_be_torch(bindings: list[Binding]) -> bool:
    return any(binding.kind in (EXPR, ITEM) for binding in bindings)


def _first_line(bindings: list[Binding]) -> int:
    return min(binding.line for binding in bindings)


def _first_sure_line(bindings: list[Binding]) -> int:
    """0: none is certain."""
    return min((binding.line for binding in bindings if binding.sure), default=0)


def _is_parameter(scope: Scope, name: str) -> bool:
    spec = getattr(scope.node, "args", None)
    return spec is not None and any(argument.arg == name for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs))


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


_INDIRECT = lists.INTROSPECTION | lists.RAW_MEMORY


def _harmless(name: Computed) -> bool:
    """Whether a name that starts or ends like this is certainly none of the forbidden ones."""
    head, tail = name.head, name.tail
    if len(head) >= 2 and not any(forbidden.startswith(head) for forbidden in _INDIRECT):
        return True
    return len(tail) >= 2 and not any(forbidden.endswith(tail) for forbidden in _INDIRECT)


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
