"""The fetcher against real servers on loopback, found through a resolver that says what the test wants."""

import functools
import gzip
import hashlib
import json
import ssl
import zlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from crusades import addresses, faults, fetch, hparams
from crusades.errors import FetchFault
from crusades.records import Payload, Reason, Source

TRAIN = b"def inner_steps(model, data_iterator, optimizer, num_steps, device):\n    return None\n"
OPEN = hparams.Fetch(allow_loopback=True, max_bytes=1000)
CERTIFICATE = Path(__file__).parent / "data" / "files.example.pem"


def answer(body=TRAIN, status=200, **headers) -> bytes:
    fields = {"Content-Length": str(len(body)), "Content-Type": "text/plain", **{k.replace("_", "-"): v for k, v in headers.items()}}
    return f"HTTP/1.1 {status} X\r\n".encode() + b"".join(f"{k}: {v}\r\n".encode() for k, v in fields.items()) + b"\r\n" + body


class Host:
    """One listening server; `requests` holds the heads that it was sent."""

    def __init__(self, reply: bytes | Callable[[str], bytes | Awaitable[bytes]]) -> None:
        self.reply, self.requests, self.port, self.hold = reply, [], 0, False

    async def serve(self, stream: trio.abc.Stream) -> None:
        head = b""
        try:
            while b"\r\n\r\n" not in head:
                if not (chunk := await stream.receive_some(4096)):
                    return
                head += chunk
            self.requests.append(head.decode())
            await stream.send_all(self.reply if isinstance(self.reply, bytes) else self.reply(head.decode()))
            if self.hold:
                await trio.sleep_forever()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the fetcher hung up, as it may
        finally:
            with trio.move_on_after(1, shield=True):
                await stream.aclose()


