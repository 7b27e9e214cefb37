"""Encoded answers, kept until a commit that can change them.

Every change of the store is an event with a sequence number, so "is this answer still true?" is a comparison of numbers:
an answer carries the version it was made at, and a version is the sequence number of the last event that touched its topic
(plus, where an answer shows them, the live facts of the board). Nothing here waits for a subscription: whoever asks first
after a commit reads the new events from the store, so an answer never shows less than was committed when it was asked for.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import trio

from crusades.records import Event, Outcome, Status

T = TypeVar("T")

KEEP_ANSWERS = 512
"""Encoded answers kept; the least recently asked for goes first. Pages and details of 50 kB make this about 25 MB at worst."""

EVENTS_AT_ONCE = 1000


class EventSource(Protocol):
    """The part of the store that says what changed."""

    @property
    def last_seq(self) -> int:
        """Sequence number of the last committed event; 0 in an empty store."""

    async def events_since(self, seq: int, limit: int) -> list[Event]:
        """Up to `limit` events after `seq`, oldest first."""


class Topic:
    """What answers are made of."""

    ANY = "any"
    SUBMISSIONS = "submissions"
    SCORES = "scores"
    WEIGHTS = "weights"


def topics_of(event: Event) -> set[str]:
    """What an event changes. A submission touches the scores only when it was judged."""
    touched = {Topic.ANY}
    if event.kind == "submission":
        touched.add(Topic.SUBMISSIONS)
        # An accepted one counts, and one that no longer is (withdrawn by finality) stops counting.
        if event.data.get("verdict") == Outcome.ACCEPTED or event.data.get("status") in (Status.SCORED, Status.REJECTED):
            touched.add(Topic.SCORES)
    elif event.kind in ("leaderboard", "weights"):
        touched |= {Topic.SCORES, Topic.WEIGHTS}
    elif event.kind not in ("run", "slot", "block"):
        touched |= {Topic.SUBMISSIONS, Topic.SCORES, Topic.WEIGHTS}  # a kind this program does not know may change anything
    return touched


class Changes:
    """The version of every topic."""

    def __init__(self, store: EventSource) -> None:
        self._store = store
        self._seen = store.last_seq
        self._versions = dict.fromkeys((Topic.ANY, Topic.SUBMISSIONS, Topic.SCORES, Topic.WEIGHTS), self._seen)
        self._lock = trio.Lock()

    async def catch_up(self) -> None:
        """Read what was committed since the last call. Free when nothing was."""
        if self._store.last_seq == self._seen:
            return
        async with self._lock:
            while self._store.last_seq > self._seen:
                events = await self._store.events_since(self._seen, EVENTS_AT_ONCE)
                if not events or events[0].seq != self._seen + 1:  # older events were pruned: everything may have changed
                    self._all_changed(self._store.last_seq)
                    return
                for event in events:
                    for topic in topics_of(event):
                        self._versions[topic] = event.seq
                self._seen = events[-1].seq

    def _all_changed(self, seq: int) -> None:
        self._seen = seq
        self._versions = dict.fromkeys(self._versions, seq)

    def version(self, *topics: str) -> tuple[int, ...]:
        """Equal versions mean equal contents."""
        return tuple(self._versions[topic] for topic in topics)


class Memo(Generic[T]):
    """One value with its version; made once however many ask at the same time."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._version: Hashable = None
        self._value: T | None = None

    async def get(self, version: Callable[[], Hashable], make: Callable[[], Awaitable[T]]) -> T:
        """The value at `version()`, made now if it is not the one at hand."""
        if self._value is not None and self._version == version():
            return self._value
        async with self._lock:
            wanted = version()  # another task may have made it, or the world moved on, while we waited
            if self._value is None or self._version != wanted:
                self._value, self._version = await make(), wanted
            return self._value


class Answer(msgspec.Struct, frozen=True):
    """One encoded answer."""

    body: bytes
    etag: str


def encode(value: Any) -> Answer:
    """JSON (NaN becomes null) and a strong ETag over the bytes."""
    body = msgspec.json.encode(value)
    return Answer(body, f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')


class Answers:
    """The encoded answers by what was asked."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Memo[Answer]] = OrderedDict()

    async def get(self, key: Hashable, version: Callable[[], Hashable], make: Callable[[], Awaitable[Any]]) -> Answer:
        """The answer to `key`; `make` returns what to encode. Errors of `make` propagate and are not kept."""
        memo = self._kept.get(key)
        if memo is None:
            memo = self._kept[key] = Memo()
            while len(self._kept) > KEEP_ANSWERS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)

        async def made() -> Answer:
            return encode(await make())

        return await memo.get(version, made)
