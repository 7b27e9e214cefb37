"""Payloads: everything that can be committed becomes a Payload or a reason in words."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from crusades.payload import (
    FOREIGN,
    MALFORMED,
    MAX_PLAINTEXT,
    compact,
    format_payload,
    parse_payload,
    read_compact,
    round_at,
    round_time,
    show_raw,
    strip_prefix,
    url_problem,
)
from crusades.records import Payload, Reason

HASH = "0123456789abcdef" * 4
OLD = HASH[:32]
URL = "https://example.org/u/train.py"

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
urls = st.builds(
    lambda scheme, host, path: f"{scheme}://{host}/{path}",
    st.sampled_from(["http", "https"]), st.sampled_from(["example.org", "127.0.0.1:8000", "[::1]:80", "gist.example"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=("C", "Z")), max_size=120))
receipts = st.none() | st.builds(lambda b, i: f"{b}-{i}", st.integers(0, 10**9), st.integers(0, 99_999))


@given(hashes | st.text("0123456789abcdef", min_size=32, max_size=32), urls, receipts)
def test_what_is_formatted_parses_back_with_and_without_prefix(digest, url, receipt):
    assume(url_problem(url) is None)  # NFKC may turn a harmless character into one that ends the host
    payload = Payload(sha256=digest, url=url, receipt=receipt)
    raw = format_payload(payload)
    assert parse_payload(raw) == payload
    assert parse_payload(strip_prefix(raw)) == payload


@given(st.binary(max_size=200) | st.builds(lambda head, tail: head + tail, st.sampled_from(
    [b"c1:", b"c1:" + HASH.encode() + b":", OLD.encode() + b":", compact(80) + b"c1:", b"\xff", b"{", b"v4|"]), st.binary(max_size=120)))
@example(b"")
@example(b"\x00")
@example(b"\x03\xff\xff\xff\xff")
@example(b"c1:" + HASH.encode() + b":http://[")
@example(b"c1:" + HASH.encode() + b":http://a:999999/")
def test_any_bytes_become_a_payload_or_a_reason_in_words(raw):
    parsed = parse_payload(raw)
    shown = show_raw(raw)
    assert shown.isprintable() or shown == ""
    assert len(shown) <= 1024
    if isinstance(parsed, Reason):
        assert parsed.code == 1001
        assert parsed.rule in (FOREIGN, MALFORMED)
        assert parsed.message.endswith(".")
    else:
        assert parsed.url.lower().startswith(("http://", "https://"))
        assert len(parsed.sha256) in (32, 64)


@pytest.mark.parametrize(("text", "words"), [
    (f"C1:{HASH}:{URL}", "lower-case"),
    (f"c2:{HASH}:{URL}", "version c2"),
    (f"c1:{HASH[:63]}:{URL}", "63 characters"),
    (f"c1:{HASH[:63]}g:{URL}", "'g'"),
    (f"c1:{HASH}", "URL is missing"),
    (f"c1:{HASH}:", "URL is missing"),
    (f"c1:{HASH}:12:{URL}", "no fee receipt"),
    (f"c1:{HASH}:ftp://example.org/x", "no http or https"),
    (f"c1:{HASH}:https:///x", "names no host"),
    (f"c1:{HASH}:https://example.org/a b", "space"),
    (f"{OLD}:", "URL is missing"),
    (f"{HASH[:40]}:{URL}", "40 hex digits"),
])
def test_a_broken_payload_of_ours_says_what_is_wrong(text, words):
    reason = parse_payload(text.encode())
    assert isinstance(reason, Reason)
    assert reason.rule == MALFORMED
    assert words in reason.message


@pytest.mark.parametrize(("raw", "words"), [
    (b"", "empty"), (b'{"model": 1}', "JSON"), (b"https://example.org", "a bare URL"), (b"user/repo@main", "repository"),
    (b"v4|user/repo|sha256:00|5F", "fields with |"), (b"\xff\xfe\x00\x01", "not UTF-8"), (b"10.0.0.1 8091", "the text"),
])
def test_payloads_of_other_programs_are_recognised_as_such(raw, words):
    for body in (raw, compact(len(raw)) + raw):
        reason = parse_payload(body)
        assert isinstance(reason, Reason)
        assert reason.rule == FOREIGN
    assert words in parse_payload(raw).message


def test_a_wrong_length_prefix_is_named():
    body = f"c1:{HASH}:{URL}".encode()
    reason = parse_payload(compact(len(body) + 9) + body)
    assert isinstance(reason, Reason)
    assert f"{len(body) + 9:,} bytes, but {len(body)} follow" in reason.message


def test_the_older_form_with_its_receipt_is_read():
    assert parse_payload(f"{OLD.upper()}:812:3:{URL}".encode()) == Payload(sha256=OLD, url=URL, receipt="812-3")
    assert parse_payload(f"{OLD}:{URL}".encode()) == Payload(sha256=OLD, url=URL)


@pytest.mark.parametrize("first", "c0123456789abcdef")
@given(rest=st.text("0123456789abcdef:/.cht", min_size=33, max_size=900))
def test_text_is_never_taken_for_a_length_prefix(first, rest):
    raw = (first + rest).encode()
    assert strip_prefix(raw) == raw


def test_a_payload_that_does_not_fit_a_sealed_field_is_refused_before_it_is_sealed():
    room = MAX_PLAINTEXT - len(compact(500)) - len(f"c1:{HASH}:https://example.org/")
    fits = Payload(sha256=HASH, url="https://example.org/" + "x" * room)
    assert len(format_payload(fits)) == MAX_PLAINTEXT
    with pytest.raises(ValueError, match="shorter URL"):
        format_payload(Payload(sha256=HASH, url=fits.url + "x"))


@given(st.integers(0, (1 << 30) - 1))
def test_compact_lengths_round_trip(number):
    assert read_compact(compact(number)) == (number, len(compact(number)))


@given(st.integers(1, 10**8), st.floats(0.0, 2.999))
def test_the_round_for_a_moment_is_published_then_or_at_most_three_seconds_later(number, late):
    assert round_at(round_time(number)) == number
    assert 0 <= round_time(round_at(round_time(number) + late)) - (round_time(number) + late) < 3.0
