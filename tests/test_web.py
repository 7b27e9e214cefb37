"""The JSON API over a fake store, in process: shapes, filters, caching, errors, headers, and what is never served."""

import json

import msgspec
import pytest
from fakes_web import CODE, COPY_REASON, NOW, FakeStore, filled_board, hotkey, submission, submission_id, verdict_of
from web_kit import make

from crusades.errors import StoreError
from crusades.faults import FAULTS
from crusades.records import ApiError, Overview, Page, Reason, Source, Standing, Status, Submission, SubmissionDetail, WeightsView

RUNNING, QUEUED, SEALED, FAULTED, COPY, REJECTED, SCORED = (submission_id(n) for n in (34, 35, 39, 28, 20, 10, 0))


async def get(app, path, **more):
    return await app.test_client().get(path, **more)


async def document(app, path):
    answer = await get(app, path)
    assert answer.status_code == 200, await answer.get_data()
    assert answer.content_type == "application/json"
    return await answer.get_json()


# -- documents ---------------------------------------------------------------------------------------------


async def test_the_overview_is_one_record():
    app, _, board = make()
    overview = msgspec.json.decode(await (await get(app, "/api/v1/overview")).get_data(), type=Overview)
    assert overview.leader.rank == 1
    assert overview.counts["queued"] == 2
    assert overview.block == board.block
    assert overview.rules_version == "1+0badcafe"
    assert [slot.name for slot in overview.slots] == ["cuda:0", "cuda:1"]
    assert overview.slots[0].detail == "run 2 of 5"
    assert overview.ready


async def test_the_overview_tells_what_is_wrong():
    app, _, board = make(board=filled_board(problems={"chain": "no new head for 40 s"}))
    overview = await document(app, "/api/v1/overview")
    assert overview["problems"] == ["chain: no new head for 40 s"]
    board.problems.clear()
    assert (await document(app, "/api/v1/overview"))["problems"] == []


async def test_an_empty_validator_answers_everything():
    app, _, _ = make(FakeStore(), filled_board(slots={}, progress={}, block=None))
    assert (await document(app, "/api/v1/overview"))["leader"] is None
    for name in ("leaderboard", "history", "submissions", "queue", "slots"):
        assert (await document(app, f"/api/v1/{name}"))["items"] == []
    assert (await document(app, "/api/v1/weights"))["equal"] is None


async def test_the_leaderboard_is_ranked_and_can_be_cut():
    app, _, _ = make()
    rows = msgspec.convert((await document(app, "/api/v1/leaderboard"))["items"], list[Standing])
    assert [row.rank for row in rows] == list(range(1, 10))
    assert len((await document(app, "/api/v1/leaderboard?limit=2"))["items"]) == 2


async def test_a_cut_history_keeps_every_change_of_leader_and_the_newest():
    app, _, _ = make()
    whole = (await document(app, "/api/v1/history"))["items"]
    cut = (await document(app, "/api/v1/history?limit=12"))["items"]
    assert len(cut) == 12 < len(whole)
    assert [p for p in cut if p["took_lead"]] == [p for p in whole if p["took_lead"]]
    assert cut[-1] == whole[-1]
    assert [p["block"] for p in cut] == sorted(p["block"] for p in cut)


async def test_pages_of_submissions_follow_each_other_without_gap_or_repetition():
    app, store, _ = make()
    seen, cursor = [], ""
    while cursor is not None:
        page = msgspec.convert(await document(app, f"/api/v1/submissions?limit=7{cursor and '&cursor=' + cursor}"), Page)
        seen += [row.id for row in page.items]
        cursor = page.next_cursor
    assert len(seen) == len(set(seen)) == len(store.rows)


