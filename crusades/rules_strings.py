"""Strings that are put together from pieces, as far as that can be known without running anything. Pure, and bounded."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Final

from crusades.rules_scopes import EXPR, Scope

_DEPTH: Final = 24
_WIDTH: Final = 16
_STRING_CAP: Final = 4096


class Computed:
    """A string that some computation makes; `head` and `tail` are what it certainly starts and ends with.

    `written`: where its parts are only put one after another (`f"{kind}_{i}"`), those that are written out; else None.
    """

    __slots__ = ("head", "tail", "written")

    def __init__(self, head: str = "", tail: str = "", written: str | None = None) -> None:
        self.head, self.tail, self.written = head, tail, written


class Strings:
    """Answers for one file; `spend` is called once per step and raises when there have been too many."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self._spend = spend

    def string(self, node: ast.AST, scope: Scope, depth: int = 0) -> str | Computed | None:
        """The string that `node` makes; Computed when it puts one together that is not known; None when it only passes one on."""
        self._spend()
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
