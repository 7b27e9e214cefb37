"""The live websocket in process: snapshot, events without gaps, sections, resume, slow clients, limits, the end."""

import functools

import msgspec
import pytest
import trio
from fakes_web import FakeStore, filled_store, submission, submission_id, verdict_of
from quart.testing import WebsocketResponseError
from quart.testing.connections import WebsocketDisconnectError
from trio.testing import wait_all_tasks_blocked
from web_kit import frames_until, live, make

from crusades import web_live
from crusades.records import ApiError, Overview, Page, Status
from crusades.web_live import Client, Hub


def seqs(frames):
    return [event["seq"] for frame in frames if frame["type"] == "events" for event in frame["events"]]


async def test_a_snapshot_holds_every_section(autojump_clock):
    app, store, _ = make()
    async with live(app) as socket:
        frame = await socket.receive_json()
    assert (frame["type"], frame["seq"]) == ("snapshot", store.last_seq)
    assert set(frame["sections"]) == {"overview", "leaderboard", "history", "queue", "slots", "weights", "submissions"}
    msgspec.convert(frame["sections"]["overview"], Overview, strict=False)
    assert msgspec.convert(frame["sections"]["submissions"], Page).items[0].id == submission_id(39)


async def test_events_come_in_order_without_a_gap(autojump_clock):
    app, store, _ = make()
    async with live(app) as socket:
        start = (await socket.receive_json())["seq"]
        for n in range(60, 80):
            store.change(submission(n, Status.REVEALED))
            if n % 5 == 0:
                await wait_all_tasks_blocked()
        frames = await frames_until(socket, lambda f: f["type"] == "events" and f["events"][-1]["seq"] == store.last_seq)
    assert seqs(frames) == list(range(start + 1, start + 21))


async def test_a_score_pushes_the_leaderboard_and_the_history(autojump_clock):
    app, store, _ = make()
    row = submission(60, Status.SCORED, mfu=77.0)
    async with live(app) as socket:
        await socket.receive_json()
        store.judge(row, verdict_of(row))
        frames = await frames_until(socket, lambda f: f["type"] == "state" and "history" in f["sections"])
    assert frames[-1]["sections"]["leaderboard"]["items"][0]["submission_id"] == row.id
    assert frames[-1]["sections"]["history"]["items"][-1]["took_lead"]
    assert frames[-1]["sections"]["overview"]["leader"]["submission_id"] == row.id


async def test_the_board_is_pushed_though_it_publishes_no_events(autojump_clock):
    app, _, board = make()
    async with live(app) as socket:
        await socket.receive_json()
        board.block += 1
        board.progress[submission_id(34)] = "run 5 of 5"
        frames = await frames_until(socket, lambda f: f["type"] == "state" and "slots" in f["sections"])
    assert frames[-1]["sections"]["slots"]["items"][0]["detail"] == "run 5 of 5"
    assert frames[-1]["sections"]["overview"]["block"] == board.block
    assert "history" not in frames[-1]["sections"]


async def test_silence_is_broken_by_a_heartbeat(autojump_clock):
    app, _, _ = make()
    async with live(app) as socket:
        await socket.receive_json()
        start = trio.current_time()
        frame = await socket.receive_json()
        assert set(frame["sections"]) == {"overview"}
        assert trio.current_time() - start == pytest.approx(web_live.HEARTBEAT, abs=1.0)


async def test_resuming_gives_exactly_what_was_missed(autojump_clock):
    app, store, _ = make()
    since = store.last_seq
    for n in range(60, 65):
        store.change(submission(n, Status.REVEALED))
    async with live(app, f"/api/v1/live?since={since}") as socket:
        first = await socket.receive_json()
        store.change(submission(65, Status.REVEALED))
        frames = await frames_until(socket, lambda f: f["type"] == "events" and f["events"][-1]["seq"] == since + 6)
    assert first == {"type": "resumed", "seq": since}
    assert seqs(frames) == list(range(since + 1, since + 7))


async def test_resuming_also_brings_the_sections_up_to_date(autojump_clock):
    app, store, board = make()
    board.block += 9
    async with live(app, f"/api/v1/live?since={store.last_seq}") as socket:
        frames = await frames_until(socket, lambda f: f["type"] == "state")
    assert frames[0]["type"] == "resumed"
    assert frames[-1]["sections"]["overview"]["block"] == board.block


@pytest.mark.parametrize("since", ["999999", "0"])
async def test_what_cannot_be_resumed_gets_a_snapshot(since, autojump_clock):
    """A number of another store's future, and one further back than a queue holds."""
    app, _, _ = make(client_queue=4)
    async with live(app, f"/api/v1/live?since={since}") as socket:
        assert (await socket.receive_json())["type"] == "snapshot"


async def test_resuming_over_pruned_events_gets_a_snapshot(autojump_clock):
    app, store, _ = make()
    store.first_kept = store.last_seq - 2
    async with live(app, f"/api/v1/live?since={store.last_seq - 10}") as socket:
        assert (await socket.receive_json())["type"] == "snapshot"


class Deaf:
    """A socket that takes frames only while `listens` is set."""

    def __init__(self):
        self.frames, self.listens = [], trio.Event()

    async def send(self, text):
        await self.listens.wait()
        self.frames.append(msgspec.json.decode(text))


