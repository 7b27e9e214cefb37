"""A real daemon process on a dev chain, with a real store and real downloads, to be killed at will; the judge is a stand-in
or the real one (referee and sandboxes on the `tiny` profile, with fewer runs).

The parent runs the chain, the hosts of files and the miners; the child (`python tests/kill_lab.py ORDERS`) is
`crusades.daemon.run` as the validator runs it, but for the judge. `invariants` is what must hold whenever it is dead.
"""

import faulthandler
import hashlib
import itertools
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import zlib
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import msgspec
import trio

ROOT = Path(__file__).parent.parent
NETUID = 1
RUNS = 3
SOME = "some score"
"""What an honest file gets from the real judge, which measures."""


# ------------------------------------------------------------------------------------------------ the child


class Orders(msgspec.Struct, frozen=True):
    """What the child is started with."""

    network: str
    state_dir: str
    wallets: str
    journal: str
    """The judge notes every evaluation that it begins here, so that the parent sees what the database may not."""
    run_seconds: float = 0.2
    poll_interval: float = 0.2
    real_judge: bool = False
    webhook: str = ""
    heartbeat: str = ""


def child(text):
    """The daemon, with a judge that sleeps, or the real one."""
    from crusades import hparams, logs
    from crusades.chain import open_wallet
    from crusades.daemon import DaemonConfig, Parts, run
    from crusades.validator import _baseline

    faulthandler.register(signal.SIGUSR1)
    orders = msgspec.json.decode(text, type=Orders)
    logs.configure(json_lines=False)
    replace = msgspec.structs.replace
    settings = hparams.load(ROOT / "hparams.toml")
    settings = replace(settings, chain=replace(settings.chain, poll_interval=orders.poll_interval, block_time=0.25, weights_interval=5, redial_first=0.1),
                       web=replace(settings.web, listen="127.0.0.1:0"))  # fmt: skip

    tiny = settings.profiles["tiny"]
    # No anchored steps: with them, no run of an attempt that was killed counts (tests/test_judging.py), and here they are counted.
    tiny = replace(tiny, runs=RUNS, exam_pool=RUNS + 1, audit=replace(tiny.audit, anchored_runs=0))
    settings = replace(settings, profiles={**settings.profiles, "tiny": tiny})
    for secret in (orders.webhook, orders.heartbeat):  # as `crusades.validator` does
        logs.redactor.add(secret)
    # Where somebody is to be told, there is something to tell at once.
    settings = replace(settings, daemon=replace(settings.daemon, webhook_url=orders.webhook, heartbeat_url=orders.heartbeat,
                                                disk_low_bytes=1 << 60 if orders.webhook else settings.daemon.disk_low_bytes))
    wallet = open_wallet("validator", "default", orders.wallets)
    config = DaemonConfig(hparams=settings, network=orders.network, netuid=NETUID, state_dir=Path(orders.state_dir), wallet=wallet,
                          parts=Parts(open_slot=noting(orders), control=_baseline() if orders.real_judge else None))
    trio.run(run, config)


def noting(orders):
    """The judge, whose every beginning is noted before it begins."""
    from fakes import FakeJudge

    from crusades.bench.evaluate import open_slot

    open_judge = open_slot if orders.real_judge else FakeJudge(runs=RUNS, seconds=orders.run_seconds).opener()

    @asynccontextmanager
    async def opened(config):
        async with open_judge(config) as judge:

            async def evaluate(job):
                note(orders.journal, [os.getpid(), job.submission_id, len(job.finished_runs)])
                return await judge.evaluate(job)

            yield SimpleNamespace(view=judge.view, warm=judge.warm, evaluate=evaluate)

    return opened


def note(path, what):
    """One line, in one write: a kill cannot tear it."""
    with open(path, "a") as file:
        file.write(json.dumps(what) + "\n")


# ------------------------------------------------------------------------------------------------ the parent


