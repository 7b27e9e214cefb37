"""Commitment → Source: download a stranger's file from a stranger's host without being used as a tool.

What is guarded, and how:

* *Where we connect.* On every hop the host is resolved once, every address it has is checked (`addresses.py`),
  and the connection goes to an address that was checked. A name that resolves differently a moment later (DNS
  rebinding) changes nothing, because nobody asks again. TLS and the Host header keep the name.
* *How much we read.* Bytes are counted while they stream, after decompression; a compressed body is inflated in steps
  that cannot pass the cap, so a bomb costs the cap and no more.
* *How long.* One deadline for all hops together, a shorter one per connection.
* *What we say about ourselves.* No cookies, no credentials, no proxy from the environment.

A submission's own failure is returned as a `Reason`; what the outside world did to us (DNS, refused connection, 5xx,
429, time-outs) is raised as `FetchFault` and is worth another try.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpcore
import httpx
import trio

from crusades import __version__, faults
from crusades.addresses import refusal
from crusades.errors import FetchFault
from crusades.hparams import Fetch
from crusades.records import Payload, Reason, Source, Stage

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) → addresses as text. Raises FetchFault when the name cannot be resolved."""

URL_CAP = 2048
"""Characters of a URL; the chain's own limit is lower."""

_HOST = re.compile(rb"[A-Za-z0-9._:-]+")
"""A name in its ASCII (IDNA) form, or an address; what is asked of DNS is this form, not the one that people see."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})
"""Client errors that mean "later", not "never"."""

async def resolve_host(host: str, port: int) -> tuple[str, ...]:
    """Every IPv4 and IPv6 address of `host`, without repetition, in the system's order of preference."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except OSError as error:  # gaierror is one
        raise FetchFault(f"the name {host} cannot be resolved: {error.strerror or error}") from error
    except UnicodeError as error:
        raise FetchFault(f"the name {host} cannot be resolved: {error}") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


# ------------------------------------------------------------------------------------------------ URLs


def raw_url(url: str) -> str:
    """The address of the file itself where `url` is a GitHub or gist page that shows it; else `url` without fragment."""
    parsed = httpx.URL(url).copy_with(fragment=None)
    parts = [part for part in parsed.path.split("/") if part]
    host = parsed.host.lower()
    if host == "gist.github.com" and len(parts) >= 2:
        user, gist, *rest = parts
        rest = rest[1:] if rest[:1] == ["raw"] else rest
        return _https("gist.githubusercontent.com", [user, gist, "raw", *rest])
    if host in ("github.com", "www.github.com") and len(parts) >= 5 and parts[2] in ("blob", "raw"):
        return _https("raw.githubusercontent.com", [*parts[:2], *parts[3:]])
    return str(parsed)


def _https(host: str, parts: Iterable[str]) -> str:
    return str(httpx.URL(scheme="https", host=host, path="/" + "/".join(parts)))


def _reason(name: str, message: str, **extra: Any) -> Reason:
    return Reason(code=faults.fault(name).code, stage=Stage.FETCH, message=message, hint=extra.pop("hint", faults.fault(name).advice), **extra)


def _parse(url: str) -> httpx.URL | Reason:
    """The URL, or why nobody may be sent there. Says nothing about its addresses."""
    if len(url) > URL_CAP:
        return _reason("url-refused", f"the URL has {len(url)} characters", measured=float(len(url)), limit=float(URL_CAP))
    try:
        parsed = httpx.URL(raw_url(url))
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        return _reason("url-refused", f"{url[:200]!r} is not a URL: {error}")
    if parsed.scheme not in ("http", "https"):
        return _reason("url-refused", f"the URL must start with https:// or http://, not with {parsed.scheme or 'nothing'}")
    if not _HOST.fullmatch(parsed.raw_host):
        return _reason("url-refused", f"the URL {url[:200]!r} names no host")
    if parsed.userinfo:
        return _reason("url-refused", "the URL carries a user name or password; the file must open without a login")
    return parsed