@pytest.mark.parametrize(
    ("query", "keeps"),
    [
        (f"hotkey={hotkey(3)}", lambda row: row.hotkey == hotkey(3)),
        ("status=rejected", lambda row: row.status is Status.REJECTED),
        (f"sha256={submission(5).sha256}", lambda row: row.sha256 == submission(5).sha256),
        (f"status=scored&hotkey={hotkey(2)}", lambda row: row.status is Status.SCORED and row.hotkey == hotkey(2)),
    ],
)
async def test_filters(query, keeps):
    app, store, _ = make()
    rows = msgspec.convert((await document(app, f"/api/v1/submissions?limit=200&{query}"))["items"], list[Submission])
    assert rows
    assert {row.id for row in rows} == {row.id for row in store.rows.values() if keeps(row)}


async def test_live_facts_are_laid_over_the_stored_ones():
    app, _, board = make()
    rows = {row["id"]: row for row in (await document(app, "/api/v1/submissions"))["items"]}
    assert rows[RUNNING]["progress"] == "run 2 of 5"
    assert rows[QUEUED]["queue_position"] == 1
    board.progress[RUNNING] = "run 3 of 5"
    assert (await document(app, f"/api/v1/submissions/{RUNNING}"))["submission"]["progress"] == "run 3 of 5"
    assert (await document(app, "/api/v1/queue"))["items"][0]["progress"] == "run 3 of 5"


async def test_the_queue_has_the_running_first_and_counts_the_earlier():
    app, _, _ = make()
    queue = await document(app, "/api/v1/queue")
    assert [row["status"] for row in queue["items"]] == ["running", "queued", "queued"]
    assert [row["queue_position"] for row in queue["items"]] == [None, 1, 2]
    assert queue["earlier"] == {"sealed": 2, "revealed": 0, "fetched": 1, "checked": 0}


async def test_a_detail_has_the_way_and_the_verdict():
    app, _, _ = make()
    detail = msgspec.json.decode(await (await get(app, f"/api/v1/submissions/{REJECTED}")).get_data(), type=SubmissionDetail)
    assert detail.transitions[-1].status is Status.REJECTED
    assert detail.verdict.rule == "cell_attribution"


async def test_a_sealed_submission_says_which_round_opens_it_and_when():
    app, *_ = make()
    row = (await document(app, f"/api/v1/submissions/{SEALED}"))["submission"]
    assert (row["status"], row["reveal_round"], row["reveal_expected_at"]) == ("sealed", 12_345, NOW + 240.0)


async def test_runs_are_there_while_they_come():
    app, store, _ = make()
    assert len((await document(app, f"/api/v1/submissions/{RUNNING}/runs"))["items"]) == 2
    store.add_run(RUNNING, store.run_rows[SCORED][2])
    assert len((await document(app, f"/api/v1/submissions/{RUNNING}/runs"))["items"]) == 3


async def test_weights_say_how_old_they_are():
    app, _, board = make()
    weights = msgspec.convert(await document(app, "/api/v1/weights"), WeightsView, strict=False)
    assert weights.age_blocks == board.block - weights.applied_block
    board.block += 5
    assert (await document(app, "/api/v1/weights"))["age_blocks"] == weights.age_blocks + 5


async def test_the_fault_table_is_served_whole():
    app, _, _ = make()
    rows = (await document(app, "/api/v1/faults"))["items"]
    assert {row["code"] for row in rows} == set(FAULTS)
    assert next(row for row in rows if row["code"] == 1401)["whose"] == "submission"


# -- secrets -----------------------------------------------------------------------------------------------


async def test_code_is_shown_once_judged():
    app, _, _ = make()
    answer = await get(app, f"/api/v1/submissions/{SCORED}/code")
    assert (await answer.get_data()).decode() == CODE
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("status", [s for s in Status if s not in (Status.SCORED, Status.REJECTED)])
async def test_code_is_hidden_until_then(status):
    app, store, _ = make()
    row = submission(70, status)
    store.change(row)
    store.sources[row.id] = Source(sha256=row.sha256, content=b"secret", url=row.url, fetched_at=0.0)
    answer = await get(app, f"/api/v1/submissions/{row.id}/code")
    assert answer.status_code == 409
    assert (await answer.get_json())["error"] == "not_judged_yet"


