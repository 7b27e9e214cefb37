"""Events to whoever listens in this process: in order, without gaps, bounded per listener."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import trio

from crusades.records import Event

FELL_BEHIND = "fell behind"
CLOSED = "the store was closed"


class Subscription(trio.abc.ReceiveChannel[Event]):
    """Events from now on. When more than `buffer` wait unread it ends, with the reason `fell behind`: take a new
    snapshot, or read `events_since`. What was buffered before can still be received."""

    def __init__(self, buffer: int) -> None:
        self._send, self._receive = trio.open_memory_channel[Event](buffer)
        self.reason = ""
        """Why it ended; empty while it is open."""

    def __repr__(self) -> str:
        return f"<Subscription {self.reason or 'open'}, {self._receive.statistics().current_buffer_used} unread>"

    async def receive(self) -> Event:
        """The next event. EndOfChannel when it has ended (`reason` says why)."""
        return await self._receive.receive()

    def receive_nowait(self) -> Event:
        """The next event if there is one; WouldBlock otherwise."""
        return self._receive.receive_nowait()

    async def aclose(self) -> None:
        """Stop listening."""
        self.end("unsubscribed")
        self._receive.close()
        await trio.lowlevel.checkpoint()

    def put(self, event: Event) -> bool:
        """Give it an event; False when that ended it. Never blocks."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self.end(FELL_BEHIND)
        except trio.BrokenResourceError:  # aclose() came first
            self.end("unsubscribed")
        return not self.reason

    def end(self, reason: str) -> None:
        """No more events."""
        self.reason = self.reason or reason
        self._send.close()


class Publisher:
    """Hands committed events to all subscriptions. Trio thread only."""

    def __init__(self, last_seq: int) -> None:
        self.last_seq = last_seq
        self._subscriptions: list[Subscription] = []

    def publish(self, events: Sequence[Event]) -> None:
        """Called once per commit, in the order of the commits. Must not raise: it runs in trio's entry queue."""
        for event in events:
            self.last_seq = event.seq
            self._subscriptions = [one for one in self._subscriptions if one.put(event)]

    @contextlib.contextmanager
    def subscribe(self, buffer: int) -> Iterator[Subscription]:
        """A subscription for the length of a block; `buffer` events may wait unread."""
        one = Subscription(buffer)
        self._subscriptions.append(one)
        try:
            yield one
        finally:
            one.end("unsubscribed")
            self._subscriptions = [other for other in self._subscriptions if other is not one]

    def close(self) -> None:
        """End all subscriptions."""
        for one in self._subscriptions:
            one.end(CLOSED)
        self._subscriptions = []
