"""The miner's side of a submission, without any user interface: look before you leap, then pay and commit
(`submission_follow` goes on to the verdict).

Everything that costs or destroys something is written to a `Ticket` on disk before it is done, so Ctrl-C or a crash at any
point leaves a file that says what was sent, and the same command goes on from there: a fee is never paid twice and a
sealed commitment never replaced by its own repetition.

    prepared → (paying → paid →) committing → sealed → revealed → … the validator's states … → scored | rejected | faulted
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from crusades import hparams
from crusades.chain_records import CommitFacts, Committed, Failed, Included, Pruned, Receipt, Sent, Unresolved
from crusades.chain_rows import reason
from crusades.errors import ChainError, UsageError
from crusades.faults import fault
from crusades.fees import WINDOW, asks_fee, out_of_window, tao
from crusades.payload import SEAL_OVERHEAD, format_payload
from crusades.records import Commitment, Finding, Payload, Reason, Record, Source, Stage
from crusades.submission_receipts import MARGIN, NO_RECEIPTS, Receipts, find_receipt
from crusades.submission_tickets import Ticket, Tickets

__all__ = ["Chain", "Preflight", "Receipts", "Ticket", "Tickets", "new_ticket", "preflight", "settle_all", "submit", "whereabouts"]

T = TypeVar("T")

MIN_SPACE = 100
"""Bytes that the chain counts for a commitment at least."""
TRANSFER_MARGIN = 2_000_000
"""Rao left for the transfer's own fee and the existential deposit."""


Signed = Callable[[Sent], None]
"""Told what was signed, before it is sent."""


class Chain(Protocol):
    """What we need of `crusades.chain.Chain`."""

    netuid: int
    network: str
    block_time: float
    genesis: str
    missing: tuple[str, ...]

    async def opens_after(self, blocks: int) -> int: ...
    async def commit_facts(self, hotkey: str) -> CommitFacts: ...
    async def commit(self, payload: bytes, wallet: Any, reveal_blocks: int, *, signed: Signed | None = None) -> Committed: ...
    async def pay_fee(self, wallet: Any, *, signed: Signed | None = None) -> str: ...
    async def receipt(self, receipt: str) -> Receipt | None: ...
    async def resolve(self, sent: Sent, *, final: bool = False) -> Included | None: ...
    async def commitments(self, block_hash: str | None = None, *, hotkey: str | None = None) -> list[Commitment]: ...


Preview = Callable[[str], Awaitable[Source | Reason]]
"""url → the file as a validator would fetch it (`fetch.preview`)."""
Check = Callable[[bytes], Sequence[Finding]]
"""source → static findings (`rules.scan`)."""


# ------------------------------------------------------------------------------------------------ pre-flight


class Preflight(Record, frozen=True, kw_only=True):
    """Everything that was looked at before anything is signed."""

    payload: Payload | None
    """What would be committed; None when the file could not be had."""
    size: int = 0
    """Bytes of the file."""
    problems: tuple[Reason, ...] = ()
    """What a validator, or the chain, would refuse; nothing is signed while there is one."""
    findings: tuple[Finding, ...] = ()
    """All static findings, for an editor-style listing."""
    effects: tuple[str, ...] = ()
    """What signing will do, line by line."""
    fee_rao: int = 0
    """What signing will pay: 0 when a receipt has paid already."""
    reveal_blocks: int = 0
    """Blocks from the commitment to its opening, as far as can be said."""
    head: int = 0
    hotkey: str = ""
    pending_block: int | None = None
    """Block of a commitment of this hotkey that is still sealed."""

    @property
    def ok(self) -> bool:
        """Nothing speaks against it."""
        return not self.problems


