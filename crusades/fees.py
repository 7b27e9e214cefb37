"""The optional fee of a submission: when a receipt counts, and when it is spent. Pure; off unless `chain.fee_rao` is set.

A miner transfers the fee, then names the transfer (`<block>-<index>`) in the sealed payload. A receipt serves one
submission at a time and is spent once that submission was technically valid, that is, once it was run. A submission that
fails before it runs (bad URL, wrong hash, a rule) leaves its receipt for the next one, and so does every fault of ours.

The store therefore keeps one row per receipt: its id, the submission that names it, and whether it is spent; `used_by`
below is the submission that has spent it, or that still holds it because it is neither final nor freed.
"""

from __future__ import annotations

from collections.abc import Collection

from crusades.chain_records import Receipt
from crusades.chain_rows import reason
from crusades.hparams import Chain
from crusades.records import Outcome, Reason, Stage

WINDOW = 7_200
"""Blocks (a day) before the commitment in which the transfer must lie, so that its block can still be asked for."""

_RAN = frozenset({Stage.LOAD, Stage.WARMUP, Stage.RUN, Stage.AUDIT, Stage.SCORE})


def asks_fee(settings: Chain) -> bool:
    """Whether the competition asks for a fee."""
    return settings.fee_rao > 0


def out_of_window(named: str | None, commit_block: int) -> bool:
    """Whether the receipt names a block that cannot pay for this commitment, so that the chain need not be asked."""
    return named is not None and not commit_block - WINDOW <= int(named.partition("-")[0]) <= commit_block


def judge_receipt(named: str | None, found: Receipt | None, settings: Chain, *, payers: Collection[str], commit_block: int,
                  submission_id: str, used_by: str | None) -> Reason | None:
    """Why the receipt that a payload names does not pay for it; None when it does, or when no fee is asked.

    `found` is what the chain shows for it, `payers` the addresses that may have paid: the hotkey and its coldkey.
    """
    if not asks_fee(settings):
        return None
    problem = _problem(named, found, settings, payers, commit_block)
    if problem is None and used_by not in (None, submission_id):
        problem = f"the fee receipt {named} has been used by submission {used_by}; each counts once"
    return None if problem is None else reason("fee-missing", problem[:1].upper() + problem[1:] + ".")


def _problem(named: str | None, found: Receipt | None, settings: Chain, payers: Collection[str], commit_block: int) -> str | None:
    if named is None:
        return f"this competition asks for a fee of {tao(settings.fee_rao)}, and the payload names no receipt"
    if out_of_window(named, commit_block):
        return f"the transfer {named} is not within the {WINDOW:,} blocks before the commitment of block {commit_block}"
    if found is None:
        return f"the chain holds no transfer {named}"
    if not found.success:
        return f"the transfer {named} failed"
    if found.signer not in payers:
        return f"the transfer {named} was signed by {found.signer}, not by the hotkey or its coldkey"
    if found.destination != settings.fee_address:
        return f"the transfer {named} went to {found.destination}, not to {settings.fee_address}"
    if found.amount_rao < settings.fee_rao:
        return f"the transfer {named} is of {tao(found.amount_rao)}; the fee is {tao(settings.fee_rao)}"
    return None


def spends(outcome: Outcome, stage: Stage | None) -> bool:
    """Whether a verdict spends the receipt: only when the submission was run, never for a fault of ours."""
    return outcome is Outcome.ACCEPTED or (outcome is Outcome.REJECTED and stage in _RAN)


def tao(rao: int) -> str:
    """An amount for people."""
    return f"{rao / 1e9:.9f}".rstrip("0").rstrip(".") + " τ"
