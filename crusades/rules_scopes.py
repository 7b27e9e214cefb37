"""One walk over a syntax tree: scopes, what names are bound to, and the places that the rules look at. Pure, iterative.

The walk keeps its own stack, so no tree is too deep for it, and visits every node once, so half a megabyte takes a second.
It judges nothing; `rules_scan` does. Binding is approximated from above: a name stands for everything that is ever bound to
it in its scope, whatever the order of execution.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

PATH: Final = "path"
"""Bound to the thing of that dotted name, by `from … import`."""
MODULE: Final = "module"
"""Bound to the module of that dotted name, by `import`."""
EXPR: Final = "expr"
"""Bound to the value of an expression."""
ITEM: Final = "item"
"""Bound to an element of the value of an expression."""
DEF: Final = "def"
"""Bound to a function of the file."""
CLASS: Final = "class"
"""Bound to a class of the file."""
OTHER: Final = "other"
"""Bound to something that no rule follows: parameters without a default, `with … as`."""
ARGUMENT: Final = "argument"
"""Bound, as a parameter, to what a call in the file passes: a Place."""
GONE: Final = "gone"
"""Not bound but unbound again: `del`, and `except … as` when its block ends."""

GUARDED: Final = frozenset({"getattr", "setattr", "delattr", "hasattr"})
_ANNOTATION_CAP: Final = 1000
_ARGUMENTS_CAP: Final = 16
"""Calls of a function whose arguments are noted."""


class Binding(NamedTuple):
    """One way in which a name gets a value."""

    kind: str
    value: Any
    line: int
    sure: bool
    """True for a statement directly in the module's or class's body: it happens whenever that is run."""
    until: int = 0
    """The last line on which that holds: a loop that never ran has bound nothing behind it. 0: to the end."""


class Scope:
    """A module, function, class or comprehension, with the names bound in it."""

    __slots__ = ("globals", "kind", "memo", "names", "node", "outer_names", "parent", "returns")

    def __init__(self, kind: str, parent: Scope | None, node: ast.AST | None = None) -> None:
        self.kind, self.parent, self.node = kind, parent, node
        self.names: dict[str, list[Binding]] = {}
        self.returns: list[ast.expr] = []
        self.memo: dict[str, frozenset[str]] = {}
        self.globals: set[str] = set()
        self.outer_names: set[str] = set()

    def module(self) -> Scope:
        """The outermost scope."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def find(self, name: str) -> Scope | None:
        """The scope whose `name` an expression in this scope reads; None: a builtin, or nothing."""
        if name in self.globals:
            module = self.module()
            return module if name in module.names else None
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names and (scope is self or scope.kind != "class"):
                return scope
            scope = scope.parent
        return None


class Place(NamedTuple):
    """A node and the scope that it is read in."""

    node: Any
    scope: Scope


class Facts:
    """Everything the walk found, in source order."""

    def __init__(self) -> None:
        self.module = Scope("module", None)
        self.loads: list[Place] = []
        """Names read as values, not as the base of an attribute."""
        self.bases: list[Place] = []
        """Names read as the base of an attribute."""
        self.attributes: list[Place] = []
        self.calls: list[Place] = []
        self.strings: list[Place] = []
        self.writes: list[Place] = []
        """Attributes and subscripts that are assigned to or deleted."""
        self.imports: list[Place] = []
        self.functions: list[Place] = []
        self.patterns: list[Place] = []
        self.bound: list[tuple[str, Any, Scope]] = []
        """(name, node, scope) of every binding."""
        self.names: set[str] = set()
        """Every identifier of the program: for the check of folded names."""
        self.assigned: dict[int, ast.expr] = {}
        """id of an attribute that a plain assignment sets → the value it gets."""
        self.defaults: set[int] = set()
        """ids of what parameters are set to when nothing is passed."""
        self.scope_of: dict[int, Scope] = {}
        """id of a function, class or comprehension → its scope."""


def collect(tree: ast.Module) -> Facts:
    """Walk `tree` once, and note with which names and attributes its functions are called."""
    facts = _Walk(tree).facts
    for node, scope in facts.calls:
        home = scope.find(node.func.id) if isinstance(node.func, ast.Name) else None
        for binding in home.names[node.func.id][:_ARGUMENTS_CAP] if home is not None else ():
            if binding.kind == DEF:
                _pass_arguments(node, scope, binding.value, facts.scope_of[id(binding.value)])
    return facts


