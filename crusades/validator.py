"""`crusades-validator`: flags, checks before anything starts, the daemon, and an exit code that systemd understands.

0 stopped as asked; 1 a bug (traceback in the log; systemd starts it again); 2 the operator's input is wrong; 3 must not be
started again before a person has looked.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import getpass
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crusades import __version__, hparams, logs
from crusades.errors import ConfigError, CrusadesError, MustNotRestart, StateLocked, StoreError
from crusades.hparams_check import must_judge
from crusades.places import shipped

if TYPE_CHECKING:
    from crusades.daemon import DaemonConfig

log = logging.getLogger("crusades.validator")

OK, BUG, BAD_CONFIG, STAY_DOWN = 0, 1, 2, 3


def parser() -> argparse.ArgumentParser:
    """Every flag of the validator; tuning belongs into `hparams.toml`."""
    p = argparse.ArgumentParser(prog="crusades-validator", description="Read submissions from a subnet, judge them, set weights.", allow_abbrev=False)
    p.add_argument("--version", action="version", version=f"crusades-validator {__version__}")
    p.add_argument("--hparams", metavar="FILE", type=Path, help="settings (default: hparams.toml here, else the project's)")
    p.add_argument("--network", default="finney", help="finney, test, local, dev or ws://HOST:PORT (default: finney)")
    p.add_argument("--netuid", type=int, help="number of the subnet; needed everywhere but on dev")
    p.add_argument("--wallet.name", "--wallet-name", dest="wallet_name", default="default", metavar="NAME", help="name of the wallet (default: default)")
    p.add_argument("--wallet.hotkey", "--wallet-hotkey", dest="wallet_hotkey", default="default", metavar="HOTKEY", help="name of its hotkey (default: default)")
    p.add_argument("--wallet.path", "--wallet-path", dest="wallet_path", default="~/.bittensor/wallets", metavar="PATH",
                   help="folder of the wallets; only the hotkey is ever read (default: ~/.bittensor/wallets)")
    p.add_argument("--state-dir", type=Path, metavar="DIR", help="database, backups and caches (default: systemd's StateDirectory, else ~/.local/state/crusades)")
    p.add_argument("--web", metavar="HOST:PORT", default="", help="where the web page listens (default: web.listen of hparams.toml)")
    p.add_argument("--accept-empty-state", action="store_true", help="set weights though the chain knows weights of ours and the state directory does not")
    p.add_argument("--accept-foreign-weights", action="store_true",
                   help="after a restored backup, or once a second validator with this hotkey is stopped: take the weights on chain for ours, this once")
    p.add_argument("--json-logs", action="store_true", help="log JSON lines (default: only under systemd)")
    return p


def default_state_dir(network: str, netuid: int) -> Path:
    """One folder per subnet, so that two subnets on one machine do not share a database."""
    root = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if root:
        return Path(root)
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    label = "".join(c if c.isalnum() else "-" for c in network).strip("-")
    return base / "crusades" / f"{label}-{netuid}"


def check_arguments(arguments: argparse.Namespace) -> int:
    """The netuid. ConfigError for what can be seen to be wrong without looking at anything."""
    netuid: int | None = arguments.netuid
    if netuid is None and arguments.network == "dev":
        netuid = 1
    if netuid is None:
        raise ConfigError("--netuid is required: which subnet this validator serves is never guessed")
    if netuid < 1:
        raise ConfigError(f"--netuid {netuid}: subnets are numbered from 1")
    if arguments.web:
        host, _, port = arguments.web.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"--web takes HOST:PORT, not {arguments.web!r}")
    return netuid


def profiles_of(network: str, settings: hparams.HParams) -> tuple[str, ...]:
    """The profiles that may have to judge; behind an address, only the node knows whether it is a development chain."""
    ours, dev = settings.competition.profile, settings.competition.dev_profile
    return (ours, dev) if network.startswith(("ws://", "wss://")) else (dev,) if network == "dev" else (ours,)


def open_state_dir(folder: Path) -> Path:
    """The folder, made if need be and private. ConfigError when it cannot be written; StoreError while its disk is full:
    that passes without anybody touching a setting, so systemd should try again."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"the state directory {folder} cannot be written: {error.strerror}; free its disk") from error
        raise ConfigError(f"the state directory {folder} cannot be written: {error.strerror or error}; use --state-dir, or free its disk") from error
    return folder


CREDENTIAL = "hotkey"
"""Name of the systemd credential that holds the hotkey file."""


