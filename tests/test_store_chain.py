"""Reads of the chain: sealed and revealed sightings of one commitment, finality, forks, repetition."""

import time

import msgspec
import pytest
from store_kit import accepted, at_stage, opened, reason, record, refused, revealed, sealed, source, statuses

from crusades.errors import StoreError
from crusades.payload import round_at, round_time
from crusades.records import Stage, Status, next_name, to_json

S = Status


@pytest.fixture
async def store(tmp_path):
    async with opened(tmp_path) as store:
        yield store


async def only(store):
    (row,) = (await store.submissions(limit=500)).items
    return row


# ------------------------------------------------------------------------------------------------ one commitment, several sightings


async def test_the_reveal_of_a_seal_is_the_same_submission(store):
    await record(store, sealed(block=10))
    assert (await only(store)).url == ""
    got = await record(store, revealed(block=10, reveal=30))
    row = await only(store)
    assert got.revealed == (row.id,)
    assert (row.id, row.status, row.commit_block, row.reveal_block) == (sealed(block=10).submission_id, S.REVEALED, 10, 30)
    assert row.url
    assert (await store.payload(row.id)).sha256 == row.sha256


async def test_a_seal_shows_its_round_and_when_that_is_published(store):
    ahead = round_at(time.time() + 600)
    await record(store, msgspec.structs.replace(sealed(block=10), reveal_round=ahead))
    row = await only(store)
    assert (row.reveal_round, row.reveal_expected_at) == (ahead, round_time(ahead))


async def test_a_seal_to_a_round_that_is_past_promises_no_time(store):
    await record(store, msgspec.structs.replace(sealed(block=10), reveal_round=1000))
    row = await only(store)
    assert (row.reveal_round, row.reveal_expected_at) == (1000, None)


async def test_a_seal_to_a_round_beyond_all_numbers_is_a_row_like_any_other(store):
    for _ in range(2):
        await record(store, msgspec.structs.replace(sealed(block=10), reveal_round=2**64 - 1))
    assert (await only(store)).status is S.SEALED


async def test_a_reveal_that_does_not_know_its_commit_block_finds_the_seal_and_takes_its_block(store):
    await record(store, sealed(block=10))
    await record(store, revealed(block=30, reveal=30, exact=False))
    row = await only(store)
    assert (row.status, row.commit_block, row.commit_block_exact, row.reveal_block) == (S.REVEALED, 10, True, 30)


async def test_of_several_seals_the_newest_before_the_reveal_was_opened(store):
    """A newer commitment replaces the live one, so an older seal cannot be what was opened."""
    await record(store, sealed(block=10), sealed(block=12), sealed(block=30))
    await record(store, sealed(block=30), revealed(block=30, reveal=30, exact=False))
    rows = {row.commit_block: row.status for row in (await store.submissions()).items}
    assert rows == {10: S.SEALED, 12: S.REVEALED, 30: S.SEALED}


async def test_a_reveal_whose_seal_was_never_seen_is_a_row_of_its_own_that_says_so(store):
    await record(store, revealed(block=30, reveal=30, exact=False))
    row = await only(store)
    assert (row.commit_block, row.commit_block_exact) == (30, False)


async def test_a_commit_block_learnt_later_completes_the_row_and_keeps_its_name(store):
    await record(store, revealed(block=30, reveal=30, exact=False))
    before = await only(store)
    await record(store, revealed(block=10, reveal=30))
    row = await only(store)
    assert (row.id, row.commit_block, row.commit_block_exact) == (before.id, 10, True)
    await record(store, revealed(block=30, reveal=30, exact=False))
    assert (await only(store)).commit_block_exact, "what is known is not forgotten again"


async def test_a_seal_of_the_block_in_which_something_else_was_revealed_is_another_submission(store):
    await record(store, revealed(block=30, reveal=30, exact=False))
    await record(store, revealed(block=30, reveal=30, exact=False), sealed(block=30))
    name = sealed(block=30).submission_id
    assert {row.id: row.status for row in (await store.submissions()).items} == {name: S.REVEALED, next_name(name): S.SEALED}, "a miner asks for the next name, too"
    before = await statuses(store)
    await record(store, sealed(block=30), revealed(block=30, reveal=30, exact=False))
    assert await statuses(store) == before


