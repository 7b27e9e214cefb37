"""From bytes to a syntax tree, or to findings that say why there is none. Pure; survives any input.

Everything that could make the text a person reads differ from the program that Python runs is refused here: encodings,
invisible and direction-changing characters, names that Python folds into other names (PEP 672).
"""

from __future__ import annotations

import ast
import gc
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MAX_BYTES = 500_000
"""Default cap; the daemon passes `hparams.toml`'s. Larger files are never parsed."""

READ_CAP = 16 << 20
"""Bytes that `crusades check` reads of a file that is too large anyway: enough to say how large it is."""

MAX_DEPTH = 500
"""Nested nodes from the module to the deepest leaf; people stay under 40."""

MAX_FORMAT_STRING = 20_000
"""Characters of one f-string: Python 3.11 parses them in quadratic time, 30 s for half a megabyte."""

MAX_KEYWORDS = 1_000
"""Keyword arguments of one call or pattern: Python compares each with each, 30 s for half a megabyte."""

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
"""In messages: a validator with an older Python than a miner's knows less syntax."""
_LONG_FORMAT = re.compile(r"(?is)(?<!\w)(?:f|fr|rf)(\"\"\"|'''|\"|')(?:\\.|(?!\1)[^\\]){" + str(MAX_FORMAT_STRING) + "}")
_COOKIE = re.compile(r"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_UTF8 = frozenset({"utf-8", "utf8", "utf_8", "u8", "utf-8-sig"})
_NEWLINE = re.compile(r"\r\n|\r|\n")
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Zero-width, direction-changing and tag characters: what PEP 672 warns of."""
_EMOJI = "[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]"
_JOINED_EMOJI = re.compile(f"(?<={_EMOJI})\u200d(?={_EMOJI})")
"""One picture made of several. No name can have one, so it hides nothing."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
_WORD = re.compile(r"[^\W\d]\w*")

Problem = tuple[str, int, int, str]
"""rule id, line, column (both 1-based), message."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """A tree is a hundred thousand objects and no garbage: the cyclic collector would take three times as long as the work."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Unreadable(Exception):
    """There is no syntax tree; carries the problem that says why."""

    def __init__(self, rule: str, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.problem: Problem = (rule, line, column, message)


def decode(source: bytes | str, max_bytes: int = MAX_BYTES) -> str:
    """The text Python would read. Raises Unreadable for what is not UTF-8 text of bounded size."""
    if isinstance(source, str):
        try:
            source = source.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Unreadable("R602", 1, 1, f"not valid text: {error.reason}") from error
    if len(source) > max_bytes:
        size = f"{len(source):,} bytes" if len(source) < READ_CAP else f"{READ_CAP:,} bytes or more"
        raise Unreadable("R602", 1, 1, f"{size}; at most {max_bytes:,} are allowed")
    if b"\0" in source:
        before = source[: source.index(b"\0")]
        raise Unreadable("R602", before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1, "a null byte: this is not a text file")
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        raise Unreadable("R602", line, 1, f"not UTF-8: byte 0x{source[error.start]:02x}") from error


def split_lines(text: str) -> list[str]:
    """Lines as Python counts them: form feeds and Unicode separators do not end one."""
    return _NEWLINE.split(text)


def text_problems(lines: list[str]) -> Iterator[Problem]:
    """Hidden characters, folded names and foreign encodings."""
    for number, line in enumerate(lines[:2], 1):
        cookie = _COOKIE.match(line)
        if cookie and cookie.group(1).lower() not in _UTF8:
            yield "R601", number, cookie.start(1) + 1, f"declares the encoding {cookie.group(1)!r}; only UTF-8 is read"
    for number, line in enumerate(lines, 1):
        control = _CONTROL.search(line)
        if control:
            yield "R601", number, control.start() + 1, f"control character U+{ord(control.group()):04X}"
        if line.isascii():
            continue
        hidden = _HIDDEN.search(_JOINED_EMOJI.sub("+", line))
        if hidden:
            character = hidden.group()
            name = unicodedata.name(character, "unnamed")
            yield "R601", number, hidden.start() + 1, f"invisible character U+{ord(character):04X} ({name.lower()})"


def folded_names(lines: list[str], tree_names: frozenset[str]) -> Iterator[Problem]:
    """Words that NFKC turns into an ASCII name of the program: `ｅｖａｌ` is eval to Python, while `µ` is only another μ."""
    for number, line in enumerate(lines, 1):
        if line.isascii():
            continue
        for word in _WORD.finditer(line):
            written = word.group()
            folded = unicodedata.normalize("NFKC", written)
            if folded != written and folded.isascii() and folded in tree_names:
                yield "R601", number, word.start() + 1, f"Python reads {written!r} as {folded!r}"
                break


def parse(text: str) -> ast.Module:
    """The tree of a text that Python accepts. Raises Unreadable with R703 for a syntax error and R602 for monsters."""
    long = _LONG_FORMAT.search(text)
    if long:
        raise Unreadable("R602", text.count("\n", 0, long.start()) + 1, 1, f"an f-string of more than {MAX_FORMAT_STRING:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, "train.py", "exec")
            _check_shape(tree)
            compile(tree, "train.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        lines = text.count("\n") + 1
        line = min(max(error.lineno or 1, 1), lines)
        raise Unreadable("R703", line, max(error.offset or 1, 1), f"syntax error: {error.msg} (read by Python {_VERSION})") from error
    except (RecursionError, MemoryError) as error:
        raise Unreadable("R602", 1, 1, "nested too deeply to be read") from error
    except (ValueError, OverflowError) as error:
        raise Unreadable("R602", 1, 1, f"cannot be read: {error}") from error
    return tree


def _check_shape(tree: ast.Module) -> None:
    """Refuse what would take the compiler, or the checks, more than a moment."""
    layer: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        below: list[ast.AST] = []
        for node in layer:
            for field in node._fields:
                value = getattr(node, field, None)
                if isinstance(value, list):
                    if len(value) > MAX_KEYWORDS and field in ("keywords", "kwd_attrs"):
                        raise Unreadable("R602", getattr(node, "lineno", 1), 1, f"more than {MAX_KEYWORDS:,} keyword arguments in one place")
                    below.extend(item for item in value if isinstance(item, ast.AST))
                elif isinstance(value, ast.AST) and value._fields:
                    below.append(value)
        layer = below
        if not layer:
            return
    deepest = next((node for node in layer if hasattr(node, "lineno")), tree)
    raise Unreadable("R602", getattr(deepest, "lineno", 1), 1, f"nested more than {MAX_DEPTH} levels deep")


def is_main_guard(node: ast.stmt) -> bool:
    """Whether this top-level statement is `if __name__ == "__main__":` (either way round). hook.py has the same function."""
    if not (isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and len(node.test.ops) == 1):
        return False
    if not isinstance(node.test.ops[0], ast.Eq):
        return False
    sides = [node.test.left, node.test.comparators[0]]
    names = [side.id for side in sides if isinstance(side, ast.Name)]
    values = [side.value for side in sides if isinstance(side, ast.Constant)]
    return names == ["__name__"] and values == ["__main__"]


def without_main(tree: ast.Module) -> ast.Module:
    """The module that a validator loads: main blocks replaced by their `else` branch."""
    kept: list[ast.stmt] = []
    for node in tree.body:
        if is_main_guard(node):
            assert isinstance(node, ast.If)
            kept.extend(node.orelse)
        else:
            kept.append(node)
    return ast.Module(body=kept, type_ignores=[])
