"""Every flag of `crusades`, with help for people. A test freezes the list: tuning belongs into hparams.toml, not here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from crusades import __version__

DEFAULT_URL = "127.0.0.1:8080"
"""Where a validator's web server listens unless told otherwise."""


def _wallet_flags(command: argparse.ArgumentParser) -> None:
    for name, default, what in (("name", "default", "name of the wallet"), ("hotkey", "default", "name of its hotkey"),
                                ("path", "~/.bittensor/wallets", "folder of the wallets")):  # fmt: skip
        command.add_argument(f"--wallet.{name}", f"--wallet-{name}", dest=f"wallet_{name}", default=default, metavar=name.upper(), help=f"{what} (default: {default})")


def _chain_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--network", default="finney", help="finney, test, local, dev or ws://HOST:PORT (default: finney)")
    command.add_argument("--netuid", type=int, help="number of the subnet; needed everywhere but on dev")


def _judge_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--profile", metavar="P", help="workload of hparams.toml (default: the tiny one on a CPU, else the competition's)")
    command.add_argument("--hparams", metavar="FILE", help="rules and limits to judge by (default: hparams.toml here, else the project's)")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: auto)")


def _json_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _receipt(text: str) -> str:
    if re.fullmatch(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,5})", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no receipt: it reads BLOCK-INDEX, as 5001962-3")
    return text


Add = Callable[[str, str], argparse.ArgumentParser]
"""(name, help) → the command's own parser."""


