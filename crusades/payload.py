"""What a commitment says: parse and format, pure. The one place that knows the wire form (design.md §7.4).

    c1:<64 hex sha256>[:<block>-<index>]:<url>      ours; the bracket names a fee receipt
    <32 hex>[:<block>:<index>]:<url>                the older form, still read

We write a SCALE compact length before the text, because readers of the SDK's 10.x line cut one off blindly; we read the
text with or without it. Nothing here raises on foreign bytes: whatever a miner committed becomes a `Payload`, or a
`Reason` (fault 1001) that says what is wrong. `Reason.rule` is "foreign" when the bytes were never meant for us (another
program shares the subnet's commitments) and "malformed" when they were meant for us and are broken.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from crusades.faults import fault
from crusades.records import Payload, Reason, Stage

FOREIGN = "foreign"
MALFORMED = "malformed"

MAX_FIELD = 1024
"""Bytes of ciphertext that a TimelockEncrypted field holds (pallet-commitments)."""
SEAL_OVERHEAD = 244
"""Bytes that sealing adds to a plaintext: 780 bytes seal into exactly 1,024 (measured with bittensor_core 0.1.5)."""
MAX_PLAINTEXT = MAX_FIELD - SEAL_OVERHEAD
"""Longest plaintext, length prefix included."""

_RAW_SHOWN = 1024
_RECEIPT = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,5})")
_NEW_RECEIPT = re.compile(r"c1:[^:]*:([^:]*):https?://", re.IGNORECASE)
_OLD = re.compile(r"[0-9a-fA-F]{32}(?![0-9a-fA-F])")
_OLD_RECEIPT = re.compile(r"([0-9]{1,10}):([0-9]{1,6}):(?=https?://)", re.IGNORECASE)
_HEX = frozenset("0123456789abcdefABCDEF")


# ------------------------------------------------------------------------------------------------ SCALE compact lengths


def compact(number: int) -> bytes:
    """`number` as a SCALE compact integer (at most 2^30 - 1, which is far more than a payload)."""
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return (number << 2 | 1).to_bytes(2, "little")
    if number < 1 << 30:
        return (number << 2 | 2).to_bytes(4, "little")
    raise ValueError(f"{number} is no length of a payload")


def read_compact(raw: bytes, offset: int = 0) -> tuple[int, int]:
    """(value, offset after it) of the compact integer at `offset`. ValueError when the bytes end too early."""
    if offset >= len(raw):
        raise ValueError("a length is missing")
    mode = raw[offset] & 3
    if mode == 3:
        width = (raw[offset] >> 2) + 4
        value, end = int.from_bytes(raw[offset + 1:offset + 1 + width], "little"), offset + 1 + width
    else:
        width = (1, 2, 4)[mode]
        value, end = int.from_bytes(raw[offset:offset + width], "little") >> 2, offset + width
    if end > len(raw):
        raise ValueError("a length is cut off")
    return value, end


def strip_prefix(raw: bytes) -> bytes:
    """`raw` without its SCALE length prefix, if it has one: only a prefix that states exactly the rest is one.

    Text of either form never looks like that: its first characters would state lengths of 12 to 30 bytes (the older
    form is longer) or of more than 3,000 (no field is that long).
    """
    try:
        length, start = read_compact(raw)
    except ValueError:
        return raw
    return raw[start:] if start < len(raw) and length == len(raw) - start else raw


# ------------------------------------------------------------------------------------------------ parsing


def parse_payload(raw: bytes) -> Payload | Reason:
    """What these committed bytes mean. Never raises."""
    body = strip_prefix(raw)
    if not body:
        return _no(FOREIGN, "the commitment is empty")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_text(raw, body, error)
    if text[:3].lower() == "c1:":
        return _parse_c1(text)
    if _OLD.match(text) and text[32:33] in (":", ""):
        return _parse_old(text)
    return _other(raw, text)


def _parse_c1(text: str) -> Payload | Reason:
    if not text.startswith("c1:"):
        return _no(MALFORMED, "the payload starts with C1; it must start with a lower-case c1")
    digest, colon, rest = text[3:].partition(":")
    if (problem := _digest_problem(digest, 64)) is not None:
        return _no(MALFORMED, problem)
    if not colon or not rest:
        return _no(MALFORMED, "the payload ends after the hash: the URL is missing")
    receipt = None
    if (found := _NEW_RECEIPT.match(text)) is not None:
        receipt, rest = found[1], rest[len(found[1]) + 1:]
        if _RECEIPT.fullmatch(receipt) is None:
            return _no(MALFORMED, f"{_short(receipt)} is no fee receipt; it should read <block>-<index>")
    return _finish(digest, rest, receipt)


def _parse_old(text: str) -> Payload | Reason:
    digest, rest = text[:32], text[33:]
    if not rest:
        return _no(MALFORMED, "the payload ends after the hash: the URL is missing")
    receipt = None
    if (found := _OLD_RECEIPT.match(rest)) is not None:
        receipt, rest = f"{int(found[1])}-{int(found[2])}", rest[found.end():]
    return _finish(digest, rest, receipt)


def _finish(digest: str, url: str, receipt: str | None) -> Payload | Reason:
    if (problem := url_problem(url)) is not None:
        return _no(MALFORMED, problem)
    return Payload(sha256=digest.lower(), url=url, receipt=receipt)


def _digest_problem(digest: str, length: int) -> str | None:
    if len(digest) != length:
        return f"the hash has {len(digest)} characters; a SHA-256 in hex has {length}"
    bad = next((c for c in digest if c not in _HEX), None)
    return f"the hash holds {bad!r}, which is no hex digit" if bad is not None else None


def url_problem(url: str) -> str | None:
    """Why `url` can be no address of a file, in words; None when it may be one. `fetch` decides whether it is opened."""
    if any(c.isspace() or not c.isprintable() for c in url):
        return "the URL holds a space or an unprintable character"
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        return f"the URL {_short(url)} cannot be read: {error}"
    if parts.scheme not in ("http", "https"):
        return f"{_short(url)} is no http or https URL"
    return None if host else f"the URL {_short(url)} names no host"


def _not_text(raw: bytes, body: bytes, error: UnicodeDecodeError) -> Reason:
    prefixed = _blind(raw)
    if prefixed is not None:
        return _wrong_prefix(raw, prefixed)
    ours = body[:3].lower() == b"c1:" or _OLD.match(body[:33].decode("latin-1")) is not None
    return _no(MALFORMED if ours else FOREIGN, f"the {len(body)} bytes are not UTF-8 text (byte {error.start} is 0x{body[error.start]:02x})")


def _other(raw: bytes, text: str) -> Reason:
    """Neither form: a broken prefix, a broken form, or somebody else's program."""
    prefixed = _blind(raw)
    if prefixed is not None:
        return _wrong_prefix(raw, prefixed)
    head, colon, rest = text.partition(":")
    if re.fullmatch(r"c[0-9]{1,3}", head, re.IGNORECASE) and colon:
        return _no(MALFORMED, f"the payload says version {head}; this program reads c1")
    if head and colon and set(head) <= _HEX and len(head) >= 16 and "://" in rest:
        return _no(MALFORMED, f"a hash of {len(head)} hex digits; c1: takes 64, the older form 32")
    return _no(FOREIGN, f"this is not a submission of this competition but {_guess(text)}")


