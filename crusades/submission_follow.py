"""A submission followed from its commitment to the verdict: by the chain, and by a validator's API where one is named."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import trio

from crusades.chain_rows import reason
from crusades.errors import ChainError, UsageError
from crusades.faults import fault
from crusades.records import Commitment, Outcome, Reason, Record, Status, next_name
from crusades.submission import Chain, whereabouts
from crusades.submission_tickets import Ticket, Tickets

OPENS_LATE = 10
"""Blocks by which an opening may come later than was estimated."""


class Progress(Record, frozen=True, kw_only=True):
    """One step of a submission's life, as far as can be seen from here."""

    ticket: Ticket
    words: str
    verdict: Outcome | None = None
    score_mfu: float | None = None

    @property
    def exit_code(self) -> int:
        """What a command that waits for the verdict returns: 0 accepted (or revealed, when that was all to wait for),
        1 rejected, 3 for a fault of somebody else."""
        if self.verdict is Outcome.REJECTED or self.ticket.stage == "rejected":
            return 1
        return 3 if self.verdict is Outcome.FAULT or self.ticket.stage == "faulted" else 0


class Remote(msgspec.Struct, frozen=True):
    """What we read of a validator's answer about one submission; a newer validator may say more."""

    status: Status
    verdict: Outcome | None = None
    reason: dict[str, Any] | None = None
    score_mfu: float | None = None
    progress: str = ""
    queue_position: int | None = None
    sha256: str = ""
    """Of the file that was committed; empty while that is sealed."""

    def of(self, ticket: Ticket) -> bool:
        """Whether it can be the ticket's: names are made of blocks, and where one had to stand in for another, it is another's."""
        return self.sha256 in ("", ticket.payload.sha256)

    @property
    def withdrawn(self) -> bool:
        """The block it was in is gone: the commitment may be in another one, under another name."""
        return self.status is Status.REJECTED and (self.reason or {}).get("code") == fault("withdrawn").code


class _Detail(msgspec.Struct, frozen=True):
    submission: Remote


Ask = Callable[[str], Awaitable[Remote | None]]
"""submission id → what a validator says about it; None when it does not know it yet. Raises httpx.HTTPError."""


def validator_api(url: str) -> str:
    """The API's base of `--url`, which may be a bare HOST:PORT. UsageError for anything else."""
    full = url if "://" in url else f"http://{url}"
    try:
        # Both look: httpx takes `http://[` for a name, urlsplit a name that DNS cannot have.
        parsed, parts = httpx.URL(full), urlsplit(full)
        good = parsed.scheme in ("http", "https") and bool(parsed.host) and (parts.port is None or parts.port > 0)
    except (httpx.InvalidURL, ValueError):
        good = False
    if not good:
        raise UsageError(f"--url {url!r} is no address of a validator: give HOST:PORT or http(s)://…")
    return str(parsed).rstrip("/") + "/api/v1"


def ask_validator(client: httpx.AsyncClient, url: str) -> Ask:
    """Questions to the validator at `url`."""
    base = validator_api(url)

    async def ask(submission_id: str) -> Remote | None:
        answer = await client.get(f"{base}/submissions/{submission_id}")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        try:
            return msgspec.json.decode(answer.content, type=_Detail).submission
        except msgspec.DecodeError as error:
            raise httpx.DecodingError(f"the validator's answer cannot be read: {error}") from error

    return ask


async def follow(chain: Chain, ticket: Ticket, tickets: Tickets, *, ask: Ask | None, poll: float | None = None) -> AsyncGenerator[Progress, None]:
    """Every step from the commitment to the verdict; without a validator to `ask`, to the reveal. Saves the ticket at each.

    Outages of chain and validator are told as steps and waited out. It can be broken off and taken up again at any time.
    """
    pause = poll or max(0.2, min(3.0, chain.block_time / 2))
    told = ""
    while True:
        step, last = await _step(chain, ticket, ask)
        if step.ticket != ticket:
            ticket = tickets.save(step.ticket)
        if step.words != told:
            told = step.words
            yield step
        if last:
            return
        await trio.sleep(pause)


