"""The miner's side of a submission, without any user interface: look before you leap, commit, and follow to the verdict.

Everything that costs or destroys something is written to a `Ticket` on disk before it is done, so Ctrl-C or a crash at any
point leaves a file that says what was sent, and the same command goes on from there: a fee is never paid twice and a
sealed commitment never replaced by its own repetition.

    prepared → (paying → paid →) committing → sealed → revealed → … the validator's states … → scored | rejected | faulted
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import msgspec
import trio

from crusades import hparams
from crusades.chain_records import CommitFacts, Committed, Failed, Included, Pruned, Sent, Unresolved
from crusades.chain_rows import reason
from crusades.errors import ChainError, UsageError
from crusades.fees import asks_fee, tao
from crusades.payload import SEAL_OVERHEAD, format_payload
from crusades.records import Commitment, Finding, Outcome, Payload, Reason, Record, Source, Stage, Status

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

    async def commit_facts(self, hotkey: str) -> CommitFacts: ...
    async def commit(self, payload: bytes, wallet: Any, reveal_blocks: int, *, signed: Signed | None = None) -> Committed: ...
    async def pay_fee(self, wallet: Any, *, signed: Signed | None = None) -> str: ...
    async def resolve(self, sent: Sent) -> Included | None: ...
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
    head: int = 0
    hotkey: str = ""

    @property
    def ok(self) -> bool:
        """Nothing speaks against it."""
        return not self.problems


async def preflight(chain: Chain, url: str, hotkey: str, settings: hparams.Chain, *, preview: Preview, check: Check,
                    reveal_blocks: int | None = None, replace_pending: bool = False) -> Preflight:
    """Look at the file as a validator would, and at the chain as the chain would. Sends and signs nothing.

    Raises FetchFault when the URL's host could not be asked, ChainError when the chain could not.
    """
    blocks = settings.reveal_blocks if reveal_blocks is None else reveal_blocks
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
    size = 0
    if payload is not None:
        try:
            example = payload if not asks_fee(settings) else msgspec.structs.replace(payload, receipt="4294967295-65535")
            size = len(format_payload(example)) + SEAL_OVERHEAD
        except ValueError as error:
            problems.append(reason("payload-malformed", f"{error}"))
    facts = await chain.commit_facts(hotkey)
    problems += chain_problems(facts, settings, size=size, replace_pending=replace_pending)
    return Preflight(payload=payload, size=0 if isinstance(source, Reason) else len(source.content), problems=tuple(problems), findings=findings,
                     effects=_effects(chain, facts, settings, blocks, size), fee_rao=settings.fee_rao, head=facts.head, hotkey=hotkey)


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
        found.append(reason("overwritten", f"The commitment of block {facts.pending_block} is still sealed; a new one would destroy it unread. "
                                           "Wait for its reveal, or say --replace-pending."))
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
        found.append(reason("fee-missing", f"The fee is {tao(settings.fee_rao)} and the coldkey {facts.coldkey} holds {tao(facts.balance_rao)}."))
    return found


def _effects(chain: Chain, facts: CommitFacts, settings: hparams.Chain, blocks: int, size: int) -> tuple[str, ...]:
    seconds = blocks * chain.block_time
    lines = []
    if asks_fee(settings):
        lines.append(f"the coldkey {facts.coldkey} transfers {tao(settings.fee_rao)} to {settings.fee_address}")
    lines.append(f"the hotkey {facts.hotkey} signs Commitments.set_commitment on subnet {chain.netuid} ({chain.network}); the chain takes no fee for it")
    lines.append(f"{size} bytes are sealed; everybody can read them in about {blocks} blocks ({seconds:.0f} s), from block {facts.head + 1 + blocks} on")
    if facts.pending_block is not None:
        lines.append(f"the sealed commitment of block {facts.pending_block} is destroyed unread")
    return tuple(lines)


# ------------------------------------------------------------------------------------------------ tickets


class Ticket(Record, frozen=True, kw_only=True):
    """One submission as its miner knows it: enough to go on after a crash at any point."""

    network: str
    genesis: str
    """The chain's genesis hash, so that a dev ticket never speaks about mainnet."""
    netuid: int
    hotkey: str
    payload: Payload
    created_at: float
    stage: str = "prepared"
    """prepared, paying, paid, committing, then a `Status` value."""
    reveal_blocks: int = 20
    sent: Sent | None = None
    """An extrinsic whose outcome is not known yet."""
    commit_block: int | None = None
    reveal_round: int | None = None
    reveal_block_estimate: int | None = None
    reason: Reason | None = None

    @property
    def submission_id(self) -> str | None:
        """The id that every validator gives it; None before it is committed."""
        if self.commit_block is None:
            return None
        return Commitment(netuid=self.netuid, hotkey=self.hotkey, uid=None, commit_block=self.commit_block).submission_id

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.stage in ("scored", "rejected", "faulted")


