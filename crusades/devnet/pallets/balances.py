"""Accounts: free balance and nonce, transfers, the fee."""

from __future__ import annotations

from typing import Any

from crusades.devnet.errors import DispatchFailed
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.pallets.env import Env, call
from crusades.devnet.state import State

FEE = 124_414
"""Rao that a call with a fee costs, whatever its size."""

EXISTENTIAL_DEPOSIT = 500
"""Rao below which an account is reaped."""


def _account(state: State, who: str) -> dict[str, Any]:
    account = dict(state.get("System", "Account", who))
    data = dict(account["data"])
    data["flags"] = 0  # the default of this field is wider than what its encoder takes back
    return {**account, "data": data}


def _store(state: State, who: str, account: dict[str, Any]) -> None:
    state.put("System", "Account", (who,), account)


def nonce(state: State, who: str, at: int | None = None) -> int:
    """How many extrinsics of this account are in blocks."""
    return int(state.get("System", "Account", who, at=at)["nonce"])


def free(state: State, who: str) -> int:
    """Free balance in rao."""
    return int(state.get("System", "Account", who)["data"]["free"])


def set_free(state: State, who: str, rao: int) -> None:
    """Set the free balance."""
    account = _account(state, who)
    account["data"]["free"] = rao
    account["providers"] = 1 if rao else 0
    _store(state, who, account)


def bump_nonce(state: State, who: str) -> None:
    """Count one more extrinsic."""
    account = _account(state, who)
    account["nonce"] += 1
    _store(state, who, account)


def charge_fee(env: Env, who: str, tip: int, pays_fee: bool) -> None:
    """Take the fee and say so in an event; the pool has seen to it that it can be paid."""
    fee = (FEE if pays_fee else 0) + tip
    if fee:
        set_free(env.state, who, max(0, free(env.state, who) - fee))
    env.deposit("TransactionPayment", "TransactionFeePaid", {"who": who, "actual_fee": fee, "tip": tip})


def withdraw(env: Env, who: str, rao: int, error: DispatchFailed) -> None:
    """Take `rao` and leave the account alive, or raise `error`."""
    have = free(env.state, who)
    if have < rao + EXISTENTIAL_DEPOSIT:
        raise error
    set_free(env.state, who, have - rao)


def _transfer(env: Env, source: str, dest: str, rao: int, *, keep_alive: bool) -> None:
    have = free(env.state, source)
    if have < rao:
        raise DispatchFailed("InsufficientBalance", "Balances")
    left = have - rao
    if left < EXISTENTIAL_DEPOSIT:
        if keep_alive and source != dest:
            raise DispatchFailed("Expendability", "Balances")
        left = 0
    if free(env.state, dest) + rao < EXISTENTIAL_DEPOSIT:
        raise DispatchFailed("ExistentialDeposit", "Balances")
    if source != dest:
        set_free(env.state, source, left)
        set_free(env.state, dest, free(env.state, dest) + rao)
    env.deposit("Balances", "Transfer", {"from": source, "to": dest, "amount": rao})


@call("Balances.transfer_keep_alive")
def transfer_keep_alive(env: Env, extrinsic: Extrinsic) -> None:
    """Move TAO; the sender must keep the existential deposit."""
    _transfer(env, extrinsic.signer, extrinsic.args["dest"], int(extrinsic.args["value"]), keep_alive=True)


@call("Balances.transfer_allow_death")
def transfer_allow_death(env: Env, extrinsic: Extrinsic) -> None:
    """Move TAO; what falls below the existential deposit is reaped."""
    _transfer(env, extrinsic.signer, extrinsic.args["dest"], int(extrinsic.args["value"]), keep_alive=False)


@call("Balances.transfer_all")
def transfer_all(env: Env, extrinsic: Extrinsic) -> None:
    """Move everything, or everything but the existential deposit."""
    keep = bool(extrinsic.args["keep_alive"])
    amount = free(env.state, extrinsic.signer) - (EXISTENTIAL_DEPOSIT if keep else 0)
    _transfer(env, extrinsic.signer, extrinsic.args["dest"], max(0, amount), keep_alive=keep)


@call("System.remark")
def remark(env: Env, extrinsic: Extrinsic) -> None:
    """Nothing but a fee."""
