"""The store on a real file: transitions, runs, verdicts, queue order, events, reads."""

import msgspec
import pytest
import trio
from store_kit import SETTINGS, accepted, at_stage, cheat, opened, reason, record, refused, revealed, run, sealed, sha, source, statuses

from crusades.errors import StoreError
from crusades.records import Outcome, Stage, Status, to_json
from crusades.store_life import CHAIN, DAEMON

S = Status


@pytest.fixture
async def store(tmp_path):
    async with opened(tmp_path) as store:
        yield store


# ------------------------------------------------------------------------------------------------ the life


async def test_a_whole_life_is_told_transition_by_transition(store):
    seal = sealed(block=10)
    await record(store, seal, head=11, finalized=11)
    await record(store, revealed(block=10, reveal=30), head=31, finalized=31)
    id_ = seal.submission_id
    await store.save_source(id_, source())
    await store.transition(id_, S.FETCHED, block=32, note="11 bytes")
    await store.transition(id_, S.CHECKED, block=33)
    await store.transition(id_, S.QUEUED, block=33)
    assert await store.begin_attempt(id_, slot="cpu", block=34) == ()
    for index in range(3):
        assert await store.add_run(id_, run(index))
    assert await store.finish(id_, accepted(41.5, [run(0), run(1), run(2)]), block=40)
    detail = await store.submission(id_)
    assert [step.status for step in detail.transitions] == [S.SEALED, S.REVEALED, S.FETCHED, S.CHECKED, S.QUEUED, S.RUNNING, S.SCORED]
    assert [step.block for step in detail.transitions] == [11, 31, 32, 33, 33, 34, 40]
    assert detail.submission.score_mfu == 41.5
    assert detail.submission.verdict is Outcome.ACCEPTED
    assert detail.submission.attempts == 1
    assert (detail.submission.device, detail.submission.rules_version) == ("a card", "1+abc")
    assert detail.verdict == accepted(41.5, [run(0), run(1), run(2)])
    assert [one.index for one in await store.runs(id_)] == [0, 1, 2]
    assert [row.id for row in await store.scored()] == [id_]


@pytest.mark.parametrize("old", [S.REVEALED, S.FETCHED, S.CHECKED, S.QUEUED, S.RUNNING, S.SCORED, S.REJECTED, S.FAULTED])
async def test_every_illegal_transition_is_refused_and_changes_nothing(store, old):
    id_ = await at_stage(store, old)
    before = to_json(await store.submission(id_))
    for new in set(Status) - DAEMON[old]:
        with pytest.raises(StoreError):
            await store.transition(id_, new, reason=reason())
    assert to_json(await store.submission(id_)) == before


def test_the_tables_name_every_state():
    assert set(DAEMON) == set(CHAIN) == set(Status)


async def test_a_rejection_needs_a_reason_that_is_the_submissions_own(store):
    id_ = await at_stage(store, S.REVEALED)
    for why in (None, reason("sandbox"), reason("host-down")):
        with pytest.raises(StoreError):
            await store.transition(id_, S.REJECTED, reason=why)
    assert await store.transition(id_, S.REJECTED, block=9, reason=reason("not-found", Stage.FETCH))
    row = (await store.submission(id_)).submission
    assert (row.verdict, row.reason.code) == (Outcome.REJECTED, 1102)


async def test_a_score_is_taken_back_only_from_a_copy(store):
    id_ = await at_stage(store, S.SCORED)
    with pytest.raises(StoreError, match="only a copy"):
        await store.transition(id_, S.REJECTED, reason=reason("timeout"))
    assert await store.transition(id_, S.REJECTED, reason=reason("copy", Stage.CHECK))
    assert await store.scored() == []


async def test_nobody_is_judged_twice(store):
    id_ = await at_stage(store, S.SCORED)
    for verdict in (accepted(99.0), cheat()):
        with pytest.raises(StoreError):
            await store.finish(id_, verdict)
    assert (await store.submission(id_)).submission.score_mfu == 40.0


