"""`/api/v1/live`: a snapshot, then every change, to many clients at once.

Frames are JSON objects with a `type`:

    {"type": "snapshot", "seq": 41, "sections": {"overview": …, "leaderboard": …, …}}     what every document says now
    {"type": "resumed", "seq": 41}                       instead of a snapshot, when `?since=41` could be taken up
    {"type": "events", "events": [{"seq": 42, …}, …]}    every event after `seq`, in order, none left out
    {"type": "state", "sections": {"slots": …}}          documents that changed, each whole, the newest only
    {"type": "resnapshot", "reason": "…"}                some events were lost to this client; a snapshot follows

Events are the record, sections are the picture. A client that only draws applies sections; one that keeps a log counts
sequence numbers and comes back with `?since=`. A `state` frame with the overview is sent at least every
`HEARTBEAT` seconds, so silence means a dead connection.

Theory of operation. One hub per application follows the store and encodes each event once. Each client has a bounded
queue of texts and a task that sends whatever is in it as one frame: a client that reads slowly gets fewer, larger
frames; one that falls more than `client_queue` events behind loses its queue and is told so; one whose socket takes
nothing for `SEND_DEADLINE` seconds is dropped. Memory is bounded by clients × queue.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec
import trio

from crusades.records import Event
from crusades.web_cache import Answer, EventSource
from crusades.web_views import LIVE_HISTORY, Views, shown_event

HEARTBEAT = 15.0
TICK = 1.0
"""How often the board (slots, heads, progress), which publishes no events, is compared with what was sent."""
SEND_DEADLINE = 30.0
BUFFER = 4096
"""Events the hub itself may fall behind the store before it reads them back from there."""
RECENT = 50
"""Submissions in a snapshot."""


class Publisher(EventSource, Protocol):
    """The store, as the hub sees it."""

    def subscribe(self, buffer: int) -> AbstractContextManager[trio.MemoryReceiveChannel[Event]]: ...


class Client:
    """What waits to be sent to one websocket."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: deque[str] = deque()
        self._sections: dict[str, str] = {}
        self._wake = trio.Event()
        self.lost = False
        """It fell behind: its queue was dropped, and it needs a snapshot."""

    def put_event(self, text: str) -> None:
        """Queue an event, or give up on this client's history."""
        if len(self._events) >= self._limit:
            self._events.clear()
            self.lost = True
        if not self.lost:
            self._events.append(text)
        self._wake.set()

    def put_sections(self, sections: dict[str, str]) -> None:
        """Replace what waits of these sections: only the newest matters."""
        self._sections |= sections
        self._wake.set()

    def start_over(self) -> None:
        """Forget what waits: a snapshot is about to be made."""
        self._events.clear()
        self._sections.clear()
        self.lost = False

    def wake(self) -> None:
        """Let `wait` return."""
        self._wake.set()

    async def wait(self) -> None:
        """Until there is something to send."""
        await self._wake.wait()
        self._wake = trio.Event()

    def take_frames(self) -> list[str]:
        """Everything that waits, as at most two frames."""
        frames = []
        if self._events:
            frames.append('{"type":"events","events":[' + ",".join(self._events) + "]}")
            self._events.clear()
        if self._sections:
            frames.append(sections_frame("state", self._sections))
            self._sections = {}
        return frames


def sections_frame(kind: str, sections: dict[str, str], head: str = "") -> str:
    """A frame out of already encoded documents."""
    inner = ",".join(f'"{name}":{text}' for name, text in sections.items())
    return f'{{"type":"{kind}",{head}"sections":{{{inner}}}}}'


