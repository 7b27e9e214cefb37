"""One submission: reason, way, runs with their audit, code once judged."""

from __future__ import annotations

import time
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from crusades.records import Run, SubmissionDetail, Transition
from crusades.tui.client import Client, Unanswered
from crusades.tui.plain import plain, plain_lines
from crusades.tui.text import BAD, DIM, GOLD, GOOD, TEAL, WARN, opening, reason, span, statistic, status


class DetailScreen(Screen[None]):
    """Redraws itself when the feed names its submission."""

    DEFAULT_CSS = """
    DetailScreen VerticalScroll { padding: 0 2; }
    DetailScreen .head { padding: 1 0 0 0; }
    DetailScreen #code { padding: 1 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,b,q", "app.pop_screen", "back"),
        Binding("c", "code", "code"),
        Binding("a", "audits", "all audits"),
        Binding("j", "scroll(1)", "down", show=False),
        Binding("k", "scroll(-1)", "up", show=False),
    ]

    def __init__(self, client: Client, submission_id: str) -> None:
        super().__init__()
        self.submission_id = submission_id
        self._client = client
        self._titles: dict[int, str] = {}
        self._every_audit = False
        self._shows_code = False
        self._last: tuple[SubmissionDetail, list[Run]] | None = None

    def compose(self) -> ComposeResult:
        """Three texts in a scroll."""
        with VerticalScroll():
            yield Static(Text("asking the validator…", style=DIM), id="head", classes="head")
            yield Static(id="runs")
            yield Static(id="code")
        yield Footer()

    def on_mount(self) -> None:
        """Ask."""
        self.refresh_detail()

    @work(exclusive=True, group="detail")
    async def refresh_detail(self) -> None:
        """Ask again and redraw."""
        try:
            self._titles = self._titles or await self._client.fault_titles()
            detail = await self._client.detail(self.submission_id)
            runs = list(detail.verdict.runs) if detail.verdict is not None and detail.verdict.runs else await self._client.runs(self.submission_id)
        except Unanswered as error:
            self.query_one("#head", Static).update(Text(str(error), style=BAD))
            return
        self._last = (detail, runs)
        self._draw()

    def _draw(self) -> None:
        if self._last is None:
            return
        detail, runs = self._last
        self.query_one("#head", Static).update(head(detail, self._titles, time.time()))
        self.query_one("#runs", Static).update(runs_text(runs, every=self._every_audit))

    def action_audits(self) -> None:
        """Every statistic of every run, or only what matters."""
        self._every_audit = not self._every_audit
        self._draw()

    def action_scroll(self, lines: int) -> None:
        """As in less."""
        self.query_one(VerticalScroll).scroll_relative(y=3 * lines, animate=False)

    @work(exclusive=True, group="code")
    async def action_code(self) -> None:
        """Show or hide the file."""
        place = self.query_one("#code", Static)
        self._shows_code = not self._shows_code
        if not self._shows_code:
            place.update("")
            return
        try:
            source = await self._client.code(self.submission_id)
        except Unanswered as error:
            place.update(Text(str(error), style=WARN))
            return
        why = self._last[0].submission.reason if self._last else None
        place.update(code_text(source, why.line if why else None))
        self.call_after_refresh(place.scroll_visible, top=True, animate=False)


def head(detail: SubmissionDetail, titles: dict[int, str], now: float) -> Text:
    """Everything but runs and code."""
    x = detail.submission
    words = Text()
    words.append_text(status(x.status)).append(f"   {x.score_mfu:.3f} % MFU" if x.score_mfu is not None else "", style=f"bold {GOLD}")
    words.append(f"   {plain(x.progress, 60)}" if x.progress else f"   number {x.queue_position} in the queue" if x.queue_position else "").append("\n\n")
    if x.reason is not None:
        words.append_text(reason(x.reason, titles.get(x.reason.code, ""))).append("\n")
    who = "not registered" if x.uid is None else f"uid {x.uid}"
    facts = [("miner", f"{x.hotkey}  {who}"), ("committed", f"block {x.commit_block}" + (f", revealed in block {x.reveal_block}" if x.reveal_block is not None else "")),
             ("sealed", opening(x, now)), ("file", x.url),
             ("sha256", x.sha256), ("rules", x.rules_version), ("id", x.id), ("device", x.device), ("attempts", str(x.attempts) if x.attempts > 1 else "")]
    for name, value in facts:
        if value:
            words.append(f"{name:10} ", style=DIM).append(plain(value, 400) + "\n")
    words.append("\nway\n", style="bold")
    previous: Transition | None = None
    for step in detail.transitions:
        words.append("  ").append_text(status(step.status)).append(" " * max(1, 12 - len(step.status)))
        words.append(f"{'block ' + str(step.block) if step.block is not None else '':16}", style=DIM)
        words.append(f"+{span(step.at - previous.at)}" if previous else "", style=DIM).append(f"  {plain(step.note, 160)}\n" if step.note else "\n")
        previous = step
    return words


def runs_text(runs: list[Run], *, every: bool) -> Text:
    """A line per run; below a run that failed, or below each, its audit."""
    if not runs:
        return Text()
    words = Text("\nruns\n", style="bold")
    words.append(f"  {'run':8} {'seconds':>9} {'MFU %':>9} {'tokens/s':>10} {'loss':>9}  audit\n", style=DIM)
    for run in runs:
        failed = [one for one in run.audit.statistics if not one.passed]
        name = str(run.index) if run.scored else "warm-up"
        loss = "–" if run.final_loss is None else f"{run.final_loss:.4f}"
        words.append(f"  {name:8} {run.seconds:9.4f} {run.mfu:9.3f} {run.tokens_per_second:10,.0f} {loss:>9}  ", style="" if run.scored else DIM)
        words.append(f"void: {plain(run.void, 120)}" if run.void else "failed: " + plain(run.audit.words, 160) if failed else "passed", style=WARN if run.void else BAD if failed else GOOD).append("\n")
        for one in run.audit.statistics if every or failed else ():
            words.append("    ").append_text(statistic(one)).append("\n")
    return words if every or any(not s.passed for r in runs for s in r.audit.statistics) else words.append("  a: every statistic of the audit\n", style=TEAL)


def code_text(source: str, marked: int | None) -> Text:
    """Numbered lines; the one that the reason names stands out."""
    words = Text()
    for i, line in enumerate(plain_lines(source), 1):
        words.append(f"{i:5} ", style=f"bold {BAD}" if i == marked else DIM).append(line + "\n", style=f"on #3a1f1f {BAD}" if i == marked else "")
    return words
