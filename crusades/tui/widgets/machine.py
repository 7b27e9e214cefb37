"""The side panel: slots with what they do, the queue, and the weights asked for against those on chain."""

from __future__ import annotations

import re

from rich.text import Text
from textual.widgets import Static

from crusades.records import SlotView
from crusades.tui.picture import Picture
from crusades.tui.plain import plain, short
from crusades.tui.text import BAD, DIM, GOLD, GOOD, RUN, SLOT_TONES, TEAL, WARN, ago, meter

_PHASE = re.compile(r"run (\d+) of (\d+)")


class Machine(Static):
    """Everything that is not a list of submissions."""

    DEFAULT_CSS = """
    Machine { height: 1fr; border: round $surface-lighten-2; padding: 0 1; overflow-y: auto; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - textual's own name
        super().__init__(id=id)
        self.border_title = "Validator"

    def draw(self, picture: Picture) -> None:
        """Redraw."""
        words = Text()
        for slot in picture.slots or ():
            words.append_text(self._slot(slot, picture))
        if not picture.slots:
            words.append("no device found yet\n", style=DIM)
        words.append("\nqueue\n", style="bold")
        for row in picture.queue[:6]:
            place = "▸" if row.status == "running" else str(row.queue_position or "")
            words.append(f" {place:>2} ", style=DIM).append(f"{short(row.hotkey)}  ").append(plain(row.progress, 40) or f"block {row.commit_block}", style=DIM).append("\n")
        way = ", ".join(f"{n} {plain(name, 20)}" for name, n in picture.earlier.items() if n)
        words.append(f" {len(picture.queue) - 6} more\n" if len(picture.queue) > 6 else "" if picture.queue else " nobody is waiting\n", style=DIM)
        words.append(f" on the way: {way}\n" if way else "", style=DIM)
        self.update(words.append_text(self._weights(picture)))

    def _slot(self, slot: SlotView, picture: Picture) -> Text:
        tone = SLOT_TONES.get(slot.state, BAD)
        words = Text("● ", style=tone).append(plain(slot.name, 30), style="bold").append(f" {plain(slot.state, 30)}", style=tone).append(f"  {plain(slot.device, 40)}\n", style=DIM)
        phase = _PHASE.search(slot.detail)
        if phase and int(phase[2]):
            words.append("  ").append_text(meter(int(phase[1]) / int(phase[2]), 16, RUN)).append(" ")
        if slot.detail or slot.since:
            words.append(f"{'' if phase else '  '}{plain(slot.detail, 60)}  ").append(ago(picture.now, slot.since) if slot.since else "", style=DIM).append("\n")
        return words

    def _weights(self, picture: Picture) -> Text:
        weights = picture.weights
        state, tone = {True: ("in step", GOOD), False: ("differ from the chain", WARN), None: ("none set yet", DIM)}[weights.equal]
        words = Text("\nweights ", style="bold").append("held" if weights.held else state, style=WARN if weights.held else tone)
        words.append(f", {weights.age_blocks} blocks old" if weights.age_blocks is not None else "", style=DIM).append("\n")
        words.append(f" {plain(weights.held, 200)}\n" if weights.held else "", style=WARN)
        for uid in sorted({*weights.asked, *weights.on_chain}, key=lambda u: (-weights.asked.get(u, 0.0), u))[:6]:
            asked, held = weights.asked.get(uid, 0.0), weights.on_chain.get(uid, 0.0)
            words.append(f" uid {uid:<5}").append_text(meter(asked, 8, GOLD)).append(f" {asked:6.1%} ").append_text(meter(held, 8, TEAL)).append(f" {held:6.1%}\n")
        return words
