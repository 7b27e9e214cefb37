"""One owner of the connection to a node: deadlines, redialling with back-off, rotation over endpoints. Knows no SDK.

`chain` hands in how to dial and how to read an error; this module decides when. A call ends within its deadline, answered
or not. A connection that broke, or that stayed silent for a whole deadline, is dropped and never used again: the SDK's
session can hang for ever on a request that was in flight when the server closed cleanly.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from functools import partial
from typing import Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import trio

from crusades.errors import ChainError, CrusadesError
from crusades.logs import redactor

log = logging.getLogger("crusades.chain")

T = TypeVar("T")
C = TypeVar("C")


class Bridge(Protocol):
    """What we need of `crusades.asyncio_bridge`."""

    async def run(self, make_coro: Callable[[], Awaitable[T]], *, deadline: float | None = None) -> T:
        """Run the coroutine on the asyncio thread; TooSlowError past the deadline."""
        ...


class Trouble(Enum):
    """What an error says about the connection."""

    LOST = "lost"
    """The connection broke, or no endpoint could be reached: redial, and ask again if asking twice is harmless."""
    BUSY = "busy"
    """The endpoint asked to be left alone for a while."""
    REFUSED = "refused"
    """The node answered, and the answer is no."""
    NONSENSE = "nonsense"
    """The node answered with something that cannot be read."""


class Refused(ChainError):
    """The node, or the chain behind it, answered, and the answer is no."""


def place(endpoint: str) -> str:
    """An endpoint as anybody may see it: providers put the key of a private one into its path or query."""
    scheme, colon, rest = endpoint.partition("://")
    return f"{scheme}://{urlsplit(endpoint).netloc.rpartition('@')[2]}" if colon and rest else endpoint


class Link(Generic[C]):
    """The connection, or the absence of one. All methods run on the trio thread."""

    def __init__(self, bridge: Bridge, endpoints: Sequence[str], *, dial: Callable[[str], Awaitable[C]],
                 hang_up: Callable[[C], Awaitable[None]], classify: Callable[[Exception], Trouble | None],
                 call_deadline: float, redial_first: float, redial_max: float) -> None:
        """`dial(endpoint)` and `hang_up(connection)` make coroutines for the bridge; `classify` gives None for a bug."""
        self._bridge = bridge
        self._endpoints = list(endpoints)
        for endpoint in endpoints:
            redactor.add_address(endpoint)
        self._dial, self._hang_up, self._classify = dial, hang_up, classify
        self._call_deadline, self._first, self._max = call_deadline, redial_first, redial_max
        self._delay = 0.0
        """Seconds between the last attempt to connect and the next; doubles with each, until a call succeeds."""
        self._not_before = 0.0
        """When that next attempt may be made: no matter whose, so that short calls get through to it too."""
        self._proven = False
        """The connection has answered a call."""
        self._lock = trio.Lock()
        self._connection: C | None = None
        self.problem = ""
        """Why there is no connection, in words; empty while there is one."""
        self.dials = 0

    @property
    def endpoint(self) -> str:
        """The endpoint that is tried first just now, as anybody may see it."""
        return place(self._endpoints[0])

    async def call(self, ask: Callable[[C], Awaitable[T]], *, deadline: float | None = None, once: bool = False, quiet: bool = False) -> T:
        """What `ask(connection)` returns. With `once` nothing is asked twice, for questions that act; with `quiet` the
        deadline is no sign of a dead connection (nothing may have happened to tell of).

        Deadlines are the bridge's, in real time, whatever clock drives trio. Raises ChainError when the deadline (seconds)
        passes, the node refuses, or (`once`) the connection breaks.
        """
        limit = self._call_deadline if deadline is None else deadline
        ends = trio.current_time() + limit
        while True:
            connection = await self._connected(ends, limit)
            try:
                answer = await self._ask(connection, ask, max(0.001, ends - trio.current_time()))
            except _Lost as error:
                await self._drop(connection, str(error))
                if once:
                    raise ChainError(f"the connection to {self.endpoint} broke: {error}") from error.__cause__
            except trio.TooSlowError:
                words = f"{self.endpoint} gave no answer within {limit:g} s"
                if not quiet:
                    await self._drop(connection, words)
                    self._rotate()
                raise ChainError(words) from None
            else:
                self._proven, self._delay, self.problem = True, 0.0, ""
                return answer

    async def _ask(self, connection: C, ask: Callable[[C], Awaitable[T]], deadline: float) -> T:
        try:
            return await self._bridge.run(lambda: ask(connection), deadline=deadline)
        except (CrusadesError, trio.TooSlowError):
            raise
        except trio.BrokenResourceError as error:  # the SDK ended its own task under us
            raise _Lost(str(error)) from error
        except Exception as error:
            trouble = self._classify(error)
            if trouble is None:
                raise
            words = redactor.clean(f"{type(error).__name__}: {error}" if trouble is Trouble.NONSENSE else str(error) or type(error).__name__)
            if trouble is Trouble.LOST:
                raise _Lost(words) from error
            if trouble is not Trouble.REFUSED:
                await self._drop(connection, words)
                if trouble is Trouble.BUSY:
                    self._back_off(self._max)
                self._rotate()
                words = f"{self.endpoint} gave an answer that makes no sense: {words}" if trouble is Trouble.NONSENSE else words
            raise (Refused if trouble is Trouble.REFUSED else ChainError)(words) from error

    async def _connected(self, ends: float, limit: float) -> C:
        """The connection, dialled if need be. Whoever waits for the lock gets the connection, or his own turn to dial."""
        async with self._lock:
            while self._connection is None:
                await trio.sleep_until(min(ends, self._not_before))
                left = ends - trio.current_time()
                if left <= 0:
                    raise ChainError(f"{self.endpoint} gave no answer within {limit:g} s ({self.problem})")
                self.dials += 1
                try:
                    self._connection = await self._bridge.run(partial(self._dial, self.endpoint), deadline=left)
                    log.info("connected to %s", self.endpoint)
                except trio.TooSlowError:
                    self._note(f"{self.endpoint} did not finish the connection within {left:.1f} s")
                except ChainError as error:
                    self._note(str(error))
                except CrusadesError:
                    raise
                except Exception as error:
                    if self._classify(error) is None:
                        raise
                    self._note(str(error) or type(error).__name__)
            return self._connection

    def _note(self, problem: str) -> None:
        self.problem = problem = redactor.clean(problem)  # the SDK's words name whole addresses, and everybody may read ours
        self._back_off()
        log.warning("no connection: %s; next attempt in %.1f s", problem, self._delay)
        self._rotate()

    def _back_off(self, least: float = 0.0) -> None:
        self._delay = max(least, min(self._max, self._delay * 2 or self._first))
        self._not_before = trio.current_time() + self._delay

    def _rotate(self) -> None:
        self._endpoints.append(self._endpoints.pop(0))

    async def _drop(self, connection: C, why: str) -> None:
        if self._connection is not connection:
            return  # somebody else has dropped it already
        self._connection, self.problem = None, why
        if not self._proven:  # it broke before a single call succeeded: no hammering
            self._back_off()
        self._proven = False
        await self._close(connection)

    async def _close(self, connection: C) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._bridge.run(lambda: self._hang_up(connection), deadline=2.0)
            except trio.TooSlowError:
                log.debug("the old connection did not close in time")
            except Exception as error:
                if self._classify(error) is None:
                    raise
                log.debug("closing the old connection: %s", error)

    async def renew(self) -> None:
        """Hang up so that the next call dials anew."""
        if self._connection is not None:
            await self._drop(self._connection, "")

    async def aclose(self) -> None:
        """Hang up for good."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._close(connection)

    def __repr__(self) -> str:
        return f"<Link {self.endpoint} {'up' if self._connection is not None else 'down: ' + self.problem} after {self.dials} dials>"


class _Lost(Exception):
    """The connection broke under a question."""