@dataclass
class Lab:
    """Chain, hosts and miners, and the child of the moment."""

    net: object
    chain: object
    folder: Path
    files: dict
    address: str
    expected: dict = field(default_factory=dict)
    """submission id → the score that it must get (or SOME); None for one that must be rejected."""
    judged: dict = field(default_factory=dict)
    """submission id → (status, score, time of verdict) once final: must never change again."""
    kills: int = 0
    started: list = field(default_factory=list)
    final_before: dict = field(default_factory=dict)
    """submission id → processes that had been started when it had its verdict: no later one may evaluate it."""
    validator: str = ""
    environment: dict = field(default_factory=dict)
    poll_interval: float = 0.2
    """Of the child: how often it looks at the head when no subscription tells."""
    log_from: int = 0
    """Where the log of the child of the moment begins."""
    real_judge: bool = False
    webhook: str = ""
    heartbeat: str = ""
    kept: dict = field(default_factory=dict)
    """submission id → scored runs in the store at the last kill, where it was being evaluated: exactly these go on."""

    @property
    def state_dir(self):
        return self.folder / "state"

    async def submit(self, number):
        """One miner of two hundred commits one file; every fifth file breaks a rule of the judge."""
        score = None if number % 5 == 4 else 30.0 + number / 10
        order = "# reject" if score is None else f"# mfu {score}"
        body = f"{order}\ndef inner_steps(model, data_iterator, optimizer, num_steps, device):\n    return {number}\n"
        await self.submit_file(number, body.encode(), score)

    async def submit_file(self, number, body, score):
        """A miner commits a file and serves it."""
        from crusades.chain import create_wallet
        from crusades.payload import format_payload
        from crusades.records import Commitment, Payload

        wallet = create_wallet(f"miner{number % 200}", "default", str(self.folder / "wallets"))
        hotkey = wallet.hotkey.ss58_address
        if self.net.uid(NETUID, hotkey) is None:
            self.net.register(NETUID, hotkey, wallet.coldkeypub.ss58_address)
        name = f"{number}.py"
        self.files[name] = body
        payload = format_payload(Payload(sha256=hashlib.sha256(body).hexdigest(), url=f"{self.address}/{name}"))
        committed = await self.chain.commit(payload, wallet, 4)
        row = Commitment(netuid=NETUID, hotkey=hotkey, uid=None, commit_block=committed.block)
        self.expected[row.submission_id] = score

    @contextmanager
    def daemon(self):
        """A child process; killed with SIGKILL at the end of the block if it still runs."""
        log_file = self.folder / "daemon.log"
        self.log_from = log_file.stat().st_size if log_file.exists() else 0
        orders = Orders(network=self.net.url, state_dir=str(self.state_dir), wallets=str(self.folder / "wallets"), journal=str(self.folder / "journal"),
                        real_judge=self.real_judge, webhook=self.webhook, heartbeat=self.heartbeat, poll_interval=self.poll_interval)
        with open(log_file, "ab") as log:  # one file for all children of a story
            process = subprocess.Popen([sys.executable, __file__, msgspec.json.encode(orders).decode()], stdout=log, stderr=log, cwd=ROOT,
                                       env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **self.environment})
        self.started.append(process.pid)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

    async def kill(self, process, patience=10.0):
        """SIGKILL, and wait until everything that the daemon had started is gone: referee, sandboxes, what runs in them."""
        family = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with trio.move_on_after(patience):
            while any(map(alive, family)):  # noqa: ASYNC110 - processes of others: there is nothing to be woken by
                await trio.sleep(0.05)
        left = [pid for pid in family if alive(pid)]
        assert not left, f"outlived their daemon: {left}"

    def begun(self, since=0):
        """[process, submission, runs handed in] of every evaluation that a judge began, after the first `since`."""
        path = self.folder / "journal"
        return [json.loads(line) for line in path.read_text().splitlines()[since:]] if path.exists() else []

    def note_kept(self):
        """After a kill: what the next process must go on with."""
        rows = self.rows("SELECT runs.submission, run FROM runs JOIN submissions ON id = runs.submission WHERE runs.evaluation = submissions.evaluation "
                         "AND status IN ('running', 'queued')")
        self.kept = dict.fromkeys((id_ for (id_,) in self.rows("SELECT id FROM submissions WHERE status = 'running'")), 0)
        for id_, blob in rows:
            self.kept[id_] = self.kept.get(id_, 0) + decode_run(blob).scored

    def rows(self, query, *args):
        """Straight from the file: no code of the store decides what we see. Empty before there is a database."""
        path = self.state_dir / "crusades.db"
        if not path.exists():
            return []
        # Closed, and not left to the collector: while we hold it open, a daemon that ends cannot put its log into the file.
        with closing(sqlite3.connect(path, timeout=10)) as db:
            try:
                return db.execute(query, args).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    async def until_up(self, process, patience=90.0):
        """The child has opened its store and begun to work."""
        with trio.fail_after(patience):
            while b"web server at" not in (self.folder / "daemon.log").read_bytes()[self.log_from:]:
                assert process.poll() is None, f"the daemon ended by itself with {process.returncode}; see {self.folder / 'daemon.log'}"
                await trio.sleep(0.05)

    def address_of_web(self):
        """Where the child of the moment listens."""
        return re.search(r"web server at (http://[0-9.:]+)", (self.folder / "daemon.log").read_bytes()[self.log_from:].decode()).group(1)

    async def until_judged(self, patience=240.0):
        """Every submission is final and the weights are where they must be, or TooSlowError."""
        best = max((score for score in self.expected.values() if score is not None), default=None)
        with trio.fail_after(patience):
            while True:  # the database is another process's: there is nothing to be woken by
                final = dict(self.rows("SELECT id, status FROM submissions WHERE status IN ('scored', 'rejected', 'faulted')"))
                applied = self.rows("SELECT view FROM weights ORDER BY n DESC LIMIT 1")
                if self.expected.keys() <= final.keys() and (best is None or (applied and json.loads(applied[0][0]).get("equal"))):
                    return
                await trio.sleep(0.2)

    def check(self):
        """Every invariant, now that the daemon is dead. AssertionError with the submission in it."""
        violations = list(invariants(self))
        assert not violations, "\n".join(violations)