def _pass_arguments(node: ast.Call, scope: Scope, function: ast.FunctionDef, inner: Scope) -> None:
    parameters = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    passed = [*zip(parameters, node.args, strict=False), *((keyword.arg or "", keyword.value) for keyword in node.keywords)]
    for name, value in passed:
        bindings = inner.names.get(name)
        if bindings and isinstance(value, ast.Name | ast.Attribute) and len(bindings) < _ARGUMENTS_CAP:
            bindings.append(Binding(ARGUMENT, Place(value, scope), node.lineno, False))


class _Walk:
    def __init__(self, tree: ast.Module) -> None:
        self.facts = Facts()
        self._stack: list[tuple[ast.AST, Scope]] = []
        self._top = {id(node) for node in tree.body}
        handlers: dict[type[ast.AST], Callable[[Any, Scope], None]] = {
            ast.Name: self._name, ast.Attribute: self._attribute, ast.Call: self._call, ast.Constant: self._constant, ast.Expr: self._expr,
            ast.FunctionDef: self._function, ast.AsyncFunctionDef: self._function, ast.Lambda: self._lambda, ast.ClassDef: self._class,
            ast.Assign: self._assign, ast.AnnAssign: self._ann_assign, ast.AugAssign: self._aug_assign, ast.NamedExpr: self._walrus,
            ast.For: self._for, ast.AsyncFor: self._for, ast.Import: self._import, ast.ImportFrom: self._import_from,
            ast.ListComp: self._comprehension, ast.SetComp: self._comprehension, ast.DictComp: self._comprehension,
            ast.GeneratorExp: self._comprehension, ast.Global: self._global, ast.Nonlocal: self._nonlocal, ast.Return: self._return,
            ast.ExceptHandler: self._except, ast.Subscript: self._subscript, ast.MatchClass: self._match_class,
            ast.Compare: self._compare, ast.If: self._test, ast.IfExp: self._test, ast.While: self._test, ast.Assert: self._test,
            ast.UnaryOp: self._unary, ast.MatchAs: self._match_name, ast.MatchStar: self._match_name, ast.MatchMapping: self._match_mapping,
        }  # fmt: skip
        self._push_all(tree.body, self.facts.module)
        stack, generic = self._stack, self._generic
        while stack:
            node, scope = stack.pop()
            handlers.get(type(node), generic)(node, scope)

    # ---------------------------------------------------------------- the stack

    def _push(self, node: ast.AST | None, scope: Scope) -> None:
        if node is not None:
            self._stack.append((node, scope))

    def _push_all(self, nodes: Iterable[ast.AST | None], scope: Scope) -> None:
        self._stack.extend((node, scope) for node in reversed(list(nodes)) if node is not None)

    def _generic(self, node: ast.AST, scope: Scope) -> None:
        children: list[tuple[ast.AST, Scope]] = []
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                children.extend((item, scope) for item in value if isinstance(item, ast.AST))
            elif isinstance(value, ast.AST) and value._fields:
                children.append((value, scope))
        children.reverse()
        self._stack.extend(children)

    # ---------------------------------------------------------------- binding

    def _bind(self, name: str, scope: Scope, kind: str, value: Any, node: Any) -> None:
        home = scope
        if name in scope.globals:
            home = scope.module()
        elif name in scope.outer_names and scope.parent is not None:
            found = scope.parent.find(name)
            home = found if found is not None else scope
        self.facts.names.add(name)
        self.facts.bound.append((name, node, home))
        sure = home is scope and id(node) in self._top and not (isinstance(node, ast.AnnAssign) and node.value is None)
        until = node.body[-1].end_lineno or 0 if isinstance(node, ast.For | ast.AsyncFor) else 0
        home.names.setdefault(name, []).append(Binding(kind, value, getattr(node, "lineno", 0), sure, until))

    def _bind_target(self, target: ast.expr, value: ast.expr | None, kind: str, scope: Scope, statement: ast.AST) -> None:
        """Bind every name of `target`; expressions inside it (attributes, subscripts) are walked."""
        work: list[tuple[ast.expr, ast.expr | None, str]] = [(target, value, kind)]
        while work:
            part, source, how = work.pop()
            if isinstance(part, ast.Name):
                located = statement if id(statement) in self._top else part
                self._bind(part.id, scope, how if source is not None else OTHER, source, located)
            elif isinstance(part, ast.Starred):
                work.append((part.value, source, how))
            elif isinstance(part, ast.Tuple | ast.List):
                pairs = isinstance(source, ast.Tuple | ast.List) and how == EXPR and len(source.elts) == len(part.elts)
                if pairs and not any(isinstance(item, ast.Starred) for item in (*part.elts, *source.elts)):  # type: ignore[union-attr]
                    work.extend((item, match, EXPR) for item, match in zip(part.elts, source.elts, strict=True))  # type: ignore[union-attr]
                else:
                    work.extend((item, source, ITEM) for item in part.elts)
            else:
                self._push(part, scope)

    # ---------------------------------------------------------------- expressions

    def _name(self, node: ast.Name, scope: Scope) -> None:
        if isinstance(node.ctx, ast.Load):
            self.facts.names.add(node.id)
            self.facts.loads.append(Place(node, scope))
        else:
            self._bind(node.id, scope, GONE if isinstance(node.ctx, ast.Del) else OTHER, None, node)

    def _base(self, node: ast.expr, scope: Scope) -> None:
        """A base that an attribute is taken from: a bare name there is no use of the name as a value."""
        if isinstance(node, ast.Name):
            self.facts.names.add(node.id)
            self.facts.bases.append(Place(node, scope))
        else:
            self._push(node, scope)

    def _attribute(self, node: ast.Attribute, scope: Scope) -> None:
        self.facts.names.add(node.attr)
        (self.facts.attributes if isinstance(node.ctx, ast.Load) else self.facts.writes).append(Place(node, scope))
        self._base(node.value, scope)

    def _subscript(self, node: ast.Subscript, scope: Scope) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.facts.writes.append(Place(node, scope))
        self._push(node.slice, scope)
        self._push(node.value, scope)

    def _call(self, node: ast.Call, scope: Scope) -> None:
        self.facts.calls.append(Place(node, scope))
        self._push_all(node.keywords, scope)
        function, arguments = node.func, node.args
        if isinstance(function, ast.Name) and function.id in GUARDED:
            self.facts.names.add(function.id)
            self._push_all(arguments[1:], scope)
            if arguments:
                self._base(arguments[0], scope)
            return
        self._push_all(arguments, scope)
        self._push(function, scope)

    def _compare(self, node: ast.Compare, scope: Scope) -> None:
        """`module is None` only looks whether it is there."""
        if len(node.comparators) == 1 and isinstance(node.comparators[0], ast.Constant) and node.comparators[0].value is None:
            self._base(node.left, scope)
        else:
            self._push_all((node.left, *node.comparators), scope)

    def _unary(self, node: ast.UnaryOp, scope: Scope) -> None:
        self._base(node.operand, scope)

    def _test(self, node: ast.If | ast.IfExp | ast.While | ast.Assert, scope: Scope) -> None:
        """A bare name as a condition is looked at, not used."""
        for field in reversed(node._fields[1:] if not isinstance(node, ast.IfExp) else ("body", "orelse")):
            value = getattr(node, field)
            self._push_all(value, scope) if isinstance(value, list) else self._push(value, scope)
        self._base(node.test, scope)

    def _constant(self, node: ast.Constant, scope: Scope) -> None:
        if isinstance(node.value, str | bytes):
            self.facts.strings.append(Place(node, scope))

    def _expr(self, node: ast.Expr, scope: Scope) -> None:
        if not isinstance(node.value, ast.Constant):  # docstrings and stray constants do nothing
            self._push(node.value, scope)

    def _annotation(self, node: ast.expr | None, scope: Scope) -> None:
        """Annotations are expressions; as a string they become one for whoever asks for type hints."""
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            self._push(node, scope)
            return
        if len(node.value) > _ANNOTATION_CAP:
            self.facts.strings.append(Place(node, scope))
            return
        try:
            tree = ast.parse(node.value.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            self.facts.strings.append(Place(node, scope))  # no expression: judged as text
            return
        inner = list(ast.walk(tree))
        for part in inner:
            if hasattr(part, "lineno"):
                ast.copy_location(part, node)
        if any(isinstance(part, ast.Call | ast.Lambda | ast.NamedExpr) for part in inner):
            self._push(tree.body, scope)
        else:  # names alone, as a hint, do nothing: `"Optional[open]"`
            self._push_all((part for part in inner if isinstance(part, ast.Attribute)), scope)

    def _walrus(self, node: ast.NamedExpr, scope: Scope) -> None:
        home = scope
        while home.kind == "comprehension" and home.parent is not None:
            home = home.parent
        self._bind(node.target.id, home, EXPR, node.value, node.target)
        self._push(node.value, scope)

    def _comprehension(self, node: Any, scope: Scope) -> None:
        inner = self.facts.scope_of[id(node)] = Scope("comprehension", scope, node)
        for position, generator in enumerate(node.generators):
            self._bind_target(generator.target, generator.iter, ITEM, inner, generator)
            self._push(generator.iter, scope if position == 0 else inner)
            self._push_all(generator.ifs, inner)
        parts = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
        self._push_all(parts, inner)

    # ---------------------------------------------------------------- statements

    def _assign(self, node: ast.Assign, scope: Scope) -> None:
        for target in node.targets:
            if isinstance(target, ast.Attribute):
                self.facts.assigned[id(target)] = node.value
            self._bind_target(target, node.value, EXPR, scope, node)
        self._push(node.value, scope)

    def _ann_assign(self, node: ast.AnnAssign, scope: Scope) -> None:
        self._bind_target(node.target, node.value, EXPR, scope, node)
        self._annotation(node.annotation, scope)
        self._push(node.value, scope)

    def _aug_assign(self, node: ast.AugAssign, scope: Scope) -> None:
        self._bind_target(node.target, None, OTHER, scope, node)
        self._push(node.value, scope)

    def _for(self, node: ast.For | ast.AsyncFor, scope: Scope) -> None:
        self._push_all((*node.body, *node.orelse), scope)
        self._push(node.iter, scope)
        self._bind_target(node.target, node.iter, ITEM, scope, node)

    def _return(self, node: ast.Return, scope: Scope) -> None:
        if node.value is not None:
            scope.returns.append(node.value)
            self._push(node.value, scope)

    def _global(self, node: ast.Global, scope: Scope) -> None:
        scope.globals.update(node.names)

    def _nonlocal(self, node: ast.Nonlocal, scope: Scope) -> None:
        scope.outer_names.update(node.names)

    def _except(self, node: ast.ExceptHandler, scope: Scope) -> None:
        if node.name:
            self._bind(node.name, scope, GONE, None, node)
        self._push_all((node.type, *node.body), scope)

    def _match_class(self, node: ast.MatchClass, scope: Scope) -> None:
        self.facts.patterns.append(Place(node, scope))
        self._generic(node, scope)

    def _match_name(self, node: ast.MatchAs | ast.MatchStar, scope: Scope) -> None:
        if node.name:
            self._bind(node.name, scope, OTHER, None, node)
        self._generic(node, scope)

    def _match_mapping(self, node: ast.MatchMapping, scope: Scope) -> None:
        if node.rest:
            self._bind(node.rest, scope, OTHER, None, node)
        self._generic(node, scope)

    # ---------------------------------------------------------------- definitions and imports

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        self._bind(node.name, scope, DEF, node, node)
        self.facts.functions.append(Place(node, scope))
        inner = self._enter(node, scope)
        self._push_all(node.body, inner)
        self._annotation(node.returns, scope)
        self._push_all(node.decorator_list, scope)

    def _lambda(self, node: ast.Lambda, scope: Scope) -> None:
        inner = self._enter(node, scope)
        inner.returns.append(node.body)
        self._push(node.body, inner)

    def _enter(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: Scope) -> Scope:
        """A function's scope, its parameters bound to their defaults."""
        inner = Scope("function", scope, node)
        self.facts.scope_of[id(node)] = inner
        spec = node.args
        positional = [*spec.posonlyargs, *spec.args]
        defaults: list[ast.expr | None] = [*([None] * (len(positional) - len(spec.defaults))), *spec.defaults, *spec.kw_defaults]
        for argument, default in zip([*positional, *spec.kwonlyargs], defaults, strict=True):
            self._bind(argument.arg, inner, EXPR if default is not None else OTHER, default, argument)
            self._annotation(argument.annotation, scope)
            self._push(default, scope)
            self.facts.defaults.add(id(default))
        for extra in (spec.vararg, spec.kwarg):
            if extra is not None:
                self._bind(extra.arg, inner, OTHER, None, extra)
                self._annotation(extra.annotation, scope)
        return inner

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        self._bind(node.name, scope, CLASS, node, node)
        self._top.update(id(statement) for statement in node.body)
        inner = self.facts.scope_of[id(node)] = Scope("class", scope, node)
        self._push_all(node.body, inner)
        self._push_all((*node.decorator_list, *node.bases, *node.keywords), scope)

    def _import(self, node: ast.Import, scope: Scope) -> None:
        self.facts.imports.append(Place(node, scope))
        for alias in node.names:
            path = alias.name if alias.asname else alias.name.split(".")[0]
            self._bind(alias.asname or path, scope, MODULE, path, node)

    def _import_from(self, node: ast.ImportFrom, scope: Scope) -> None:
        self.facts.imports.append(Place(node, scope))
        for alias in node.names:
            if alias.name != "*":
                self._bind(alias.asname or alias.name, scope, PATH, f"{node.module or ''}.{alias.name}", node)
