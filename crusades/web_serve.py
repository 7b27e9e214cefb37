"""The application on hypercorn's trio worker: bind, report the address, stop in stages, and wait for no client for ever."""

from __future__ import annotations

import logging
import os
import resource
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import ws_stream
from hypercorn.trio import run as hypercorn_run
from hypercorn.trio import serve as hypercorn_serve
from hypercorn.trio.tcp_server import TCPServer
from wsproto.extensions import PerMessageDeflate

from crusades.errors import ConfigError
from crusades.web_live import SEND_DEADLINE, Hub

log = logging.getLogger(__name__)

CHUNK = 65_536
"""Bytes that a client must take within `SEND_DEADLINE`: who reads slowly is served, who reads nothing is cut off."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing resets the connection, and what was not read is thrown away."""


class Served(Protocol):
    """An ASGI application with the hub that must run beside it (`crusades.web.Application`)."""

    hub: Hub

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class _NoCompression(PerMessageDeflate):
    """Stands for hypercorn's per-message compression, which has no switch: it costs 300 kB per client and a deflate per frame."""

    def accept(self, offer: str) -> bool | str | None:
        """Never agreed to."""
        return None

    def enabled(self) -> bool:
        """Never used."""
        return False


class _Settings(Config):
    """hypercorn's, with what our connections need."""

    connections: set[_Connection]
    send_deadline: float


class _Connection(TCPServer):
    """hypercorn shields its sends from cancellation without any deadline, so one client that stops reading would hold up the
    shutdown for ever. The shield is right (half a frame makes a connection useless); here it ends."""

    config: _Settings
    stream: Any

    async def run(self) -> None:
        """One client, known to `_cut_off` while it is here."""
        self.config.connections.add(self)
        try:
            await super().run()
        finally:
            self.config.connections.discard(self)

    async def protocol_send(self, event: Event) -> None:
        """What hypercorn's does, in chunks with a deadline each."""
        if isinstance(event, RawData) and len(event.data) > 0:
            async with self.send_lock:
                await self._send(memoryview(event.data))
        else:
            await super().protocol_send(event)

    async def _send(self, data: memoryview) -> None:
        for start in range(0, len(data), CHUNK):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self.config.send_deadline) as scope:
                try:
                    await self.stream.send_all(data[start : start + CHUNK])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    break
            if scope.cancelled_caught:
                self.reset()
                break
        else:
            return
        await self.protocol.handle(Closed())

    def reset(self) -> None:
        """Close it now, whatever is still to be sent; whoever waits on it is woken with ClosedResourceError."""
        with suppress(OSError):  # the client was faster
            self.stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _AT_ONCE)
        self.stream.socket.close()


async def _cut_off(connections: set[_Connection], stopping: trio.Event, grace: float) -> None:
    """When the grace has passed, or at once when we are cancelled: nobody is waited for any longer."""
    try:
        await stopping.wait()
        await trio.sleep(grace)
    finally:
        for connection in list(connections):
            connection.reset()


async def serve(app: Served, listen: str, *, shutdown: Callable[[], Awaitable[Any]] | None = None, grace: float = 3.0,
                task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve `app` on HOST:PORT (port 0: any free one) until `shutdown` returns; `started` reports the bound address as "http://HOST:PORT".

    After `shutdown`, requests in flight get `grace` seconds; websockets are closed at once. A client that takes nothing for
    `SEND_DEADLINE` seconds, or is not done by the end of the grace, is cut off. Errors: ConfigError when the
    address cannot be bound. An error of the live hub leaves this function: a dashboard that stands still is worse than none.
    """
    number = (await _bound(listen)).detach()
    config = _settings(number, grace)
    setattr(ws_stream, "PerMessageDeflate", _NoCompression)  # noqa: B010 - a private name of that module
    setattr(hypercorn_run, "TCPServer", _Connection)  # noqa: B010 - it takes no other class
    stopping = trio.Event()
    _raise_descriptor_limit()
    async with trio.open_nursery() as nursery:
        await nursery.start(app.hub.run)
        nursery.start_soon(_cut_off, config.connections, stopping, grace)

        async def stop() -> None:
            if shutdown is None:
                await trio.sleep_forever()
            else:
                await shutdown()
            stopping.set()
            app.hub.close()

        async def serve_to_the_end(*, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
            await hypercorn_serve(app, config, shutdown_trigger=stop, mode="asgi", task_status=task_status)
            nursery.cancel_scope.cancel()

        binds = await nursery.start(serve_to_the_end)
        os.set_inheritable(number, False)  # hypercorn makes it inheritable for workers; ours would be submissions
        log.info("the web page is at %s", binds[0])
        task_status.started(binds[0])


async def _bound(listen: str) -> trio.socket.SocketType:
    """A bound socket. ConfigError with what to do."""
    host, colon, port = listen.rpartition(":")
    try:
        if not colon or not port.isdecimal() or int(port) > 65_535:
            raise OSError(f"{port or 'nothing'!r} is no port")
        family, kind, protocol, _, address = (await trio.socket.getaddrinfo(host.strip("[]"), int(port), type=trio.socket.SOCK_STREAM, flags=trio.socket.AI_PASSIVE))[0]
        bound = trio.socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise ConfigError(f"the web server cannot listen on {listen!r} ({words}): choose another address with --web HOST:PORT") from error
    return bound


def _settings(number: int, grace: float) -> _Settings:
    """hypercorn takes the socket over by its file descriptor's number."""
    config = _Settings()
    config.connections, config.send_deadline = set(), SEND_DEADLINE
    config.bind = [f"fd://{number}"]
    config.accesslog = None
    config.errorlog = logging.getLogger("crusades.web.server")
    config.include_server_header = False
    config.graceful_timeout = grace
    config.keep_alive_max_requests = 100_000
    config.websocket_ping_interval = 20.0
    config.websocket_max_message_size = 1024
    config.h11_max_incomplete_size = 8192
    return config


def _raise_descriptor_limit() -> None:
    """Every client is a file descriptor, and the usual soft limit of 1,024 is shared with everything else we do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