async def test_the_code_of_a_copy_is_not_shown():
    app, store, _ = make()
    assert store.rows[COPY].reason == COPY_REASON
    answer = await get(app, f"/api/v1/submissions/{COPY}/code")
    assert answer.status_code == 404
    assert "original" in (await answer.get_json())["message"]


async def test_the_code_of_what_a_fork_took_back_is_not_shown():
    app, store, _ = make()
    row = submission(72, Status.REJECTED, reason=Reason(code=1008, stage="chain", message="withdrawn"))
    store.rows[row.id] = row
    store.sources[row.id] = store.sources[SCORED]
    answer = await get(app, f"/api/v1/submissions/{row.id}/code")
    assert answer.status_code == 404
    assert "may wait in another" in (await answer.get_json())["message"]


async def test_code_that_was_never_fetched_is_said_to_be_so():
    app, store, _ = make()
    row = submission(71, Status.REJECTED, reason=Reason(code=1102, stage="fetch", message="404"))
    store.change(row)
    assert (await (await get(app, f"/api/v1/submissions/{row.id}/code")).get_json())["error"] == "no_code"


async def test_the_output_of_a_submission_is_in_no_answer():
    app, store, _ = make()
    row = store.rows[SCORED]
    assert "SECRET-OUTPUT" in store.details[row.id].verdict.output_tail
    for path in [f"/api/v1/submissions/{row.id}", f"/api/v1/submissions/{row.id}/runs", "/api/v1/overview", "/api/v1/submissions?limit=200"]:
        assert b"SECRET" not in await (await get(app, path)).get_data()


# -- caching -----------------------------------------------------------------------------------------------


async def test_an_answer_is_made_once_and_again_after_a_commit():
    app, store, _ = make()
    for _ in range(3):
        await document(app, "/api/v1/submissions")
    assert store.calls.count("submissions") == 1
    store.change(submission(60, Status.REVEALED))
    assert (await document(app, "/api/v1/submissions"))["items"][0]["id"] == submission_id(60)
    assert store.calls.count("submissions") == 2


async def test_standings_are_made_again_for_a_score_but_not_for_a_transition():
    app, store, _ = make()
    await document(app, "/api/v1/leaderboard")
    store.change(submission(60, Status.QUEUED))
    await document(app, "/api/v1/leaderboard")
    assert store.calls.count("scored") == 1
    row = submission(60, Status.SCORED, mfu=77.0)
    store.judge(row, verdict_of(row))
    assert (await document(app, "/api/v1/leaderboard"))["items"][0]["submission_id"] == row.id
    assert store.calls.count("scored") == 2


async def test_pruned_events_invalidate_everything():
    app, store, _ = make()
    await document(app, "/api/v1/submissions")
    for n in range(60, 64):
        store.change(submission(n, Status.REVEALED))
    store.first_kept = len(store.events) - 1
    assert (await document(app, "/api/v1/submissions"))["items"][0]["id"] == submission_id(63)


