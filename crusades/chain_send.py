"""An extrinsic on its way: signed, handed over once, and looked for in blocks until it is there or can no longer come.

The extrinsic is signed first, so its hash is known; submitted without watching; then looked for until its mortal era ends.
A dropped connection, a restarted node or a pruned subscription changes nothing about that. When the deadline comes first,
`Unresolved` carries the hash and the blocks in which it may still appear: `resolve` it before sending again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import trio

from crusades import hparams
from crusades.chain_link import Refused
from crusades.chain_node import Node
from crusades.chain_records import Expired, Failed, Head, Included, Pruned, Sent, Unresolved
from crusades.errors import ChainError

log = logging.getLogger("crusades.chain")
T = TypeVar("T")

ERA = 16
"""Blocks that a signed extrinsic stays valid, counted from the finalised head at signing."""
Signed = Callable[[Sent], Awaitable[None] | None]
"""Is told what was signed before it is sent, so that it can be written down."""


class Line(Protocol):
    """What is needed of `chain.Chain`."""

    settings: hparams.Chain
    block_time: float

    @property
    def problem(self) -> str: ...
    async def call(self, ask: Callable[[Node], Awaitable[T]], *, deadline: float | None = None, once: bool = False) -> T: ...


class Sender:
    """All sending goes through here. Runs on the trio thread."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def send(self, call: Any, keypair: Any, what: str, signed: Signed | None = None, *,
                   final: bool = False) -> Included:
        """Sign, submit, and find it in a block; with `final`, in one that is finalised, so that its place is for ever.

        `signed` is told what was signed before it is sent, so that it can be written down.
        """
        async def sign(node: Node) -> tuple[str, Sent]:
            raw = node.substrate.raw
            composed = await node.client.compose(call)  # type: ignore[no-untyped-call]  # the SDK leaves it so
            nonce = await raw.get_account_next_index(keypair.ss58_address, use_cache=False)
            # One finalised head for the era and for what is written down of it: two answers may be of two machines, and the
            # one behind the other would have us give up, and send again, what the chain still takes.
            born = (await node.head()).finalized
            done = await raw.create_signed_extrinsic(composed, keypair, nonce=nonce, era={"period": ERA, "current": born})
            # Not from the best head on: a branch that wins may hold it in an earlier block than the one that lost.
            return "0x" + done.data.hex(), Sent(hash=done.extrinsic_hash, what=what, first=born + 1, last=born + ERA - 1)

        sent: Sent | None = None
        with trio.move_on_after(self._line.settings.weights_deadline):
            data, on_its_way = await self._line.call(sign)
            if signed is not None and (writing := signed(on_its_way)) is not None:
                await writing
            sent = on_its_way
            try:
                patience = min(self._line.settings.call_deadline, max(2.0, self._line.block_time))
                await self._line.call(lambda node: node.submit(data), once=True, deadline=patience)
            except Refused as error:
                raise Refused(f"the chain refused {what}: {error}") from error
            except ChainError as error:
                log.warning("sent %s, unsure whether it arrived: %s", what, error)
            return await self._find(on_its_way, final=final)
        if sent is None:
            raise ChainError(f"{what} could not be signed within {self._line.settings.weights_deadline:g} s: nothing was sent ({self._line.problem})")
        raise Unresolved(f"{what} may have been sent, and nobody can say within {self._line.settings.weights_deadline:g} s whether it is on chain; it can be in "
                         f"blocks {sent.first} to {sent.last}: read the chain before sending again", sent)

    async def _find(self, sent: Sent, *, final: bool) -> Included:
        """Look through the blocks until it is there, or can no longer come."""
        since = sent.first
        while True:
            try:
                found, head = await self._look(sent, since)
            except Failed:
                raise
            except ChainError as error:
                log.warning("looking for %s: %s", sent.what, error)
                await trio.sleep(self._line.settings.redial_first)
                continue
            if found is not None and (not final or head.finalized >= found.block):
                return found
            if found is None and head.finalized >= sent.last:
                raise Expired(f"{sent.what} was in no block until block {sent.last} and can no longer come: it is safe to send again")
            since = max(sent.first, head.finalized + 1)
            await trio.sleep(min(1.0, self._line.block_time / 4))

    async def _look(self, sent: Sent, since: int) -> tuple[Included | None, Head]:
        async def ask(node: Node) -> tuple[Included | None, Head]:
            head = await node.head()
            for number in range(since, min(head.best, sent.last) + 1):
                try:
                    found = await node.holds(sent, number)
                except Failed:
                    if number <= head.finalized:
                        raise
                    continue  # not for good: where another branch puts it, it may succeed
                if found is not None:
                    return found, head
            return None, head

        return await self._line.call(ask)

    async def resolve(self, sent: Sent, *, final: bool = False) -> Included | None:
        """What became of an extrinsic: included, or None when it is not there and can no longer come.

        Raises Failed when it is in a finalised block and failed, Unresolved while it may still come (with `final`: or may
        still move to another block), Pruned when the node has forgotten.
        """
        try:
            found, head = await self._look(sent, sent.first)
        except Pruned as error:  # so does a node speak that has not got a block yet
            if (await self._line.call(lambda node: node.head())).finalized < sent.last:
                raise Unresolved(f"{sent.what} may still come, until block {sent.last}, and the node lacks a block in between ({error})", sent) from error
            raise
        if found is not None and final and head.finalized < found.block:
            raise Unresolved(f"{sent.what} is in block {found.block}, which is not final yet", sent)
        if found is None and head.finalized < sent.last:
            raise Unresolved(f"{sent.what} may still come, until block {sent.last}", sent)
        return found