def _blind(raw: bytes) -> bytes | None:
    """What stands behind a length prefix that does not fit, if that is one of our forms."""
    if not raw or raw[:3].lower() == b"c1:":
        return None
    for width in (1, 2, 4):
        body = raw[width:]
        if body.startswith(b"c1:") or (_OLD.match(body[:33].decode("latin-1")) and body[32:33] == b":"):
            return body
    return None


def _wrong_prefix(raw: bytes, body: bytes) -> Reason:
    try:
        stated = f"{read_compact(raw)[0]:,} bytes"
    except ValueError:
        stated = "more bytes than there are"
    return _no(MALFORMED, f"the length prefix states {stated}, but {len(body)} follow")


def _guess(text: str) -> str:
    stripped = text.strip()
    if stripped[:1] in "{[" and stripped:
        return "JSON"
    if re.match(r"https?://", stripped, re.IGNORECASE):
        return "a bare URL"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", stripped):
        return "the name of a repository"
    if "|" in stripped:
        return "fields with | between them"
    return f"the text {_short(text)}"


def _short(text: str) -> str:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return repr(shown)


def _no(rule: str, message: str) -> Reason:
    row = fault("payload-malformed")
    return Reason(code=row.code, stage=Stage.CHAIN, message=message[:1].upper() + message[1:] + ".", rule=rule, hint=row.advice)


# ------------------------------------------------------------------------------------------------ formatting


def format_payload(payload: Payload) -> bytes:
    """The bytes to commit, length prefix included. ValueError when they would not parse back or not fit."""
    if len(payload.sha256) == 64:
        receipt = f"{payload.receipt}:" if payload.receipt else ""
        text = f"c1:{payload.sha256}:{receipt}{payload.url}"
    else:
        receipt = f"{payload.receipt.replace('-', ':')}:" if payload.receipt else ""
        text = f"{payload.sha256}:{receipt}{payload.url}"
    body = text.encode("utf-8")
    raw = compact(len(body)) + body
    back = parse_payload(raw)
    if back != payload:
        raise ValueError(back.message if isinstance(back, Reason) else f"{text!r} would be read as {back}")
    if len(raw) > MAX_PLAINTEXT:
        raise ValueError(f"the payload has {len(raw)} bytes; {MAX_PLAINTEXT} fit into a sealed field: use a shorter URL")
    return raw


def show_raw(raw: bytes) -> str:
    """Committed bytes for people: UTF-8 where it is, everything unprintable escaped, at most 1,024 characters."""
    text = strip_prefix(raw).decode("utf-8", errors="backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= _RAW_SHOWN else shown[:_RAW_SHOWN - 1] + "…"


# ------------------------------------------------------------------------------------------------ drand rounds

QUICKNET_GENESIS = 1_692_803_367
QUICKNET_PERIOD = 3


def round_at(unix: float) -> int:
    """First drand quicknet round published at or after `unix` seconds (round 1 came at the genesis, one each 3 s)."""
    return max(1, -int(-(unix - QUICKNET_GENESIS) // QUICKNET_PERIOD) + 1)


def round_time(number: int) -> float:
    """Unix seconds at which drand round `number` is published."""
    return float(QUICKNET_GENESIS + (number - 1) * QUICKNET_PERIOD)
