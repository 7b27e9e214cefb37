"""What storage holds → commitments: every odd case on its own, without a chain."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crusades.chain_rows import HotkeyState, Live, Reveal, Sightings, decode_reveals, order, read_live, rows_of
from crusades.payload import compact, format_payload
from crusades.records import Commitment, Payload, Status

A, B = "5Alice", "5Bob"
GOOD = format_payload(Payload(sha256="ab" * 32, url="https://example.org/train.py"))


def rows(state, provisional=False):
    return rows_of(3, state, provisional=provisional)


def one(state):
    (row,) = rows(state)
    return row


def test_a_sealed_commitment_is_a_row_at_once_with_its_round():
    row = one(HotkeyState(A, uid=4, live=Live(block=100, rounds=(2000,))))
    assert (row.state, row.commit_block, row.commit_block_exact, row.reveal_round, row.uid) == (Status.SEALED, 100, True, 2000, 4)


def test_a_revealed_row_without_a_known_commit_block_says_so():
    row = one(HotkeyState(A, uid=4, reveals=(Reveal(GOOD, 120),)))
    assert (row.state, row.commit_block, row.commit_block_exact, row.reveal_block) == (Status.REVEALED, 120, False, 120)


def test_all_reveals_of_a_hotkey_are_rows_and_a_bad_one_hides_none():
    state = HotkeyState(A, uid=4, reveals=(Reveal(b"\xff\xfe", 10, 5), Reveal(GOOD, 20, 15), Reveal(b"{}", 30, 25)))
    assert [(r.commit_block, r.state, r.reason.code if r.reason else 0) for r in rows(state)] == [
        (5, Status.REJECTED, 1001), (15, Status.REVEALED, 0), (25, Status.REJECTED, 1001)]


def test_an_unregistered_hotkey_is_visible_and_rejected():
    row = one(HotkeyState(A, reveals=(Reveal(GOOD, 120, 100),)))
    assert (row.state, row.reason.code, row.uid) == (Status.REJECTED, 1006, None)


def test_commitments_of_an_earlier_registration_do_not_count():
    state = HotkeyState(A, uid=4, registered_block=110, reveals=(Reveal(GOOD, 120, 100), Reveal(GOOD, 140, 130)))
    assert [r.state for r in rows(state)] == [Status.REJECTED, Status.REVEALED]
    assert "registered anew at block 110" in rows(state)[0].reason.message


def test_an_unknown_commit_block_is_no_proof_of_an_earlier_registration():
    assert one(HotkeyState(A, uid=4, registered_block=125, reveals=(Reveal(GOOD, 120),))).state is Status.REVEALED


def test_a_failed_reveal_is_a_rejected_row():
    assert one(HotkeyState(A, uid=4, live=Live(block=100, failed=True))).reason.code == 1002


def test_a_payload_in_the_clear_is_rejected_and_a_strangers_one_is_nobodys_submission():
    assert "in the clear" in one(HotkeyState(A, uid=4, live=Live(block=9, clear=(GOOD,)))).reason.message
    assert rows(HotkeyState(A, uid=4, live=Live(block=9, clear=(b"10.0.0.1:80",)))) == []


def test_a_second_field_of_one_commitment_is_no_second_submission():
    state = HotkeyState(A, uid=4, reveals=(Reveal(GOOD, 120, 100), Reveal(b"{}", 121, 100)))
    assert one(state).state is Status.REVEALED


NEXT = HotkeyState(A, uid=4, reveals=(Reveal(GOOD, 120),), live=Live(block=120, rounds=(2000,)), last_commitment=120)
"""The next commitment came in the very block in which one was opened whose own block nobody knows."""


def test_an_opened_row_that_bears_the_block_of_its_reveal_hides_nothing_that_was_committed_there():
    assert [(r.state, r.commit_block, r.commit_block_exact) for r in rows(NEXT)] == [(Status.REVEALED, 120, False), (Status.SEALED, 120, True)]
    opened = replace(NEXT, live=None, reveals=(Reveal(GOOD, 120), Reveal(b"{}", 140, 120)))
    assert [(r.reveal_block, r.commit_block_exact) for r in rows(opened)] == [(120, False), (140, True)]


def test_such_a_row_says_nothing_about_the_seal_of_its_block():
    seen = Sightings()
    seen.gone(rows(NEXT), {A: NEXT}, block=120, final=True)
    assert (A, 120) in seen.sealed
    dropped = replace(NEXT, live=None)
    assert [r.reason.code for r in seen.gone(rows(dropped), {A: dropped}, block=130, final=True)] == [1002]


def test_a_damaged_value_is_a_row_of_its_own():
    assert "damaged" in one(HotkeyState(A, uid=4, last_commitment=7, damaged="its live commitment cannot be decoded: x")).reason.message


def test_rows_are_served_by_commit_block_then_uid_and_unregistered_last():
    made = [one(HotkeyState(h, uid=u, live=Live(block=b, rounds=(1,)))) for h, u, b in (("5c", None, 7), ("5a", 9, 7), ("5b", 2, 7), ("5d", 1, 9))]
    assert [r.hotkey for r in order(made)] == ["5b", "5a", "5c", "5d"]


# -- decoding


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 2**64 - 1)), max_size=10))
def test_reveals_decode_byte_for_byte(pairs):
    raw = compact(len(pairs)) + b"".join(compact(len(b)) + b + n.to_bytes(8, "little") for b, n in pairs)
    assert [(r.raw, r.block) for r in decode_reveals(raw)] == pairs
    for cut in range(len(raw)):
        with pytest.raises(ValueError):
            decode_reveals(raw[:cut])


def test_live_commitments_are_read_from_every_shape_of_the_codec():
    record = {"block": 12, "info": {"fields": [[{"TimelockEncrypted": {"encrypted": "0x00", "reveal_round": 9}}], {"Raw5": "0x6869"}, "None",
                                               {"FromTheFuture": 1}]}}
    assert read_live(record) == Live(block=12, rounds=(9,), clear=(b"hi",))


# -- what was seen before


def seal(block, hotkey=A):
    return one(HotkeyState(hotkey, uid=4, live=Live(block=block, rounds=(1000,))))


def after(state, *, block, final=True, known=(100,)):
    """The lost rows at `block`, having seen the seals `known`."""
    seen = Sightings()
    seen.gone([seal(b) for b in known], {}, block=max(known), final=False)
    return seen, seen.gone(rows(state), {state.hotkey: state}, block=block, final=final)


def test_an_overwritten_seal_is_rejected_with_the_block_of_its_successor():
    _, lost = after(HotkeyState(A, uid=4, live=Live(block=110, rounds=(1,)), last_commitment=110), block=110)
    assert [(r.commit_block, r.reason.code) for r in lost] == [(100, 1003)]
    assert "block 110" in lost[0].reason.message


def test_a_seal_that_the_chain_dropped_unopened_has_failed():
    _, lost = after(HotkeyState(A, uid=4, last_commitment=100), block=130)
    assert [r.reason.code for r in lost] == [1002]


def test_a_seal_that_no_finalised_block_knows_is_withdrawn_but_not_before_finality():
    state = HotkeyState(A, uid=4, last_commitment=50)
    _, early = after(state, block=130, final=False)
    seen, late = after(state, block=130, final=True)
    assert early == []
    assert [r.reason.code for r in late] == [1008]
    assert not seen.sealed


@pytest.mark.parametrize("last", [None, 100, 110])
def test_a_damaged_value_condemns_no_seal_that_was_good(last):
    seen, lost = after(HotkeyState(A, uid=4, last_commitment=last, damaged="its live commitment cannot be decoded"), block=130, final=True)
    assert lost == []
    assert (A, 100) in seen.sealed


def test_an_older_block_says_nothing_about_a_newer_seal():
    seen, lost = after(HotkeyState(A, uid=4), block=99)
    assert lost == []
    assert (A, 100) in seen.sealed


def test_an_opened_seal_is_not_lost_and_lends_its_commit_block_where_the_chain_forgot():
    seen = Sightings()
    seen.gone([seal(100)], {}, block=100, final=True)
    state = HotkeyState(A, uid=4, reveals=(Reveal(GOOD, 120),), last_commitment=100)
    seen.remember(A, state.reveals[0], None, final=True)
    state = seen.with_commit_blocks(state, final=True)
    assert one(state).commit_block == 100
    assert seen.gone(rows(state), {A: state}, block=120, final=True) == []
    assert not seen.sealed


def test_what_the_best_head_said_is_asked_again_at_finality():
    seen, state = Sightings(), HotkeyState(A, uid=4, reveals=(Reveal(GOOD, 120),))
    seen.remember(A, state.reveals[0], 99, final=False)
    assert not seen.unknown(state, final=False)
    assert seen.unknown(state, final=True)
    assert seen.with_commit_blocks(state, final=True).reveals[0].commit_block is None


def test_after_a_restart_the_stores_rows_keep_a_submissions_name():
    before = one(HotkeyState(A, uid=4, reveals=(Reveal(GOOD, 120, 100),)))
    seen = Sightings()
    seen.learn([before, seal(200, B)])
    state = HotkeyState(A, uid=4, reveals=(Reveal(GOOD, 120),))
    assert not seen.unknown(state, final=True)
    assert one(seen.with_commit_blocks(state, final=True)).submission_id == before.submission_id
    assert (B, 200) in seen.sealed


def test_every_row_is_a_commitment_that_survives_json():
    import msgspec

    for row in rows(HotkeyState(A, uid=4, reveals=(Reveal(b"\xff", 1, 0), Reveal(GOOD, 3, 2)))):
        assert msgspec.json.decode(msgspec.json.encode(row), type=Commitment) == row
