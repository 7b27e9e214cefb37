"""The other endpoints, for what a node has forgotten: the state of old blocks. Runs on the asyncio thread. Knows no SDK.

Their connections are their own: one that is down, silent or of another chain says nothing about the node that serves us,
and is left alone for a while. Each is dialled when it is first needed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from crusades.chain_records import Failed, NoArchive, Pruned

log = logging.getLogger("crusades.chain")

T = TypeVar("T")
N = TypeVar("N")

GIVE_UP = 3_600.0
"""Seconds of silence after which an endpoint counts as one that has forgotten too: whoever waits for it is not held for ever."""


class Archives(Generic[N]):
    """Endpoints that may still know what another has pruned, in the order in which they are asked."""

    def __init__(self, endpoints: Sequence[str], *, dial: Callable[[str], Awaitable[N]], hang_up: Callable[[N], Awaitable[None]],
                 is_trouble: Callable[[Exception], bool], patience: float, rest: float, now: Callable[[], float] = time.monotonic) -> None:
        """`patience`: seconds for one question, all endpoints together; `rest`: how long one that failed is left alone."""
        self._endpoints = list(endpoints)
        self._dial, self._hang_up, self._is_trouble = dial, hang_up, is_trouble
        self._patience, self._rest, self._now = patience, rest, now
        self._open: dict[str, N] = {}
        self._failed: dict[str, tuple[float, float]] = {}
        """endpoint → since when it fails, and until when it is left alone."""

    async def ask(self, question: Callable[[N], Awaitable[T]], *, but: str) -> T:
        """What the first one that knows answers; the endpoint `but` is not asked. Pruned when all have forgotten, NoArchive
        while one that may know cannot be asked."""
        ends = self._now() + self._patience
        silent = []
        for endpoint in [one for one in self._endpoints if one != but]:
            since, until = self._failed.get(endpoint, (0.0, 0.0))
            if self._now() < until:
                silent += [endpoint] if until - since < GIVE_UP else []
                continue
            try:
                async with asyncio.timeout(max(0.0, ends - self._now())):
                    answer = await question(await self._connected(endpoint))
            except Failed:
                raise  # an answer
            except Pruned:
                self._failed.pop(endpoint, None)
            except Exception as error:
                if not self._is_trouble(error):
                    raise
                silent.append(endpoint)
                await self._leave_alone(endpoint, error)
            else:
                self._failed.pop(endpoint, None)
                return answer
        if silent:
            raise NoArchive(f"the node has pruned what was asked for, and {', '.join(silent)} cannot be asked; put an archive endpoint that answers into chain.endpoints")
        raise Pruned("no endpoint still has what was asked for; put an archive endpoint into chain.endpoints")

    async def _connected(self, endpoint: str) -> N:
        if endpoint not in self._open:
            self._open[endpoint] = await self._dial(endpoint)
        return self._open[endpoint]

    async def _leave_alone(self, endpoint: str, error: Exception) -> None:
        now = self._now()
        self._failed[endpoint] = (self._failed.get(endpoint, (now, now))[0], now + self._rest)
        log.warning("%s was asked for an old block: %s; left alone for %.0f s", endpoint, str(error) or type(error).__name__, self._rest)
        if (node := self._open.pop(endpoint, None)) is not None:
            await self._close(node)

    async def _close(self, node: N) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._hang_up(node)

    async def close(self) -> None:
        """Hang up everywhere; who is asked again is dialled again."""
        while self._open:
            await self._close(self._open.popitem()[1])
