"""The application on hypercorn's trio worker: bind, report the address, stop in stages."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio
from hypercorn.config import Config
from hypercorn.protocol import ws_stream
from hypercorn.trio import serve as hypercorn_serve
from wsproto.extensions import PerMessageDeflate

from crusades.errors import ConfigError
from crusades.web_live import Hub

log = logging.getLogger(__name__)


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


async def serve(app: Served, listen: str, *, shutdown: Callable[[], Awaitable[Any]] | None = None, grace: float = 3.0,
                task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve `app` on HOST:PORT (port 0: any free one) until `shutdown` returns; `started` reports the bound address as "http://HOST:PORT".

    After `shutdown`, requests in flight get `grace` seconds; websockets are closed at once. Errors: ConfigError when the
    address cannot be bound. An error of the live hub leaves this function: a dashboard that stands still is worse than none.
    """
    number = (await _bound(listen)).detach()
    config = _settings(number, grace)
    setattr(ws_stream, "PerMessageDeflate", _NoCompression)  # noqa: B010 - a private name of that module
    _raise_descriptor_limit()
    async with trio.open_nursery() as nursery:
        await nursery.start(app.hub.run)

        async def stop() -> None:
            if shutdown is None:
                await trio.sleep_forever()
            else:
                await shutdown()
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


def _settings(number: int, grace: float) -> Config:
    """hypercorn takes the socket over by its file descriptor's number."""
    config = Config()
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
