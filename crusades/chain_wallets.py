"""Wallets: opened with words about whatever is wrong, and made for the dev network."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import bittensor as bt
import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs

from crusades.errors import ConfigError


def open_wallet(name: str, hotkey: str, path: str, *, password: Callable[[str], str] | None = None) -> bt.Wallet:
    """The wallet with its hotkey unlocked. ConfigError says what to do about any problem.

    `password(prompt)` is asked only for an encrypted key; without it the SDK's environment variables are looked at.
    """
    try:
        wallet = bt.Wallet(name, hotkey, path)
    except ValueError as error:
        raise ConfigError(f"bad wallet name: {error}") from error
    _unlock(wallet.hotkey_file, f"hotkey {wallet.hotkey_str!r} of wallet {wallet.name!r}", wallet.get_hotkey, password)
    return wallet


def unlock_coldkey(wallet: bt.Wallet, password: Callable[[str], str] | None = None) -> None:
    """Make the coldkey usable too, as `open_wallet` does the hotkey."""
    _unlock(wallet.coldkey_file, f"coldkey of wallet {wallet.name!r}", wallet.get_coldkey, password)


def _unlock(file: Any, what: str, get: Callable[[str | None], Any], password: Callable[[str], str] | None) -> None:
    if not file.exists_on_device():
        raise ConfigError(f"there is no {what}: {file.path} does not exist. {_there_is(file.path)}Check --wallet.name, --wallet.hotkey and "
                          "--wallet.path, or make one with `btcli wallet create`.")
    secret: str | None = None
    try:
        if file.is_encrypted():
            secret = os.environ.get("BT_WALLET_PASSWORD") or core.get_password_from_environment(file.env_var_name())
            secret = secret or (_asked(password, what) if password else None)
            if not secret:
                raise ConfigError(f"the {what} is encrypted: run this in a terminal, or set BT_WALLET_PASSWORD")
        get(secret)
    except (core.KeyfileError, core.WrongPasswordError) as error:
        raise ConfigError(f"the {what} cannot be opened ({error}): {'wrong password?' if secret else f'is {file.path} damaged?'}") from error
    except OSError as error:
        raise ConfigError(f"the {what} cannot be read: {error.strerror or error}: check who owns {file.path}") from error
    except ValueError as error:
        raise ConfigError(f"the {what} is damaged ({error}): restore {file.path} from its mnemonic") from error


def _asked(password: Callable[[str], str], what: str) -> str:
    try:
        return password(f"Password of the {what}: ")
    except EOFError as error:
        raise ConfigError(f"no password was given for the {what}: type it, or set BT_WALLET_PASSWORD") from error


def _there_is(path: str) -> str:
    folder = os.path.dirname(path)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(n for n in os.listdir(folder) if not n.endswith("pub.txt"))[:8] if folder else []
    return f"{folder} holds {', '.join(names)}. " if names else ""


def create_wallet(name: str, hotkey: str, path: str) -> bt.Wallet:
    """A new wallet with an unencrypted hotkey and coldkey: for the dev network, where nothing has any value."""
    wallet = bt.Wallet(name, hotkey, path)
    if not wallet.coldkey_file.exists_on_device():
        wallet.create_new_coldkey(use_password=False, suppress=True)
    if not wallet.hotkey_file.exists_on_device():
        wallet.create_new_hotkey(use_password=False, suppress=True)
    return wallet
