"""A validator's API as the terminal dashboard meets it: websockets on port 0, documents from the filled fake store (asyncio)."""

import asyncio
import contextlib
from http import HTTPStatus

import msgspec
from fakes_web import CODE, filled_board, filled_store, simple_rank, transitions
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.http11 import Response

from crusades.faults import FAULTS
from crusades.records import Overview, Page, Standing, Status, SubmissionDetail, to_builtins


class FakeApi:
    """`async with FakeApi() as api`: listens; `push` sends to every client; `drop` cuts them off; `asked` holds the websocket paths."""

    def __init__(self):
        self.store, self.board = filled_store(), filled_board()
        self.clients, self.asked, self.http = set(), [], []
        self.first_frame = None
        self.refuse = None

    async def __aenter__(self):
        self.server = await serve(self._client, "127.0.0.1", 0, process_request=self._http)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    def overview(self, **more):
        b, rank = self.board, simple_rank(self.scored())
        counts = {status.value: sum(row.status is status for row in self.store.rows.values()) for status in Status}
        facts = {"version": "0.1.0", "network": b.network, "netuid": b.netuid, "hotkey": b.hotkey, "uid": b.uid, "block": b.block, "finalized_block": b.finalized_block, "started_at": b.started_at,
                 "now": b.started_at + 400_000, "rules_version": b.rules_version, "profile": b.profile, "model": b.model, "counts": counts, "leader": rank.rows[0],
                 "slots": tuple(b.slots.values()), "weights": self.store.view, "ready": True, "notice": b.notice}  # fmt: skip
        return Overview(**{**facts, **more})

    def scored(self):
        return sorted((row for row in self.store.rows.values() if row.status is Status.SCORED), key=lambda row: row.commit_block)

    def sections(self, **more):
        rank = simple_rank(self.scored())
        newest = sorted(self.store.rows.values(), key=lambda row: -row.commit_block)
        queue = [row for row in newest if row.status in (Status.RUNNING, Status.QUEUED)]
        sections = {"overview": self.overview(), "leaderboard": {"items": rank.rows}, "history": {"items": rank.history}, "queue": {"items": queue, "earlier": {"sealed": 2}},
                    "slots": {"items": tuple(self.board.slots.values())}, "weights": self.store.view, "submissions": Page(items=tuple(newest[:50]))}  # fmt: skip
        return to_builtins({**sections, **more})

    def snapshot(self, **more):
        return {"type": "snapshot", "seq": self.store.last_seq, "sections": self.sections(**more)}

    async def push(self, frame):
        for client in list(self.clients):
            await client.send(msgspec.json.encode(frame).decode())

    async def push_event(self, row):
        """A submission changes, as the validator tells it."""
        event = self.store.change(row)
        await self.push({"type": "events", "events": [to_builtins(event)]})

    async def drop(self):
        for client in list(self.clients):
            await client.close(1001, "the validator is stopping")

    async def _client(self, socket):
        self.asked.append(socket.request.path)
        self.clients.add(socket)
        try:
            if "since=" in socket.request.path:
                await socket.send(msgspec.json.encode({"type": "resumed", "seq": int(socket.request.path.rpartition("=")[2])}).decode())
            else:
                await socket.send(msgspec.json.encode(self.first_frame or self.snapshot()).decode())
            await socket.wait_closed()
        finally:
            self.clients.discard(socket)

    async def _http(self, connection, request):
        if request.path.startswith("/api/v1/live"):
            return None if self.refuse is None else self._answer(self.refuse)
        self.http.append(request.path)
        return self._answer(self._document(request.path.removeprefix("/api/v1/")))

    def _document(self, path):
        parts = path.split("/")
        if parts == ["faults"]:
            return {"items": [{"code": f.code, "name": f.name, "whose": f.whose.value, "title": f.title, "advice": f.advice, "terminal": f.terminal} for f in FAULTS.values()]}
        row = self.store.rows.get(parts[1]) if parts[0] == "submissions" and len(parts) > 1 else None
        if row is None:
            return {"error": "not_found", "message": "There is no such submission.", "status": 404}
        if parts[2:] == ["runs"]:
            return {"items": to_builtins(self.store.run_rows.get(row.id, ()))}
        if parts[2:] == ["code"]:
            return CODE if row.status.final else {"error": "not_judged_yet", "message": "Its code is shown once it has been judged.", "status": 409}
        detail = self.store.details.get(row.id)
        return to_builtins(SubmissionDetail(submission=row, transitions=transitions(row), verdict=detail and detail.verdict))

    def _answer(self, document):
        body = document.encode() if isinstance(document, str) else msgspec.json.encode(document)
        status = HTTPStatus(document["status"]) if isinstance(document, dict) and "error" in document else HTTPStatus.OK
        return Response(status.value, status.phrase, Headers([("Content-Length", str(len(body))), ("Connection", "close")]), body)


def standing(**more):
    return Standing(**{"rank": 1, "submission_id": "0" * 16, "hotkey": "5A", "uid": 1, "score_mfu": 50.0, "commit_block": 7, "weight": 1.0, **more})


@contextlib.asynccontextmanager
async def dashboard(api=None, *, size=(140, 44), url=None):
    """(app, pilot) of a dashboard that has heard its first frame, if there is a server."""
    from crusades.tui.app import make_app

    app = make_app(url or api.url)
    async with app.run_test(size=size) as pilot:
        if api is not None:
            await until(pilot, lambda: app.picture.overview is not None)
        yield app, pilot


async def until(pilot, true, seconds=20):
    """Let the app run until `true()`; AssertionError when that takes too long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not true():
        assert loop.time() < end, "it did not come to pass"
        await asyncio.sleep(0.01)
        await pilot.pause()


def screen_text(app):
    """What the terminal shows, line by line."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())
