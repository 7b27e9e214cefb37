"""`crusades submit`: pre-flight, consent, commit, follow. The work is `submission.py`'s; this is what a person sees of it."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from crusades import fetch, rules_apart, submission
from crusades.asyncio_bridge import open_bridge
from crusades.chain import Chain, open_chain, open_wallet
from crusades.chain_wallets import unlock_coldkey
from crusades.errors import FetchFault, UsageError
from crusades.fees import out_of_window
from crusades.hparams import HParams
from crusades.submission import Preflight, Receipts, Ticket, Tickets
from crusades.submission_follow import Progress, ask_validator, follow, validator_api
from crusades.submission_receipts import MARGIN, receipts_of

DEV_NETUID = 1
"""The subnet of a dev network when none is named."""

Say = Callable[[str], None]


def tickets_folder() -> Path:
    """Where tickets are kept: a crash or Ctrl-C between signing and inclusion must not lose what was signed."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "crusades" / "tickets"


async def run_submit(arguments: argparse.Namespace, hparams: HParams, say: Say, show: Callable[[Any], None]) -> int:
    """The command; returns its exit code. `say` takes progress, `show` the JSON document."""
    if arguments.netuid is None and not (arguments.network == "dev" or "://" in arguments.network):
        raise UsageError(f"--netuid is needed on {arguments.network}")
    if arguments.validator is not None:
        validator_api(arguments.validator)  # a typing error is told before anything is committed
    interactive = sys.stdin.isatty() and not arguments.json
    wallet = open_wallet(arguments.wallet_name, arguments.wallet_hotkey, arguments.wallet_path, password=getpass.getpass if interactive else None)
    netuid = DEV_NETUID if arguments.netuid is None else arguments.netuid
    async with open_bridge() as bridge, open_chain(hparams.chain, arguments.network, netuid, bridge, wallet=wallet) as chain:
        facts = await chain.check()
        if not facts.subnet_exists:
            raise UsageError(f"subnet {netuid} does not exist on {arguments.network}: check --netuid and --network")
        if arguments.netuid is None and not chain.is_dev:
            raise UsageError(f"{arguments.network} is a real chain: --netuid is needed")
        return await _Submit(arguments, hparams, chain, wallet, say, show, interactive).run()


