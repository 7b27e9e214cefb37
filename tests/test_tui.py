"""The terminal dashboard against a fake API on port 0. Sync tests: textual is asyncio, and pytest here runs async tests on trio."""

import asyncio

import msgspec
import pytest
from fake_api import FakeApi, dashboard, screen_text, standing, until
from fakes_web import AUDIT_REASON, hotkey, submission, submission_id
from textual.widgets import Static

from crusades.errors import UsageError
from crusades.records import Status
from crusades.tui import feed
from crusades.tui.app import make_app
from crusades.tui.detail_screen import DetailScreen
from crusades.tui.plain import short
from crusades.tui.widgets.leaderboard import Leaderboard
from crusades.tui.widgets.submissions import Submissions

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold red]boo[/] [@click=app.quit]x[/]\u202egnp.exe\x9b31m\x00\r\nsecond"


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(feed, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(feed, "LONGEST_PAUSE", 0.05)


def play(story):
    asyncio.run(asyncio.wait_for(story(), 60))


def test_the_first_screen_shows_everything():
    async def story():
        async with FakeApi() as api:
            api.board.notice = "This is a development network."
            async with dashboard(api) as (app, pilot):
                await pilot.pause()
                shown = screen_text(app)
        for words in ("finney · subnet 3", "block 5001962", "● ready", "● live", "development network", "Leaderboard", "leads since", "51.678", short(hotkey(8)), "MFU over time", "◆",
                      "cuda:0", "running", "queue", "weights in step", "Submissions", "(drand round 12345)", "Line 12 imports ctypes"):  # fmt: skip
            assert words in shown, words

    play(story)


def test_an_event_moves_a_submission():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            row = submission(35, Status.REJECTED, reason=AUDIT_REASON)
            await api.push_event(row)
            await until(pilot, lambda: app.picture.submissions[row.id].status is Status.REJECTED)
            await pilot.pause()
            assert app.picture.seq == api.store.last_seq
            assert "The gradient of one cell of tokens" in screen_text(app)

    play(story)


def test_a_new_leader_is_drawn_from_the_pushed_section():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            await api.push({"type": "state", "sections": {"leaderboard": {"items": msgspec.to_builtins([standing(hotkey="5NewLeader", score_mfu=66.6)])}}})
            await until(pilot, lambda: app.picture.leaderboard[0].hotkey == "5NewLeader")
            await pilot.pause()
            assert app.query_one(Leaderboard).row_count == 1
            assert "66.600" in screen_text(app)

    play(story)


def test_a_lost_connection_is_told_and_taken_up_where_it_stopped():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            seq = api.store.last_seq
            api.refuse = {"error": "too_many_clients", "message": "1000 clients are connected.", "status": 503}
            await api.drop()
            await until(pilot, lambda: "no connection: the validator refused (503): 1000 clients are connected." in screen_text(app))
            api.refuse = None
            await until(pilot, lambda: app.link.state == "live")
            assert api.asked[-1] == f"/api/v1/live?since={seq}"

    play(story)


def test_a_client_that_was_told_to_start_over_asks_for_a_snapshot():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            await api.push({"type": "resnapshot", "reason": "this client fell behind"})
            await until(pilot, lambda: app.picture.seq is None)
            await api.drop()
            await until(pilot, lambda: len(api.asked) == 2)
            assert "since" not in api.asked[-1]
            await until(pilot, lambda: app.picture.seq == api.store.last_seq)

    play(story)


def test_nobody_there_is_said_and_tried_again():
    async def story():
        async with FakeApi() as api:
            url = api.url
        async with dashboard(url=url) as (app, pilot):
            await until(pilot, lambda: app.link.state == "lost")
            await pilot.pause()
            assert "nobody listens there" in screen_text(app)
            await until(pilot, lambda: app.link.retry_in == feed.LONGEST_PAUSE)

    play(story)


def test_r_does_not_wait_for_the_next_attempt(monkeypatch):
    monkeypatch.setattr(feed, "FIRST_PAUSE", 1000.0)

    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            await api.drop()
            await until(pilot, lambda: app.link.state == "lost")
            await pilot.press("r")
            await until(pilot, lambda: len(api.asked) == 2)

    play(story)


@pytest.mark.parametrize("frame", [{"type": "snapshot", "sections": {"overview": {"version": 3}}}, {"hello": 1}, [1, 2]])
def test_a_server_of_another_kind_is_said_to_be_so(frame):
    async def story():
        async with FakeApi() as api:
            api.first_frame = frame
            async with dashboard(url=api.url) as (app, pilot):
                await until(pilot, lambda: "another version" in app.link.words)

    play(story)


def test_enter_opens_a_submission_with_its_reason_runs_and_code():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            rejected = submission_id(31)
            app.query_one(Submissions).move_cursor(row=app.query_one(Submissions).get_row_index(rejected))
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, DetailScreen) and app.screen._last is not None)
            await pilot.pause()
            shown = screen_text(app)
            for words in ("● rejected", "The work that the score claims was not all done", "1401 · audit", "measured 0.41, limit 0.08", "What to do:", hotkey(31 % 9), "way", "runs", "failed:"):
                assert words in shown, words
            await pilot.press("c")
            await until(pilot, lambda: "inner_steps" in str(app.screen.query_one("#code", Static).render()))
            assert "<script>alert(1)</script>" in str(app.screen.query_one("#code", Static).render())
            await pilot.press("escape")
            assert not isinstance(app.screen, DetailScreen)

    play(story)