async def test_all_of_a_hotkeys_reveals_are_rows(store):
    await record(store, *(revealed(block=n, reveal=n + 20, text=str(n)) for n in range(1, 11)))
    assert len((await store.submissions()).items) == 10


async def test_malformed_and_foreign_commitments_are_visible_rows(store):
    got = await record(store, refused(block=10, reveal=30), refused("5B", 11, name="reveal-failed"))
    assert len(got.rejected) == 2
    row = (await store.submissions(hotkey="5A")).items[0]
    assert (row.status, row.reason.code, row.verdict) == (S.REJECTED, 1001, "rejected")


async def test_a_seal_that_turns_out_malformed_is_rejected_where_it_stands(store):
    await record(store, sealed(block=10))
    await record(store, refused(block=10, reveal=30))
    row = await only(store)
    assert (row.status, row.reveal_block) == (S.REJECTED, 30)


async def test_an_overwritten_seal_is_rejected_with_its_reason(store):
    await record(store, sealed(block=10))
    await record(store, refused(block=10, name="overwritten"), sealed(block=15))
    assert {row.commit_block: row.status for row in (await store.submissions()).items} == {10: S.REJECTED, 15: S.SEALED}


async def test_recording_the_same_read_again_changes_nothing_also_after_a_restart(tmp_path):
    rows = [sealed("5A", 10), revealed("5B", 11), revealed("5C", 40, reveal=40, exact=False), refused("5D", 12, reveal=33), revealed("5E", 14, final=False, reveal=95),
            refused("5F", 13, name="not-registered", uid=None)]

    async def picture(store):
        return [to_json(await store.submission(row.id)) for row in (await store.submissions()).items], store.last_seq

    async with opened(tmp_path) as store:
        await record(store, *rows)
        first = await picture(store)
        for _ in range(3):
            assert await record(store, *rows) == type(await record(store))()
        assert await picture(store) == first
    async with opened(tmp_path) as store:
        await record(store, *rows)
        assert await picture(store) == first


# ------------------------------------------------------------------------------------------------ finality


async def test_the_cursor_follows_finality_and_never_goes_back(store):
    assert await store.cursor() is None
    for head, finalized, expected in ((10, 7, 7), (11, 8, 8), (9, 6, 8), (12, 12, 12)):
        await record(store, head=head, finalized=finalized)
        assert await store.cursor() == expected
    await store.set_cursor(5)
    assert await store.cursor() == 5


async def test_finality_confirms_what_it_shows(store):
    await record(store, sealed(block=95, final=False), head=96, finalized=90)
    assert (await only(store)).provisional
    got = await record(store, sealed(block=95), head=99, finalized=96)
    assert got.confirmed == (sealed(block=95).submission_id,)
    assert not (await only(store)).provisional


async def test_a_seal_that_is_final_says_nothing_of_a_reveal_that_is_not(store):
    await record(store, sealed(block=10), revealed(block=10, reveal=95, final=False), head=96, finalized=90)
    assert (await only(store)).provisional
    await record(store, sealed(block=10), revealed(block=10, reveal=95, final=False), head=97, finalized=91)
    row = await only(store)
    assert (row.status, row.provisional) == (S.REVEALED, True)
    await record(store, revealed(block=10, reveal=95), head=99, finalized=96)
    assert not (await only(store)).provisional


async def test_a_reveal_that_came_in_another_block_of_the_winning_branch(store):
    await record(store, sealed(block=10), revealed(block=10, reveal=95, final=False), head=95, finalized=90)
    await record(store, sealed(block=10), head=98, finalized=96)
    assert (await only(store)).status is S.REVEALED, "the content of a final seal cannot change"
    await record(store, revealed(block=10, reveal=97), head=99, finalized=98)
    row = await only(store)
    assert (row.reveal_block, row.provisional) == (97, False)