class _Submit:
    """One call of the command."""

    def __init__(self, arguments: argparse.Namespace, hparams: HParams, chain: Chain, wallet: Any, say: Say, show: Callable[[Any], None], interactive: bool) -> None:
        self.arguments, self.settings, self.chain, self.wallet = arguments, hparams.chain, chain, wallet
        self.say, self.show, self.interactive = say, show, interactive
        self.tickets = Tickets(tickets_folder())
        self.fetch = msgspec.structs.replace(hparams.fetch, allow_loopback=True) if chain.is_dev else hparams.fetch
        self.last: Progress | None = None

    async def run(self) -> int:
        hotkey = str(self.wallet.hotkey.ss58_address)
        settle = partial(submission.settle_all, self.chain, self.tickets, hotkey)
        committed = self._is_committed(hotkey)
        if not (committed or self.arguments.dry_run):
            await settle()
        seen = await self._look()
        ticket = self._earlier(seen)
        if ticket is None and committed and not self.arguments.dry_run:  # the file at that address is another by now
            await settle()
            seen = await self._look()
        if ticket is None:
            if not seen.ok:
                return self._refuse(seen)
            self._explain(seen)
            if self.arguments.dry_run:
                self.say("dry run: nothing was signed")
                self._show(seen, None)
                return 0
            if not self._consent(seen):
                self.say("nothing was signed")
                return 1
            ticket = submission.new_ticket(self.chain, seen, seen.reveal_blocks)
        ticket = await submission.submit(self.chain, self.wallet, ticket, self.tickets, self.settings,
                                         replace_pending=self.arguments.replace_pending, unlock=self._unlock)
        if ticket.payload.receipt:
            self.say(f"the fee is paid: receipt {ticket.payload.receipt}")
        self.say(f"committed in block {ticket.commit_block} as submission {ticket.submission_id}; opens about block {ticket.reveal_block_estimate}")
        if self.arguments.wait:
            ticket = await self._follow(ticket)
        self._show(seen, ticket)
        return self.last.exit_code if self.last else 0

    def _is_committed(self, hotkey: str) -> bool:
        """Whether what lies at this address seems to be committed already, so that it is only followed: that waits for nothing else."""
        ours = self.tickets.of(self.chain.genesis, self.chain.netuid, hotkey)
        return any(t.payload.url == self.arguments.url and t.commit_block is not None and not t.over for t in ours)

    def _unlock(self) -> None:
        """The coldkey is opened after consent, and only to pay."""
        unlock_coldkey(self.wallet, getpass.getpass if self.interactive else None)

    async def _look(self) -> Preflight:
        hotkey = str(self.wallet.hotkey.ss58_address)
        try:
            return await submission.preflight(
                self.chain, self.arguments.url, hotkey, self.settings,
                preview=lambda url: fetch.preview(url, self.fetch), check=partial(rules_apart.scan_apart, max_bytes=self.fetch.max_bytes),
                replace_pending=self.arguments.replace_pending,
                receipts=self._receipts(hotkey),
            )  # fmt: skip
        except FetchFault:
            seen = Preflight(payload=None, hotkey=hotkey)
            if self._unfinished(seen) is None:
                raise
            return seen  # what is committed already needs its host no more

    def _receipts(self, hotkey: str) -> Receipts:
        return receipts_of(self.tickets.all(), self.chain.genesis, self.chain.netuid, hotkey, self.arguments.receipt)

    def _earlier(self, seen: Preflight) -> Ticket | None:
        """What an interrupted call of the same command left: it is gone on with, never repeated."""
        ticket = self._unfinished(seen)
        if ticket is None:
            return None
        self.say(f"going on with the submission of this file that stands at {ticket.stage!r}")
        return ticket

    def _unfinished(self, seen: Preflight) -> Ticket | None:
        """The ticket of this very file, or of this address while its file cannot be had."""
        if self.arguments.dry_run:
            return None
        ticket = self.tickets.unfinished(self.chain.genesis, self.chain.netuid, seen.hotkey, seen.payload)
        if ticket is None or ticket.stage == "prepared" or ticket.payload.url != self.arguments.url:
            return None
        if ticket.stage == "paid":  # and not committed: its receipt may have served another submission since, or be too old
            free = ticket.payload.receipt in self._receipts(seen.hotkey).spare
            return ticket if free and not (seen.head and out_of_window(ticket.payload.receipt, seen.head + MARGIN)) else None
        # With --replace-pending another seal, which has destroyed this one, is to be replaced by it in turn.
        return None if self.arguments.replace_pending and self._is_anothers(seen.pending_block, ticket) else ticket

    def _is_anothers(self, block: int | None, ticket: Ticket) -> bool:
        """Whether the seal in this block is not this ticket's for certain."""
        others = [t for t in self.tickets.of(ticket.genesis, ticket.netuid, ticket.hotkey) if t != ticket]
        return block is not None and (not ticket.may_be_in(block) or any(t.commit_block == block for t in others))

    def _explain(self, seen: Preflight) -> None:
        assert seen.payload is not None
        if self.chain.is_dev:
            self.say("note:    this is a development network and no real chain; nothing on it has any value")
        self.say(f"file:    {seen.payload.url}\nsha256:  {seen.payload.sha256}  ({seen.size:,} bytes, no findings)")
        for line in seen.effects:
            self.say(f"effect:  {line}")

    def _refuse(self, seen: Preflight) -> int:
        for problem in seen.problems:
            self.say(f"[{problem.code}{' ' + problem.rule if problem.rule else ''}] {problem.message}\n    to do: {problem.hint}")
        self.say("nothing was signed")
        self._show(seen, None)
        return 1

    def _consent(self, seen: Preflight) -> bool:
        if self.arguments.yes:
            return True
        if self.interactive:
            try:
                return input("sign and send? [y/N] ").strip().lower() in ("y", "yes")
            except EOFError:  # Ctrl-D
                self.say("")
                return False
        if seen.fee_rao:
            raise UsageError("a fee would be paid and nobody can be asked here: say --yes")
        return True

    async def _follow(self, ticket: Ticket) -> Ticket:
        url = self.arguments.validator
        async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
            ask = ask_validator(client, url) if url else None
            async with contextlib.aclosing(follow(self.chain, ticket, self.tickets, ask=ask)) as steps:
                async for step in steps:
                    self.last, ticket = step, step.ticket
                    self.say(step.words)
        if ask is None and ticket.stage == "revealed":
            self.say("revealed; --url HOST:PORT of a validator follows it to the verdict")
        return ticket

    def _show(self, seen: Preflight, ticket: Ticket | None) -> None:
        if not self.arguments.json:
            return
        last = self.last
        self.show({
            "ok": seen.ok or ticket is not None, "dry_run": self.arguments.dry_run, "network": self.arguments.network, "netuid": self.chain.netuid, "hotkey": seen.hotkey,
            "payload": ticket.payload if ticket else seen.payload, "effects": seen.effects, "problems": () if ticket else seen.problems, "findings": seen.findings,
            "submission_id": ticket.submission_id if ticket else None, "commit_block": ticket.commit_block if ticket else None,
            "reveal_round": ticket.reveal_round if ticket else None, "reveal_block_estimate": ticket.reveal_block_estimate if ticket else None,
            "status": ticket.stage if ticket else None, "verdict": last.verdict if last else None, "score_mfu": last.score_mfu if last else None,
            "reason": ticket.reason if ticket else None,
        })  # fmt: skip


def submit(arguments: argparse.Namespace, hparams: HParams, say: Say, show: Callable[[Any], None]) -> int:
    """`crusades submit` from start to exit code. Raises ChainError and FetchFault for the outside's faults."""
    try:
        return trio.run(run_submit, arguments, hparams, say, show)
    except KeyboardInterrupt:
        say("\ninterrupted; whatever was sent is written down: the same command goes on from there and sends nothing twice")
        raise

