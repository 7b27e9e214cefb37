"""What a hostile program printed: a bounded tail of it, made safe to show."""

from __future__ import annotations

import unicodedata

_KEEP = {"\n", "\t"}
_ESCAPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that move cursors, reverse text, or print as nothing."""


class Tail:
    """The last `size` bytes of a stream, and how many there were in all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept = bytearray()
        self.total = 0

    def __repr__(self) -> str:
        return f"<Tail {len(self._kept)} of {self.total} bytes>"

    def add(self, chunk: bytes) -> None:
        """Append; what no longer fits is forgotten."""
        self.total += len(chunk)
        self._kept += chunk
        if len(self._kept) > self._size:
            del self._kept[: len(self._kept) - self._size]

    def text(self) -> str:
        """The tail as printable text of at most `size` characters; says so when something was cut off."""
        shown, cut = printable(bytes(self._kept)), self.total - len(self._kept)
        note = f"[{cut} bytes not kept]\n" if cut else ""
        if len(note) + len(shown) <= self._size:
            return note + shown
        # One byte may have become an escape of many characters: the end of it is what is worth showing.
        note = note or "[cut]\n"
        return note + shown[len(shown) - max(self._size - len(note), 0) :]


def printable(raw: bytes) -> str:
    """Decode, and turn every control, bidirectional or invisible character but newline and tab into a visible escape.

    A terminal, a log and a web page can show the result: nothing in it moves a cursor or reverses a line. HTML must still be
    escaped by whoever writes HTML.
    """
    text = raw.decode("utf-8", "replace").replace("\r\n", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in _KEEP or unicodedata.category(character) not in _ESCAPED:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
