"""The web server over the real store, real scoring and real rules: a submission's life as a client sees it."""

import msgspec
from fakes_web import filled_board
from store_kit import accepted, at_stage, cheat, opened, reason, record, revealed, run, sealed
from trio.testing import wait_all_tasks_blocked
from web_kit import SETTINGS, frames_until, live

from crusades.records import Event, HistoryPoint, Neuron, Page, Run, Standing, Status, SubmissionDetail
from crusades.web import create_app


def application(store):
    neurons = tuple(Neuron(uid=uid, hotkey=hotkey) for uid, hotkey in enumerate(("5A", "5B", "5C")))
    return create_app(store, filled_board(neurons=neurons, slots={}, progress={}), SETTINGS, rules_version="1+test")


async def document(app, path, kind=None):
    answer = await app.test_client().get(f"/api/v1/{path}")
    assert answer.status_code == 200, await answer.get_data()
    return await answer.get_json() if kind is None else msgspec.json.decode(await answer.get_data(), type=kind)


async def test_the_life_of_a_submission(tmp_path):
    async with opened(tmp_path) as store:
        app = application(store)
        assert (await document(app, "leaderboard"))["items"] == []
        id_ = await at_stage(store, Status.QUEUED, revealed("5A", 10))
        page = await document(app, "submissions", Page)
        assert [(row.status, row.queue_position) for row in page.items] == [(Status.QUEUED, 1)]
        assert (await app.test_client().get(f"/api/v1/submissions/{id_}/code")).status_code == 409

        await store.begin_attempt(id_, slot="cpu", block=120)
        await store.add_run(id_, run(0))
        assert msgspec.convert((await document(app, f"submissions/{id_}/runs"))["items"], list[Run])[0].index == 0
        await store.finish(id_, accepted(41.5, [run(0), run(1, 41.5)]), block=121)

        detail = await document(app, f"submissions/{id_}", SubmissionDetail)
        assert detail.submission.status is Status.SCORED
        assert [step.status for step in detail.transitions][-3:] == [Status.QUEUED, Status.RUNNING, Status.SCORED]
        board = msgspec.convert((await document(app, "leaderboard"))["items"], list[Standing])
        assert [(row.rank, row.hotkey, row.score_mfu) for row in board] == [(1, "5A", 41.5)]
        points = msgspec.convert((await document(app, "history"))["items"], list[HistoryPoint])
        assert [point.took_lead for point in points] == [True]
        assert await (await app.test_client().get(f"/api/v1/submissions/{id_}/code")).get_data() == b"the program"
        overview = await document(app, "overview")
        assert (overview["leader"]["hotkey"], overview["counts"]["scored"]) == ("5A", 1)


async def test_pages_filters_and_bad_cursors(tmp_path):
    async with opened(tmp_path) as store:
        app = application(store)
        await record(store, *(sealed(f"5{letter}", 10 + n) for n, letter in enumerate("ABCDEFGH")))
        first = await document(app, "submissions?limit=5", Page)
        rest = await document(app, f"submissions?limit=5&cursor={first.next_cursor}", Page)
        assert [row.hotkey for row in (*first.items, *rest.items)] == [f"5{letter}" for letter in "HGFEDCBA"]
        assert rest.next_cursor is None
        assert [row.hotkey for row in (await document(app, "submissions?hotkey=5C", Page)).items] == ["5C"]
        assert (await document(app, "submissions?status=scored", Page)).items == ()
        assert (await app.test_client().get("/api/v1/submissions?cursor=1.x")).status_code == 400


async def test_a_rejection_is_shown_with_its_reason_and_code(tmp_path):
    async with opened(tmp_path) as store:
        app = application(store)
        id_ = await at_stage(store, Status.QUEUED, revealed("5B", 11))
        await store.begin_attempt(id_, slot="cpu")
        await store.finish(id_, cheat(output_tail="printed SECRET"))
        answer = await app.test_client().get(f"/api/v1/submissions/{id_}")
        body = await answer.get_data()
        assert b"SECRET" not in body
        assert msgspec.json.decode(body, type=SubmissionDetail).submission.reason == reason()
        assert (await app.test_client().get(f"/api/v1/submissions/{id_}/code")).status_code == 200


async def test_every_commit_reaches_a_live_client(tmp_path):
    async with opened(tmp_path) as store:
        app = application(store)
        async with live(app) as socket:
            start = (await socket.receive_json())["seq"]
            id_ = await at_stage(store, Status.QUEUED, revealed("5A", 10))
            await store.begin_attempt(id_, slot="cpu")
            await store.add_run(id_, run(0))
            await store.finish(id_, accepted(41.5, [run(0), run(1, 41.5)]))
            frames = await frames_until(socket, lambda f: f["type"] == "events" and f["events"][-1]["seq"] == store.last_seq)
        events = msgspec.convert([event for frame in frames if frame["type"] == "events" for event in frame["events"]], list[Event])
        assert [event.seq for event in events] == list(range(start + 1, store.last_seq + 1))
        steps = [event.data["status"] for event in events if event.kind == "submission"]
        assert steps[-2:] == ["running", "scored"]


async def test_a_client_of_the_last_process_resumes(tmp_path):
    async with opened(tmp_path) as store:
        await at_stage(store, Status.QUEUED, revealed("5A", 10))
        seen = store.last_seq
        await record(store, sealed("5B", 20))
        last = store.last_seq
    async with opened(tmp_path) as store:
        app = application(store)
        async with live(app, f"/api/v1/live?since={seen}") as socket:
            frames = await frames_until(socket, lambda f: f["type"] == "events")
            await wait_all_tasks_blocked()
        assert frames[0] == {"type": "resumed", "seq": seen}
        assert frames[-1]["events"][-1]["seq"] == last


async def test_the_rules_document_names_every_rule_and_the_workload(tmp_path):
    from crusades.rules import RULES

    async with opened(tmp_path) as store:
        rules = await document(application(store), "rules")
    assert [rule["id"] for rule in rules["rules"]] == [rule.id for rule in RULES]
    assert rules["workload"]["steps"] == SETTINGS.profile(rules["profile"]).steps
    assert rules["rules_version"] == "1+test"