class Tickets:
    """The tickets of one machine: a folder with one JSON file each, written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, ticket: Ticket) -> Ticket:
        """Write it through to the disk before returning. UsageError when the folder cannot be written."""
        name = f"{ticket.network.replace('/', '_').replace(':', '_')}-{ticket.netuid}-{ticket.hotkey}-{ticket.created_at:.6f}.json"
        temporary = self.folder / (name + ".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(ticket), indent=1))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        except OSError as error:
            raise UsageError(f"cannot keep the submission's ticket in {self.folder}: {error.strerror}") from error
        return ticket

    def all(self) -> list[Ticket]:
        """All readable tickets, newest first; a file that is none is passed over."""
        found = []
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Ticket))
            except (msgspec.DecodeError, OSError):
                continue
        return sorted(found, key=lambda t: -t.created_at)

    def unfinished(self, genesis: str, netuid: int, hotkey: str, payload: Payload | None = None) -> Ticket | None:
        """The newest ticket of this hotkey on this chain that is not over (for this file, when given): what `--wait` goes on with."""
        for ticket in self.all():
            same = payload is None or (ticket.payload.sha256, ticket.payload.url) == (payload.sha256, payload.url)
            if same and not ticket.over and (ticket.genesis, ticket.netuid, ticket.hotkey) == (genesis, netuid, hotkey):
                return ticket
        return None


def new_ticket(chain: Chain, seen: Preflight, reveal_blocks: int) -> Ticket:
    """A ticket for what pre-flight has approved. UsageError when it has not."""
    if seen.payload is None or not seen.ok:
        raise UsageError(f"the submission is not ready: {'; '.join(p.message for p in seen.problems)}")
    return Ticket(network=chain.network, genesis=chain.genesis, netuid=chain.netuid, hotkey=seen.hotkey, payload=seen.payload,
                  created_at=time.time(), reveal_blocks=reveal_blocks)


# ------------------------------------------------------------------------------------------------ committing


async def submit(chain: Chain, wallet: Any, ticket: Ticket, tickets: Tickets, settings: hparams.Chain) -> Ticket:
    """Pay (if a fee is asked) and commit, from wherever the ticket stands. Repeating it is harmless.

    Raises Unresolved, with the ticket saved, when nobody can say whether something sent is on chain: run it again later.
    """
    if asks_fee(settings) and ticket.payload.receipt is None:
        ticket = await _pay(chain, wallet, ticket, tickets)
    if ticket.commit_block is None:
        ticket = await _commit(chain, wallet, ticket, tickets)
    return ticket


async def _pay(chain: Chain, wallet: Any, ticket: Ticket, tickets: Tickets) -> Ticket:
    try:
        found = await _what_became(chain, ticket, "paying")
    except Pruned as error:
        raise ChainError(f"the fee may have been paid, and this node no longer knows ({error}): ask one that keeps its history (--network with an "
                         "archive endpoint) before anything is paid again") from error
    if found is not None:
        receipt = found.extrinsic
    else:
        receipt = await _once(ticket, tickets, "paying", "prepared", lambda signed: chain.pay_fee(wallet, signed=signed))
    paid = msgspec.structs.replace(ticket.payload, receipt=receipt)
    return tickets.save(msgspec.structs.replace(ticket, stage="paid", payload=paid, sent=None))


async def _commit(chain: Chain, wallet: Any, ticket: Ticket, tickets: Tickets) -> Ticket:
    try:
        found = await _what_became(chain, ticket, "committing")
        block = found.block if found else None
    except Pruned:
        block = await _committed_between(chain, ticket)
    if block is not None:
        return tickets.save(msgspec.structs.replace(ticket, stage="sealed", sent=None, commit_block=block,
                                                    reveal_block_estimate=block + ticket.reveal_blocks))
    raw, before = format_payload(ticket.payload), "prepared" if ticket.payload.receipt is None else "paid"
    done = await _once(ticket, tickets, "committing", before, lambda signed: chain.commit(raw, wallet, ticket.reveal_blocks, signed=signed))
    return tickets.save(msgspec.structs.replace(ticket, stage="sealed", sent=None, commit_block=done.block, reveal_round=done.reveal_round,
                                                reveal_block_estimate=done.reveal_block_estimate))


async def _once(ticket: Ticket, tickets: Tickets, doing: str, before: str, act: Callable[[Callable[[Sent], None]], Awaitable[T]]) -> T:
    """`act`, with the signed extrinsic written down before it leaves; a definite failure takes the ticket back to `before`."""
    def signed(sent: Sent) -> None:
        tickets.save(msgspec.structs.replace(ticket, stage=doing, sent=sent))

    try:
        return await act(signed)
    except Unresolved:
        raise  # the ticket says what was sent
    except ChainError:
        tickets.save(msgspec.structs.replace(ticket, stage=before, sent=None))
        raise


async def _what_became(chain: Chain, ticket: Ticket, doing: str) -> Included | None:
    """The extrinsic that an earlier, interrupted attempt sent, if it is on chain. Raises Unresolved while it may still come."""
    if ticket.stage != doing or ticket.sent is None:
        return None
    try:
        return await chain.resolve(ticket.sent)
    except Failed:
        return None  # it was included and failed: nothing happened


async def _committed_between(chain: Chain, ticket: Ticket) -> int | None:
    """The hotkey's commit block in the blocks that the forgotten extrinsic can only be in; None: it never came."""
    if ticket.sent is None:
        return None
    rows = await chain.commitments(hotkey=ticket.hotkey)
    return next((r.commit_block for r in rows if r.commit_block_exact and ticket.sent.first <= r.commit_block <= ticket.sent.last), None)


