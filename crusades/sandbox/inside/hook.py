"""The import hook: loads a submission under guarded builtins, inside the sandbox. Standard library only, standalone.

It is a guard rail, not a wall. The submission shares this process, and whoever wants to can get around everything here;
the walls are the kernel's, and the score rests on a judge in another process. The hook enforces the competition's rules
where a scanner cannot see (names computed while the program runs), and says which rule and which line it was.

How it works. The submission's module has a `__builtins__` of its own: `__import__` and the attribute functions are
guarded, the forbidden ones raise. Only code of that module looks names up there; torch, its dependencies and generated code
keep the interpreter's builtins and import freely. `type` cannot be a function of ours (`isinstance(x, type)`, and the compiler
traces `type(x)`), so where a file does anything else with it, a call that looks is put around it. An audit hook (PEP 578) refuses what a line of the submission itself asks
of the interpreter (opening files, sockets, processes, frames), however it came by the function.

The source stays at its real path and in `linecache`, and the module in `sys.modules`: Triton and the compiler read it.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import sys
from _thread import get_ident
from types import FrameType, ModuleType
from typing import Any, NoReturn

MODULE_NAME = "train"
"""What the submission's module is called: not `__main__`."""


class RuleViolation(BaseException):
    """The submission did what a rule forbids. Not an Exception, so that `except Exception` does not swallow it."""

    def __init__(self, rule: str, line: int | None, message: str) -> None:
        super().__init__(f"{rule}: {message}" + (f" (line {line} of train.py)" if line else ""))
        self.rule, self.line, self.message = rule, line, message


violations: list[RuleViolation] = []
"""Every denial so far, also those that the submission swallowed."""

_table: dict[str, Any] = {}
_files: set[str] = set()
_introspection: frozenset[str] = frozenset()
_raw_memory: frozenset[str] = frozenset()
_clocks: frozenset[str] = frozenset()
_named: frozenset[str] = frozenset()
_getattr, _setattr, _delattr, _hasattr = getattr, setattr, delattr, hasattr
_import = builtins.__import__


def install(table: dict[str, Any]) -> None:
    """Take the rules (see `rules.hook_table`). An empty table guards nothing: `bench --skip-rules`."""
    global _table, _introspection, _raw_memory, _clocks, _named
    _table = table
    _introspection = frozenset(table.get("introspection", ()))
    _raw_memory = frozenset(table.get("raw_memory", ()))
    _clocks = frozenset(table.get("clocks", ()))
    _named = _introspection | _raw_memory
    if table.get("events"):
        sys.addaudithook(_Auditor(table["events"]).hook)


def load(path: str) -> ModuleType:
    """Run the file at `path` as a module, its main blocks left out. Raises RuleViolation, SyntaxError, or what the file raises."""
    with open(path, "rb") as file:
        source = file.read().decode("utf-8-sig")
    tree = without_main(ast.parse(source, path))
    if _table:
        guard_classes(tree)
    code = compile(tree, path, "exec", dont_inherit=True)
    module = ModuleType(MODULE_NAME)
    namespace = module.__dict__
    namespace["__file__"] = path
    namespace["__builtins__"] = _guarded_builtins() if _table else builtins.__dict__
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    sys.modules[MODULE_NAME] = module
    _files.add(path)
    exec(code, namespace)
    return module


def is_main_guard(node: ast.stmt) -> bool:
    """Whether this top-level statement is `if __name__ == "__main__":`, either way round. The scanner has the same function."""
    if not (isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and len(node.test.ops) == 1):
        return False
    if not isinstance(node.test.ops[0], ast.Eq):
        return False
    sides = [node.test.left, node.test.comparators[0]]
    names = [side.id for side in sides if isinstance(side, ast.Name)]
    values = [side.value for side in sides if isinstance(side, ast.Constant)]
    return names == ["__name__"] and values == ["__main__"]


def without_main(tree: ast.Module) -> ast.Module:
    """The tree with every main block replaced by its `else` branch; line numbers stay."""
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.If) and is_main_guard(node):
            body.extend(node.orelse)
        else:
            body.append(node)
    tree.body = body
    return tree


# ---------------------------------------------------------------------------------------------------- classes by a call

_GUARD = "guarded type"
"""No name that a file can have."""
_MAKERS = frozenset({"type", "ABCMeta", "EnumMeta", "EnumType"})
_PLAIN_PLACES = frozenset({"bases", "annotation", "returns", "cls", "left", "comparators"})
"""Fields of a node where what makes classes is inherited from, compared, or a hint."""


