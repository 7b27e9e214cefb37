"""Pieces of styled text that several widgets draw. All colours of the terminal dashboard are here."""

from __future__ import annotations

from rich.text import Text

from crusades.records import Reason, Statistic, Status, Submission
from crusades.tui.plain import plain

GOLD, GOOD, BAD, RUN, WARN, VIOLET, DIM, TEAL = "#e0a93b", "#4fc78e", "#f27d73", "#78adff", "#e5b04a", "#bb9cf7", "#8d95a0", "#6fa6c0"

TONES = {"scored": GOOD, "rejected": BAD, "running": RUN, "queued": WARN, "faulted": VIOLET}
SLOT_TONES = {"running": RUN, "idle": GOOD, "warming": WARN}


def text(words: object, style: str = "") -> Text:
    """Foreign or own words as one line of text, never as markup."""
    return Text(plain(words), style=style)


def status(name: str) -> Text:
    """A status with its colour."""
    return Text(f"● {plain(name, 20)}", style=TONES.get(name, DIM))


def meter(share: float, width: int, style: str) -> Text:
    """A bar of `width` cells in eighths."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    line = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return Text(line, style=style) + Text("·" * (width - len(line)), style="#3a424d")


def span(seconds: float) -> str:
    """A duration in one unit."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (129_600, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def ago(now: float, at: float) -> str:
    """How long ago."""
    return "now" if now - at < 2 else f"{span(now - at)} ago"


def opening(row: Submission, now: float) -> str:
    """When a seal is expected to open; empty for anything else."""
    if row.status is not Status.SEALED or row.reveal_round is None:
        return ""
    at = row.reveal_expected_at
    when = "opens soon" if at is None or at <= now else f"opens in about {span(at - now)}"
    return f"{when} (drand round {row.reveal_round})"


def number(value: float | str | None) -> str:
    """A measured value."""
    return plain(value, 80) if isinstance(value, str) else "not finite" if value is None else f"{value:.4g}"


def reason(why: Reason, title: str = "") -> Text:
    """A reason in full: what, measured against which limit, what to do."""
    tone = BAD if why.code // 1000 == 1 else VIOLET
    words = Text()
    words.append(plain(title or "Reason").capitalize(), style=f"bold {tone}")
    where = f"  {why.code} · {why.stage.value}" + (f" · {plain(why.rule, 40)}" if why.rule else "") + (f" · line {why.line}" if why.line is not None else "")
    words.append(where + "\n", style=DIM)
    words.append(plain(why.message) + "\n")
    if why.measured is not None:
        words.append(f"measured {number(why.measured)}" + (f", limit {number(why.limit)}" if why.limit is not None else "") + "\n", style=tone)
    if why.hint:
        words.append("What to do: ", style="bold")
        words.append(plain(why.hint) + "\n")
    return words


def statistic(one: Statistic, width: int = 24) -> Text:
    """A statistic against its limit: the limit is at two thirds of the bar."""
    line = Text(f"{plain(one.name, 26).replace('_', ' '):26} ")
    if one.limit is None:
        return line.append(" " * width + f"  {number(one.value)} not judged", style=DIM)
    used = float("inf") if one.value is None else one.value / one.limit if one.limit > 0 else (0.0 if one.passed else float("inf"))
    line.append_text(meter(min(used, 1.5) / 1.5, width, GOOD if one.passed else BAD))
    at = len(line) - width + round(width * 2 / 3)
    line.stylize("reverse", at, at + 1)
    line.append(f"  {number(one.value)} of {number(one.limit)}", style="" if one.passed else f"bold {BAD}")
    return line.append(f"  {plain(one.where, 60)}" if one.where else "", style=DIM)