# ------------------------------------------------------------------------------------------------ following


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


class _Detail(msgspec.Struct, frozen=True):
    submission: Remote


Ask = Callable[[str], Awaitable[Remote | None]]
"""submission id → what a validator says about it; None when it does not know it yet. Raises httpx.HTTPError."""


def validator_api(url: str) -> str:
    """The API's base of `--url`, which may be a bare HOST:PORT. UsageError for anything else."""
    full = url if "://" in url else f"http://{url}"
    parsed = httpx.URL(full)
    if parsed.scheme not in ("http", "https") or not parsed.host:
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
        except httpx.HTTPError as error:
            trouble = f" (the validator cannot be asked: {str(error) or type(error).__name__})"
        else:
            if remote is not None:
                return _from_validator(ticket, remote)
            trouble = " (the validator has not seen it yet)"
    if ticket.stage in ("revealed", "rejected"):
        return Progress(ticket=ticket, words=_words(ticket) + (trouble if ticket.stage == "revealed" else "")), ask is None or ticket.over
    try:
        rows = await chain.commitments(hotkey=ticket.hotkey)
    except ChainError as error:
        return Progress(ticket=ticket, words=f"{_words(ticket)}; the chain cannot be asked: {error}"), False
    ticket = _from_chain(ticket, rows)
    return Progress(ticket=ticket, words=_words(ticket) + trouble * (not ticket.over)), ticket.over or (ask is None and ticket.stage == "revealed")


def _from_chain(ticket: Ticket, rows: Sequence[Commitment]) -> Ticket:
    row = next((r for r in rows if r.commit_block == ticket.commit_block), None)
    if row is not None:
        return msgspec.structs.replace(ticket, stage=str(row.state.value), reason=row.reason, reveal_round=row.reveal_round or ticket.reveal_round)
    newer = next((r for r in rows if ticket.commit_block is not None and r.commit_block > ticket.commit_block), None)
    if newer is not None and ticket.stage == "sealed":
        words = f"The commitment of block {newer.commit_block} replaced this one of block {ticket.commit_block} before it was opened."
        return msgspec.structs.replace(ticket, stage="rejected", reason=reason("overwritten", words))
    return ticket


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
