"""A hash of what a program does, not of how it is written: for finding copies (design.md §4). Pure.

Insensitive to comments, formatting, docstrings, annotations, `__main__` blocks, `pass`, and to the names that the file
itself gives: functions, parameters, variables, import aliases. Sensitive to everything else: order, constants, attributes.
Two files with one fingerprint are one program; two different fingerprints prove nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator

from crusades.rules_scopes import CLASS, MODULE, PATH, Facts, Scope, collect
from crusades.rules_source import Unreadable, collector_paused, decode, parse, without_main

_SKIPPED = frozenset({"annotation", "returns", "type_comment", "type_ignores", "kind", "type_params", "ctx", "lineno", "simple"})


def fingerprint(source: bytes | str) -> str:
    """64 hex digits. Of a file that is not Python: of its bytes. Never raises."""
    try:
        with collector_paused():
            return _digest(without_main(parse(decode(source))))
    except (Unreadable, RecursionError, MemoryError):
        raw = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
        return hashlib.sha256(b"not python:" + raw).hexdigest()


def _digest(tree: ast.Module) -> str:
    digest = hashlib.sha256()
    for piece in _Spelling(tree).pieces():
        digest.update(piece.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


class _Spelling:
    """The tree as a stream of words, own names replaced by numbers in order of appearance."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._facts: Facts = collect(tree)
        self._words: dict[tuple[int, str], str] = {}
        self._own_names = 0
        self._parameters = {name for name, node, _ in self._facts.bound if isinstance(node, ast.arg)}
        self._home: dict[int, Scope] = {id(node): scope for node, scope in (*self._facts.loads, *self._facts.bases)}
        for _, node, scope in self._facts.bound:
            self._home.setdefault(id(node), scope)

    def pieces(self) -> Iterator[str]:
        """Depth first, with a closing word after each node: the stream determines the shape."""
        stack: list[tuple[ast.AST, Scope] | str] = [(node, self._facts.module) for node in reversed(_without_idle(self._tree.body))]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                yield item
                continue
            node, scope = item
            yield type(node).__name__
            stack.append(")")
            stack.extend(reversed(list(self._parts(node, scope))))

    def _parts(self, node: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope] | str]:
        inner = self._facts.scope_of.get(id(node), scope)
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from self._import(node, scope)
            return
        for field, value in ast.iter_fields(node):
            if field in _SKIPPED:
                continue
            yield field
            within = inner if field in ("body", "args") else scope
            if isinstance(value, list):
                body = field in ("body", "orelse", "finalbody") and not isinstance(node, ast.Lambda | ast.IfExp)
                yield from ((child, within) if isinstance(child, ast.AST) else self._own(child, within) for child in (_without_idle(value) if body else value))
            elif isinstance(value, ast.AST):
                yield value, within
            elif isinstance(value, str) and field in ("id", "name", "arg", "asname", "rest"):
                yield self._keyword(value, scope) if isinstance(node, ast.keyword) else self._own(value, self._where(node, scope))
            else:
                yield f"{type(value).__name__} {hex(value) if isinstance(value, int) else repr(value)}"  # decimal digits of an int are capped

    def _where(self, node: ast.AST, scope: Scope) -> Scope:
        return self._home.get(id(node), scope)

    def _own(self, name: object, scope: Scope) -> str:
        """A number for a name of the file's own, itself for a foreign one."""
        if not isinstance(name, str):
            return repr(name)
        home = scope.find(name)
        if home is None or name == "inner_steps":
            return f"name {name}"
        key = (id(home), name)
        if key not in self._words:
            self._words[key] = self._word(home, name)
        return self._words[key]

    def _word(self, home: Scope, name: str) -> str:
        bindings = home.names[name]
        paths = {binding.value for binding in bindings if binding.kind in (PATH, MODULE)}
        if len(paths) == 1:
            return f"import {paths.pop()}"
        if home.kind == "class" and not any(binding.kind == CLASS for binding in bindings):
            return f"member {name}"  # reached as an attribute, by this name
        self._own_names += 1
        return f"own {self._own_names}"

    def _keyword(self, name: str, scope: Scope) -> str:
        return "own keyword" if name in self._parameters else f"keyword {name}"

    @staticmethod
    def _import(node: ast.Import | ast.ImportFrom, scope: Scope) -> Iterator[str]:
        del scope
        yield f"{getattr(node, 'level', 0)} {getattr(node, 'module', None)}"
        yield from sorted(alias.name for alias in node.names)


def _without_idle(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that do something: no docstrings, stray constants, `pass`, bare annotations."""
    return [
        node
        for node in body
        if not (
            isinstance(node, ast.Pass)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.AnnAssign) and node.value is None and isinstance(node.target, ast.Name))
        )
    ]
