"""The web server: JSON under `/api/v1`, a live websocket, health, metrics, and the dashboard at `/`. A pure reader.

`create_app` wires store, board and scoring to routes; it starts nothing and needs no port, so tests drive it in process.
`serve` (`web_serve`) puts it on hypercorn's trio worker. Documents are made in `web_views`, kept in `web_cache`, pushed in `web_live`.

Everything is public: whoever reaches the port may read all of it, so there is no login to lose, and nothing in the
answers that miners or operators would want to hide (see `web_views`). It listens on loopback unless told otherwise; for
the open internet put a reverse proxy with TLS and connection limits in front (docs/operating.md).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import trio
from quart import Response, has_request_context, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from crusades.board import Board
from crusades.errors import StoreError
from crusades.hparams import HParams
from crusades.records import ApiError, Status
from crusades.web_assets import Asset, load_assets
from crusades.web_cache import Answer, encode
from crusades.web_errors import NAMES, Refused, body
from crusades.web_live import Hub
from crusades.web_serve import serve
from crusades.web_shortcut import Make, Shortcut
from crusades.web_views import Rank, Views

__all__ = ["Application", "create_app", "serve"]

log = logging.getLogger(__name__)

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
LIVE = "/api/v1/live"
MAX_PAGE = 200
MAX_LIST = 10_000

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}  # fmt: skip
"""On every answer. Names and URLs of strangers are shown on the page: scripts and styles come from our own files only."""

_ID = re.compile(r"[0-9a-f]{16}")
_HOTKEY = re.compile(r"[0-9A-Za-z]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_CURSOR = re.compile(r"[A-Za-z0-9_.:=-]{1,200}")


class Application(QuartTrio):
    """The app with what its owner needs: `views` for in-process readers, `hub` to be run beside the server."""

    views: Views
    hub: Hub
    shortcut: Shortcut


def create_app(store: Any, board: Board, hparams: HParams, *, rules_version: str, metrics: Callable[[], bytes] | None = None,
               late: Callable[[], Mapping[str, str]] | None = None,
               rank: Rank | None = None, rules: Callable[[], Mapping[str, Any]] | None = None) -> Application:
    """The application. `late` says who is late now (the default is what the board last heard, from a watch that may hang itself); `rank` and `rules` default to `crusades.scoring` and `crusades.rules`."""
    if rank is None or rules is None:
        from crusades.web_rules import rank_by, rules_document  # here: a viewer that brings its own needs neither scoring nor rules

        rank = rank or rank_by(hparams.scoring, board)
        rules = rules or (lambda: rules_document(hparams, board, rules_version))
    app = Application("crusades", static_folder=None, root_path="/")
    app.config.update(MAX_CONTENT_LENGTH=1024, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False
    app.views = Views(store, board, rules_version, rank, rules)
    app.hub = Hub(store, app.views, max_clients=hparams.web.max_clients, client_queue=hparams.web.client_queue)
    app.shortcut = Shortcut(app.asgi_app, SECURITY_HEADERS)
    app.asgi_app = app.shortcut  # type: ignore[method-assign]
    _error_shape(app)
    _documents(app)
    _live(app)
    _health(app, board, metrics, late or (lambda: board.late))
    _pages(app, load_assets())
    return app


# -- answers -----------------------------------------------------------------------------------------------


def _response(payload: bytes, content_type: str, *, status: int = 200, etag: str = "", max_age: int = 0) -> Response:
    if etag and etag in request.headers.get("If-None-Match", ""):
        answer = Response(b"", status=304)
        del answer.headers["Content-Type"]
    else:
        answer = Response(payload, status=status, content_type=content_type)
    if etag:
        answer.headers["ETag"] = etag
    answer.headers["Cache-Control"] = f"max-age={max_age}" if max_age else "no-cache"
    return answer


def _json(answer: Answer) -> Response:
    return _response(answer.body, JSON, etag=answer.etag)


async def _document(app: Application, make: Make) -> Response:
    """A document, and the shortcut to it for whoever asks the same again."""
    answer = await make()
    app.shortcut.remember(request.scope["path"], request.scope["query_string"], make)
    return _json(answer)


def _error_shape(app: Application) -> None:
    """Whatever goes wrong, the answer is an ApiError; and every answer carries the security headers."""

    def answer(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
        return Response(body(error), status=error.status, content_type=JSON, headers={"Cache-Control": "no-store", **SECURITY_HEADERS, **(headers or {})})

    @app.errorhandler(Refused)
    async def refused(error: Refused) -> Response:
        return answer(error.answer)

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response:
        status = error.code or 500
        headers = {key: value for key, value in error.get_headers() if key == "Allow"}
        if status in (301, 302, 307, 308):
            status = 404
        words = {400: "This is the live feed: connect with a websocket." if _path() == LIVE else "The request cannot be understood.",
                 404: f"There is nothing at {_path()}. The API is under /api/v1.", 405: "Everything here is read with GET."}  # fmt: skip
        return answer(ApiError(error=NAMES.get(status, f"http_{status}"), message=words.get(status, error.description or "The request failed."), status=status), headers)

    @app.errorhandler(StoreError)
    async def store(error: StoreError) -> Response:
        log.error("the store could not answer %s: %s", _path(), error)
        return answer(ApiError(error="unavailable", message="The validator's store cannot answer right now. Try again.", status=503))

    @app.errorhandler(Exception)
    async def bug(error: Exception) -> Response:
        log.error("a bug in the web server while answering a request", exc_info=error)
        return answer(ApiError(error="internal", message="The validator failed to answer. The log has the details.", status=500))

    async def headers(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers[name] = value
        return response

    app.after_request(headers)


def _path() -> str:
    return (request if has_request_context() else websocket).path[:200]


# -- queries -----------------------------------------------------------------------------------------------


def _query(**known: re.Pattern[str] | int) -> dict[str, Any]:
    """The query's parameters, checked: a pattern must match; a number is a limit, with 50 as its default and the number as its maximum."""
    unknown = [key for key in request.args if key not in known]
    if unknown:
        raise Refused(400, "bad_request", f"There is no parameter {unknown[0][:40]!r} here. Known: {', '.join(known) or 'none'}.")
    return {key: _limit(key, kind) if isinstance(kind, int) else _matching(key, kind) for key, kind in known.items()}