async def _step(chain: Chain, ticket: Ticket, ask: Ask | None) -> tuple[Progress, bool]:
    """(where it stands, whether that is the end)."""
    if ticket.submission_id is None:
        return Progress(ticket=ticket, words="nothing has been committed yet"), True
    trouble = ""
    if ask is not None:
        try:
            remote = await ask(ticket.submission_id)
            if remote is not None and not remote.of(ticket):
                remote = await ask(next_name(ticket.submission_id))
        except httpx.HTTPError as error:
            trouble = f" (the validator cannot be asked: {str(error) or type(error).__name__})"
        else:
            if remote is not None and remote.of(ticket) and not remote.withdrawn:
                return _from_validator(ticket, remote)
            trouble = " (the validator has not seen it yet)"
    if ticket.stage in ("revealed", "rejected"):
        return Progress(ticket=ticket, words=_words(ticket) + (trouble if ticket.stage == "revealed" else "")), ask is None or ticket.over
    try:
        rows = await chain.commitments(hotkey=ticket.hotkey)
        if not any(_of(ticket, row) for row in rows):
            ticket = await whereabouts(chain, ticket)
    except ChainError as error:
        return Progress(ticket=ticket, words=f"{_words(ticket)}; the chain cannot be asked: {error}"), False
    if ticket.commit_block is None:
        why = reason("withdrawn", "The block that held the commitment lost, and no other holds it: nothing is committed. Run the same command again.")
        return Progress(ticket=msgspec.structs.replace(ticket, stage="rejected", reason=why), words=f"rejected: {why.message}"), True
    ticket = await _from_chain(chain, ticket, rows)
    return Progress(ticket=ticket, words=_words(ticket) + trouble * (not ticket.over)), ticket.over or (ask is None and ticket.stage == "revealed")


def _of(ticket: Ticket, row: Commitment) -> bool:
    """Whether a row is of the ticket's block, and not one that was only opened there."""
    return row.commit_block == ticket.commit_block and (row.commit_block_exact or row.reveal_block is None)


async def _from_chain(chain: Chain, ticket: Ticket, rows: Sequence[Commitment]) -> Ticket:
    # Opened, and its block forgotten: the block of the opening stands in.
    stands_in = next((r for r in rows if not r.commit_block_exact and r.payload == ticket.payload and r.commit_block >= (ticket.commit_block or 0)), None)
    row = next((r for r in rows if _of(ticket, r)), stands_in)
    if row is not None:
        return msgspec.structs.replace(ticket, stage=str(row.state.value), reason=row.reason, reveal_round=row.reveal_round or ticket.reveal_round)
    # One that came after the opening has replaced nothing: ours was opened, and as many later ones have pushed it off the chain's list.
    opened = (ticket.reveal_block_estimate or math.inf) + OPENS_LATE
    newer = next((r for r in rows if ticket.commit_block is not None and ticket.commit_block < r.commit_block < opened), None)
    if newer is None or ticket.stage != "sealed" or not await _another(chain, ticket, newer):
        return ticket
    words = f"The commitment of block {newer.commit_block} replaced this one of block {ticket.commit_block} before it was opened."
    return msgspec.structs.replace(ticket, stage="rejected", reason=reason("overwritten", words))


async def _another(chain: Chain, ticket: Ticket, newer: Commitment) -> bool:
    """Whether a later row is another commitment for certain, and not this one, which a reorganisation moved or whose block is not known."""
    if not newer.commit_block_exact:
        return False
    if not ticket.may_be_in(newer.commit_block) or ticket.sent is None:
        return True
    try:
        found = await chain.resolve(ticket.sent, final=True)
    except ChainError:
        return False
    return found is not None and found.block < newer.commit_block


def _from_validator(ticket: Ticket, remote: Remote) -> tuple[Progress, bool]:
    why = None
    if remote.reason is not None:
        try:
            why = msgspec.convert({k: v for k, v in remote.reason.items() if k in Reason.__struct_fields__}, Reason)
        except msgspec.ValidationError:
            why = None
    ticket = msgspec.structs.replace(ticket, stage=str(remote.status.value), reason=why)
    where = f", number {remote.queue_position} in the queue" if remote.queue_position else ""
    where += f", {remote.progress}" if remote.progress else ""
    score = f" with {remote.score_mfu:.2f} % MFU" if remote.score_mfu is not None else ""
    return Progress(ticket=ticket, words=_words(ticket) + where + score, verdict=remote.verdict, score_mfu=remote.score_mfu), remote.status.final


def _words(ticket: Ticket) -> str:
    why = f": {ticket.reason.message}" if ticket.reason is not None else ""
    if ticket.stage == "sealed":
        expected = f", opens about block {ticket.reveal_block_estimate}" if ticket.reveal_block_estimate else ""
        return f"sealed in block {ticket.commit_block}{expected}"
    return f"{ticket.stage}{why}"