async def test_a_client_that_falls_behind_is_told_and_gets_a_snapshot(autojump_clock, nursery):
    app, store, _ = make(client_queue=5)
    socket = Deaf()
    await nursery.start(app.hub.run)
    nursery.start_soon(app.hub.serve, socket.send, None)
    await wait_all_tasks_blocked()
    for n in range(60, 80):
        store.change(submission(n, Status.REVEALED))
    await wait_all_tasks_blocked()
    socket.listens.set()
    await wait_all_tasks_blocked()
    assert [frame["type"] for frame in socket.frames[:3]] == ["snapshot", "resnapshot", "snapshot"]
    assert socket.frames[2]["seq"] == store.last_seq
    store.change(submission(80, Status.REVEALED))
    await wait_all_tasks_blocked()
    assert seqs(socket.frames[3:]) == [store.last_seq]


async def test_a_socket_that_takes_nothing_is_given_up(autojump_clock, nursery):
    app, _, _ = make()
    await nursery.start(app.hub.run)
    start = trio.current_time()
    await app.hub.serve(Deaf().send, None)
    assert trio.current_time() - start == pytest.approx(web_live.SEND_DEADLINE, abs=1.0)
    assert app.hub.clients == 0


async def test_the_hub_reads_back_what_its_own_buffer_lost(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr(web_live, "BUFFER", 3)
    app, store, _ = make()
    socket = Deaf()
    socket.listens.set()
    await nursery.start(app.hub.run)
    nursery.start_soon(app.hub.serve, socket.send, None)
    await wait_all_tasks_blocked()
    start = store.last_seq
    for n in range(60, 75):
        store.change(submission(n, Status.REVEALED))
    await wait_all_tasks_blocked()
    store.change(submission(75, Status.REVEALED))
    await wait_all_tasks_blocked()
    assert seqs(socket.frames) == list(range(start + 1, start + 17))


async def test_more_clients_than_allowed_are_refused_in_the_error_shape(autojump_clock):
    app, _, _ = make(max_clients=1)
    async with live(app) as first:
        await first.receive_json()
        async with app.test_client().websocket("/api/v1/live") as second:
            with pytest.raises(WebsocketResponseError) as refusal:
                await second.receive()
        told = msgspec.json.decode(await refusal.value.response.get_data(), type=ApiError)
        assert (told.error, told.status) == ("too_many_clients", 503)
    async with live(app) as third:
        assert (await third.receive_json())["type"] == "snapshot"


@pytest.mark.parametrize(("path", "error", "status"), [("/api/v1/live?since=x", "bad_request", 400), ("/api/v1/live?since=-1", "bad_request", 400), ("/api/v1/other", "not_found", 404)])
async def test_a_refused_websocket_is_told_why(path, error, status):
    app, _, _ = make()
    async with app.test_client().websocket(path) as socket:
        with pytest.raises(WebsocketResponseError) as refusal:
            await socket.receive()
    told = msgspec.json.decode(await refusal.value.response.get_data(), type=ApiError)
    assert (told.error, told.status) == (error, status)


async def test_a_client_that_talks_is_not_answered_and_does_no_harm(autojump_clock):
    app, store, _ = make()
    async with live(app) as socket:
        await socket.receive_json()
        for _ in range(50):
            await socket.send("hello" * 100)
        store.change(submission(60, Status.REVEALED))
        frames = await frames_until(socket, lambda f: f["type"] == "events")
    assert seqs(frames) == [store.last_seq]


async def test_a_client_that_leaves_is_forgotten(autojump_clock, nursery):
    app, _, _ = make()
    await nursery.start(app.hub.run)
    async with app.test_client().websocket("/api/v1/live") as socket:
        await socket.receive_json()
        assert app.hub.clients == 1
    await wait_all_tasks_blocked()
    assert app.hub.clients == 0


async def test_closing_says_goodbye_to_every_client(autojump_clock, nursery):
    app, _, _ = make()
    await nursery.start(app.hub.run)
    async with app.test_client().websocket("/api/v1/live") as socket:
        await socket.receive_json()
        app.hub.close()
        with pytest.raises(WebsocketDisconnectError) as goodbye:
            await frames_until(socket, lambda _: False)
    assert goodbye.value.args[0] == 1001


async def test_unknown_kinds_keep_their_number_and_lose_their_data(autojump_clock):
    app, store, _ = make()
    async with live(app) as socket:
        await socket.receive_json()
        store.publish("internal", {"token": "hunter2"})
        store.publish("run", {"index": 1, "output_tail": "SECRET"}, submission_id(34))
        frames = await frames_until(socket, lambda f: f["type"] == "events" and f["events"][-1]["seq"] == store.last_seq)
    events = [event for frame in frames if frame["type"] == "events" for event in frame["events"]]
    assert events[0]["data"] == {}
    assert events[1]["data"] == {"index": 1}


def test_a_queue_never_grows_past_its_limit():
    client = Client(3)
    for n in range(100):
        client.put_event(str(n))
    assert client.lost
    assert client.take_frames() == []


def test_only_the_newest_of_a_section_waits():
    client = Client(3)
    for n in range(100):
        client.put_sections({"slots": str(n)})
    assert client.take_frames() == ['{"type":"state","sections":{"slots":99}}']


async def test_without_clients_nothing_is_made(autojump_clock, nursery):
    app, store, _ = make()
    await nursery.start(app.hub.run)
    await trio.sleep(60)
    assert store.calls == []


async def test_a_hub_that_fails_does_not_fail_quietly(nursery):
    store = filled_store()
    app, _, _ = make(store)

    def broken(_):
        raise ZeroDivisionError

    store.subscribe = broken
    with pytest.raises(ExceptionGroup, match="Exceptions"):
        await nursery.start(functools.partial(app.hub.run))


def test_the_hub_says_how_it_stands():
    app, _, _ = make(FakeStore(), max_clients=7)
    assert repr(app.hub) == "<Hub 0 of 7 clients, event 0>"
    assert isinstance(app.hub, Hub)