def _limit(key: str, most: int) -> int:
    text = request.args.get(key, str(min(50 if most == MAX_PAGE else most, most)))
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        raise Refused(400, "bad_request", f"{key} must be a number from 1 to {most}.")
    return int(text)


def _matching(key: str, pattern: re.Pattern[str]) -> str | None:
    text = request.args.get(key)
    if text is not None and not pattern.fullmatch(text):
        raise Refused(400, "bad_request", f"{key} cannot be {text[:80]!r}.")
    return text


def _id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise Refused(404, "not_found", f"There is no submission {text[:40]!r}: an id is 16 hex digits.")
    return text


# -- routes ------------------------------------------------------------------------------------------------


def _documents(app: Application) -> None:
    views = app.views

    def plain(name: str, document: Callable[[], Awaitable[Answer]]) -> None:
        async def answer() -> Response:
            _query()
            return await _document(app, document)

        app.add_url_rule(f"/api/v1/{name}", name, answer, methods=["GET"])

    for name in ("overview", "queue", "slots", "weights", "rules", "faults"):
        plain(name, getattr(views, name))

    @app.get("/api/v1/leaderboard")
    async def leaderboard() -> Response:
        return await _document(app, partial(views.leaderboard, **_query(limit=MAX_LIST)))

    @app.get("/api/v1/history")
    async def history() -> Response:
        return await _document(app, partial(views.history, **_query(limit=MAX_LIST)))

    @app.get("/api/v1/submissions")
    async def submissions() -> Response:
        query = _query(status=re.compile("[a-z]+"), hotkey=_HOTKEY, sha256=_SHA256, cursor=_CURSOR, limit=MAX_PAGE)
        status = query.pop("status")
        if status is not None and status not in list(Status):
            raise Refused(400, "bad_request", f"There is no status {status[:40]!r}. Known: {', '.join(Status)}.")
        try:
            return await _document(app, partial(views.submissions, status=Status(status) if status else None, **query))
        except ValueError as error:
            raise Refused(400, "bad_request", "This cursor was not made by this validator. Start again without one.") from error

    @app.get("/api/v1/submissions/<id>")
    async def detail(id: str) -> Response:  # noqa: A002 - the route's own name
        _query()
        return await _document(app, partial(views.detail, _id(id)))

    @app.get("/api/v1/submissions/<id>/runs")
    async def runs(id: str) -> Response:  # noqa: A002
        _query()
        return await _document(app, partial(views.runs, _id(id)))

    @app.get("/api/v1/submissions/<id>/code")
    async def code(id: str) -> Response:  # noqa: A002
        _query()
        found = await views.code(_id(id))
        return _response(found.text.encode(), TEXT, etag=f'"{found.sha256}"')