@pytest.mark.parametrize("score", [None, 0.0, -1.0, float("nan"), float("inf")])
async def test_an_accepted_verdict_needs_a_score(store, score):
    id_ = await at_stage(store, S.RUNNING)
    with pytest.raises(StoreError, match="score"):
        await store.finish(id_, accepted(score))


async def test_runs_with_numbers_that_json_has_no_words_for_can_be_read_back(store):
    id_ = await at_stage(store, S.RUNNING)
    await store.add_run(id_, run(0, telemetry={"power": float("nan")}))
    (got,) = await store.runs(id_)
    assert got.telemetry["power"] != got.telemetry["power"]


async def test_unknown_ids_are_refused_by_writes_and_none_for_reads(store):
    with pytest.raises(StoreError, match="there is no submission nosuch"):
        await store.transition("nosuch", S.FETCHED)
    assert await store.submission("nosuch") is None
    assert await store.source("nosuch") is None
    assert await store.runs("nosuch") == ()


async def test_a_source_comes_back_byte_for_byte_and_one_file_is_stored_once(store):
    ids = [await at_stage(store, S.QUEUED, revealed(hotkey)) for hotkey in ("5A", "5B")]
    assert [await store.source(id_) for id_ in ids] == [source(), source()]


async def test_a_host_that_is_down_is_noted_without_leaving_the_stage(store):
    id_ = await at_stage(store, S.REVEALED)
    assert await store.transition(id_, S.REVEALED, reason=reason("host-down", Stage.FETCH, "no answer"))
    detail = await store.submission(id_)
    assert (detail.submission.status, detail.submission.verdict, detail.submission.reason.message) == (S.REVEALED, None, "no answer")
    await store.save_source(id_, source())
    await store.transition(id_, S.FETCHED)
    assert (await store.submission(id_)).submission.reason is None


# ------------------------------------------------------------------------------------------------ the queue


async def queue_of(store):
    return [(row.hotkey, row.queue_position) for row in await store.in_state(S.QUEUED)]


async def test_the_queue_is_ordered_by_commit_block_then_uid_and_what_was_begun_comes_first(store):
    rows = [revealed("5late", 30, uid=0, text="a"), revealed("5uid9", 20, uid=9, text="b"), revealed("5uid2", 20, uid=2, text="c"),
            revealed("5none", 20, uid=None, text="d"), revealed("5begun", 40, uid=5, text="e")]
    for row in rows:
        await at_stage(store, S.QUEUED, row)
    begun = rows[-1].submission_id
    await store.begin_attempt(begun, slot="cpu")
    await store.requeue(begun, reason("sandbox"))
    assert await queue_of(store) == [("5begun", 1), ("5uid2", 2), ("5uid9", 3), ("5none", 4), ("5late", 5)]


async def test_an_interrupted_evaluation_goes_on_in_front_with_its_runs_after_a_restart(tmp_path):
    async with opened(tmp_path) as store:
        id_ = await at_stage(store, S.RUNNING, revealed("5B", 20))
        await at_stage(store, S.QUEUED, revealed("5A", 10, text="other"))
        await store.add_run(id_, run(0))
        await store.add_run(id_, run(1, void="the card throttled"))
        await store.add_run(id_, run(1, mfu=41.0))
    async with opened(tmp_path) as store:
        assert await store.recover() == [id_]
        assert await store.recover() == []
        assert await queue_of(store) == [("5B", 1), ("5A", 2)]
        assert [(one.index, one.mfu) for one in await store.begin_attempt(id_, slot="cpu")] == [(0, 40.0), (1, 41.0)]
        assert (await store.submission(id_)).submission.attempts == 2