@pytest.mark.parametrize("stage", [S.REVEALED, S.QUEUED, S.RUNNING, S.SCORED])
async def test_what_finality_does_not_show_is_withdrawn_at_any_stage(store, stage):
    id_ = await at_stage(store, stage, revealed(block=85, reveal=88, final=False))
    assert (await record(store, head=95, finalized=87)).withdrawn == (), "its reveal is not final yet"
    got = await record(store, head=95, finalized=88)
    assert got.withdrawn == (id_,)
    row = await only(store)
    assert (row.status, row.reason.code, row.provisional, row.score_mfu) == (S.REJECTED, 1008, False, None)
    assert await store.scored() == []


async def test_whoever_works_on_something_withdrawn_writes_nothing_and_is_told(store):
    id_ = await at_stage(store, S.RUNNING, revealed(block=85, reveal=88, final=False))
    await record(store, head=95, finalized=90)
    before = to_json(await store.submission(id_))
    assert await store.finish(id_, accepted()) is False
    assert await store.transition(id_, S.FAULTED, reason=reason("sandbox")) is False
    assert await store.save_source(id_, source()) is False
    assert await store.requeue(id_, reason("sandbox")) is None
    assert await store.begin_attempt(id_) is None
    assert await store.same_program(id_, "a", "b") == []
    assert to_json(await store.submission(id_)) == before


async def test_the_withdrawal_of_an_original_acquits_its_copies(store):
    original = await at_stage(store, S.QUEUED, revealed("5A", 95, reveal=98, final=False))
    copy = await at_stage(store, S.FETCHED, revealed("5B", 20))
    await store.transition(copy, S.REJECTED, reason=reason("copy", Stage.CHECK, measured=original))
    await record(store, revealed("5B", 20), head=105, finalized=99)
    assert await statuses(store) == {original: S.REJECTED, copy: S.REVEALED}


async def test_a_withdrawn_commitment_that_the_chain_shows_again_lives_again(store):
    row = revealed(block=85, reveal=88, final=False)
    await record(store, row, head=89, finalized=80)
    await record(store, head=95, finalized=90)
    got = await record(store, revealed(block=85, reveal=88), head=96, finalized=91)
    assert got.revealed == (row.submission_id,)
    assert ((await only(store)).status, (await only(store)).reason) == (S.REVEALED, None)


async def test_a_withdrawn_seal_lives_again_too(store):
    await record(store, sealed(block=85, final=False), head=86, finalized=80)
    await record(store, head=95, finalized=90)
    await record(store, sealed(block=85), head=96, finalized=91)
    assert ((await only(store)).status, (await only(store)).provisional) == (S.SEALED, False)


async def test_a_chain_reason_of_the_best_head_waits_for_finality(store):
    """Overwritten or deregistered on one branch may be neither on the other."""
    await record(store, sealed(block=10))
    await record(store, refused(block=10, name="overwritten", final=False))
    assert (await only(store)).status is S.SEALED
    await record(store, refused(block=10, name="overwritten"))
    assert (await only(store)).status is S.REJECTED


async def test_a_new_row_that_is_refused_at_the_best_head_may_turn_out_fine(store):
    await record(store, refused(block=95, reveal=96, name="not-registered", uid=None, final=False), head=97, finalized=90)
    assert (await only(store)).status is S.REJECTED
    await record(store, revealed(block=95, reveal=96), head=99, finalized=97)
    row = await only(store)
    assert (row.status, row.reason, row.uid, row.provisional) == (S.REVEALED, None, 1, False)


@pytest.mark.parametrize("why", [reason("hash-mismatch", Stage.FETCH), reason("rule", Stage.CHECK), reason("copy", Stage.CHECK), reason("fee-missing", Stage.CHAIN)])
async def test_what_was_rejected_for_its_file_before_finality_stays_rejected_at_finality(store, why):
    """Seen in the demo: everything was fetched and rejected twice, because finality revived it."""
    id_ = await at_stage(store, S.REVEALED, revealed(block=85, reveal=95, final=False))
    await store.transition(id_, S.REJECTED, reason=why)
    got = await record(store, revealed(block=85, reveal=95), head=99, finalized=96)
    assert (got.revealed, got.confirmed) == ((), (id_,))
    row = await only(store)
    assert (row.status, row.reason.code, row.provisional) == (S.REJECTED, why.code, False)
    assert len((await store.submission(id_)).transitions) == 2