def link_credential(wallets: Path, name: str, hotkey: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Where systemd hands the hotkey over as a credential, link it to where the SDK looks. False without a credential.

    A link and not a copy: the key stays in the credential's own memory, which is never swapped.
    """
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    key = Path(folder) / CREDENTIAL
    if not folder or not key.is_file():
        return False
    place = wallets.expanduser() / name / "hotkeys" / hotkey
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not place.is_symlink() or place.readlink() != key:
        place.unlink(missing_ok=True)
        place.symlink_to(key)
    return True


def must_have_walls(cpu: bool = False) -> None:
    """Refuse to start while a mandatory wall of the sandbox is down, of CPU slots or of any card: submissions would run with our rights."""
    from crusades.sandbox.doctor import check_walls

    down = [check for check in check_walls(cpu=cpu) if check.mandatory and not check.ok]
    if down:
        raise ConfigError("the sandbox cannot be built on this machine:\n" + "\n".join(f"  {check.name}: {check.message}. Fix: {check.fix}" for check in down))


def must_hide(settings: hparams.HParams, state_dir: Path, wallets: Path) -> None:
    """Refuse to start when submissions would see what is ours."""
    from crusades.sandbox.host import must_not_show
    from crusades.sandbox.policy import contestant_policy

    private = {"the state directory (--state-dir)": state_dir, "the wallets' folder (--wallet.path)": wallets}
    must_not_show(contestant_policy(settings.sandbox).mounts, private)


def must_have_cache(settings: hparams.HParams, profiles: Sequence[str]) -> None:
    """Refuse to start without what `crusades setup` fetches: every referee would fail. Where only the node knows which profile
    judges, the daemon looks once it has been asked: nobody should have to fetch the other one's gigabytes."""
    from crusades.bench.entries import must_be_cached

    if len(set(profiles)) == 1:
        must_be_cached(settings.profile(profiles[0]), profiles[0], None)


def configuration(arguments: argparse.Namespace) -> DaemonConfig:
    """Everything checked that can be checked before the chain is asked."""
    netuid = check_arguments(arguments)
    settings = hparams.load(arguments.hparams)
    profiles = profiles_of(arguments.network, settings)
    must_judge(settings, *profiles)
    must_have_cache(settings, profiles)
    with ThreadPoolExecutor(1) as apart:
        # The probes of the walls are processes of their own: they run, a second long, while this one imports the SDK.
        walls = apart.submit(must_have_walls, all(settings.profile(name).device == "cpu" for name in profiles))
        from crusades.chain import endpoints_of, open_wallet
        from crusades.daemon import DaemonConfig, Parts

        endpoints_of(arguments.network, settings.chain)
        link_credential(Path(arguments.wallet_path), arguments.wallet_name, arguments.wallet_hotkey)
        wallet = open_wallet(arguments.wallet_name, arguments.wallet_hotkey, arguments.wallet_path, password=_ask if sys.stdin.isatty() else None)
        state_dir = open_state_dir(arguments.state_dir or default_state_dir(arguments.network, netuid))
        walls.result()
    must_hide(settings, state_dir, Path(arguments.wallet_path))
    for secret in (settings.daemon.webhook_url, settings.daemon.heartbeat_url):  # their addresses are their passwords
        logs.redactor.add(secret)
    return DaemonConfig(hparams=settings, network=arguments.network, netuid=netuid, state_dir=state_dir, wallet=wallet, listen=arguments.web,
                        hparams_path=arguments.hparams, accept_empty_state=arguments.accept_empty_state,
                        accept_foreign_weights=arguments.accept_foreign_weights, parts=Parts(control=_baseline()))


def _ask(prompt: str) -> str:
    secret = getpass.getpass(prompt)
    logs.redactor.add(secret)
    return secret


def _baseline() -> Any:
    """Our own submission, for control runs. Without it nothing could tell a broken slot from a hostile file."""
    import hashlib
    import time

    from crusades.records import Source

    path = shipped("examples") / "baseline.py"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the baseline for control runs cannot be read ({error}): install the project anew") from error
    return Source(sha256=hashlib.sha256(content).hexdigest(), content=content, url=path.resolve().as_uri(), fetched_at=time.time())


# ------------------------------------------------------------------------------------------------ exit codes


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The single exceptions inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def exit_code(error: BaseException) -> int:
    """What the process returns. "Stay down" wins over everything; a bug beside a stated reason is still a bug."""
    found = list(leaves(error))
    if any(isinstance(e, MustNotRestart) for e in found):
        return STAY_DOWN
    if all(isinstance(e, KeyboardInterrupt) for e in found):
        return OK
    if all(isinstance(e, (ConfigError, StateLocked)) for e in found):
        return BAD_CONFIG
    return BUG


def report(error: BaseException) -> int:
    """Say it once: in words where they are ours, with a traceback where it is a bug."""
    code = exit_code(error)
    for inner in leaves(error):
        if isinstance(inner, CrusadesError):
            log.critical("%s", inner)
    if code == BUG and not all(isinstance(inner, CrusadesError) for inner in leaves(error)):
        log.critical("a bug in this program: please report it", exc_info=error)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point."""
    arguments = parser().parse_args(argv)
    logs.configure(json_lines=True if arguments.json_logs else None)
    # systemd's watchdog sends SIGABRT: the dump then says where everybody was.
    faulthandler.enable()
    try:
        config = configuration(arguments)
        import trio

        from crusades.daemon import run
        from crusades.sandbox.cgroups import enter_leaf

        if not enter_leaf():  # before any child: a group with processes of its own cannot hand controllers down
            log.info("no control group (version 2) is delegated to us; `crusades doctor` says what bounds a submission's memory instead")
        trio.run(run, config)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return report(error)
    return OK


if __name__ == "__main__":
    sys.exit(main())