async def test_the_runs_of_a_verdict_that_a_fork_took_back_are_none_to_go_on_with(store):
    """Nothing of it is anchored any more, though it was judged."""
    row = revealed("5A", 10, reveal=12, final=False)
    await record(store, row, head=13, finalized=9)
    id_ = row.submission_id

    async def begun(slot):
        await store.save_source(id_, source())
        for status in (S.FETCHED, S.CHECKED, S.QUEUED):
            await store.transition(id_, status, block=1)
        return await store.begin_attempt(id_, slot=slot, keep_runs=False)

    assert await begun("cuda:0") == ()
    await store.finish(id_, accepted(40.0, [run(number) for number in range(4)]))
    await record(store, head=20, finalized=15)
    await record(store, revealed("5A", 10, reveal=12, final=True), head=21, finalized=16)
    assert await begun("cuda:1") == ()


async def test_a_file_may_be_saved_again_though_its_payload_named_half_of_the_hash(store):
    """The older form of a payload does: a stop between the file and the next stage must not make the file another's."""
    row = revealed("5A", 10)
    short = msgspec.structs.replace(row.payload, sha256=row.payload.sha256[:32])
    await record(store, msgspec.structs.replace(row, payload=short), head=20, finalized=20)
    for _ in range(2):
        assert await store.save_source(row.submission_id, source(), asked=short)
    assert not await store.save_source(row.submission_id, source(), asked=msgspec.structs.replace(short, url="https://other.example/x"))


async def test_runs_are_not_kept_on_another_slot_nor_after_a_fault_of_the_card(store):
    id_ = await at_stage(store, S.RUNNING)
    await store.add_run(id_, run(0))
    await store.requeue(id_, reason("referee"))
    assert len(await store.begin_attempt(id_, slot="cpu")) == 1
    await store.requeue(id_, reason("device"))
    assert await store.begin_attempt(id_, slot="cpu") == ()
    await store.add_run(id_, run(0))
    await store.requeue(id_, reason("interrupted"))
    assert await store.begin_attempt(id_, slot="cuda:1") == ()


async def test_faults_of_ours_are_bounded_and_interruptions_do_not_count(store):
    id_ = await at_stage(store, S.RUNNING)
    for why, expected in (("sandbox", S.QUEUED), ("interrupted", S.QUEUED), ("referee", S.QUEUED), ("device", S.FAULTED)):
        assert await store.requeue(id_, reason(why), max_attempts=3) is expected
        if expected is S.QUEUED:
            await store.begin_attempt(id_)
    row = (await store.submission(id_)).submission
    assert (row.status, row.verdict) == (S.FAULTED, Outcome.FAULT)
    assert await store.requeue(id_, reason("sandbox", message="mended"), max_attempts=3) is S.QUEUED


async def test_only_faults_of_ours_are_requeued_and_only_what_runs(store):
    id_ = await at_stage(store, S.RUNNING)
    with pytest.raises(StoreError):
        await store.requeue(id_, reason("timeout"))
    await store.finish(id_, cheat())
    with pytest.raises(StoreError):
        await store.requeue(id_, reason("sandbox"))


# ------------------------------------------------------------------------------------------------ receipts, copies


async def test_a_receipt_serves_one_submission_and_is_spent_by_a_verdict_on_a_run(store):
    first = await at_stage(store, S.QUEUED, revealed("5A", 10))
    second = await at_stage(store, S.QUEUED, revealed("5A", 11, text="second"))
    assert await store.claim_receipt(first, "9-1") is None
    assert await store.claim_receipt(first, "9-1") is None, "claiming again is no second use"
    assert await store.claim_receipt(second, "9-1") == first
    await store.begin_attempt(first)
    await store.finish(first, cheat())
    assert await store.claim_receipt(second, "9-1") == first, "it ran, so it is spent"
    assert await store.receipt_holder("9-1") == first