async def test_a_withdrawn_submission_gives_its_receipt_back_even_a_spent_one(store):
    id_ = await at_stage(store, S.QUEUED, revealed(block=85, reveal=88, final=False))
    await store.claim_receipt(id_, "9-1")
    await store.begin_attempt(id_)
    await store.finish(id_, accepted())
    await record(store, head=95, finalized=88)
    assert await store.receipt_holder("9-1") is None


async def test_a_submission_that_the_chain_stops_before_it_ran_gives_its_receipt_back(store):
    id_ = await at_stage(store, S.QUEUED, revealed(block=10, reveal=30))
    await store.claim_receipt(id_, "9-1")
    await record(store, refused(block=10, reveal=30, name="not-registered", uid=None))
    assert await store.receipt_holder("9-1") is None


@pytest.mark.parametrize(("stage", "after"), [(S.QUEUED, S.REJECTED), (S.RUNNING, S.RUNNING), (S.SCORED, S.SCORED)])
async def test_deregistration_stops_what_waits_but_not_what_is_being_judged(store, stage, after):
    await at_stage(store, stage, revealed(block=10, reveal=30))
    await record(store, refused(block=10, reveal=30, name="not-registered", uid=None))
    row = await only(store)
    assert (row.status, row.uid) == (after, None)


@pytest.mark.parametrize("stage", [S.REVEALED, S.QUEUED, S.SCORED, S.REJECTED])
async def test_other_content_in_the_same_block_on_the_winning_branch_starts_the_row_over(store, stage):
    id_ = await at_stage(store, stage, revealed(block=85, reveal=95, final=False))
    await record(store, revealed(block=85, reveal=95, text="another"), head=99, finalized=96)
    row = await only(store)
    assert (row.id, row.status, row.provisional, row.score_mfu, row.attempts) == (id_, S.REVEALED, False, None, 0)
    assert row.sha256 == revealed(text="another").payload.sha256
    assert await store.source(id_) is None
    assert (await store.submission(id_)).verdict is None


async def test_a_final_content_is_never_replaced(store, caplog):
    id_ = await at_stage(store, S.SCORED, revealed(block=10))
    await record(store, revealed(block=10, text="a lying node"))
    assert (await store.submission(id_)).submission.status is S.SCORED
    assert "other content" in caplog.text


async def test_what_the_adapter_learns_after_a_restart(store):
    await record(store, sealed("5A", 10), revealed("5B", 11), revealed("5C", 40, reveal=40, exact=False), refused("5D", 12, name="overwritten"),
                 revealed("5E", 14, reveal=95, final=False))
    known = {row.hotkey: row for row in await store.commitments()}
    assert (known["5A"].state, known["5A"].reveal_round) == (S.SEALED, 1010)
    assert (known["5B"].state, known["5B"].commit_block, known["5B"].reveal_block, known["5B"].provisional) == (S.REVEALED, 11, 31, False)
    assert known["5B"].payload == revealed("5B", 11).payload
    assert not known["5C"].commit_block_exact
    assert known["5D"].state is S.REJECTED
    assert known["5E"].provisional


async def test_a_read_with_a_row_that_makes_no_sense_records_nothing_of_it(store):
    nonsense = type(sealed())(netuid=7, hotkey="5Z", uid=1, commit_block=5, state=S.QUEUED)
    with pytest.raises(StoreError, match="queued"):
        await record(store, sealed("5A", 4), nonsense)
    assert (await store.submissions()).items == ()
    assert await store.cursor() is None
    await record(store, sealed("5A", 4))
    assert (await only(store)).hotkey == "5A"