async def preflight(chain: Chain, url: str, hotkey: str, settings: hparams.Chain, *, preview: Preview, check: Check,
                    reveal_blocks: int | None = None, replace_pending: bool = False, receipts: Receipts = NO_RECEIPTS) -> Preflight:
    """Look at the file as a validator would, and at the chain as the chain would. Sends and signs nothing.

    Raises FetchFault when the URL's host could not be asked, ChainError when the chain could not.
    """
    blocks = await chain.opens_after(settings.reveal_blocks if reveal_blocks is None else reveal_blocks)
    problems: list[Reason] = []
    findings: tuple[Finding, ...] = ()
    payload: Payload | None = None
    source = await preview(url)
    if isinstance(source, Reason):
        problems.append(source)
    else:
        payload = Payload(sha256=source.sha256, url=url)
        findings = tuple(await trio.to_thread.run_sync(check, source.content))
        problems += _from_findings(findings)
    facts = await chain.commit_facts(hotkey)
    receipt, against = await find_receipt(chain, settings, receipts, payers={hotkey, facts.coldkey}, head=facts.head)
    size = 0
    if payload is not None:
        payload = msgspec.structs.replace(payload, receipt=receipt)
        try:
            example = payload if receipt or not asks_fee(settings) else msgspec.structs.replace(payload, receipt="4294967295-65535")
            size = len(format_payload(example)) + SEAL_OVERHEAD
        except ValueError as error:
            problems.append(reason("payload-malformed", f"{error}"))
    unpaid = settings if receipt is None and not against else msgspec.structs.replace(settings, fee_rao=0)
    problems += [*_incompatible(chain), *against, *chain_problems(facts, unpaid, size=size, replace_pending=replace_pending)]
    return Preflight(payload=payload, size=0 if isinstance(source, Reason) else len(source.content), problems=tuple(problems), findings=findings,
                     effects=_effects(chain, facts, unpaid, blocks, size, receipt), fee_rao=unpaid.fee_rao, reveal_blocks=blocks, head=facts.head, hotkey=hotkey, pending_block=facts.pending_block)


def _incompatible(chain: Chain) -> list[Reason]:
    """`commit` would refuse; said here, so that a dry run says so too."""
    if not chain.missing:
        return []
    return [Reason(code=fault("chain-down").code, stage=Stage.CHAIN, message=f"The chain's runtime lacks {', '.join(chain.missing)}: nothing can be sent.",
                   hint="update this program")]


def _from_findings(findings: Sequence[Finding]) -> list[Reason]:
    if not findings:
        return []
    first = findings[0]
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return [Reason(code=1201, stage=Stage.CHECK, rule=first.rule, line=first.line, message=f"{first.message}{more}", hint=first.instead)]


def chain_problems(facts: CommitFacts, settings: hparams.Chain, *, size: int, replace_pending: bool) -> list[Reason]:
    """What the chain, or the rules about commitments, would hold against a commitment now."""
    found = []
    if facts.uid is None:
        found.append(reason("not-registered", f"The hotkey {facts.hotkey} is not registered on this subnet: register it first "
                                              "(`btcli subnets register`), or name another wallet."))
    if facts.pending_block is not None and not replace_pending:
        found.append(reason("overwritten", _would_destroy(facts.pending_block)))
    cost = max(MIN_SPACE, size)
    if facts.used_bytes + cost > facts.max_bytes:
        found.append(reason("too-soon", f"This commitment takes {cost} bytes and the hotkey has {max(0, facts.max_bytes - facts.used_bytes)} of "
                                        f"{facts.max_bytes} left in this epoch; the next one begins about block {facts.epoch_ends} "
                                        f"(now {facts.head})."))
    next_block = (facts.last_commitment or 0) + settings.min_commit_interval
    if settings.min_commit_interval and facts.last_commitment and facts.head < next_block:
        found.append(reason("too-soon", f"The competition counts one commitment of a hotkey each {settings.min_commit_interval} blocks: the next "
                                        f"one from block {next_block} on (now {facts.head})."))
    if asks_fee(settings) and facts.balance_rao < settings.fee_rao + TRANSFER_MARGIN:
        found.append(reason("fee-missing", f"The fee is {tao(settings.fee_rao)} and the coldkey {facts.coldkey} holds {tao(facts.balance_rao)}; "
                                           f"send it at least {tao(settings.fee_rao + TRANSFER_MARGIN - facts.balance_rao)} more."))
    return found


def _would_destroy(block: int) -> str:
    return f"The commitment of block {block} is still sealed; a new one would destroy it unread. Wait for its reveal, or say --replace-pending."


def _effects(chain: Chain, facts: CommitFacts, settings: hparams.Chain, blocks: int, size: int, receipt: str | None) -> tuple[str, ...]:
    seconds = blocks * chain.block_time
    lines = [] if receipt is None else [f"the fee is paid already: the transfer {receipt} is used, and no other is made"]
    if asks_fee(settings):
        lines.append(f"the coldkey {facts.coldkey} transfers {tao(settings.fee_rao)} to {settings.fee_address}")
    lines.append(f"the hotkey {facts.hotkey} signs Commitments.set_commitment on subnet {chain.netuid} ({chain.network}); the chain takes no fee for it")
    lines.append(f"{size} bytes are sealed; everybody can read them in about {blocks} blocks ({seconds:.0f} s), from block {facts.head + 1 + blocks} on")
    if facts.pending_block is not None:
        lines.append(f"the sealed commitment of block {facts.pending_block} is destroyed unread")
    return tuple(lines)