@pytest.mark.parametrize(("status", "why"), [(S.REJECTED, "rule"), (S.FAULTED, "sandbox")])
async def test_a_receipt_is_free_again_when_the_submission_was_not_run(store, status, why):
    id_ = await at_stage(store, S.QUEUED)
    await store.claim_receipt(id_, "9-1")
    await store.transition(id_, status, reason=reason(why))
    assert await store.receipt_holder("9-1") is None


async def test_same_program_finds_files_and_fingerprints_that_were_fetched(store):
    first = await at_stage(store, S.QUEUED, revealed("5A", 10))
    await at_stage(store, S.REVEALED, revealed("5never-fetched", 5))
    assert await store.same_program(first, sha("the program"), "shape-1") == []
    second = await at_stage(store, S.QUEUED, revealed("5B", 20))
    assert [row.id for row in await store.same_program(second, sha("another text"), "shape-1")] == [first]
    third = await at_stage(store, S.QUEUED, revealed("5C", 30))
    assert [row.id for row in await store.same_program(third, sha("the program"), "shape-2")] == [first, second]


async def test_without_a_fingerprint_nothing_is_alike(store):
    first = await at_stage(store, S.QUEUED, revealed("5A", 10))
    second = await at_stage(store, S.QUEUED, revealed("5B", 20))
    await store.same_program(first, "other", "")
    assert await store.same_program(second, "another", "") == []


# ------------------------------------------------------------------------------------------------ events


async def test_events_are_numbered_without_gaps_published_in_order_and_stored_alike(store):
    with store.subscribe(1000) as events:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(at_stage, store, S.SCORED, revealed(f"5{number}", 10 + number, text=str(number)))
        heard = [events.receive_nowait() for _ in range(store.last_seq)]
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
    assert [event.seq for event in heard] == list(range(1, store.last_seq + 1))
    assert [(e.seq, e.kind, e.submission_id, e.data) for e in await store.events_since(0, 10_000)] == [(e.seq, e.kind, e.submission_id, e.data) for e in heard]
    assert [event.seq for event in await store.events_since(5, 3)] == [6, 7, 8]


async def test_numbers_go_on_after_a_restart(tmp_path):
    async with opened(tmp_path) as store:
        await store.emit("block", {"best": 1})
    async with opened(tmp_path) as store:
        assert store.last_seq == 1
        await store.emit("block", {"best": 2})
        assert [event.data["best"] for event in await store.events_since(0, 10)] == [1, 2]


async def test_an_event_carries_the_record_as_it_was_committed(store):
    with store.subscribe(100) as events:
        id_ = await at_stage(store, S.SCORED)
        *_, submission, leaderboard = [events.receive_nowait() for _ in range(store.last_seq)]
    assert (submission.kind, submission.submission_id, submission.data["status"], submission.data["score_mfu"]) == ("submission", id_, "scored", 40.0)
    assert leaderboard.kind == "leaderboard"


async def test_a_failed_write_publishes_nothing_and_uses_no_number(store):
    id_ = await at_stage(store, S.SCORED)
    before = store.last_seq
    with pytest.raises(StoreError):
        await store.add_run(id_, run(0))
    await store.emit("block", {})
    assert store.last_seq == before + 1
    assert len(await store.events_since(0, 100)) == before + 1


