"""A table that is redrawn whole and keeps its cursor on the same row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable

from crusades.tui.text import DIM


class Rows(DataTable[Text]):
    """Rows by submission id. Posts `Opened` when one is chosen."""

    DEFAULT_CSS = """
    Rows { height: 1fr; min-height: 5; overflow-x: hidden; border: round $surface-lighten-2; background: $background; scrollbar-size-vertical: 1; }
    Rows:focus { border: round $accent; }
    Rows > .datatable--header { background: $background; text-style: none; color: $text-muted; }
    Rows > .datatable--cursor { background: $surface-lighten-1; text-style: none; }
    Rows:blur > .datatable--cursor { background: $background; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "open"),
        Binding("tab", "app.focus_next", "next panel"),
        Binding("j", "cursor_down", "down", show=False),
        Binding("k", "cursor_up", "up", show=False),
    ]

    class Opened(Message):
        """A submission was chosen."""

        def __init__(self, submission_id: str) -> None:
            super().__init__()
            self.submission_id = submission_id

    def __init__(self, title: str, columns: Sequence[tuple[str, int]], *, empty: str, id: str | None = None) -> None:  # noqa: A002 - textual's own name
        super().__init__(cursor_type="row", zebra_stripes=False, cell_padding=1, id=id)
        self.border_title = title
        self._empty = empty
        for i, (name, width) in enumerate(columns):
            self.add_column(Text(name), key=str(i), width=width)
        self._shown: list[tuple[str, list[Text]]] = []

    def put(self, rows: list[tuple[str, list[Text]]]) -> None:
        """Show these rows; (submission id, cells). Nothing happens when nothing changed."""
        if rows == self._shown and self.row_count:
            return
        at = self._current()
        if [key for key, _ in rows] == [key for key, _ in self._shown] and rows:
            for key, cells in rows:
                for column, cell in zip(self.columns, cells, strict=True):
                    self.update_cell(key, column, cell)
            self._shown = rows
            return
        self._shown = rows
        scroll = self.scroll_y
        self.clear()
        if not rows:
            self.add_row(*[Text(self._empty if i == len(self.columns) - 1 else "", style=DIM) for i in range(len(self.columns))], key="")
            return
        for key, cells in rows:
            self.add_row(*cells, key=key)
        if at and any(key == at for key, _ in rows):
            self.move_cursor(row=self.get_row_index(at), scroll=False)
            self.scroll_to(y=scroll, animate=False)

    def _current(self) -> str:
        return self._shown[self.cursor_row][0] if self._shown and self.cursor_row < len(self._shown) and self.cursor_row > 0 else ""

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter or a click."""
        event.stop()
        if event.row_key.value:
            self.post_message(self.Opened(event.row_key.value))
