"""The leaderboard: the best of each miner, with a bar for its MFU."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from crusades.records import Standing
from crusades.tui.plain import short
from crusades.tui.text import DIM, GOLD, TEAL, meter, text
from crusades.tui.widgets.rows import Rows


class Leaderboard(Rows):
    """Enter opens the submission that a rank rests on."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - textual's own name
        super().__init__("Leaderboard", [("#", 3), ("MFU %", 8), ("", 12), ("uid", 4), ("miner", 13), ("weight", 7), ("", 44)], empty="nobody has been scored yet", id=id)

    def draw(self, standings: Sequence[Standing]) -> None:
        """Redraw."""
        best = max((row.score_mfu for row in standings), default=0.0) or 1.0
        self.put([(row.submission_id, self._cells(row, best)) for row in standings])

    def _cells(self, row: Standing, best: float) -> list[Text]:
        tone = GOLD if row.rank == 1 else TEAL
        return [Text(str(row.rank), style=f"bold {GOLD}" if row.rank == 1 else ""), Text(f"{row.score_mfu:7.3f}", style="bold"), meter(row.score_mfu / best, 12, tone),
                Text("–" if row.uid is None else str(row.uid)), text(short(row.hotkey)), Text(f"{row.weight:.1%}" if row.weight else "–", style=DIM), text(row.why, DIM)]