def invariants(lab):
    """What is wrong, in words."""
    from crusades.records import Status
    from crusades.store_life import CHAIN, DAEMON

    for (word,) in lab.rows("PRAGMA integrity_check"):
        if word != "ok":
            yield f"the database is damaged: {word}"
    history = {}
    for id_, status, reason in lab.rows("SELECT submission, status, reason FROM transitions ORDER BY n"):
        history.setdefault(id_, []).append((Status(status), json.loads(reason)["code"] if reason else 0))
    for id_, status, score, attempts, updated in lab.rows("SELECT id, status, score_mfu, attempts, updated_at FROM submissions"):
        steps = history.get(id_, [])
        if not steps or steps[-1][0] != status:
            yield f"{id_} is {status}, and its last transition says {steps[-1:] or 'nothing'}"
        for (old, _), (new, _) in itertools.pairwise(steps):
            if new not in DAEMON[old] and new not in CHAIN[old]:
                yield f"{id_} went from {old} to {new}"
        if status == "faulted" or (status == "rejected" and steps[-1][1] // 1000 != 1):
            yield f"{id_} was charged for our fault: {status}, code {steps[-1][1]}"
        if [step for step, _ in steps].count(Status.RUNNING) != attempts:
            yield f"{id_} has {attempts} attempts and {[s for s, _ in steps].count(Status.RUNNING)} beginnings"
        if status in ("scored", "rejected"):
            now = (status, score, updated)
            if lab.judged.setdefault(id_, now) != now:
                yield f"{id_} was judged {lab.judged[id_]} and is now {now}"
            wanted = lab.expected.get(id_, score)
            if (score is None or score <= 0) if wanted is SOME else score != wanted:
                yield f"{id_} scored {score} and not {wanted}"
    yield from _runs(lab)
    yield from _events(lab)


def decode_run(blob):
    from crusades.records import Run

    return msgspec.msgpack.decode(zlib.decompress(blob), type=Run)


def _runs(lab):
    seen = {}
    for id_, evaluation, blob in lab.rows("SELECT submission, evaluation, run FROM runs ORDER BY n"):
        run = decode_run(blob)
        if run.scored:
            seen.setdefault((id_, evaluation), []).append(run.index)
    for (id_, evaluation), numbers in seen.items():
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"evaluation {evaluation} of {id_} has runs {numbers}"
    begun = lab.begun()
    judged = {(pid, id_) for pid, id_, _ in begun}
    for id_, pids in lab.final_before.items():
        if again := [pid for pid, other in judged if other == id_ and pid not in pids]:
            yield f"{id_} had its verdict and was evaluated again by {again}"
    for pid, id_, kept in begun:
        if lab.started and pid == lab.started[-1] and id_ in lab.kept and kept != lab.kept[id_]:
            yield f"{id_} had {lab.kept[id_]} finished runs, and {kept} were handed to the judge"


def _events(lab):
    numbers = [n for (n,) in lab.rows("SELECT seq FROM events ORDER BY seq")]
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        yield "event numbers have gaps"


@asynccontextmanager
async def open_lab(folder, *, block_time=0.25, real_judge=False):
    """A dev chain, a host of files, a validator's wallet with a permit."""
    from crusades import chain as chains
    from crusades import hparams
    from crusades.asyncio_bridge import open_bridge
    from crusades.demo_parts import file_host
    from crusades.devnet import DevnetConfig, SubnetConfig, open_devnet

    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    config = DevnetConfig(block_time=block_time, reveal_blocks=4, subnets=(SubnetConfig(netuid=NETUID, tempo=20),))
    settings = hparams.Chain(poll_interval=0.2, redial_first=0.1)
    async with open_devnet(config) as net, open_bridge() as bridge:
        validator = chains.create_wallet("validator", "default", str(folder / "wallets"))
        net.register(NETUID, validator.hotkey.ss58_address, validator.coldkeypub.ss58_address, permit=True)
        with file_host(files) as address:
            async with chains.open_chain(settings, net.url, NETUID, bridge) as chain:
                yield Lab(net, chain, folder, files, address, validator=validator.hotkey.ss58_address, real_judge=real_judge)


def descendants(pid):
    """Every process that descends from one, as /proc tells it now."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it ended while we looked
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def referee_of(pid):
    """The referee of a daemon with one slot; None before it is there."""
    for child in descendants(pid):
        with suppress(OSError):
            if b"referee.process" in (Path("/proc") / str(child) / "cmdline").read_bytes():
                return child
    return None


def alive(pid):
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def ended(process, patience=40.0):
    """Wait for a child without blocking the chain's thread. One that does not end writes into its log where its threads stand."""
    pidfd = os.pidfd_open(process.pid)
    try:
        with trio.move_on_after(patience) as waiting:
            await trio.lowlevel.wait_readable(pidfd)
        if waiting.cancelled_caught:
            process.send_signal(signal.SIGUSR1)  # faulthandler
            await trio.sleep(1.0)
            told = Path(f"/proc/{process.pid}/fd/2").read_text(errors="replace")[-8000:]  # noqa: ASYNC240 - a file of this machine
            raise trio.TooSlowError(f"process {process.pid} has not ended in {patience:g} s; the end of its log:\n{told}")
    finally:
        os.close(pidfd)
    process.wait()


async def kill_story(lab, *, kills, submissions, seed, life=(0.0, 3.0), say=lambda words: None):
    """Kill the daemon `kills` times at random moments while miners submit; then let it finish, and stop it in order."""
    dice = random.Random(seed)
    due = sorted(dice.randrange(kills) for _ in range(submissions))
    number = 0
    for kill in range(kills):
        while due and due[0] <= kill:
            due.pop(0)
            await lab.submit(number)
            number += 1
        with lab.daemon() as process:
            if dice.random() < 0.85:  # the others die somewhere in their start
                await lab.until_up(process)
            await trio.sleep(dice.uniform(*life))
            assert process.poll() is None, f"the daemon ended by itself with {process.returncode}; see {lab.folder / 'daemon.log'}"
            await lab.kill(process)
        note_kill(lab)
        say(f"kill {kill + 1}: {dict(lab.rows('SELECT status, count(*) FROM submissions GROUP BY status'))}")
    await finish_story(lab)


async def real_story(lab, *, kills, seed, say=lambda words: None):
    """The same with the real judge: one honest file and one cheat, and every kill falls into an evaluation."""
    dice = random.Random(seed)
    await lab.submit_file(0, (ROOT / "examples" / "baseline.py").read_bytes(), SOME)
    await lab.submit_file(1, (ROOT / "examples" / "cheats" / "half_batch.py").read_bytes(), None)
    for kill in range(kills):
        with lab.daemon() as process:
            runs = len(lab.rows("SELECT 1 FROM runs"))
            with trio.fail_after(180.0):
                while not lab.rows("SELECT 1 FROM submissions WHERE status = 'running'"):  # the database is another process's
                    assert process.poll() is None, f"the daemon ended by itself with {process.returncode}; see {lab.folder / 'daemon.log'}"
                    await trio.sleep(0.05)
                while kill and len(lab.rows("SELECT 1 FROM runs")) < runs + kill and lab.rows("SELECT 1 FROM submissions WHERE status = 'running'"):  # noqa: ASYNC110
                    await trio.sleep(0.05)
            await trio.sleep(dice.uniform(0.0, 1.0))
            await lab.kill(process)
        note_kill(lab)
        say(f"kill {kill + 1}: {dict(lab.rows('SELECT status, count(*) FROM submissions GROUP BY status'))}, runs kept {lab.kept}")
    await finish_story(lab)


def note_kill(lab):
    """What holds now that it is dead, and what the next one must go on with."""
    lab.kills += 1
    lab.check()
    lab.note_kept()
    for (id_,) in lab.rows("SELECT id FROM submissions WHERE status IN ('scored', 'rejected')"):
        lab.final_before.setdefault(id_, frozenset(lab.started))


async def finish_story(lab):
    """One that is not killed judges everything, sets the weights and stops in order."""
    with lab.daemon() as process:
        await lab.until_up(process)
        await lab.until_judged()
        process.send_signal(signal.SIGTERM)
        await ended(process)
        assert process.returncode == 0, f"a staged stop ended with {process.returncode}"
    lab.check()
    unknown = lab.expected.keys() - {id_ for (id_,) in lab.rows("SELECT id FROM submissions")}
    assert not unknown, f"lost: {unknown}"


if __name__ == "__main__":
    child(sys.argv[1])
