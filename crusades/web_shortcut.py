"""Documents that were asked for before, answered without the framework: half of the work of a request saved.

Quart parses, checks and words everything the first time a path with its query is asked for; a view that succeeded leaves
behind how to make the answer (`remember`). The next request for exactly the same path and query with GET is answered here.
Whatever is out of the ordinary, errors included, goes to the application.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from crusades.web_cache import Answer

KEEP = 1024
"""Paths kept, the most recently asked for: each is a closure and two short strings."""

SEND_DEADLINE = 60.0
"""Seconds for a client to take an answer; the framework allows the same."""

Make = Callable[[], Awaitable[Answer]]
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Shortcut:
    """An ASGI application around another one."""

    def __init__(self, app: Asgi, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._known: OrderedDict[tuple[str, bytes], Make] = OrderedDict()

    def remember(self, path: str, query: bytes, make: Make) -> None:
        """`make` answers this path and query, whenever they are asked for."""
        self._known[path, query] = make
        if len(self._known) > KEEP:
            self._known.popitem(last=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        make = self._known.get((scope["path"], scope["query_string"])) if scope["type"] == "http" and scope["method"] == "GET" else None
        answer = await _made(make) if make is not None else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        self._known.move_to_end((scope["path"], scope["query_string"]))
        etag = answer.etag.encode()
        unchanged = any(name == b"if-none-match" and etag in value for name, value in scope["headers"])
        payload = b"" if unchanged else answer.body
        headers = [(b"etag", etag), (b"cache-control", b"no-cache"), *self._headers]
        if not unchanged:
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
        with trio.move_on_after(SEND_DEADLINE):
            await send({"type": "http.response.start", "status": 304 if unchanged else 200, "headers": headers})
            await send({"type": "http.response.body", "body": payload, "more_body": False})


async def _made(make: Make) -> Answer | None:
    try:
        return await make()
    except Exception:  # not dropped: the application asks again, and words, logs and counts what comes of it
        return None