async def test_an_unchanged_document_is_a_304():
    app, store, _ = make()
    first = await get(app, "/api/v1/leaderboard")
    again = await get(app, "/api/v1/leaderboard", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert await again.get_data() == b""
    row = submission(60, Status.SCORED, mfu=77.0)
    store.judge(row, verdict_of(row))
    assert (await get(app, "/api/v1/leaderboard", headers={"If-None-Match": first.headers["ETag"]})).status_code == 200


async def test_the_shortcut_answers_like_the_application():
    app, _, _ = make()
    first, second = [await get(app, "/api/v1/submissions?limit=3") for _ in range(2)]
    assert dict(first.headers) == dict(second.headers)
    assert await first.get_data() == await second.get_data()


async def test_the_shortcut_leaves_errors_and_other_methods_to_the_application():
    app, store, _ = make()
    await document(app, "/api/v1/submissions")

    async def fail(**_):
        raise StoreError("busy")

    store.submissions = fail
    store.change(submission(60, Status.REVEALED))
    answer = await get(app, "/api/v1/submissions")
    assert msgspec.json.decode(await answer.get_data(), type=ApiError).error == "unavailable"
    assert (await app.test_client().post("/api/v1/submissions")).status_code == 405
    assert (await get(app, "/api/v1/submissions?nope=1")).status_code == 400


# -- errors ------------------------------------------------------------------------------------------------

WRONG = [
    ("GET", "/nothing", 404, "not_found"),
    ("GET", "/api/v1/nothing", 404, "not_found"),
    ("GET", "/api/v1", 404, "not_found"),
    ("GET", "/api/v1/live", 400, "bad_request"),
    ("GET", "/static/nothing.js", 404, "not_found"),
    ("GET", "/static/..%2fweb.py", 404, "not_found"),
    ("GET", "/static/../web.py", 404, "not_found"),
    ("GET", "/api/v1/submissions?status=great", 400, "bad_request"),
    ("GET", "/api/v1/submissions?limit=0", 400, "bad_request"),
    ("GET", "/api/v1/submissions?limit=201", 400, "bad_request"),
    ("GET", "/api/v1/submissions?limit=%D9%A3", 400, "bad_request"),
    ("GET", "/api/v1/submissions?limit=-1", 400, "bad_request"),
    ("GET", "/api/v1/submissions?cursor=%00%0a", 400, "bad_request"),
    ("GET", "/api/v1/submissions?cursor=abc", 400, "bad_request"),
    ("GET", "/api/v1/submissions?hotkey='%20OR%201", 400, "bad_request"),
    ("GET", "/api/v1/submissions?sha256=zz", 400, "bad_request"),
    ("GET", "/api/v1/submissions?stauts=scored", 400, "bad_request"),
    ("GET", "/api/v1/leaderboard?limit=x", 400, "bad_request"),
    ("GET", "/api/v1/overview?x=1", 400, "bad_request"),
    ("GET", "/api/v1/submissions/0000000000000000", 404, "not_found"),
    ("GET", "/api/v1/submissions/0000000000000000/runs", 404, "not_found"),
    ("GET", "/api/v1/submissions/0000000000000000/code", 404, "not_found"),
    ("GET", "/api/v1/submissions/%3Cscript%3E", 404, "not_found"),
    ("GET", f"/api/v1/submissions/{SEALED}/code", 409, "not_judged_yet"),
    ("GET", f"/api/v1/submissions/{FAULTED}/code", 409, "not_judged_yet"),
    ("POST", "/api/v1/overview", 405, "method_not_allowed"),
    ("DELETE", f"/api/v1/submissions/{SCORED}", 405, "method_not_allowed"),
    ("OPTIONS", "/api/v1/overview", 405, "method_not_allowed"),
    ("PUT", "/", 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("method", "path", "status", "error"), WRONG)
async def test_every_error_has_the_same_shape(method, path, status, error):
    app, _, _ = make()
    answer = await app.test_client().open(path, method=method)
    assert answer.status_code == status
    assert answer.content_type == "application/json"
    told = msgspec.json.decode(await answer.get_data(), type=ApiError)
    assert (told.error, told.status) == (error, status)
    assert told.message.endswith(".")


def routes():
    app, _, _ = make()
    return sorted({rule.rule for rule in app.url_map.iter_rules() if not rule.websocket})


@pytest.mark.parametrize("route", [route for route in routes() if route.startswith("/api/v1/") and not route.endswith(("rules", "faults", "slots", "<id>/code"))])
async def test_a_store_that_fails_is_a_503_in_that_shape(route):
    app, store, _ = make()

    async def fail(*_, **__):
        raise StoreError("disk I/O error in /var/lib/secret")

    for name in ("submissions", "submission", "in_state", "scored", "counts", "weights", "runs"):
        setattr(store, name, fail)
    answer = await get(app, route.replace("<id>", SCORED))
    told = msgspec.json.decode(await answer.get_data(), type=ApiError)
    assert (answer.status_code, told.error) == (503, "unavailable")
    assert "secret" not in told.message


async def test_a_bug_is_a_500_that_tells_nothing():
    app, store, _ = make()

    async def fail(*_, **__):
        raise ZeroDivisionError("wallet password hunter2")

    store.submissions = fail
    answer = await get(app, "/api/v1/submissions")
    told = msgspec.json.decode(await answer.get_data(), type=ApiError)
    assert (answer.status_code, told.error) == (500, "internal")
    assert "hunter2" not in told.message


async def test_a_failure_is_not_kept():
    app, store, _ = make()
    good = store.submissions

    async def fail(**_):
        raise StoreError("busy")

    store.submissions = fail
    assert (await get(app, "/api/v1/submissions")).status_code == 503
    store.submissions = good
    assert (await get(app, "/api/v1/submissions")).status_code == 200


@pytest.mark.parametrize("route", routes())
async def test_every_answer_carries_the_security_headers(route):
    app, _, _ = make()
    answer = await get(app, route.replace("<id>", SCORED).replace("<name>", "app.js"))
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in answer.headers


# -- health ------------------------------------------------------------------------------------------------


async def test_alive_is_not_ready():
    app, _, board = make(board=filled_board(ready={"store": "ready", "slot cpu": "warming"}))
    assert (await get(app, "/livez")).status_code == 200
    waiting = await get(app, "/readyz")
    told = msgspec.json.decode(await waiting.get_data(), type=ApiError)
    assert (waiting.status_code, told.error, told.message) == (503, "not_ready", "slot cpu: warming.")
    board.ready["slot cpu"] = "ready"
    assert (await get(app, "/readyz")).status_code == 200


async def test_a_subsystem_that_hangs_is_not_alive():
    app, _, board = make(board=filled_board())
    board.late = {"scheduler": "no progress for 300 s, allowed 120 s"}
    answer = await get(app, "/livez")
    told = msgspec.json.decode(await answer.get_data(), type=ApiError)
    assert (answer.status_code, told.error) == (503, "not_live")
    assert "scheduler: no progress for 300 s" in told.message


async def test_verbose_readiness_names_every_subsystem():
    app, _, _ = make(board=filled_board(ready={"store": "ready", "slot cpu": "warming"}, problems={"chain": "no head"}))
    answer = await get(app, "/readyz?verbose")
    assert answer.status_code == 503
    assert await answer.get_json() == {"ready": False, "subsystems": {"slot cpu": "warming", "store": "ready"}, "problems": {"chain": "no head"}}


async def test_a_validator_that_has_reported_nothing_is_not_ready():
    app, _, _ = make(board=filled_board(ready={}))
    assert (await get(app, "/readyz")).status_code == 503


async def test_metrics_are_passed_through_or_said_to_be_absent():
    app, _, _ = make()
    assert await (await get(app, "/metrics")).get_data() == b"crusades_up 1\n"
    app, _, _ = make(metrics=None)
    assert (await (await get(app, "/metrics")).get_json())["error"] == "no_metrics"


# -- hostile text ------------------------------------------------------------------------------------------


async def test_hostile_text_stays_data():
    """What a miner wrote comes back as JSON text, as it was, under a content type that no browser runs."""
    app, store, _ = make()
    nasty = "\x1b]0;owned\x07</script><script>alert(1)</script>\u202e\x00"
    row = submission(72, Status.REJECTED, reason=Reason(code=1302, stage="run", message=nasty, hint=nasty), url=f"javascript:alert(1)//{nasty}")
    store.change(row)
    answer = await get(app, f"/api/v1/submissions/{row.id}")
    assert answer.content_type == "application/json"
    body = await answer.get_data()
    assert b"\x1b" not in body
    assert json.loads(body)["submission"]["reason"]["message"] == nasty


async def test_not_a_number_becomes_null():
    app, store, _ = make()
    run = msgspec.structs.replace(store.run_rows[SCORED][1], mfu=float("nan"), telemetry={"power": float("inf")})
    store.add_run(RUNNING, run)
    items = (await document(app, f"/api/v1/submissions/{RUNNING}/runs"))["items"]
    assert items[-1]["mfu"] is None
    assert items[-1]["telemetry"] == {"power": None}
