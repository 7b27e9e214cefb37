"""The dashboard's pure parts: harmless text, addresses, the picture, the chart."""

import msgspec
import pytest
from fakes_web import NOW, filled_store, hotkey, simple_rank, submission
from hypothesis import given
from hypothesis import strategies as st

from crusades.records import HistoryPoint, Status, SubmissionDetail, to_builtins
from crusades.tui.address import base_url, live_url
from crusades.tui.detail_screen import head
from crusades.tui.picture import KEEP_ROWS, Picture, decode
from crusades.tui.plain import plain, plain_lines, short
from crusades.tui.text import meter, number, span
from crusades.tui.widgets.history import chart
from crusades.tui.widgets.submissions import words_of


def test_a_sealed_submission_says_when_it_opens_in_the_list_and_in_its_own_screen():
    row = submission(1, Status.SEALED)
    shown = "opens in about 4 min (drand round 12345)"
    assert words_of(row, NOW).plain == shown
    assert shown in head(SubmissionDetail(submission=row, transitions=()), {}, NOW).plain


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0;2;0;0;0\x1b\\sixel", "sixel"),
        ("\x1b]52;c;aGFjaw==\x07clip", "clip"),
        ("\x9b2Jc1", "c1"),
        ("a\u202eb\u200dc\ufeffd", "a�b�c�d"),
        ("tab\tnew\r\nline", "tab new  line"),
        ("bell\x07 back\x08 nul\x00", "bell� back� nul�"),
        ("naïve ☃ 漢字", "naïve ☃ 漢字"),
        ("[bold]no markup[/]", "[bold]no markup[/]"),
        (12, "12"),
    ],
)
def test_foreign_text_becomes_plain(foreign, shown):
    assert plain(foreign) == shown


@given(st.text())
def test_plain_text_never_controls_a_terminal(text):
    shown = plain(text)
    assert all(character.isprintable() or character == " " for character in shown)


@given(st.text())
def test_code_never_controls_a_terminal_and_keeps_its_lines(text):
    lines = plain_lines(text)
    assert len(lines) == len(text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")) if text else lines == []
    assert all(character.isprintable() for line in lines for character in line)


def test_long_text_is_cut():
    assert plain("x" * 50, 10) == "x" * 10 + "…"
    assert short(hotkey(1)) == f"{hotkey(1)[:6]}…{hotkey(1)[-5:]}"
    assert short("5Abc") == "5Abc"


@pytest.mark.parametrize(
    ("typed", "base"),
    [("127.0.0.1:8080", "http://127.0.0.1:8080"), ("http://host:1/", "http://host:1"), ("https://host/prefix/", "https://host/prefix"), ("[::1]:8080", "http://[::1]:8080"), ("host", "http://host")],
)
def test_addresses(typed, base):
    assert base_url(typed) == base


def test_the_websocket_has_the_scheme_of_the_page():
    assert live_url("http://h:1", None) == "ws://h:1/api/v1/live"
    assert live_url("https://h/p", 7) == "wss://h/p/api/v1/live?since=7"


def event(seq, row):
    return decode(msgspec.json.encode({"type": "events", "events": [{"seq": seq, "at": 1.0, "kind": "submission", "submission_id": row.id, "data": to_builtins(row)}]}))


def test_a_picture_counts_events_and_keeps_the_newest_first():
    picture = Picture(seq=4)
    assert picture.apply(event(5, submission(1, Status.QUEUED))) == {"submissions", submission(1).id}
    picture.apply(event(6, submission(3, Status.SEALED)))
    picture.apply(event(7, submission(2, Status.RUNNING)))
    assert picture.seq == 7
    assert [row.commit_block for row in picture.submissions.values()] == sorted((submission(n).commit_block for n in (1, 2, 3)), reverse=True)


def test_a_picture_is_bounded():
    picture = Picture(seq=0)
    for n in range(KEEP_ROWS + 50):
        picture.apply(event(n + 1, submission(n, Status.SEALED)))
    assert len(picture.submissions) == KEEP_ROWS
    assert submission(KEEP_ROWS + 49).id in picture.submissions


def test_a_snapshot_forgets_what_is_gone():
    picture = Picture(seq=4)
    picture.apply(event(5, submission(1, Status.QUEUED)))
    picture.apply(decode(b'{"type":"snapshot","seq":9,"sections":{"submissions":{"items":[]}}}'))
    assert (picture.seq, picture.submissions) == (9, {})


def history():
    store = filled_store()
    return simple_rank(sorted((row for row in store.rows.values() if row.status is Status.SCORED), key=lambda row: row.commit_block)).history


@pytest.mark.parametrize("size", [(60, 10), (150, 30), (21, 4)])
def test_the_chart_has_the_size_that_it_was_given(size):
    lines = chart(history(), *size).plain.split("\n")
    assert len(lines) == size[1]
    assert {len(line) for line in lines} == {size[0]}


def test_the_chart_marks_who_took_the_lead():
    points = history()
    drawing = chart(points, 200, 40).plain
    assert drawing.count("◆") == sum(point.took_lead for point in points)
    assert "•" in drawing


@pytest.mark.parametrize("points", [[], [HistoryPoint(at=5.0, block=1, submission_id="a", hotkey="h", score_mfu=0.0, leader_mfu=0.0, took_lead=True)]])
def test_the_chart_of_little_is_no_error(points):
    assert chart(points, 60, 10).plain


@given(st.lists(st.tuples(st.floats(0, 2e9), st.floats(0, 100)), min_size=1, max_size=30))
def test_any_history_can_be_drawn(scores):
    best = 0.0
    points = []
    for at, score in scores:
        best = max(best, score)
        points.append(HistoryPoint(at=at, block=1, submission_id="a", hotkey="h", score_mfu=score, leader_mfu=best, took_lead=False))
    assert len(chart(points, 80, 12).plain.split("\n")) == 12


def test_numbers_and_spans_and_meters():
    assert [number(x) for x in (0.41, 12345.678, None, "a string")] == ["0.41", "1.235e+04", "not finite", "a string"]
    assert [span(x) for x in (0.25, 5, 80, 300, 7200, 400_000)] == ["250 ms", "5.0 s", "80 s", "5 min", "2 h", "5 d"]
    assert meter(0.5, 4, "").plain == "██··"
    assert meter(7.0, 4, "").plain == "████"
