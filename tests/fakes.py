"""Stand-ins that several test files share: a judge, a chain and a store without I/O, for tests on the virtual clock.

Each keeps to the interface of the real thing and to nothing else; the same stories run once against the real ones too.
"""

import asyncio
import hashlib
import math
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from crusades.chain_records import ChainFacts, Head, Included, Owner, Sent, Unresolved
from crusades.chain_send import ERA
from crusades.chain_weights import Epoch, OnChainWeights, WeightsAround, WeightsOutcome, WeightsPlan, quantise
from crusades.errors import ChainError
from crusades.records import Audit, Commitment, Neuron, Outcome, Payload, Run, SlotView, Source, Stage, Statistic, Status, Verdict, rejected
from crusades.records import Reason as ReasonRecord

VALIDATOR = "5Validator"
EPOCH_START = 1_700_000_000.0


def moving_now():
    """A clock of Unix time that moves with trio's (virtual) clock, from the real time at which it was made."""
    began, virtual = time.time(), trio.current_time()
    return lambda: began + trio.current_time() - virtual


class InlineBridge:
    """The asyncio bridge without its thread: a coroutine runs to its end before `run` returns.

    So the real store takes no virtual time and no turn of its own: with it, a story on the virtual clock is deterministic.
    """

    def __init__(self):
        self._loop = asyncio.new_event_loop()

    async def run(self, make_coro, *, deadline=None, finish_if_done=False):
        await trio.lowlevel.checkpoint()

        async def call():
            return await make_coro()

        return self._loop.run_until_complete(call())

    def close(self):
        self._loop.close()


# ------------------------------------------------------------------------------------------------ records


def make_run(index, mfu=40.0):
    return Run(index=index, scored=index > 0, seconds=1.0, claimed_seconds=1.0, read_seconds=0.0, mfu=mfu, tokens_per_second=1000.0, final_loss=2.0,
               audit=Audit(worst="gradient_error", words="gradient error", statistics=(Statistic(name="gradient_error", value=0.1, limit=0.5),)))


def make_source(text="def inner_steps():\n    pass\n", url="https://files.example/train.py"):
    content = text.encode()
    return Source(sha256=hashlib.sha256(content).hexdigest(), content=content, url=url, fetched_at=EPOCH_START)


def make_commitment(hotkey, block, source, *, uid=1, state=Status.REVEALED, netuid=1, provisional=False, url="", receipt=None):
    payload = None if state is Status.SEALED else Payload(sha256=source.sha256, url=url or source.url, receipt=receipt)
    return Commitment(netuid=netuid, hotkey=hotkey, uid=uid, commit_block=block, reveal_block=None if state is Status.SEALED else block + 2,
                      state=state, payload=payload, provisional=provisional)


# ------------------------------------------------------------------------------------------------ the judge