def guard_classes(tree: ast.Module) -> None:
    """Put the guard around `type` and its like wherever they do more than tell what something is. In place, iterative."""
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if isinstance(value, list):
                value[:] = [_guarded(item, parent, field) if isinstance(item, ast.expr) else item for item in value]
            elif isinstance(value, ast.expr):
                _setattr(parent, field, _guarded(value, parent, field))


def _guarded(node: ast.expr, parent: ast.AST, field: str) -> ast.expr:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    makes = isinstance(parent, ast.Call) and field == "func" and (len(parent.args) + len(parent.keywords) > 1 or any(isinstance(a, ast.Starred) for a in parent.args))
    if makes and (name == "__class__" or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type")):
        return _wrapped(node)
    if name not in _MAKERS or not isinstance(_getattr(node, "ctx", None), ast.Load) or field in _PLAIN_PLACES:
        return node
    if isinstance(parent, ast.Call) and (not makes if field == "func" else isinstance(parent.func, ast.Name) and parent.func.id in ("isinstance", "issubclass")):
        return node
    if isinstance(parent, ast.Subscript) or (isinstance(parent, ast.keyword) and parent.arg == "metaclass"):
        return node
    return _wrapped(node)


def _wrapped(node: ast.expr) -> ast.expr:
    guard = ast.copy_location(ast.Name(_GUARD, ast.Load()), node)
    return ast.copy_location(ast.Call(guard, [node], []), node)


class _StandInKind(type):
    """Makes the stand-in behave as `type` does in everything but making classes."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            return type(args[0])
        _deny("R206", "a call with a name, bases and members makes a class")

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, type)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return issubclass(subclass, type)

    def __getattr__(cls, name: str) -> Any:
        return _getattr(type, name)


class _StandIn(metaclass=_StandInKind):
    def __new__(cls, *_: Any, **__: Any) -> Any:
        _deny("R206", "`type.__new__` makes a class")

    def __call__(self, *_: Any, **__: Any) -> Any:
        _deny("R206", "`type.__call__` makes a class")


def guarded_type(value: Any) -> Any:
    """`value`, or a stand-in that makes no classes if it is `type` or one of the library's descendants of it."""
    if value is type or (isinstance(value, type) and issubclass(value, type) and value.__module__ in ("abc", "enum")):
        return _StandIn
    return value


# ---------------------------------------------------------------------------------------------------- denials


def _deny(rule: str, what: str, frame: FrameType | None = None) -> NoReturn:
    """Record and raise. The line is the innermost one of the submission."""
    line = _line(frame if frame is not None else sys._getframe(1))
    row = _table.get("rules", {}).get(rule, {})
    violation = RuleViolation(rule, line, f"{what}. Instead: {row['instead']}" if "instead" in row else what)
    violations.append(violation)
    raise violation


def _line(frame: FrameType | None) -> int | None:
    while frame is not None and frame.f_code.co_filename not in _files:
        frame = frame.f_back
    return frame.f_lineno if frame is not None else None


# ---------------------------------------------------------------------------------------------------- builtins


def _guarded_builtins() -> dict[str, Any]:
    """A copy of the interpreter's builtins for the submission alone."""
    guarded = dict(builtins.__dict__)
    for name, rule in _table.get("builtins", {}).items():
        if name != "__build_class__" and name in guarded:  # the class statement itself needs that one
            guarded[name] = _denied(name, rule)
    guarded["__import__"], guarded[_GUARD] = guarded_import, guarded_type
    guarded["getattr"], guarded["setattr"], guarded["delattr"] = guarded_getattr, guarded_setattr, guarded_delattr
    return guarded


def _denied(name: str, rule: str) -> Any:
    def denied(*_: Any, **__: Any) -> NoReturn:
        _deny(rule, f"`{name}` is not available to submissions")

    denied.__name__ = denied.__qualname__ = name
    return denied


def module_rule(name: str) -> str | None:
    """The rule that forbids importing the dotted module `name`; None when it may be imported."""
    parts = name.split(".")
    if "cpp_extension" in parts:
        return "R105"
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in _table["allowed_submodules"]:
            return None
        if prefix in _table["denied_submodules"]:
            return str(_table["denied_submodules"][prefix])
    if parts[0] in _table["denied"]:
        return str(_table["denied"][parts[0]])
    return None if parts[0] in _table["allowed"] else "R109"


def guarded_import(
    name: str,
    globals: dict[str, Any] | None = None,  # noqa: A002 - the names are `__import__`'s own
    locals: dict[str, Any] | None = None,  # noqa: A002
    fromlist: tuple[str, ...] | None = (),
    level: int = 0,
) -> Any:
    """`import` as a submission sees it."""
    if level:
        _deny("R109", "a relative import: a submission is one file")
    rule = module_rule(name)
    if rule:
        _deny(rule, f"`{name}` is not available to submissions")
    for item in fromlist or ():
        if item == "*":
            _deny("R108", f"`from {name} import *`")
        member = _table["members"].get(name.split(".")[0], {}).get(item) or _table["denied_submodules"].get(f"{name}.{item}")
        if member and f"{name}.{item}" not in _table["allowed_submodules"]:
            _deny(member, f"`{name}.{item}` is not available to submissions")
    module = _import(name, globals, locals, fromlist or (), level)
    for item in fromlist or ():
        _check_value(_getattr(module, item, None), f"{name}.{item}")
    return module


def _check_value(value: Any, words: str) -> None:
    """Refuse a forbidden module, whatever it is reached through."""
    if isinstance(value, ModuleType):
        real = value.__name__
        rule = module_rule(real) if isinstance(real, str) else None
        if rule and real != MODULE_NAME:
            _deny("R110" if rule != "R105" and "." not in real else rule, f"`{words}` is the module {real}, which submissions may not use")


def guarded_getattr(target: Any, name: str, *default: Any) -> Any:
    """`getattr` as a submission sees it."""
    if isinstance(name, str) and name in _named:
        _deny("R304" if name in _raw_memory else "R202", f"`getattr` of `{name}`")
    if isinstance(target, ModuleType):
        members = _table["members"].get(target.__name__.split(".")[0], {})
        if name in members:
            _deny(members[name], f"`{target.__name__}.{name}` is not available to submissions")
        value = _getattr(target, name, *default)
        _check_value(value, f"{target.__name__}.{name}")
        return value
    return _getattr(target, name, *default)


def guarded_setattr(target: Any, name: str, value: Any) -> None:
    """`setattr` as a submission sees it."""
    _check_store(target, name, "setattr", value)
    _setattr(target, name, value)


def guarded_delattr(target: Any, name: str) -> None:
    """`delattr` as a submission sees it."""
    _check_store(target, name, "delattr", None)
    _delattr(target, name)


def _check_store(target: Any, name: str, how: str, value: Any) -> None:
    words = f"`{how}` of `{name}`"
    if name in _named or name == "__class__":
        _deny("R304" if name in _raw_memory else "R302", words)
    if name in _clocks:
        _deny("R301", words)
    if name == "requires_grad" and value is not True:
        _deny("R501", words)
    if type(target).__module__.startswith("torch.optim"):
        _deny("R502", f"{words} on the optimizer")
    if isinstance(target, type) and _getattr(target, "__module__", "") != MODULE_NAME:
        _deny("R302", f"{words} on the class {target.__name__}, which is not yours")
    if isinstance(target, ModuleType):
        full = f"{target.__name__}.{name}"
        if full.startswith(tuple(_table["open_configs"])):
            return
        if target.__name__.startswith("torch.backends") and name in _table["backend_settings"]:
            return
        _deny("R401" if target.__name__.startswith("torch.backends") else "R302", f"{words} on the module {target.__name__}")


# ---------------------------------------------------------------------------------------------------- audit events


class _Auditor:
    """Refuses interpreter events that a line of the submission raises itself."""

    def __init__(self, events: dict[str, str]) -> None:
        self._exact = {event: rule for event, rule in events.items() if not event.endswith((".", "_current", "sys.set"))}
        self._prefixes = {event: rule for event, rule in events.items() if event not in self._exact}
        self._known: dict[str, str | None] = {}
        self._looking: set[int] = set()
        """Threads that look right now: what one of them does must not blind the hook to another."""

    def hook(self, event: str, _: tuple[Any, ...]) -> None:
        """Called by the interpreter for every event of every thread: cheap unless the event is on the list."""
        try:
            rule = self._known[event]
        except KeyError:
            rule = self._known[event] = self._rule(event)
        if rule is None or (thread := get_ident()) in self._looking:
            return
        self._looking.add(thread)  # looking at a frame raises events of its own
        try:
            frame = sys._getframe(1)
            if frame.f_code.co_filename in _files:
                _deny(rule, f"train.py asks the interpreter for `{event}`", frame)
        finally:
            self._looking.discard(thread)

    def _rule(self, event: str) -> str | None:
        if event in self._exact:
            return self._exact[event]
        return next((rule for prefix, rule in self._prefixes.items() if event.startswith(prefix)), None)