def parser() -> argparse.ArgumentParser:
    """Every command and flag."""
    top = argparse.ArgumentParser(prog="crusades", description="Race to train a model: write, check, bench and submit a train.py; watch the validator.")
    top.add_argument("--version", action="version", version=f"crusades {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        command.set_defaults(json=False)
        return command

    _demo(add)
    _for_miners(add)
    _for_viewers(add)
    _for_operators(add)
    for name, text in (("devnet", "run a local stand-in for a chain node"), ("store", "back up, restore, export, import or verify a validator's state")):
        commands.add_parser(name, help=text, add_help=False)  # their modules own their flags: see cli.PASSED_ON
    return top


def _demo(add: Add) -> None:
    command = add("demo", "run everything on this machine: a dev chain, a validator, honest and cheating miners")
    command.add_argument("--once", action="store_true", help="end when all are judged and weights are set, and print the leaderboard")
    command.add_argument("--profile", metavar="P", help="workload of hparams.toml (default: its dev profile)")
    command.add_argument("--state-dir", metavar="DIR", help="keep the demo's files here (default: a temporary folder)")
    command.add_argument("--web", metavar="HOST:PORT", default="127.0.0.1:0", help="where the web page listens (default: any free port)")
    _json_flag(command)


def _for_miners(add: Add) -> None:
    command = add("init", "write a commented train.py to start from")
    command.add_argument("path", nargs="?", default="train.py", metavar="PATH", help="file or folder (default: train.py)")
    command.add_argument("--fast", action="store_true", help="start from the serious example instead of the plain loop")
    _json_flag(command)

    command = add("check", "check a train.py against the static rules")
    command.add_argument("train_py", metavar="TRAIN_PY")
    _json_flag(command)

    command = add("bench", "judge a train.py here exactly as a validator would: sandbox, referee, audit, verdict")
    command.add_argument("train_py", metavar="TRAIN_PY", help="a file, or the URL of one")
    _judge_flags(command)
    command.add_argument("--runs", type=_positive, metavar="N", help="scored runs (default: the profile's)")
    command.add_argument("--skip-rules", action="store_true", help="judge by the audit alone; the verdict says so")
    command.add_argument("--unsafe-no-sandbox", action="store_true", help="run the file with all your rights, where no sandbox can be built; the verdict says so")
    _json_flag(command)

    command = add("submit", "check what a validator would see at URL, then commit it to the chain, sealed")
    command.add_argument("url", metavar="URL", help="where the raw file lies (GitHub and gist pages are mapped to it)")
    _wallet_flags(command)
    _chain_flags(command)
    command.add_argument("--hparams", metavar="FILE", help="rules to check by (default: hparams.toml here, else the project's)")
    command.add_argument("--url", dest="validator", metavar="HOST:PORT", help="a validator to ask while waiting (default: none, and --wait ends with the reveal)")
    command.add_argument("--wait", action="store_true", help="follow the submission to its verdict")
    command.add_argument("--dry-run", action="store_true", help="do everything but sign")
    command.add_argument("--replace-pending", action="store_true", help="commit even though an earlier commitment is still sealed, which destroys it")
    command.add_argument("--receipt", type=_receipt, metavar="BLOCK-INDEX", help="a fee that was paid and not spent (default: one that an earlier submission left, else a new transfer)")
    command.add_argument("--yes", action="store_true", help="do not ask before signing; with --json or without a terminal nobody is asked anyway, and only a fee needs this word")
    _json_flag(command)


def _for_viewers(add: Add) -> None:
    command = add("status", "say where submissions are, and why")
    command.add_argument("hotkey", nargs="?", metavar="HOTKEY", help="SS58 address (default: everybody's newest)")
    command.add_argument("--url", default=DEFAULT_URL, metavar="HOST:PORT", help=f"the validator (default: {DEFAULT_URL})")
    _json_flag(command)

    command = add("tui", "watch a validator in the terminal")
    command.add_argument("--url", default=DEFAULT_URL, metavar="HOST:PORT", help=f"the validator (default: {DEFAULT_URL})")


def _for_operators(add: Add) -> None:
    command = add("doctor", "test what a sandbox and a judge need on this machine, with the command that fixes each")
    _json_flag(command)

    command = add("calibrate", "measure the limits of the audit for a profile on this device")
    _judge_flags(command)
    command.add_argument("--out", metavar="DIR", help="results, limits and report; a stopped calibration goes on from here")
    command.add_argument("--exams", type=_positive, default=3, metavar="N", help="exams that honest variants are measured on (default: 3)")
    command.add_argument("--sizes", metavar="S,S", help="sizes of the graded shortcuts, for example 0.01,0.1 (default: seven, from 0.005 to 0.5)")
    command.add_argument("--spread", type=_positive, default=0, metavar="N", help="exams more on which only the three widest honest variants are measured; with eight or more in all, limits allow for unlucky exams (default: 0)")
    command.add_argument("--each", type=_positive, default=0, metavar="N", help="at most N shortcuts of each dimension, small ones first (default: all)")
    command.add_argument("--only", action="append", default=[], metavar="TEXT", help="only variants with TEXT in their names that --out does not have yet, honest ones on the exams of --spread, too; may be repeated")
    command.add_argument("--honest", action="append", default=[], metavar="TRAIN_PY", help="an honest submission that joins the honest population; may be repeated")
    command.add_argument("--seconds", type=float, default=0.0, metavar="S", help="stop after about this long, but not before one variant is measured, with exit code 1 while not all is; the same command goes on (default: never)")
    command.add_argument("--from-results", action="store_true", help="measure nothing: limits and report from the results in --out, by today's rules")
    command.add_argument("--write", action="store_true", help="write the limits into hparams.toml when complete")

    command = add("setup", "download and prepare the model and data of a profile; nothing else talks to the hub")
    command.add_argument("--profile", metavar="P", help="workload of hparams.toml (default: the competition's)")
    command.add_argument("--hparams", metavar="FILE", help="where the profile stands (default: hparams.toml here, else the project's)")
    command.add_argument("--verify", action="store_true", help="compare every checksum of what is there already")
    _json_flag(command)

    command = add("install-service", "install the validator as a systemd service")
    command.add_argument("--dry-run", action="store_true", help="print what would be done")
