"""A fee that is paid already: receipts that earlier submissions left unspent, so that nobody pays twice (`fees` says when one counts)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from crusades.chain_records import Pruned, Receipt
from crusades.errors import UsageError
from crusades.faults import fault
from crusades.fees import asks_fee, judge_receipt, out_of_window, spends
from crusades.hparams import Chain as Settings
from crusades.records import Outcome, Reason, Record, Stage
from crusades.submission_tickets import Ticket

MARGIN = 100
"""Blocks that may pass between this look and the commitment: a receipt that is about to leave the window is not relied on."""


class Chain(Protocol):
    """What is asked of the chain."""

    async def receipt(self, receipt: str) -> Receipt | None: ...


class Receipts(Record, frozen=True, kw_only=True):
    """What may pay instead of a new transfer."""

    named: str | None = None
    """The one that its miner names; no other is looked at then."""
    spare: Sequence[str] = ()
    """Those that tickets of this machine hold and nothing has used, newest first."""
    spent: Mapping[str, str] = {}
    """receipt → the submission of this machine that has spent it."""


NO_RECEIPTS = Receipts()


def receipts_of(tickets: Sequence[Ticket], genesis: str, netuid: int, hotkey: str, named: str | None = None) -> Receipts:
    """The receipts of a hotkey's own tickets."""
    ours = [t for t in tickets if (t.genesis, t.netuid, t.hotkey) == (genesis, netuid, hotkey) and t.payload.receipt]
    held = {t.payload.receipt for t in ours if not _left(t)}
    spare = dict.fromkeys(t.payload.receipt for t in ours if t.payload.receipt and t.payload.receipt not in held)
    spent = {t.payload.receipt: t.submission_id or "" for t in ours if t.payload.receipt and _spent(t)}
    return Receipts(named=named, spare=tuple(spare), spent=spent)


def _spent(ticket: Ticket) -> bool:
    return ticket.stage == "scored" or (ticket.stage == "rejected" and ticket.reason is not None and spends(Outcome.REJECTED, ticket.reason.stage))


def _left(ticket: Ticket) -> bool:
    """Whether the receipt of this ticket is known to be free. One that a validator refused is not: it may know of another use."""
    if ticket.stage == "rejected":
        return ticket.reason is not None and ticket.reason.code != fault("fee-missing").code and not _spent(ticket)
    return ticket.stage in ("paid", "faulted")


async def find_receipt(chain: Chain, settings: Settings, receipts: Receipts, *, payers: Collection[str], head: int) -> tuple[str | None, list[Reason]]:
    """The receipt that pays for a commitment made now, if there is one, and what speaks against the only one that could.

    UsageError when one is named and no fee is asked.
    """
    if not asks_fee(settings):
        if receipts.named:
            raise UsageError("this competition asks for no fee: leave --receipt out")
        return None, []
    for receipt in (receipts.named,) if receipts.named else receipts.spare:
        try:
            found = None if out_of_window(receipt, head + MARGIN) else await chain.receipt(receipt)
        except Pruned as error:
            return None, [_forgotten(receipt, error)]
        wrong = judge_receipt(receipt, found, settings, payers=payers, commit_block=head + MARGIN, submission_id="", used_by=receipts.spent.get(receipt))
        if wrong is None:
            return receipt, []
        if receipts.named:
            return None, [wrong]
    return None, []


def _forgotten(receipt: str, error: Pruned) -> Reason:
    return Reason(code=fault("chain-down").code, stage=Stage.CHAIN, message=f"The fee paid as {receipt} may still count, and this node no longer knows it ({error}).",
                  hint="ask a node that keeps its history (--network with an archive endpoint) before anything is paid again")
