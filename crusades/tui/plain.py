"""Foreign text made harmless for a terminal. Pure, standard library only."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, screen
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC (titles, clipboard, links), DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]"  # the short ones
    r"|\x9b[0-?]*[ -/]*[@-~]"  # CSI as one C1 byte
    r"|[\x9d\x90\x98\x9e\x9f][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
)
SIGN = "\N{REPLACEMENT CHARACTER}"


def plain(text: object, most: int = 2000) -> str:
    """One line without escape sequences, control characters, or characters that reorder or hide others (bidi, zero width)."""
    return _visible(_SEQUENCE.sub("", str(text).replace("\r", " ").replace("\n", " ").replace("\t", " ")), most)


def plain_lines(text: str, most: int = 600_000) -> list[str]:
    """Source code as lines: tabs become spaces, hidden characters become visible signs."""
    lines = re.split(r"\r\n|\r|\n", text[:most])
    return [_visible(_SEQUENCE.sub(SIGN, line.expandtabs(4)), most) for line in (lines[:-1] if lines[-1] == "" else lines)]


def _visible(text: str, most: int) -> str:
    if len(text) > most:
        text = text[:most] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "C" or category in ("Zl", "Zp"):  # control, format (bidi, zero width), surrogate, private, unassigned, line breaks
        return SIGN
    return " " if category == "Zs" else character


def short(key: str) -> str:
    """A hotkey, short enough for a column."""
    key = plain(key, 80)
    return f"{key[:6]}…{key[-5:]}" if len(key) > 14 else key
