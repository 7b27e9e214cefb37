"""`crusades demo`: the whole system on one machine, with nothing left out but the internet.

    dev chain (a thread of this process)  ←  validator (a process of its own)  →  sandboxed contestants
              ↑ sealed commitments                       ↓ fetches
    miners: the real submit code  →  files on a loopback web server

The chain speaks the real protocol, the validator is the program that runs on mainnet, the judge is the judge. What is
different on a dev network is listed in docs/design.md §7.5. Everything lives in one folder, which is removed at the end
unless --state-dir named it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from crusades import demo_parts as parts
from crusades import hparams as settings
from crusades.demo_parts import Example, ValidatorProcess
from crusades.errors import ConfigError, CrusadesError
from crusades.hparams_check import must_judge
from crusades.places import shipped
from crusades.records import Outcome, Overview, Page, Standing, Submission, WeightsView
from crusades.report import leaderboard_text

EXAMPLES = shipped("examples").resolve()
WALLET, VALIDATOR = "demo", "validator"
NETUID = 1
READY_PATIENCE = 180.0
"""Seconds until the validator's web server must answer."""
ONCE_PATIENCE = 900.0
"""Seconds until `--once` gives up; the usual time is a fraction of it."""
POLL = 0.5


@dataclass(frozen=True)
class DemoConfig:
    """The command's flags."""

    once: bool = False
    json: bool = False
    profile: str | None = None
    state_dir: Path | None = None
    web: str = "127.0.0.1:0"
    hparams: Path | None = None


def run_demo(config: DemoConfig) -> int:
    """The command: 0 when every verdict was as expected (or the demo was stopped), 1 when one was not."""
    if config.state_dir is not None:
        if (config.state_dir / "state").exists():  # the chain starts anew, and what was judged on the last one would count as this one's
            raise ConfigError(f"{config.state_dir} holds the state of an earlier demo: name another --state-dir, or delete this one")
        try:
            config.state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {config.state_dir}: {error.strerror}") from error
        return _in_folder(config, config.state_dir.resolve())
    with tempfile.TemporaryDirectory(prefix="crusades-demo-") as folder:
        return _in_folder(config, Path(folder))


def _in_folder(config: DemoConfig, folder: Path) -> int:
    demo = _Demo(config, folder)  # whatever is wrong with the flags is found here
    home = folder / "home"
    home.mkdir(exist_ok=True)
    # The SDK keeps caches in the home directory; a demo leaves nothing outside of its folder.
    os.environ.update({"HOME": str(home), "BITTENSOR_RUNTIME_CACHE_DIR": str(folder / "runtime-cache")})
    return trio.run(_until_terminated, demo)


async def _until_terminated(demo: _Demo) -> int:
    """The demo; SIGTERM and SIGHUP stop it in order, as Ctrl-C does, with the exit code that shells give them."""
    code = 0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                nonlocal code
                async for number in signals:
                    code = 128 + number
                    nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            code = await demo.run()
            nursery.cancel_scope.cancel()
    return code


class _Leaderboard(msgspec.Struct):
    items: tuple[Standing, ...]