def test_the_code_of_one_that_waits_is_refused_in_words():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            await app.push_screen(DetailScreen(app.client, submission_id(35)))
            await until(pilot, lambda: app.screen._last is not None)
            await pilot.press("c")
            await until(pilot, lambda: "once it has been judged" in str(app.screen.query_one("#code", Static).render()))

    play(story)


def test_an_open_submission_follows_its_events():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            running = submission_id(34)
            await app.push_screen(DetailScreen(app.client, running))
            await until(pilot, lambda: app.screen._last is not None)
            await api.push_event(submission(34, Status.SCORED, mfu=66.0))
            await until(pilot, lambda: app.screen._last[0].submission.status is Status.SCORED)
            await pilot.pause()
            assert "66.000 % MFU" in screen_text(app)

    play(story)


def test_a_submission_that_is_unknown_says_so():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            await app.push_screen(DetailScreen(app.client, "0" * 16))
            await until(pilot, lambda: "no such submission" in str(app.screen.query_one("#head", Static).render()))

    play(story)


def test_hostile_strings_reach_the_terminal_as_harmless_text():
    async def story():
        async with FakeApi() as api:
            reason = msgspec.structs.replace(AUDIT_REASON, message=HOSTILE, hint=HOSTILE, rule=HOSTILE[:30])
            row = submission(41, Status.REJECTED, reason=reason, hotkey=HOSTILE, url=HOSTILE)
            api.store.change(row)
            api.board.notice = HOSTILE
            api.board.network = HOSTILE
            async with dashboard(api) as (app, pilot):
                await app.push_screen(DetailScreen(app.client, row.id))
                await until(pilot, lambda: app.screen._last is not None)
                await pilot.pause()
                shown = screen_text(app)
                await pilot.press("escape")
                shown += screen_text(app)
        assert "[bold red]boo[/]" in shown
        for character in "\x1b\x07\x9b\x00\r\u202e":
            assert character not in shown

    play(story)


def test_keys_move_and_quit():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            table = app.query_one(Submissions)
            assert app.focused is table
            await pilot.press("j", "j", "k")
            assert table.cursor_row == 1
            await pilot.press("l")
            assert app.focused is app.query_one(Leaderboard)
            await pilot.press("q")
            await until(pilot, lambda: not app.is_running)
            assert app.return_value == 0

    play(story)


def test_the_cursor_stays_on_its_row_when_others_come():
    async def story():
        async with FakeApi() as api, dashboard(api) as (app, pilot):
            table = app.query_one(Submissions)
            table.move_cursor(row=4)
            before = table._current()
            await api.push_event(submission(50, Status.SEALED))
            await until(pilot, lambda: submission_id(50) in app.picture.submissions)
            await pilot.pause()
            assert (table.cursor_row, table._current()) == (5, before)

    play(story)


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (200, 60), (20, 6)])
def test_any_size_will_do(size):
    async def story():
        async with FakeApi() as api, dashboard(api, size=size) as (app, pilot):
            await pilot.pause()
            await api.push_event(submission(50, Status.SEALED))
            await until(pilot, lambda: submission_id(50) in app.picture.submissions)
            assert "qwen2.5-3b" in screen_text(app)

    play(story)


@pytest.mark.parametrize("bad", ["", "http://", "ftp://host", "host:port", "http://user@host", "http://host/?q=1", "host:99999999"])
def test_an_address_that_is_none_is_refused(bad):
    with pytest.raises(UsageError, match="--url"):
        make_app(bad)