# ------------------------------------------------------------------------------------------------ committing


def new_ticket(chain: Chain, seen: Preflight, reveal_blocks: int) -> Ticket:
    """A ticket for what pre-flight has approved. UsageError when it has not."""
    if seen.payload is None or not seen.ok:
        raise UsageError(f"the submission is not ready: {'; '.join(p.message for p in seen.problems)}")
    return Ticket(network=chain.network, genesis=chain.genesis, netuid=chain.netuid, hotkey=seen.hotkey, payload=seen.payload,
                  created_at=time.time(), reveal_blocks=reveal_blocks, stage="paid" if seen.payload.receipt else "prepared")


async def submit(chain: Chain, wallet: Any, ticket: Ticket, tickets: Tickets, settings: hparams.Chain, *, replace_pending: bool = False,
                 unlock: Callable[[], None] | None = None) -> Ticket:
    """Pay (if a fee is asked) and commit, from wherever the ticket stands. Repeating it is harmless.

    `unlock` makes the wallet's coldkey usable; it is called right before a fee is paid, and never otherwise. Another sealed
    commitment is destroyed with `replace_pending` only: UsageError without.

    Raises Unresolved, with the ticket saved, when nobody can say whether something sent is on chain: run it again later.
    """
    if ticket.stage == "sealed":
        ticket = tickets.save(await whereabouts(chain, ticket))
    ticket = await settle(chain, ticket, tickets)
    if asks_fee(settings) and ticket.payload.receipt is None:
        ticket = await _pay(chain, wallet, ticket, tickets, unlock)
    if ticket.commit_block is None:
        ticket = await _commit(chain, wallet, ticket, tickets, replace_pending=replace_pending)
    return ticket


async def settle(chain: Chain, ticket: Ticket, tickets: Tickets) -> Ticket:
    """The ticket with what became of the extrinsic that an interrupted attempt left on its way: it stands behind it when it is
    on chain, before it when it can no longer come. Raises Unresolved while it may, ChainError when nobody knows any more."""
    if ticket.sent is None or ticket.stage not in ("paying", "committing"):
        return ticket
    return tickets.save(await (_settled_fee if ticket.stage == "paying" else _settled_commitment)(chain, ticket, ticket.sent))


async def settle_all(chain: Chain, tickets: Tickets, hotkey: str) -> None:
    """`settle` for all submissions of a hotkey, of whatever file: until it is known what became of them nothing new is paid, since
    a fee on its way pays for the next submission too, and nothing new is committed, since of two only the later one lives."""
    for ticket in tickets.of(chain.genesis, chain.netuid, hotkey):
        try:
            await settle(chain, ticket, tickets)
        except Unresolved as error:
            raise Unresolved(f"{error}; it belongs to {ticket.payload.url}, whose ticket is {tickets.path(ticket)}: remove that only if you know that it never "
                             "comes, as on a chain that was started anew", error.sent) from error


async def _settled_fee(chain: Chain, ticket: Ticket, sent: Sent) -> Ticket:
    try:
        found = await chain.resolve(sent, final=True)
    except Failed:
        found = None  # nothing was paid
    except Pruned as error:
        if (await chain.commit_facts(ticket.hotkey)).head > sent.last + WINDOW:
            return msgspec.structs.replace(ticket, stage="prepared", sent=None)  # whether or not it was paid, it would pay for nothing any more
        raise ChainError(f"the fee may have been paid, and this node no longer knows ({error}): ask one that keeps its history (--network with an "
                         "archive endpoint) before anything is paid again") from error
    return msgspec.structs.replace(ticket, stage="prepared", sent=None) if found is None else _paid(ticket, found.extrinsic)


def _paid(ticket: Ticket, receipt: str) -> Ticket:
    return msgspec.structs.replace(ticket, stage="paid", payload=msgspec.structs.replace(ticket.payload, receipt=receipt), sent=None)


async def _settled_commitment(chain: Chain, ticket: Ticket, sent: Sent) -> Ticket:
    try:
        found = await chain.resolve(sent)
        block = found.block if found else None
    except Failed:
        block = None  # nothing was committed
    except Pruned:
        block = await _committed_between(chain, ticket, sent)
    if block is None:
        return msgspec.structs.replace(ticket, stage=_before(ticket), sent=None)
    return msgspec.structs.replace(ticket, stage="sealed", commit_block=block, reveal_block_estimate=block + ticket.reveal_blocks)