# ------------------------------------------------------------------------------------------------ one connection


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to addresses that were checked, whatever name httpcore asks for."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses, self._real = addresses, httpcore.TrioBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        """The first address that answers."""
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self._addresses:
            try:
                return await self._real.connect_tcp(address, port, timeout=timeout, socket_options=socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _Body(httpx.AsyncByteStream):
    """httpcore's stream under httpx's name."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class PinnedTransport(httpx.AsyncBaseTransport):
    """httpx's way to the network, through `PinnedBackend`. No proxy, no HTTP/2, no retry, one connection."""

    def __init__(self, addresses: Sequence[str], context: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(ssl_context=context, max_connections=1, network_backend=PinnedBackend(addresses))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange; errors stay httpcore's and are translated by `_hop`."""
        url = request.url
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        answer = await self._pool.handle_async_request(
            httpcore.Request(method=request.method, url=target, headers=request.headers.raw, extensions=request.extensions)
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._pool.aclose()


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Certificates are checked. Made once: reading the certificate store takes tens of milliseconds."""
    return httpx.create_ssl_context()


# ------------------------------------------------------------------------------------------------ bodies


class _TooLarge(Exception):
    """The body passed the cap."""


class _Inflater:
    """Undoes gzip or deflate without ever making more than `cap` + 1 bytes."""

    def __init__(self, encoding: str, cap: int) -> None:
        self._zlib = zlib.decompressobj(wbits=47) if encoding else None  # 47 = 32 + 15: gzip or zlib, told by the header
        self._raw, self._cap, self.body = 0, cap, bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take a chunk off the wire. Raises _TooLarge past the cap and zlib.error for garbage."""
        self._raw += len(chunk)
        room = self._cap + 1 - len(self.body)
        self.body += self._zlib.decompress(chunk, room) if self._zlib else chunk
        if len(self.body) > self._cap or self._raw > self._cap + 1024:  # a gzip header may make small bodies larger
            raise _TooLarge

    @property
    def complete(self) -> bool:
        """Whether the compressed stream has come to its end."""
        return self._zlib is None or self._zlib.eof


async def _read(response: httpx.Response, cap: int) -> bytes | Reason:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        return _reason("not-source", f"the host sends the file with Content-Encoding {encoding[:40]!r}", hint="serve the file as it is, uncompressed")
    inflater = _Inflater("" if encoding == "identity" else encoding, cap)
    try:
        async for chunk in response.aiter_raw():
            inflater.feed(chunk)
    except _TooLarge:
        return _reason("too-large", f"the file is larger than {cap:,} bytes", measured=f"more than {cap}", limit=float(cap))
    except zlib.error as error:
        return _reason("not-source", f"the body is not the {encoding} that its header promises ({error})", hint="serve the file as it is, uncompressed")
    if not inflater.complete:
        raise FetchFault("the compressed body was cut short")
    return bytes(inflater.body)


def _not_source(body: bytes) -> str:
    """What the body is instead of Python source, with what to host; empty when it may be source."""
    start = body.lstrip()[:512].lower()
    if not start:
        return "the file is empty; host the train.py itself"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the file is UTF-16; save train.py as UTF-8"
    if start.startswith(b"<"):
        return "the URL serves a web page (HTML), not the file; host the raw file (on GitHub and gists: the address behind the Raw button)"
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"the file is not UTF-8 (byte {error.start}); save train.py as UTF-8 text"
    if "\0" in text:
        return "the file holds NUL bytes; host train.py as plain text"
    if start.startswith(b"{") and _is_json(text):
        return "the URL serves JSON (an API's answer about the file), not the file; host the raw file (on gists: its raw_url)"
    return ""


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------------------------------ hops

_HEADERS = {"User-Agent": f"crusades/{__version__}", "Accept": "text/plain, */*", "Accept-Encoding": "identity"}


async def _checked_addresses(url: httpx.URL, settings: Fetch, resolve: Resolve) -> Sequence[str] | Reason:
    addresses = await resolve(url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80))
    if not addresses:
        raise FetchFault(f"the name {url.host} has no address")
    for address in addresses:  # all of them: one bad address condemns the name
        if why := refusal(address, allow_loopback=settings.allow_loopback):
            return _reason("url-refused", f"{url.host} is at {address}, which {why}; a validator opens public addresses only")
    return addresses


async def _hop(url: httpx.URL, settings: Fetch, resolve: Resolve) -> bytes | Reason | httpx.URL:
    """One request: the body, why not, or where to go next."""
    addresses = await _checked_addresses(url, settings, resolve)
    if isinstance(addresses, Reason):
        return addresses
    timeout = httpx.Timeout(settings.total_timeout, connect=settings.connect_timeout)
    transport = PinnedTransport(addresses, tls_context())
    try:
        async with (
            httpx.AsyncClient(transport=transport, headers=_HEADERS, timeout=timeout, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            return await _judge(response, url, settings)
    except httpcore.UnsupportedProtocol as error:
        return _reason("url-refused", f"{url.host}: {error}")
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
        raise FetchFault(f"{url.host} could not be asked: {_words(error)}") from error


def _words(error: BaseException) -> str:
    """The kind of error and the first message down its chain: httpcore's own errors often carry none."""
    kind, link = type(error).__name__, error
    while not str(link) and (under := link.__cause__ or link.__context__):
        link = under
    return f"{kind} ({link})" if str(link) else kind


async def _judge(response: httpx.Response, url: httpx.URL, settings: Fetch) -> bytes | Reason | httpx.URL:
    status = response.status_code
    if status == 200:
        return await _read(response, settings.max_bytes)
    if status in _REDIRECTS and (location := response.headers.get("location")):
        try:
            return url.join(location).copy_with(fragment=None)
        except httpx.InvalidURL as error:
            return _reason("url-refused", f"{url.host} redirects to something that is not a URL: {error}")
    if status >= 500 or status in _TRY_AGAIN:
        raise FetchFault(f"{url.host} answered {status}")
    if 400 <= status < 500:
        word = "is not there" if status in (404, 410) else "may not be read"
        return _reason("not-found", f"{url.host} answered {status}: the file {word}", measured=str(status), limit="200")
    return _reason("not-source", f"{url.host} answered {status}, which carries no file", measured=str(status), limit="200")


async def _follow(url: str, settings: Fetch, resolve: Resolve) -> Source | Reason:
    at: httpx.URL | Reason = _parse(url)
    for _ in range(settings.max_redirects + 1):
        if isinstance(at, Reason):
            return at
        got = await _hop(at, settings, resolve)
        if isinstance(got, Reason):
            return got
        if isinstance(got, bytes):
            if what := _not_source(got):
                return _reason("not-source", what)
            return Source(sha256=hashlib.sha256(got).hexdigest(), content=got, url=str(at), fetched_at=time.time())
        at = _parse(str(got))
    return _reason("url-refused", f"the URL redirects more than {settings.max_redirects} times", hint="commit the address that serves the file")


async def preview(url: str, settings: Fetch, *, resolve: Resolve = resolve_host) -> Source | Reason:
    """What a validator would get from `url`, or why it would not. For `submit` and `bench`, before there is a hash.

    Raises FetchFault for the outside's faults.
    """
    with trio.move_on_after(settings.total_timeout):
        return await _follow(url, settings, resolve)
    raise FetchFault(f"{url[:200]} took longer than {settings.total_timeout:g} s")


async def fetch(payload: Payload, settings: Fetch, *, resolve: Resolve = resolve_host) -> Source | Reason:
    """The committed file: exactly the bytes whose hash is on chain (64 hex digits, or the older form's first 32).

    Raises FetchFault for the outside's faults, which are worth another try; a Reason is final.
    """
    got = await preview(payload.url, settings, resolve=resolve)
    if isinstance(got, Reason):
        return got
    if len(payload.sha256) not in (32, 64) or not got.sha256.startswith(payload.sha256.lower()):
        return _reason(
            "hash-mismatch", "the file at the URL is not the file that was committed", measured=got.sha256[: len(payload.sha256) or 64], limit=payload.sha256
        )
    return got
