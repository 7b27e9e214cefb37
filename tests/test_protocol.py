"""Frames: what is written is read, what is malformed is refused before it costs anything."""

import json

import pytest

from crusades.bench import protocol as p
from crusades.errors import ProtocolError

CAPS = {"header_cap": p.CONTESTANT_HEADER_CAP, "payload_cap": p.CONTESTANT_PAYLOAD_CAP}


def split(raw):
    header, payload = p.decode_prefix(raw[: p.PREFIX.size], **CAPS)
    return raw[p.PREFIX.size : p.PREFIX.size + header], raw[p.PREFIX.size + header :], payload


def test_a_frame_comes_back_as_it_went():
    header, payload, size = split(p.encode(p.Next(step=3), b"abc"))
    assert p.decode_header(p.claims, header) == p.Next(step=3)
    assert (payload, size) == (b"abc", 3)


@pytest.mark.parametrize(("header", "payload"), [(0, 0), (p.CONTESTANT_HEADER_CAP + 1, 0), (10, p.CONTESTANT_PAYLOAD_CAP + 1), (2**32 - 1, 2**32 - 1)])
def test_sizes_beyond_the_caps_are_refused_from_the_prefix_alone(header, payload):
    with pytest.raises(ProtocolError, match="allowed"):
        p.decode_prefix(p.PREFIX.pack(header, payload), **CAPS)


@pytest.mark.parametrize("header", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"t":"nonsense"}', b'{"t":"next"}', b'{"t":"next","step":"1"}', b'{"t":"next","step":1,"more":2}',
    b'{"t":"done","run":0,"claimed_ns":NaN}', b'{"t":"go","run":0}', b"[" * 60_000,
    b'{"x":' + b"[" * 2000, b'{"x":' + b"[" * 30_000, b'{"x":' + b"[" * 2000 + b"]" * 2000 + b',"t":"next","step":1}', b'{"x":' + b'{"y":' * 10_000,
])  # fmt: skip
def test_a_malformed_or_foreign_header_is_a_protocol_error(header):
    with pytest.raises(ProtocolError, match="cannot be read"):
        p.decode_header(p.claims, header)


DONE = {"t": "done", "run": 0, "claimed_ns": 1, "final_loss": 1.0, "total_tokens": 5, "logits_shape": [1], "batches": 5}


@pytest.mark.parametrize("name", ["run", "claimed_ns", "total_tokens", "batches"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 2**64])
def test_a_number_that_no_float_holds_is_malformed(name, value):
    """The referee divides and stores these: an overflow there would be a fault of ours."""
    with pytest.raises(ProtocolError, match="cannot be read"):
        p.decode_header(p.claims, json.dumps(DONE | {name: value}).encode())


@pytest.mark.parametrize("value", [10**400, 2**64])
def test_a_peak_that_no_float_holds_is_malformed(value):
    assert p.decode_header(p.claims, b'{"t":"logits","peak_memory":1}') == p.Logits(peak_memory=1)
    with pytest.raises(ProtocolError, match="cannot be read"):
        p.decode_header(p.claims, json.dumps({"t": "logits", "peak_memory": value}).encode())


def test_a_shape_of_many_dimensions_is_malformed():
    p.decode_header(p.claims, json.dumps(DONE).encode())
    with pytest.raises(ProtocolError, match="cannot be read"):
        p.decode_header(p.claims, json.dumps(DONE | {"logits_shape": [1] * 10_000}).encode())


def test_a_contestant_cannot_speak_as_the_referee():
    with pytest.raises(ProtocolError):
        p.decode_header(p.claims, json.dumps({"t": "ran"}).encode())


def test_the_inside_writes_the_same_frames():
    import socket

    from crusades.bench.inside.wire import Channel

    ours, theirs = socket.socketpair()
    with ours:
        Channel(theirs.detach()).send("next", b"xyz", step=7)
        header, payload, _ = split(ours.recv(1000))
    assert p.decode_header(p.claims, header) == p.Next(step=7)
    assert payload == b"xyz"
