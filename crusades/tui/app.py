"""The application: one screen, fed by the websocket. `make_app` is the only constructor, for the command and for tests."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer

from crusades.tui.address import base_url
from crusades.tui.client import Client
from crusades.tui.detail_screen import DetailScreen
from crusades.tui.feed import Feed, Link
from crusades.tui.picture import Frame, Picture
from crusades.tui.widgets.history import History
from crusades.tui.widgets.leaderboard import Leaderboard
from crusades.tui.widgets.machine import Machine
from crusades.tui.widgets.rows import Rows
from crusades.tui.widgets.status_bar import StatusBar
from crusades.tui.widgets.submissions import Submissions


class Dashboard(App[int]):
    """The validator at a glance."""

    TITLE = "Crusades"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: $background; }
    #upper { height: 3fr; } #side { width: 52; } #left { width: 1fr; } #history { height: 12; } Submissions { height: 2fr; }
    .narrow #side { display: none; }
    .low #history { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit_app", "quit"),
        Binding("l", "panel('leaderboard')", "leaderboard", show=False),
        Binding("s", "panel('submissions')", "submissions", show=False),
        Binding("r", "retry", "reconnect"),
    ]

    def __init__(self, base: str) -> None:
        super().__init__()
        self.picture = Picture()
        self.link = Link("connecting")
        self._base = base
        self.client = Client(base)
        self.feed = Feed(base, on_frame=self.take_frame, on_link=self.take_link, seq=lambda: self.picture.seq)

    def compose(self) -> ComposeResult:
        """Status on top, lists in the middle, keys at the bottom."""
        yield StatusBar(id="status")
        with Horizontal(id="upper"):
            with Vertical(id="left"):
                yield History(id="history")
                yield Leaderboard(id="leaderboard")
            with Vertical(id="side"):
                yield Machine(id="machine")
        yield Submissions(id="submissions")
        yield Footer()

    def on_mount(self) -> None:
        """Start the feed."""
        self.theme = "textual-dark"
        self.query_one("#submissions", Submissions).focus()
        self.set_interval(5.0, self._age)
        self.follow()

    def on_resize(self) -> None:
        """Small terminals show less."""
        self.screen.set_class(self.size.width < 110, "narrow")
        self.screen.set_class(self.size.height < 34, "low")

    @work
    async def follow(self) -> None:
        """The feed, for as long as the app runs."""
        await self.feed.run()

    async def on_unmount(self) -> None:
        """Give the connections back."""
        await self.client.close()

    # -- the feed's calls ---------------------------------------------------------------------------------

    def take_frame(self, frame: Frame) -> None:
        """A frame has come."""
        changed = self.picture.apply(frame)
        self._draw(changed)
        for screen in self.screen_stack:
            if isinstance(screen, DetailScreen) and (screen.submission_id in changed or frame.type == "snapshot"):
                screen.refresh_detail()

    def take_link(self, link: Link) -> None:
        """The connection changed."""
        self.link = link
        self._draw({"overview"})

    def _draw(self, changed: set[str]) -> None:
        if not self.is_running or not self.screen_stack:
            return  # a frame that came while the app was closing
        home = self.screen_stack[0]
        if not home.is_mounted or not home.query(StatusBar):
            return
        picture = self.picture
        if "overview" in changed:
            home.query_one(StatusBar).draw(picture, self.link, self._base)
        if "leaderboard" in changed:
            home.query_one(Leaderboard).draw(picture.leaderboard)
        if "history" in changed:
            home.query_one(History).draw(picture.history)
        if "submissions" in changed:
            home.query_one(Submissions).draw(picture.submissions.values(), picture.now)
        if changed & {"slots", "queue", "weights", "overview"}:
            home.query_one(Machine).draw(picture)

    def _age(self) -> None:
        self._draw({"submissions", "slots"} if self.picture.overview else set())

    # -- keys ---------------------------------------------------------------------------------------------

    def on_rows_opened(self, event: Rows.Opened) -> None:
        """Enter on a row."""
        self.push_screen(DetailScreen(self.client, event.submission_id))

    def action_retry(self) -> None:
        """Do not wait for the next attempt."""
        self.feed.retry_now()

    def action_panel(self, name: str) -> None:
        """Jump to a panel."""
        self.screen_stack[0].query_one(f"#{name}").focus()

    def action_quit_app(self) -> None:
        """Leave."""
        self.exit(0)


def make_app(url: str) -> Dashboard:
    """The dashboard for the validator at `url` (HOST:PORT or a URL). UsageError for anything else."""
    return Dashboard(base_url(url))
