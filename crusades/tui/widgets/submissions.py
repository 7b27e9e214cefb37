"""Recent submissions: where each stands, and why."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from crusades.records import Submission
from crusades.tui.plain import short
from crusades.tui.text import DIM, ago, opening, status, text
from crusades.tui.widgets.rows import Rows


class Submissions(Rows):
    """Newest commit first."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - textual's own name
        super().__init__("Submissions", [("status", 10), ("uid", 4), ("miner", 13), ("MFU %", 7), ("block", 9), ("changed", 10), ("reason", 90)], empty="no submission has been seen yet", id=id)

    def draw(self, rows: Iterable[Submission], now: float) -> None:
        """Redraw."""
        self.put([(row.id, self._cells(row, now)) for row in rows])

    def _cells(self, row: Submission, now: float) -> list[Text]:
        return [status(row.status), Text("–" if row.uid is None else str(row.uid)), text(short(row.hotkey)), Text("" if row.score_mfu is None else f"{row.score_mfu:.3f}", style="bold"),
                Text(str(row.commit_block), style=DIM), Text(ago(now, row.updated_at), style=DIM), words_of(row, now)]


def words_of(row: Submission, now: float) -> Text:
    """Why it stands where it stands, in a line."""
    if row.reason is not None:
        return Text.assemble((text(row.reason.rule + " ").plain if row.reason.rule else "", "bold"), text(row.reason.message).plain)
    if row.progress:
        return text(row.progress)
    if row.queue_position:
        return Text(f"number {row.queue_position} in the queue", style=DIM)
    if opens := opening(row, now):
        return Text(opens, style=DIM)
    return Text("seen at the head, not yet final" if row.provisional else "", style=DIM)