async def _pay(chain: Chain, wallet: Any, ticket: Ticket, tickets: Tickets, unlock: Callable[[], None] | None) -> Ticket:
    if unlock is not None:
        unlock()
    receipt, _ = await _once(ticket, tickets, "paying", "prepared", lambda signed: chain.pay_fee(wallet, signed=signed))
    return tickets.save(_paid(ticket, receipt))


async def _commit(chain: Chain, wallet: Any, ticket: Ticket, tickets: Tickets, *, replace_pending: bool) -> Ticket:
    await _look_again(chain, ticket, replace_pending=replace_pending)
    raw = format_payload(ticket.payload)
    done, sent = await _once(ticket, tickets, "committing", _before(ticket), lambda signed: chain.commit(raw, wallet, ticket.reveal_blocks, signed=signed))
    return tickets.save(msgspec.structs.replace(ticket, stage="sealed", sent=sent, commit_block=done.block, reveal_round=done.reveal_round,
                                                reveal_block_estimate=done.reveal_block_estimate))


async def _look_again(chain: Chain, ticket: Ticket, *, replace_pending: bool) -> None:
    """Pre-flight may be long ago: a fee was paid in between, or it was of another call. UsageError where a commitment would
    now destroy another, or name a receipt that nobody accepts any more."""
    facts = await chain.commit_facts(ticket.hotkey)
    kept = f" Nothing was committed; the receipt {ticket.payload.receipt} is kept." if ticket.payload.receipt else " Nothing was committed."
    if facts.pending_block is not None and not replace_pending:
        raise UsageError(_would_destroy(facts.pending_block) + kept)
    if out_of_window(ticket.payload.receipt, facts.head + MARGIN):
        raise UsageError(f"the receipt {ticket.payload.receipt} is too old to pay for a commitment in block {facts.head + 1}: it counts for {WINDOW} blocks. "
                         "Nothing was committed; run the same command again to pay anew.")


def _before(ticket: Ticket) -> str:
    """The stage of a ticket that nothing was committed for."""
    return "prepared" if ticket.payload.receipt is None else "paid"


async def _once(ticket: Ticket, tickets: Tickets, doing: str, before: str, act: Callable[[Signed], Awaitable[T]]) -> tuple[T, Sent | None]:
    """`act`, with the signed extrinsic written down before it leaves; a definite failure takes the ticket back to `before`."""
    left: list[Sent] = []

    def signed(sent: Sent) -> None:
        left.append(sent)
        tickets.save(msgspec.structs.replace(ticket, stage=doing, sent=sent))

    try:
        return await act(signed), left[-1] if left else None
    except Unresolved:
        raise  # the ticket says what was sent
    except ChainError:
        tickets.save(msgspec.structs.replace(ticket, stage=before, sent=None))
        raise


async def whereabouts(chain: Chain, ticket: Ticket) -> Ticket:
    """A sealed ticket with the block that its commitment is in now: a reorganisation may have moved it, or taken it back,
    and then the ticket stands where it stood before. Unchanged while nobody can say."""
    if ticket.sent is None:
        return ticket
    try:
        found = await chain.resolve(ticket.sent)
    except (Unresolved, Pruned):
        return ticket
    except Failed:
        found = None  # where it is now, it fails: an earlier block used up the quota, or the hotkey is gone
    if found is None:
        return msgspec.structs.replace(ticket, stage=_before(ticket), sent=None, commit_block=None, reveal_round=None, reveal_block_estimate=None)
    if found.block == ticket.commit_block:
        return ticket
    return msgspec.structs.replace(ticket, commit_block=found.block, reveal_block_estimate=found.block + ticket.reveal_blocks)


async def _committed_between(chain: Chain, ticket: Ticket, sent: Sent) -> int | None:
    """The hotkey's commit block in the blocks that the forgotten extrinsic can only be in; None: it never came."""
    rows = await chain.commitments(hotkey=ticket.hotkey)
    ours = [r for r in rows if r.payload in (None, ticket.payload) and r.commit_block >= sent.first]
    # Of one that was opened, and whose block the node has forgotten, the block of the opening is all that is known.
    return next((r.commit_block for r in ours if (r.commit_block <= sent.last if r.commit_block_exact else r.payload is not None)), None)
