"""The MFU history: the leader as a step line in braille, every scored submission as a dot."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.text import Text
from textual.events import Resize
from textual.widgets import Static

from crusades.records import HistoryPoint
from crusades.tui.text import DIM, GOLD, TEAL

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot at [row][column] in a braille cell of four rows and two columns."""
LEFT = 8


def chart(points: Sequence[HistoryPoint], width: int, height: int) -> Text:
    """The chart as `height` lines of `width` cells. Pure."""
    points = sorted(points, key=lambda p: p.at)
    columns, rows = width - LEFT, height - 1
    if not points or columns < 10 or rows < 3:
        return Text("nothing has been scored yet" if not points else "", style=DIM)
    values = [v for p in points for v in (p.score_mfu, p.leader_mfu)]
    low, high = min(values), max(values)
    room = max((high - low) * 0.06, abs(high) * 0.01, 1e-9)
    low, high = max(0.0, low - room), high + room
    first, last = points[0].at, max(points[-1].at, points[0].at + 60)
    wide, tall = columns * 2, rows * 4

    def x_of(at: float) -> int:
        return min(wide - 1, int((at - first) / (last - first) * (wide - 1)))

    def y_of(value: float) -> int:
        return min(tall - 1, max(0, round((high - value) / (high - low) * (tall - 1))))

    bits = _step_line([(x_of(p.at), y_of(p.leader_mfu)) for p in points], wide)
    cells: dict[tuple[int, int], int] = {}
    for (x, y) in bits:
        cells[y // 4, x // 2] = cells.get((y // 4, x // 2), 0) | _DOTS[y % 4][x % 2]
    marks = {(y_of(p.score_mfu) // 4, x_of(p.at) // 2): ("◆", GOLD) if p.took_lead else ("•", TEAL) for p in sorted(points, key=lambda p: p.took_lead)}
    drawing = Text()
    for row in range(rows):
        value = high - (row * 4 + 1.5) / (tall - 1) * (high - low)
        drawing.append(f"{value:6.2f} ┤" if row % 2 == 0 else f"{'':6} │", style=DIM)
        for column in range(columns):
            mark = marks.get((row, column))
            drawing.append(*mark) if mark else drawing.append(chr(0x2800 + cells.get((row, column), 0)), style=GOLD)
        drawing.append("\n")
    return drawing.append(_times(first, last, columns), style=DIM)


def _step_line(corners: list[tuple[int, int]], wide: int) -> set[tuple[int, int]]:
    found = set()
    for (x, y), (next_x, next_y) in zip(corners, [*corners[1:], (wide - 1, corners[-1][1])], strict=True):
        found |= {(column, y) for column in range(x, next_x + 1)}
        found |= {(next_x, line) for line in range(min(y, next_y), max(y, next_y) + 1)}
    return found


def _times(first: float, last: float, columns: int) -> str:
    form = "%H:%M" if last - first < 100_000 else "%d %b"
    line = [" "] * (LEFT + columns)
    wanted = max(2, columns // 16)
    for i in range(wanted):
        label = time.strftime(form, time.localtime(first + (last - first) * i / (wanted - 1)))
        at = LEFT + min(columns - len(label), round((columns - 1) * i / (wanted - 1)))
        line[at : at + len(label)] = label
    return "".join(line)


class History(Static):
    """The chart, as large as it may be."""

    DEFAULT_CSS = """
    History { height: 1fr; min-height: 8; border: round $surface-lighten-2; padding: 0 1; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - textual's own name
        super().__init__(id=id)
        self.border_title = "MFU over time"
        self.border_subtitle = "◆ took the lead  • scored"
        self._points: Sequence[HistoryPoint] = ()

    def draw(self, points: Sequence[HistoryPoint]) -> None:
        """Redraw."""
        self._points = points
        self.update(chart(points, self.content_size.width, self.content_size.height))

    def on_resize(self, _: Resize) -> None:
        """Fit the new size."""
        self.draw(self._points)