@dataclass
class FakeJudge:
    """A slot that sleeps where the real one works. What it makes of a submission stands in the submission's own text:

    `# mfu 41.5`, `# reject`, `# fault sandbox|referee|environment|device` (once per word, then it passes), `# hang`.
    """

    name: str = "cpu"
    runs: int = 3
    seconds: float = 1.0
    faults_left: dict = field(default_factory=dict)
    broken: list = field(default_factory=list)
    """Faults that warm() raises, one per call."""
    control_passes: bool = True
    evaluated: list = field(default_factory=list)
    """(submission id, runs handed in) of every evaluation begun."""
    warmed: list = field(default_factory=list)
    """For every warming up, whether exams were to be prepared."""
    opened: int = 0
    running: int = 0

    def opener(self):
        """For `DaemonConfig.open_slot`."""

        @asynccontextmanager
        async def open_slot(config):
            self.opened += 1
            await trio.lowlevel.checkpoint()
            yield self

        return open_slot

    def view(self):
        return SlotView(name=self.name, device="fake device", state="idle")

    async def warm(self, *, exams=True):
        self.warmed.append(exams)
        await trio.sleep(0.1 * self.seconds)
        if self.broken:
            raise self.broken.pop(0)

    async def evaluate(self, job):
        self.evaluated.append((job.submission_id, len(job.finished_runs)))
        self.running += 1
        assert self.running == 1, "one evaluation at a time"
        try:
            return await self._evaluate(job)
        finally:
            self.running -= 1

    async def _evaluate(self, job):
        if job.submission_id == "control":
            await trio.sleep(self.seconds)
            return Verdict(verdict=Outcome.ACCEPTED if self.control_passes else Outcome.REJECTED, score_mfu=1.0)
        words = dict(_orders(job.source.text))
        runs = list(job.finished_runs)
        for index in range(self.runs + 1 - len(runs)):
            number = index and index + len(job.finished_runs)
            job.on_progress(f"run {number} of {self.runs}")
            await trio.sleep(math.inf if "hang" in words else self.seconds)
            self._raise_fault(job, words)
            if "reject" in words:
                reason = ReasonRecord(code=1401, stage=Stage.AUDIT, rule="gradient_error", message="half of the work was left out", measured=0.9, limit=0.5)
                return rejected(reason, runs=tuple(runs))
            run = make_run(number, float(words.get("mfu", "40")))
            runs.append(run)
            await job.on_run(run)
        if "uneven" in words:
            runs += [msgspec.structs.replace(run, index=self.runs + 1 + index, scored=index > 0) for index, run in enumerate(runs)]
        return Verdict(verdict=Outcome.ACCEPTED, message="accepted", score_mfu=float(words.get("mfu", "40")), runs=tuple(runs), device="fake device")

    def _raise_fault(self, job, words):
        from crusades.errors import DeviceFault, EnvironmentFault, RefereeFault, SandboxFault

        kind = words.get("fault")
        left = self.faults_left.setdefault(job.submission_id, int(words.get("times", "1")) if kind else 0)
        if kind and left > 0:
            self.faults_left[job.submission_id] = left - 1
            raise {"sandbox": SandboxFault, "referee": RefereeFault, "environment": EnvironmentFault, "device": DeviceFault}[kind](f"fake {kind} fault")


def _orders(text):
    for line in text.splitlines():
        if line.startswith("# "):
            key, _, value = line[2:].partition(" ")
            yield key, value


# ------------------------------------------------------------------------------------------------ the chain


