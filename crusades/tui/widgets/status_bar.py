"""The line at the top: which validator, how it stands, whether we still hear it."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from crusades.tui.feed import Link
from crusades.tui.picture import Picture
from crusades.tui.plain import plain
from crusades.tui.text import BAD, DIM, GOLD, GOOD, WARN


class StatusBar(Static):
    """Name, network, block, health, connection; below it the notice and the problems, if there are any."""

    DEFAULT_CSS = """
    StatusBar { height: auto; padding: 0 1; background: $panel; }
    """

    def draw(self, picture: Picture, link: Link, where: str) -> None:
        """Redraw."""
        line = Text("⛨ Crusades ", style=f"bold {GOLD}")
        overview = picture.overview
        if overview is None:
            line.append(f" {plain(where, 120)}", style=DIM)
        else:
            line.append(f" {plain(overview.network, 60)} · subnet {overview.netuid}", style=GOLD if overview.notice else "")
            line.append(f" · block {overview.block}" if overview.block is not None else " · no block yet", style=DIM)
            tone, words = (BAD, f"{len(overview.problems)} problem(s)") if overview.problems else (GOOD, "ready") if overview.ready else (WARN, "getting ready")
            line.append("   ● ", style=tone).append(words)
        tone = {"live": GOOD, "connecting": WARN}.get(link.state, BAD)
        line.append("   ● ", style=tone).append(link.state if link.state != "lost" else f"no connection: {link.words}; again in {link.retry_in:.3g} s (r: now)")
        if overview is not None:
            counts = ", ".join(f"{n} {plain(status, 20)}" for status, n in overview.counts.items() if n)
            line.append(f"\n{plain(overview.profile, 60)} · rules {plain(overview.rules_version, 60)} · {counts or 'no submissions yet'}", style=DIM)
            if overview.notice:
                line.append(f"\n▲ {plain(overview.notice, 300)}", style=f"bold {WARN}")
            for problem in overview.problems[:4]:
                line.append(f"\n✗ {plain(problem, 300)}", style=BAD)
        self.update(line)