async def test_a_subscriber_that_falls_behind_is_told_and_others_are_not_disturbed(store):
    with store.subscribe(2) as slow, store.subscribe(100) as quick:
        for number in range(5):
            await store.emit("block", {"best": number})
        assert [event.data["best"] async for event in slow] == [0, 1]
        assert slow.reason == "fell behind"
        assert [quick.receive_nowait().data["best"] for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_subscriptions_end_with_the_store(tmp_path):
    async with opened(tmp_path) as store:
        subscription = store.subscribe(10)
        events = subscription.__enter__()
    assert [event async for event in events] == []
    assert events.reason == "the store was closed"
    subscription.__exit__(None, None, None)


async def test_old_events_are_pruned_and_the_numbers_stay(tmp_path):
    async with opened(tmp_path, type(SETTINGS)(keep_events=10)) as store:
        for number in range(510):
            await store.emit("block", {"best": number})
        kept = await store.events_since(0, 1000)
        assert kept[0].seq == 491
        assert kept[-1].seq == store.last_seq == 510


# ------------------------------------------------------------------------------------------------ reads


async def test_pages_are_newest_first_complete_and_filtered(store):
    rows = [revealed(f"5{n % 3}", 10 + n // 2, reveal=60 + n, text=str(n), exact=False) for n in range(10)]
    for n in range(10):
        await record(store, *rows[max(0, n - 2):n + 1])
    seen, cursor = [], None
    while True:
        page = await store.submissions(cursor=cursor, limit=3)
        seen += [(row.commit_block, row.sha256) for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 10
    assert [block for block, _ in seen] == sorted((block for block, _ in seen), reverse=True)
    assert {row.hotkey for row in (await store.submissions(hotkey="51")).items} == {"51"}
    assert len((await store.submissions(status=S.REVEALED, limit=500)).items) == 10
    assert (await store.submissions(status=S.SCORED)).items == ()
    assert [row.sha256 for row in (await store.submissions(sha256=sha("4"))).items] == [sha("4")]


@pytest.mark.parametrize("cursor", ["x", "1", "1.", ".1", "1.2.3", "-1.2", "1' OR 1 --.2", "9" * 40 + ".1", "١.٢"])
async def test_a_cursor_that_no_page_gave_out_is_refused(store, cursor):
    with pytest.raises(ValueError, match="cursor"):
        await store.submissions(cursor=cursor)


async def test_counts_name_every_state(store):
    await at_stage(store, S.SCORED)
    await record(store, refused("5B", 12))
    assert await store.counts() == {**dict.fromkeys(map(str, S), 0), "scored": 1, "rejected": 1}


async def test_weights_are_journalled_before_and_read_back_after(store):
    assert (await store.weights()).asked == {}
    await store.record_weights(asked={3: 1.0}, block=50, first=51, last=60)
    with store.subscribe(10) as events:
        await store.record_on_chain(on_chain={3: 0.5, 4: 0.5}, equal=False, block=55, age_blocks=1)
        await store.record_on_chain(on_chain={3: 1.0}, equal=True, block=58, age_blocks=0)
        await store.record_on_chain(on_chain={3: 1.0}, equal=True, block=59, age_blocks=1)
        view = await store.weights()
        assert events.receive_nowait().kind == events.receive_nowait().kind == "weights"
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
    assert (view.asked, view.on_chain, view.equal, view.asked_block, view.applied_block, view.age_blocks) == ({3: 1.0}, {3: 1.0}, True, 50, 58, 1)
    await store.record_weights(asked={4: 1.0}, block=70, first=71, last=80)
    assert (await store.weights()).equal is None
    assert await store.weights_journal() == [(51, 60), (71, 80)]
    assert [view.asked_block for view in await store.weights_history()] == [70, 50]


async def test_facts_and_identity(tmp_path):
    async with opened(tmp_path) as store:
        await store.identify(genesis="0xaa", netuid=7)
        await store.set_fact("cursor", {"mine": True})
        assert await store.cursor() is None, "the caller's names cannot meet ours"
    async with opened(tmp_path) as store:
        await store.identify(genesis="0xaa", netuid=7)
        assert await store.fact("cursor") == {"mine": True}
        with pytest.raises(StoreError, match=r"belongs to genesis 0xaa \(here: 0xbb\)"):
            await store.identify(genesis="0xbb", netuid=7)


async def test_a_closed_store_says_so(tmp_path):
    async with opened(tmp_path) as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        await store.counts()
    assert "closed" in repr(store)


async def test_statuses_helper_sees_everything(store):
    id_ = await at_stage(store, S.QUEUED)
    assert await statuses(store) == {id_: S.QUEUED}