class FakeChain:
    """A subnet with plain weights: blocks come from `mine`, rows are put in `rows`, weights apply in the next block."""

    def __init__(self, *, finality_lag=2, tempo=20, block_seconds=12.0):
        self.block, self.lag, self.tempo, self.block_seconds = 10, finality_lag, tempo, block_seconds
        self.rows = []
        self.neuron_list = [Neuron(uid=0, hotkey="5Owner"), Neuron(uid=1, hotkey=VALIDATOR, validator_permit=True, stake=1000.0),
                            *(Neuron(uid=uid, hotkey=f"5Miner{uid}") for uid in range(2, 8))]
        self.weights, self.pending = {}, 0
        self.updates = []
        """Every LastUpdate that the chain has had."""
        self.problem, self.missing = "", ()
        self.halted = False
        """The node answers, and no block comes."""
        self.failing = None
        """An exception that every read raises."""
        self.sent = []
        self.refused = ()
        self.included = {}
        """hash of an extrinsic → the block that holds it."""
        self.slow_signing = 0
        """Blocks that pass between the plan and the signature."""
        self.applies = True
        """False: weights are in a block and change nothing, as sealed ones that are never opened."""
        self.opened = set()
        """Blocks in which the chain itself opened sealed weights of ours, with commit-reveal switched off."""
        self.is_dev = True
        self.genesis = "0xfake"
        self.block_time = block_seconds
        self.receipts = {}
        """receipt → what the chain shows for it, or an exception to raise."""

    @property
    def last_update(self):
        return self.updates[-1] if self.updates else 0

    @last_update.setter
    def last_update(self, block):
        self.updates.append(block)

    @property
    def down(self):
        return "" if self.missing else self.problem

    async def check(self):
        await self._read()
        return ChainFacts(network="dev", endpoint="ws://fake", genesis=self.genesis, is_dev=True, spec_version=1, netuid=1, subnet_exists=True, head=self.head_now())

    async def heads(self):
        while True:
            yield self.head_now()
            await trio.sleep(self.block_seconds)
            self.block += not self.halted

    def head_now(self):
        finalized = max(0, self.block - self.lag)
        return Head(best=self.block, best_hash=f"0x{self.block}", finalized=finalized, finalized_hash=f"0x{finalized}")

    async def _read(self):
        await trio.lowlevel.checkpoint()
        if self.failing is not None:
            raise self.failing

    async def neurons(self, block_hash=None):
        await self._read()
        return list(self.neuron_list)

    async def owner(self, block_hash=None):
        await self._read()
        return Owner(hotkey="5Owner", coldkey="5OwnerCold", uid=0)

    def learn(self, rows):
        pass

    async def commitments(self, block_hash=None, *, final=False, hotkey=None):
        await self._read()
        number = int(block_hash[2:]) if block_hash else self.block
        return [msgspec.structs.replace(row, provisional=not final) for row in self.rows if (row.reveal_block or row.commit_block) <= number]

    async def coldkey(self, hotkey):
        await self._read()
        found = next((neuron.coldkey for neuron in self.neuron_list if neuron.hotkey == hotkey and neuron.coldkey), None)
        if found is None:
            raise ChainError(f"the chain knows no coldkey of the hotkey {hotkey}")
        return found

    async def receipt(self, receipt):
        await self._read()
        found = self.receipts.get(receipt)
        if isinstance(found, Exception):
            raise found
        return found

    async def read_weights(self, block_hash=None):
        await self._read()
        return OnChainWeights(block=self.block, uid=1, by_uid=dict(self.weights), last_update=self.last_update, pending_commits=self.pending, tempo=self.tempo)

    async def weights_around(self, found):
        await self._read()
        before = next((block for block in reversed(self.updates) if block < found.block), 0)
        return WeightsAround(before=before, together=sum(block == found.block for block in self.updates))

    async def opened_weights(self, block):
        await self._read()
        return block in self.opened

    async def preflight_weights(self, weights):
        await self._read()
        uid_of = {neuron.hotkey: neuron.uid for neuron in self.neuron_list}
        uids, values = quantise(sorted((uid_of[hotkey], share) for hotkey, share in weights.items() if hotkey in uid_of))
        return WeightsPlan(netuid=1, block=self.block, block_hash="", uid=1, asked=dict(weights), uids=uids, values=values,
                           epoch=Epoch(tempo=self.tempo, index=self.block // self.tempo), refused=tuple(self.refused))

    async def rehearse(self, plan):
        await self._read()

    async def set_weights(self, plan, *, signed=None):
        await self._read()
        self.block += self.slow_signing
        sent = Sent(hash=f"0x{len(self.sent)}", what="weights", first=self.block - self.lag + 1, last=self.block - self.lag + ERA)
        if signed is not None:
            await signed(sent)
        self.sent.append(plan.by_uid)
        self.included[sent.hash] = self.last_update = self.block + 1
        if self.applies:
            self.weights = dict(plan.by_uid)
        return WeightsOutcome(block=self.block + 1, block_hash="", extrinsic=f"{self.block + 1}-0", by_uid=plan.by_uid, sealed=False)

    async def resolve(self, sent, *, final=False):
        await self._read()
        block = self.included[sent.hash]
        if final and self.block - self.lag < block:
            raise Unresolved("not final yet", sent)
        return Included(block=block, block_hash="", extrinsic=f"{block}-0")
