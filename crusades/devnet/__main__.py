"""`python -m crusades.devnet`: run a dev chain until interrupted. Prints one JSON line when it listens."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from pathlib import Path

from crusades.devnet.config import DEFAULT_PORT, NOTICE, OWNER, RAO, DevnetConfig, SubnetConfig
from crusades.devnet.net import Devnet, run_devnet
from crusades.errors import ConfigError, CrusadesError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags, shared with `crusades devnet`."""
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address; nothing else is accepted")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 = any free port")
    parser.add_argument("--control-port", type=int, help="also listen for commands (JSON lines) here; 0 = any free port")
    parser.add_argument("--block-time", type=float, default=0.5, metavar="SECONDS")
    sealing = parser.add_mutually_exclusive_group()
    sealing.add_argument("--hold", action="store_true", help="make blocks only on command")
    sealing.add_argument("--instant", action="store_true", help="make blocks only when an extrinsic arrives")
    parser.add_argument("--finality-lag", type=int, default=2, metavar="BLOCKS")
    parser.add_argument("--reveal-blocks", type=int, default=4, metavar="BLOCKS", help="open seals so many blocks after the commit")
    parser.add_argument("--keep-blocks", type=int, metavar="BLOCKS", help="discard older state, as a lite node does")
    parser.add_argument("--subnet", type=int, action="append", metavar="NETUID", help="may be repeated; default 1")
    parser.add_argument("--tempo", type=int, default=20, metavar="BLOCKS")
    parser.add_argument("--commit-reveal", action="store_true", help="weights are sealed and opened an epoch later")
    parser.add_argument("--weights-rate-limit", type=int, default=0, metavar="BLOCKS")
    parser.add_argument("--fund", action="append", default=[], metavar="SS58=TAO", help="endow an account; may be repeated")
    parser.add_argument("--register", action="append", default=[], metavar="NETUID:HOTKEY[:COLDKEY]", help="register a miner")
    parser.add_argument("--validator", action="append", default=[], metavar="NETUID:HOTKEY[:COLDKEY]", help="register with stake and permit")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep the chain in this file across restarts")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append one JSON line per call")


def config_from(args: argparse.Namespace) -> DevnetConfig:
    """The configuration that the flags ask for. Raises ConfigError for a malformed one."""
    endowed = {}
    for entry in args.fund:
        who, _, tao = entry.partition("=")
        try:
            endowed[who] = int(float(tao) * RAO)
        except ValueError as error:
            raise ConfigError(f"--fund {entry} is not of the form SS58=TAO") from error
    subnets = tuple(
        SubnetConfig(netuid=netuid, tempo=args.tempo, commit_reveal=args.commit_reveal, weights_rate_limit=args.weights_rate_limit)
        for netuid in args.subnet or [1]
    )
    return DevnetConfig(
        host=args.host,
        port=args.port,
        control_port=args.control_port,
        block_time=args.block_time,
        sealing="manual" if args.hold else "instant" if args.instant else "interval",
        finality_lag=args.finality_lag,
        reveal_blocks=args.reveal_blocks,
        keep_blocks=args.keep_blocks,
        subnets=subnets,
        endowed=endowed,
        state=args.state,
        log=args.log,
    )


def _register(net: Devnet, entry: str, *, permit: bool) -> None:
    """Register as a flag says; who is registered (the chain came back from its file) stays so."""
    netuid, _, keys = entry.partition(":")
    if not netuid.isdigit() or not keys:
        raise ConfigError(f"{entry} is not of the form NETUID:HOTKEY or NETUID:HOTKEY:COLDKEY")
    hotkey, _, coldkey = keys.partition(":")
    if net.uid(int(netuid), hotkey) is None:
        net.register(int(netuid), hotkey, coldkey or OWNER, permit=permit)


def run(args: argparse.Namespace) -> int:
    """Run until SIGINT or SIGTERM. 0; 2 for arguments that cannot work."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with run_devnet(config_from(args)) as net:
            for permit, entries in ((False, args.register), (True, args.validator)):
                for entry in entries:
                    _register(net, entry, permit=permit)
            print(f"crusades devnet: {NOTICE}", file=sys.stderr)
            print(json.dumps(net.info()), flush=True)
            stop.wait()
    except CrusadesError as error:
        print(f"crusades devnet: {error}", file=sys.stderr)
        return 2
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="crusades devnet", description=NOTICE)
    add_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