@asynccontextmanager
async def single_errors():
    """A nursery wraps what the test's own body raises; the tests want it bare."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


@asynccontextmanager
async def hosted(reply, *, address="127.0.0.1", port=0, tls=None):
    host = Host(reply)
    async with single_errors(), trio.open_nursery() as nursery:
        listen = functools.partial(trio.serve_ssl_over_tcp, ssl_context=tls, https_compatible=True) if tls else trio.serve_tcp
        listeners = await nursery.start(functools.partial(listen, host.serve, port, host=address))
        transport = getattr(listeners[0], "transport_listener", listeners[0])
        host.port = transport.socket.getsockname()[1]
        yield host
        nursery.cancel_scope.cancel()


def names(**table):
    """A resolver that knows `table` and counts how often it was asked."""
    asked = []

    async def resolve(host, port):
        asked.append(host)
        if host not in table:
            raise FetchFault(f"no such name {host}")
        return table[host]

    resolve.asked = asked
    return resolve


def payload(url, content=TRAIN, digits=64):
    return Payload(sha256=hashlib.sha256(content).hexdigest()[:digits], url=url)


async def get(url, settings=OPEN, resolve=None, content=TRAIN, digits=64):
    return await fetch.fetch(payload(url, content, digits), settings, resolve=resolve or names(host=("127.0.0.1",)))


async def served(reply, settings=OPEN, content=TRAIN):
    """What the fetcher makes of one reply."""
    async with hosted(reply) as host:
        return await get(f"http://host:{host.port}/train.py", settings, content=content)


def name_of(reason) -> str:
    assert isinstance(reason, Reason), reason
    return faults.FAULTS[reason.code].name


# ------------------------------------------------------------------------------------------------ the good way


@pytest.mark.parametrize("digits", [64, 32])
async def test_a_file_whose_hash_was_committed_becomes_a_source(digits):
    async with hosted(answer()) as host:
        got = await get(f"http://host:{host.port}/train.py#L1", digits=digits)
    assert isinstance(got, Source)
    assert (got.content, got.sha256) == (TRAIN, hashlib.sha256(TRAIN).hexdigest())
    assert got.url == f"http://host:{host.port}/train.py"


async def test_preview_needs_no_hash():
    async with hosted(answer()) as host:
        got = await fetch.preview(f"http://host:{host.port}/", OPEN, resolve=names(host=("127.0.0.1",)))
    assert isinstance(got, Source)


@pytest.mark.parametrize(
    ("page", "raw"),
    [
        ("https://gist.github.com/user/abc123", "https://gist.githubusercontent.com/user/abc123/raw"),
        ("https://gist.github.com/user/abc123#file-train-py", "https://gist.githubusercontent.com/user/abc123/raw"),
        ("https://gist.github.com/user/abc123/0f0f", "https://gist.githubusercontent.com/user/abc123/raw/0f0f"),
        ("https://gist.github.com/user/abc123/raw/0f0f/train.py", "https://gist.githubusercontent.com/user/abc123/raw/0f0f/train.py"),
        ("https://github.com/o/r/blob/main/a/train.py#L3", "https://raw.githubusercontent.com/o/r/main/a/train.py"),
        ("https://github.com/o/r/raw/refs/heads/main/train.py", "https://raw.githubusercontent.com/o/r/refs/heads/main/train.py"),
        ("https://example.org/train.py?v=2", "https://example.org/train.py?v=2"),
    ],
)
def test_pages_that_show_a_file_are_mapped_to_the_file(page, raw):
    assert fetch.raw_url(page) == raw


# ------------------------------------------------------------------------------------------------ addresses

PUBLIC = ["1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.255.255", "100.128.0.0", "2606:4700::1111", "2a00:1450::1"]
CLOSED = [
    "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:db8::1", "2002:7f00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%lo", "2606::1%eth0", "fec0::1", "ff02::1", "4000::1", "nonsense",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_open(address):
    assert addresses.refusal(address) == ""


@pytest.mark.parametrize("address", CLOSED)
def test_every_address_that_is_not_public_is_closed(address):
    assert addresses.refusal(address) != ""


@pytest.mark.parametrize("address", [a for a in CLOSED if a not in ("127.0.0.1", "127.9.9.9", "::1")])
def test_allow_loopback_opens_loopback_and_nothing_else(address):
    assert addresses.refusal(address, allow_loopback=True) != ""
    assert addresses.refusal("127.0.0.1", allow_loopback=True) == addresses.refusal("::1", allow_loopback=True) == ""


async def test_loopback_is_refused_where_the_settings_do_not_allow_it():
    async with hosted(answer()) as host:
        got = await get(f"http://host:{host.port}/", msgspec.structs.replace(OPEN, allow_loopback=False))
    assert name_of(got) == "url-refused"
    assert "loopback" in got.message
    assert host.requests == []


async def test_one_bad_address_among_good_ones_condemns_the_name():
    got = await get("http://host/", resolve=names(host=("1.1.1.1", "10.0.0.1")))
    assert name_of(got) == "url-refused"
    assert "10.0.0.1" in got.message


@pytest.mark.parametrize("url", ["http://2130706433/", "http://0x7f.1/", "http://[::ffff:127.0.0.1]/", "http://[::1]/", "http://localhost/"])
async def test_spellings_of_loopback_do_not_get_past_the_real_resolver(url):
    got = await get(url, msgspec.structs.replace(OPEN, allow_loopback=False), resolve=fetch.resolve_host)
    assert name_of(got) == "url-refused"


async def test_the_connection_goes_to_the_address_that_was_checked_and_the_name_is_asked_once():
    async with hosted(answer(b"wrong host"), address="127.0.0.1") as decoy, hosted(answer(), address="127.0.0.9", port=decoy.port) as right:
        resolve = names(localhost=("127.0.0.9",))  # the system would say 127.0.0.1
        got = await get(f"http://localhost:{right.port}/", resolve=resolve)
    assert isinstance(got, Source)
    assert resolve.asked == ["localhost"]
    assert decoy.requests == []
    assert f"Host: localhost:{right.port}" in right.requests[0]


async def test_the_next_address_is_tried_when_the_first_does_not_answer():
    async with hosted(answer(), address="127.0.0.9") as host:
        got = await get(f"http://host:{host.port}/", resolve=names(host=("127.0.0.8", "127.0.0.9")))
    assert isinstance(got, Source)


async def test_tls_checks_the_certificate_of_the_name_not_of_the_address(monkeypatch):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(CERTIFICATE)
    seen = []
    server.sni_callback = lambda _, name, __: seen.append(name)
    client = ssl.create_default_context(cafile=str(CERTIFICATE))
    monkeypatch.setattr(fetch, "tls_context", lambda: client)
    table = {"files.example": ("127.0.0.1",), "other.example": ("127.0.0.1",)}
    async with hosted(answer(), tls=server) as host:
        assert isinstance(await get(f"https://files.example:{host.port}/", resolve=names(**table)), Source)
        with pytest.raises(FetchFault, match="certificate"):
            await get(f"https://other.example:{host.port}/", resolve=names(**table))
    assert seen == ["files.example", "other.example"]


# ------------------------------------------------------------------------------------------------ URLs and hops


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "host/train.py", "http:///x", "http://user:pw@host/x", "http://h" + "a" * 3000, "http://[bad/"])
async def test_urls_nobody_may_open_are_refused_before_anything_is_asked(url):
    resolve = names()
    assert name_of(await get(url, resolve=resolve)) == "url-refused"
    assert resolve.asked == []


def hops(count):
    """A host that redirects `count` times, then serves the file."""

    def reply(head):
        at = int(head.split()[1].strip("/") or 0)
        return answer() if at == count else answer(b"", 302, Location=f"/{at + 1}", Set_Cookie="a=b")

    return reply


async def test_three_redirects_are_followed_and_every_hop_is_resolved_and_checked():
    resolve = names(host=("127.0.0.1",))
    async with hosted(hops(3)) as host:
        got = await get(f"http://host:{host.port}/", resolve=resolve)
    assert isinstance(got, Source)
    assert got.url.endswith("/3")
    assert resolve.asked == ["host"] * 4


async def test_the_fourth_redirect_is_one_too_many():
    async with hosted(hops(4)) as host:
        got = await get(f"http://host:{host.port}/")
    assert name_of(got) == "url-refused"
    assert "3" in got.message


@pytest.mark.parametrize("where", ["http://inside/secret", "file:///etc/passwd", "http://a:b@host/", "//inside/x"])
async def test_a_redirect_is_checked_like_the_first_url(where):
    async with hosted(answer(b"", 302, Location=where)) as host:
        got = await get(f"http://host:{host.port}/", resolve=names(host=("127.0.0.1",), inside=("169.254.169.254",)))
    assert name_of(got) == "url-refused"


async def test_no_cookies_no_credentials_no_proxy_and_no_compression_are_offered(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with hosted(hops(1)) as host:
        assert isinstance(await get(f"http://host:{host.port}/"), Source)
    for head in host.requests:
        lines = head.lower().split("\r\n")
        assert "accept-encoding: identity" in lines
        assert not [line for line in lines if line.startswith(("cookie", "authorization", "referer"))]


# ------------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"\n<!DOCTYPE html><html><body>gist</body></html>", "raw file"),
        (b"<html>", "raw file"),
        (json.dumps({"files": {"train.py": {"raw_url": "https://x"}}}).encode(), "raw_url"),
        (b"def f():\n    return '\xe9'\n", "UTF-8"),
        ("\ufeffx = 1".encode("utf-16-le"), "UTF-16"),
        (b"x = 1\0", "NUL"),
    ],
)
async def test_what_is_not_source_gets_a_reason_that_says_what_to_host(body, words):
    got = await served(answer(body), content=body)
    assert name_of(got) == "not-source"
    assert words in got.message


async def test_a_python_file_that_starts_with_a_brace_is_source():
    body = b"{'a': 1}\ndef inner_steps(): ...\n"
    assert isinstance(await served(answer(body), content=body), Source)


async def test_another_file_than_the_committed_one_is_a_hash_mismatch():
    got = await served(answer(TRAIN + b"# edited\n"))
    assert name_of(got) == "hash-mismatch"
    assert (got.measured, got.limit) == (hashlib.sha256(TRAIN + b"# edited\n").hexdigest(), hashlib.sha256(TRAIN).hexdigest())


async def test_a_short_or_empty_hash_never_matches():
    async with hosted(answer()) as host:
        for sha in ("", hashlib.sha256(TRAIN).hexdigest()[:8]):
            got = await fetch.fetch(Payload(sha256=sha, url=f"http://host:{host.port}/"), OPEN, resolve=names(host=("127.0.0.1",)))
            assert name_of(got) == "hash-mismatch"


async def test_a_body_of_exactly_the_cap_passes_and_one_byte_more_does_not():
    assert isinstance(await served(answer(b"#" * 1000), content=b"#" * 1000), Source)
    assert name_of(await served(answer(b"#" * 1001))) == "too-large"


async def test_the_cap_counts_while_streaming_whatever_the_header_says():
    endless = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"#" * 1024 + b"\r\n"
    async with hosted(endless) as host:
        host.hold = True  # the body never ends
        assert name_of(await get(f"http://host:{host.port}/")) == "too-large"


@pytest.mark.parametrize("squeeze", [gzip.compress, zlib.compress])
async def test_a_compressed_body_is_inflated(squeeze):
    encoding = "gzip" if squeeze is gzip.compress else "deflate"
    assert isinstance(await served(answer(squeeze(TRAIN), Content_Encoding=encoding)), Source)


async def test_a_decompression_bomb_costs_the_cap_and_no_more():
    bomb = gzip.compress(b"\0" * 500_000)
    assert len(bomb) < 1000
    inflater = fetch._Inflater("gzip", 1000)
    with pytest.raises(fetch._TooLarge):
        inflater.feed(bomb)
    assert len(inflater.body) == 1001
    assert name_of(await served(answer(bomb, Content_Encoding="gzip"))) == "too-large"


async def test_a_body_that_is_not_what_its_encoding_says_is_not_source():
    assert name_of(await served(answer(Content_Encoding="gzip"))) == "not-source"
    assert name_of(await served(answer(Content_Encoding="br"))) == "not-source"


# ------------------------------------------------------------------------------------------------ whose fault


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
async def test_a_file_that_is_not_there_is_the_submissions_own_failure(status):
    got = await served(answer(b"no", status))
    assert name_of(got) == "not-found"
    assert str(status) in got.message


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
async def test_a_host_in_trouble_is_the_outsides_fault(status):
    with pytest.raises(FetchFault, match=str(status)):
        await served(answer(b"no", status))


@pytest.mark.parametrize("status", [204, 206, 304, 302])
async def test_an_answer_without_a_file_is_not_source(status):
    assert name_of(await served(answer(b"", status))) == "not-source"


async def test_an_unknown_name_is_the_outsides_fault():
    with pytest.raises(FetchFault, match="nowhere"):
        await get("http://nowhere/")


async def test_the_real_resolver_reports_an_unknown_name_as_a_fault():
    with pytest.raises(FetchFault, match="resolved"):
        await fetch.resolve_host("does-not-exist.invalid", 80)


async def test_a_refused_connection_is_the_outsides_fault():
    async with hosted(answer()) as host:
        pass
    with pytest.raises(FetchFault, match="ConnectError"):
        await get(f"http://host:{host.port}/")


async def test_a_connection_that_breaks_in_the_middle_is_the_outsides_fault():
    cut = answer()[:-10]
    with pytest.raises(FetchFault, match="could not be asked"):
        await served(cut)


async def test_garbage_instead_of_http_is_the_outsides_fault():
    with pytest.raises(FetchFault, match="could not be asked"):
        await served(b"SSH-2.0-OpenSSH\r\n\r\n")


async def test_a_resolver_that_never_answers_ends_with_the_total_deadline(autojump_clock):
    async def silent(host, port):
        await trio.sleep_forever()

    started = trio.current_time()
    with pytest.raises(FetchFault, match="longer than 30 s"):
        await get("http://host/", resolve=silent)
    assert trio.current_time() - started == 30.0


def test_a_host_that_stops_sending_ends_with_the_total_deadline():
    async def main():
        async with hosted(answer()[:-5]) as host:
            host.hold = True
            with pytest.raises(FetchFault):
                await get(f"http://host:{host.port}/")
            assert trio.current_time() <= 31.0

    trio.run(main, clock=MockClock(autojump_threshold=0.05))  # real sockets need a moment that autojump must not skip