class Hub:
    """Follows store and board for all clients. `run` must be running while clients are served."""

    def __init__(self, store: Publisher, views: Views, *, max_clients: int, client_queue: int) -> None:
        self._store, self._views = store, views
        self.max_clients, self._client_queue = max_clients, client_queue
        self._clients: set[Client] = set()
        self._sent: dict[str, str] = {}
        self.seq = store.last_seq
        """The last event given to clients."""
        self.on_look: Callable[[], None] = lambda: None
        """Called each time the board is looked at: it shows that this hub lives."""
        self.running = False
        self.closing = False

    def __repr__(self) -> str:
        return f"<Hub {len(self._clients)} of {self.max_clients} clients, event {self.seq}>"

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For ever: events to clients as they are committed, sections as they change."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow_store)
            nursery.start_soon(self._follow_board)
            self.running = True
            task_status.started()

    def close(self) -> None:
        """Let every client's `serve` return: the server is stopping."""
        self.closing = True
        for client in self._clients:
            client.wake()

    async def _follow_store(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        while True:
            with self._store.subscribe(BUFFER) as channel:
                await self._catch_up()
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                async for event in channel:  # ends when we fell behind: read the rest from the store and subscribe again
                    if event.seq > self.seq + 1:
                        await self._catch_up()
                    self._publish(event)

    async def _catch_up(self) -> None:
        while self._store.last_seq > self.seq:
            events = await self._store.events_since(self.seq, BUFFER)
            if not events or events[0].seq != self.seq + 1:  # pruned away: nobody can be given what lies between
                self.seq = self._store.last_seq
                for client in self._clients:
                    client.lost = True
                    client.wake()
                return
            for event in events:
                self._publish(event)

    def _publish(self, event: Event) -> None:
        if event.seq <= self.seq:
            return
        self.seq = event.seq
        if self._clients:
            text = encode_event(event)
            for client in self._clients:
                client.put_event(text)

    # -- sections -----------------------------------------------------------------------------------------

    def _sections(self) -> dict[str, tuple[Hashable, Callable[[], Awaitable[Answer]]]]:
        """name → (version, how to make it): what a picture of the validator consists of."""
        views = self._views
        return {
            "overview": (views.overview_version(), views.overview),
            "leaderboard": (None, lambda: views.leaderboard(100)),
            "history": (None, lambda: views.history(LIVE_HISTORY)),
            "queue": (None, views.queue),
            "slots": (None, views.slots),
            "weights": (None, views.weights),
        }

    async def _follow_board(self) -> None:
        seen: Hashable = None
        silent = 0.0
        while True:
            await trio.sleep(TICK)
            self.on_look()
            silent += TICK
            if not self._clients:
                self._sent.clear()
                continue
            await self._views.changes.catch_up()
            changed = {}
            for name, (version, make) in self._sections().items():
                if name == "overview" and version == seen and silent < HEARTBEAT:
                    continue  # its clock alone is no news
                text = (await make()).body.decode()
                if name == "overview":
                    seen = version
                    if silent < HEARTBEAT and _timeless(text) == _timeless(self._sent.get(name, "")):
                        continue
                if self._sent.get(name) != text or (name == "overview" and silent >= HEARTBEAT):
                    changed[name] = text
            if changed:
                silent = 0.0
                self._sent |= changed
                for client in self._clients:
                    client.put_sections(changed)

    async def _snapshot(self, seq: int) -> str:
        sections = {name: (await make()).body.decode() for name, (_, make) in self._sections().items()}
        for name, text in sections.items():
            self._sent.setdefault(name, text)
        page = await self._views.submissions(status=None, hotkey=None, sha256=None, cursor=None, limit=RECENT)
        return sections_frame("snapshot", {**sections, "submissions": page.body.decode()}, f'"seq":{seq},')

    # -- one client ---------------------------------------------------------------------------------------

    async def serve(self, send: Callable[[str], Awaitable[None]], since: int | None) -> None:
        """Feed one accepted websocket until its socket takes nothing for `SEND_DEADLINE` seconds or the hub closes.

        Callers check `full` first, and cancel this when the client has gone.
        """
        client = Client(self._client_queue)
        self._clients.add(client)
        try:
            for frame in await self._opening(client, since):
                await _send(send, frame)
            while True:
                await client.wait()
                if self.closing:
                    return
                if client.lost:
                    await _send(send, '{"type":"resnapshot","reason":"this client fell behind; a fresh snapshot follows"}')
                    client.start_over()
                    await _send(send, await self._snapshot(self.seq))
                for frame in client.take_frames():
                    await _send(send, frame)
        except trio.TooSlowError:
            return
        finally:
            self._clients.discard(client)

    @property
    def full(self) -> bool:
        """No more clients are taken."""
        return len(self._clients) >= self.max_clients

    async def _opening(self, client: Client, since: int | None) -> list[str]:
        """The first frames: what was missed since `since` if that can be told exactly, else a snapshot.

        The client is registered, so what is published while this reads waits in its queue.
        """
        start = self.seq
        if since is not None and 0 <= start - since <= self._client_queue:
            missed = await self._store.events_since(since, self._client_queue) if since < start else []
            missed = [event for event in missed if event.seq <= start]
            if [event.seq for event in missed] == list(range(since + 1, start + 1)):
                client.put_sections({name: (await make()).body.decode() for name, (_, make) in self._sections().items()})
                frames = [f'{{"type":"resumed","seq":{since}}}']
                return [*frames, '{"type":"events","events":[' + ",".join(map(encode_event, missed)) + "]}"] if missed else frames
        return [await self._snapshot(start)]


_CLOCK = re.compile(r'"now":[0-9.e+]+')


def _timeless(overview: str) -> str:
    return _CLOCK.sub("", overview, count=1)


async def _send(send: Callable[[str], Awaitable[None]], frame: str) -> None:
    with trio.fail_after(SEND_DEADLINE):
        await send(frame)


def encode_event(event: Event) -> str:
    """As clients see it."""
    return msgspec.json.encode(shown_event(event)).decode()