class _Demo:
    """One demonstration."""

    def __init__(self, config: DemoConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.started = time.monotonic()
        base = settings.load(config.hparams)
        self.profile = config.profile or base.competition.dev_profile
        must_judge(base, self.profile)
        self.hparams = parts.fast_settings(base, self.profile)
        self.examples = tuple(e for e in parts.read_manifest(EXAMPLES) if e.demo)
        self.web = parts.free_address(config.web)
        self.names: dict[str, str] = {}
        """hotkey → name of the example (or "validator")."""
        self.told: dict[str, str] = {}
        self.submitted = 0

    def say(self, words: str) -> None:
        """One line of progress, on stderr."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {words}", file=sys.stderr, flush=True)

    # ---------------------------------------------------------------- the course of events

    async def run(self) -> int:
        from crusades.devnet.config import NOTICE, DevnetConfig, SubnetConfig
        from crusades.devnet.net import open_devnet

        wallets = self._make_wallets()
        subnet = SubnetConfig(netuid=NETUID, tempo=20)
        async with open_devnet(DevnetConfig(block_time=parts.BLOCK_TIME, reveal_blocks=4, subnets=(subnet,))) as net:
            for hotkey, name in self.names.items():
                net.register(NETUID, hotkey, permit=name == VALIDATOR)
            self.say(f"dev chain at {net.url} with {len(self.examples)} miners. {NOTICE}")
            with parts.file_host({e.file: (EXAMPLES / e.file).read_bytes() for e in self.examples}) as host:
                validator = self._start_validator(net.url)
                try:
                    return await self._watch(validator, net.url, host, wallets)
                finally:
                    with trio.CancelScope(shield=True):
                        self.say("stopping the validator")
                        await validator.stop()

    async def _watch(self, validator: ValidatorProcess, chain: str, host: str, wallets: dict[str, Any]) -> int:
        async with httpx.AsyncClient(base_url=f"http://{self.web}/api/v1", timeout=10.0, trust_env=False) as client:
            await self._until_up(validator, client)
            self.say(f"the validator's page: http://{self.web}/      in another terminal: crusades tui --url {self.web}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._submit_all, chain, host, wallets)
                result = await self._until_judged(validator, client)
            wrong = self._print(*result)
            if self.config.once:
                return 1 if wrong else 0
            self.say(f"all are judged. The page stays at http://{self.web}/ until Ctrl-C")
            while True:
                validator.must_run()
                await trio.sleep(1.0)

    # ---------------------------------------------------------------- actors

    def _make_wallets(self) -> dict[str, Any]:
        from crusades.chain import create_wallet

        found = {}
        for name in (VALIDATOR, *(e.name for e in self.examples)):
            found[name] = create_wallet(WALLET, name, str(self.folder / "wallets"))
            self.names[str(found[name].hotkey.ss58_address)] = name
        return found

    def _start_validator(self, chain: str) -> ValidatorProcess:
        hparams = self.folder / "hparams.toml"
        hparams.write_text(parts.to_toml(msgspec.to_builtins(self.hparams)))
        arguments = ["--hparams", str(hparams), "--network", chain, "--netuid", str(NETUID), "--wallet.name", WALLET, "--wallet.hotkey", VALIDATOR,
                     "--wallet.path", str(self.folder / "wallets"), "--state-dir", str(self.folder / "state"), "--web", self.web]  # fmt: skip
        self.say(f"starting crusades-validator with profile {self.profile}; its log: {self.folder / 'validator.log'}")
        return ValidatorProcess(arguments, {}, self.folder / "validator.log")

    async def _until_up(self, validator: ValidatorProcess, client: httpx.AsyncClient) -> None:
        with trio.move_on_after(READY_PATIENCE):
            while True:
                validator.must_run()
                try:
                    if (await client.get("/overview")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # not listening yet
                await trio.sleep(0.1)
        raise CrusadesError(f"the validator did not answer at http://{self.web} within {READY_PATIENCE:.0f} s; see {validator.log}")

    async def _submit_all(self, chain_url: str, host: str, wallets: dict[str, Any]) -> None:
        """The miners, one after the other, by the code of `crusades submit`."""
        from crusades import fetch, rules_apart, submission
        from crusades.asyncio_bridge import open_bridge
        from crusades.chain import open_chain

        tickets = submission.Tickets(self.folder / "tickets")
        fetching = msgspec.structs.replace(self.hparams.fetch, allow_loopback=True)
        async with open_bridge() as bridge, open_chain(self.hparams.chain, chain_url, NETUID, bridge) as chain:
            await chain.check()
            for example in self.examples:
                wallet = wallets[example.name]
                seen = await submission.preflight(
                    chain, f"{host}/{example.file}", str(wallet.hotkey.ss58_address), self.hparams.chain,
                    preview=lambda url: fetch.preview(url, fetching), check=partial(rules_apart.scan_apart, max_bytes=fetching.max_bytes),
                )  # fmt: skip
                if seen.findings:  # a careless cheat would be stopped here; this one commits all the same
                    self.say(f"{example.name}: pre-flight warns: {seen.findings[0].rule} {seen.findings[0].message}")
                    seen = msgspec.structs.replace(seen, problems=())
                ticket = submission.new_ticket(chain, seen, self.hparams.chain.reveal_blocks)
                ticket = await submission.submit(chain, wallet, ticket, tickets, self.hparams.chain)
                self.submitted += 1
                self.say(f"{example.name}: committed, sealed, in block {ticket.commit_block} ({example.about})")

    # ---------------------------------------------------------------- watching

    async def _until_judged(self, validator: ValidatorProcess, client: httpx.AsyncClient) -> tuple[list[Submission], list[Standing], WeightsView]:
        patience = ONCE_PATIENCE if self.config.once else float("inf")
        with trio.move_on_after(patience):
            while True:
                validator.must_run()
                try:
                    found = await self._look(client)
                except (httpx.TransportError, httpx.HTTPStatusError) as error:
                    self.say(f"the validator does not answer just now ({error})")
                    found = None
                if found is not None:
                    return found
                await trio.sleep(POLL)
        raise CrusadesError(f"not everything was judged within {ONCE_PATIENCE:.0f} s; see {validator.log} (use --state-dir to keep it)")

    async def _look(self, client: httpx.AsyncClient) -> tuple[list[Submission], list[Standing], WeightsView] | None:
        """Everything, once all submissions are judged and the weights on chain are those that the judgement asks for."""
        page = await _get(client, "/submissions?limit=200", Page)
        for item in page.items:
            self._tell(item)
        judged = [s for s in page.items if s.status.final]
        if self.submitted < len(self.examples) or len(judged) < len(self.examples):
            return None
        overview = await _get(client, "/overview", Overview)
        leader, weights = overview.leader, overview.weights
        paid = leader is None or (leader.uid is not None and weights.asked.get(leader.uid, 0.0) > 0)
        if not (weights.equal and paid):
            return None
        board = await _get(client, "/leaderboard", _Leaderboard)
        return judged, list(board.items), weights

    def _tell(self, item: Submission) -> None:
        words = item.status.value + (f" {item.progress}" if item.progress else "")
        if item.score_mfu is not None:
            words += f" {item.score_mfu:.3f} % MFU"
        if item.reason:
            words += f": [{item.reason.code}{' ' + item.reason.rule if item.reason.rule else ''}] {item.reason.message}"
        if self.told.get(item.id) != words:
            self.told[item.id] = words
            self.say(f"{self.names.get(item.hotkey, item.hotkey)}: {words}")

    # ---------------------------------------------------------------- the result

    def _print(self, judged: list[Submission], standings: list[Standing], weights: WeightsView) -> list[str]:
        """The leaderboard (or the document); returns what was not as expected."""
        by_name = {self.names.get(s.hotkey, s.hotkey): s for s in judged}
        rows = [_row(example, by_name[example.name]) for example in self.examples]
        wrong = [f"{row['name']}: expected {row['expected']}, got {row['verdict']} ({row['rule']})" for row in rows if not row["as_expected"]]
        if self.config.json:
            board = [{**msgspec.to_builtins(s), "name": self.names.get(s.hotkey, s.hotkey)} for s in standings]
            weight_view = {"asked": weights.asked, "on_chain": weights.on_chain}
            document = {"submissions": rows, "leaderboard": board, "weights": weight_view, "seconds": round(time.monotonic() - self.started, 1)}
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
        else:
            print("\n" + leaderboard_text(standings, self.names))
            print(f"\nweights on chain: {', '.join(f'uid {uid}: {share:.0%}' for uid, share in weights.on_chain.items()) or 'none'}")
            honest = sum(row["verdict"] == Outcome.ACCEPTED for row in rows)
            print(f"{honest} accepted, {len(rows) - honest} rejected, in {time.monotonic() - self.started:.0f} s")
        for words in wrong:
            self.say(f"NOT AS EXPECTED: {words}")
        sys.stdout.flush()
        return wrong


def _row(example: Example, s: Submission) -> dict[str, Any]:
    rule = s.reason.rule if s.reason else ""
    good = s.verdict == example.expected and (example.expected == "accepted" or not example.rules or rule in example.rules)
    return {
        "name": example.name, "expected": example.expected, "expected_rules": example.rules, "verdict": s.verdict, "status": s.status,
        "rule": rule, "reason": s.reason.message if s.reason else "", "score_mfu": s.score_mfu, "as_expected": good,
    }  # fmt: skip


async def _get(client: httpx.AsyncClient, path: str, kind: Any) -> Any:
    answer = await client.get(path)
    answer.raise_for_status()
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as error:
        raise CrusadesError(f"the validator's answer to {path} cannot be read: {error}") from error
