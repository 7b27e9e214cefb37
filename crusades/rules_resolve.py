"""What an expression may stand for: dotted paths of foreign things, and strings put together from pieces. Pure.

Approximated from above (a set of everything it could be), and bounded: past a fixed depth or size the answer is "unknown",
which is an answer the rules can judge.
"""

from __future__ import annotations

import ast
import builtins
from typing import Final

from crusades.rules_scopes import ARGUMENT, CLASS, DEF, EXPR, GUARDED, ITEM, MODULE, OTHER, PATH, Facts, Scope

_DEPTH: Final = 24
_WIDTH: Final = 16
_STRING_CAP: Final = 4096
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


class Computed:
    """A string that some computation makes; `head` and `tail` are what it certainly starts and ends with.

    `written`: where its parts are only put one after another (`f"{kind}_{i}"`), those that are written out; else None.
    """

    __slots__ = ("head", "tail", "written")

    def __init__(self, head: str = "", tail: str = "", written: str | None = None) -> None:
        self.head, self.tail, self.written = head, tail, written


class Resolver:
    """Answers for one file; memoises per scope and name."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._steps = _BUDGET

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

    # ---------------------------------------------------------------- strings

    def string(self, node: ast.AST, scope: Scope, depth: int = 0) -> str | Computed | None:
        """The string that `node` makes; Computed when it puts one together that is not known; None when it only passes one on."""
        self.spend()
        if depth > _DEPTH:
            return Computed()
        match node:
            case ast.Constant(value=str() as text):
                return text
            case ast.Constant(value=bytes() as raw):
                return raw.decode("latin-1")
            case ast.Name():
                return self._named_string(node, scope, depth)
            case ast.JoinedStr():
                return self._joined([v.value if isinstance(v, ast.FormattedValue) else v for v in node.values], "", scope, depth)
            case ast.BinOp(op=ast.Add()):
                return self._joined([node.left, node.right], "", scope, depth)
            case ast.BinOp(op=ast.Mod()):
                return self._percent(node, scope, depth)
            case ast.BinOp():
                return Computed()
            case ast.Subscript():
                return self._sliced(node, scope, depth)
            case ast.Call():
                return self._call_string(node, scope, depth)
            case ast.IfExp():
                either = self.string(node.body, scope, depth + 1), self.string(node.orelse, scope, depth + 1)
                return next((one for one in either if isinstance(one, Computed)), None) or either[0]
        return None

    def _named_string(self, node: ast.Name, scope: Scope, depth: int) -> str | Computed | None:
        home = scope.find(node.id)
        if home is None:
            return None
        values = [
            self.string(binding.value, home, depth + 1) if binding.kind == EXPR and binding.value is not None else None
            for binding in home.names[node.id][:_WIDTH]
        ]
        if len(values) == 1:
            return values[0]
        return next((value for value in values if isinstance(value, Computed)), None)

    def _joined(self, parts: list[ast.expr], separator: str, scope: Scope, depth: int) -> str | Computed:
        made, pieces = "", []
        for position, part in enumerate(parts):
            piece = self.string(part, scope, depth + 1)
            if position:
                made += separator
            if not isinstance(piece, str):
                pieces = [self.string(part, scope, depth + 1) for part in parts[-_WIDTH:]]
                last = pieces[-1]
                tail = last if isinstance(last, str) else last.tail if isinstance(last, Computed) else ""
                written = _written(pieces, separator) if len(parts) <= _WIDTH else None
                return Computed(made + (piece.head if isinstance(piece, Computed) else ""), tail, written)
            made += piece
            if len(made) > _STRING_CAP:
                return Computed(made)
        return made

    def _percent(self, node: ast.BinOp, scope: Scope, depth: int) -> str | Computed:
        template = self.string(node.left, scope, depth + 1)
        values = list(node.right.elts) if isinstance(node.right, ast.Tuple) else [node.right]
        if isinstance(node.right, ast.Dict) or not isinstance(template, str):
            return Computed()
        made = [self.string(value, scope, depth + 1) for value in values]
        if template.count("%") == template.count("%s") == len(made) and all(isinstance(piece, str) for piece in made):
            for piece in made:
                template = template.replace("%s", str(piece), 1)
            return template
        plain = all(part[:1] in ("s", "d", "i") for part in template.split("%")[1:])
        return Computed(template.split("%")[0], "", _written([template, *made]) if plain else None)

    def _sliced(self, node: ast.Subscript, scope: Scope, depth: int) -> str | Computed | None:
        text = self.string(node.value, scope, depth + 1)
        if isinstance(node.slice, ast.Slice):
            if not isinstance(text, str):
                return text
            bounds = [_whole_number(part) for part in (node.slice.lower, node.slice.upper, node.slice.step)]
            if "?" in bounds or bounds[2] == 0:
                return Computed()
            return text[slice(*bounds)]  # type: ignore[arg-type]  # "?" is excluded above
        if isinstance(text, str):
            index = _whole_number(node.slice)
            return text[index] if isinstance(index, int) and -len(text) <= index < len(text) else Computed()
        return None  # an element of a container

    def _call_string(self, node: ast.Call, scope: Scope, depth: int) -> str | Computed | None:
        function, arguments = node.func, node.args
        if isinstance(function, ast.Name):
            if function.id == "chr" and scope.find("chr") is None:
                number = _whole_number(arguments[0]) if len(arguments) == 1 else "?"
                return chr(number) if isinstance(number, int) and 0 <= number < 0x110000 else Computed()
            if function.id in ("str", "repr", "ascii", "format", "reversed", "sorted", "bytes", "bytearray"):
                return self._bytes(node, scope, depth)
            return None
        if not isinstance(function, ast.Attribute):
            return None
        if function.attr == "join" and len(arguments) == 1:
            return self._join(function.value, arguments[0], scope, depth)
        base = self.string(function.value, scope, depth + 1)
        if function.attr in ("decode", "fromhex"):
            return base if isinstance(base, str) else Computed()
        if not isinstance(base, str):
            return base
        made = [self.string(argument, scope, depth + 1) for argument in arguments]
        return _string_method(base, function.attr, made)

    def _bytes(self, node: ast.Call, scope: Scope, depth: int) -> str | Computed | None:
        if not node.args:
            return ""
        first = node.args[0]
        if isinstance(first, ast.List | ast.Tuple):
            numbers = [_whole_number(item) for item in first.elts[:_STRING_CAP]]
            if numbers and all(isinstance(number, int) and 0 <= number < 256 for number in numbers):
                return bytes(numbers).decode("latin-1")  # type: ignore[arg-type]
        inner = self.string(first, scope, depth + 1)
        assert isinstance(node.func, ast.Name)
        if node.func.id in ("str", "format") or inner is None:
            return inner if inner is not None or node.func.id in ("str", "format", "sorted", "reversed") else Computed()
        if node.func.id == "reversed" and isinstance(inner, str):
            return inner[::-1]
        return inner if node.func.id in ("bytes", "bytearray") else Computed()

    def _join(self, separator: ast.expr, parts: ast.expr, scope: Scope, depth: int) -> str | Computed:
        glue = self.string(separator, scope, depth + 1)
        if not isinstance(glue, str):
            return Computed()
        if isinstance(parts, ast.List | ast.Tuple):
            return self._joined(list(parts.elts), glue, scope, depth)
        whole = self.string(parts, scope, depth + 1)
        if isinstance(whole, str):
            return glue.join(whole)
        match parts:
            case ast.Call(func=ast.Name(id="reversed"), args=[ast.List() | ast.Tuple() as inner]):
                return self._joined(list(reversed(inner.elts)), glue, scope, depth)
            case ast.Subscript(value=ast.List() | ast.Tuple() as inner, slice=ast.Slice(lower=None, upper=None, step=step)) if (
                step is not None and _whole_number(step) == -1
            ):
                return self._joined(list(reversed(inner.elts)), glue, scope, depth)
        return Computed()


def _is_no_local(name: str, scope: Scope) -> bool:
    """Whether no function has a `name` of its own here: outside functions it may still be the builtin, at least at times."""
    home = scope.find(name)
    return home is None or home.kind in ("module", "class")


_PLAIN_METHODS: Final = frozenset(
    {"lower", "upper", "strip", "lstrip", "rstrip", "title", "swapcase", "casefold", "capitalize", "removeprefix", "removesuffix"}
)


def _written(pieces: list[str | Computed | None], separator: str = "") -> str | None:
    """What is written out of pieces that are put one after another; None if one of them is computed in another way."""
    made = []
    for piece in pieces:
        text = piece.written if isinstance(piece, Computed) else piece or ""
        if text is None:
            return None
        made.append(text)
    return separator.join(made)


def _string_method(base: str, method: str, made: list[str | Computed | None]) -> str | Computed | None:
    """The methods of str that are used to hide a name, computed here."""
    known = [piece for piece in made if isinstance(piece, str)]
    if len(known) != len(made):
        return Computed(base.split("{")[0], "", _written([base, *made])) if method == "format" else Computed()
    if method in _PLAIN_METHODS and len(known) <= 1:
        try:
            return str(getattr(base, method)(*known))
        except TypeError:
            return Computed()
    if method == "replace" and len(known) == 2:
        made_text = base.replace(known[0], known[1]) if len(base) * (len(known[1]) + 1) <= _STRING_CAP * 16 else ""
        return made_text[:_STRING_CAP]
    if method == "format" and "{" in base:
        text = base
        for piece in known:
            text = text.replace("{}", piece, 1)
        return text if "{" not in text else Computed(base.split("{")[0])
    if method in ("translate", "encode", "zfill", "ljust", "rjust", "center", "expandtabs", "format_map"):
        return base if method == "encode" else Computed()
    return None


def _whole_number(node: ast.AST | None) -> int | str | None:
    """An integer literal, None for an absent bound, "?" for anything else."""
    match node:
        case None:
            return None
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=int() as number) if abs(number) < 1 << 31:
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as number)) if abs(number) < 1 << 31:
            return -number
    return "?"