def _live(app: Application) -> None:
    hub = app.hub

    @app.websocket(LIVE)
    async def live() -> Response | None:
        since = websocket.args.get("since")
        if since is not None and not re.fullmatch(r"[0-9]{1,15}", since):
            return _refusal(400, "bad_request", "since must be the sequence number of an event.")
        if hub.full:
            return _refusal(503, "too_many_clients", f"{hub.max_clients} clients are connected, which is the limit. Try again later.")
        await websocket.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain)
            await hub.serve(websocket.send, None if since is None else int(since))
            await websocket.close(1001 if hub.closing else 1008, "the validator is stopping" if hub.closing else "this client reads too slowly")
            nursery.cancel_scope.cancel()
        return None


async def _drain() -> None:
    """Clients have nothing to say; reading it all the same lets the server see them go."""
    while True:
        await websocket.receive()


def _refusal(status: int, error: str, message: str) -> Response:
    return Response(body(ApiError(error=error, message=message, status=status)), status=status, content_type=JSON, headers=SECURITY_HEADERS)


def _health(app: Application, board: Board, metrics: Callable[[], bytes] | None, late: Callable[[], Mapping[str, str]]) -> None:
    @app.get("/livez")
    async def livez() -> Response:
        """200 while this loop turns and every subsystem makes progress, else 503: what systemd's watchdog goes by, for other
        supervisors. A chain that is down is no reason: a restart would not help."""
        if hanging := late():
            raise Refused(503, "not_live", "; ".join(f"{name}: {words}" for name, words in sorted(hanging.items())) + ".")
        return _json(encode({"live": True}))

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 once every subsystem is ready, else 503; with `?verbose` what each of them says."""
        status = 200 if board.is_ready else 503
        if "verbose" in request.args:
            report = {"ready": board.is_ready, "subsystems": dict(sorted(board.ready.items())), "problems": dict(sorted(board.problems.items()))}
            return _response(encode(report).body, JSON, status=status)
        if status == 200:
            return _json(encode({"ready": True}))
        waiting = "; ".join(f"{name}: {word}" for name, word in sorted(board.ready.items()) if word != "ready")
        raise Refused(503, "not_ready", f"{waiting or 'nothing has reported yet'}.")

    @app.get("/metrics")
    async def prometheus() -> Response:
        if metrics is None:
            raise Refused(404, "no_metrics", "This process keeps no metrics.")
        return _response(metrics(), "text/plain; version=0.0.4; charset=utf-8")


def _pages(app: Application, assets: Mapping[str, Asset]) -> None:
    async def page(name: str = "index.html") -> Response:
        asset = assets.get(name)
        if asset is None:
            raise Refused(404, "not_found", f"There is no file {name[:80]!r}.")
        return _response(asset.content, asset.content_type, etag=asset.etag)

    app.add_url_rule("/", "index", page, methods=["GET"])
    app.add_url_rule("/static/<name>", "static", page, methods=["GET"])
    app.add_url_rule("/favicon.ico", "favicon", page, defaults={"name": "icon.svg"}, methods=["GET"])
