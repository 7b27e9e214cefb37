"""A slot whose referee, contestant and card are stand-ins: what the daemon's side of an evaluation makes of their words."""

import hashlib
from contextlib import contextmanager

import msgspec
import trio

from crusades import hparams
from crusades.bench import protocol as p
from crusades.bench.card import Seen
from crusades.bench.evaluate import Job, Slot
from crusades.bench.slot import SlotConfig
from crusades.errors import RefereeFault
from crusades.records import Audit, Reason, Run, Source, Stage

FACTS = p.Configured(device="fake", model="tiny", parameters=1, peak_tflops=1.0, peak_source="measured", versions={}, seconds=0.0)
GONE = Reason(code=1303, stage=Stage.LOAD, message="the process ended before the run was over")


def ran(index, **fields):
    return p.Ran(run=Run(index=index, scored=index > 0, seconds=1.0, claimed_seconds=1.0, read_seconds=0.0, mfu=40.0 + index, tokens_per_second=1.0,
                         final_loss=1.0, audit=Audit(worst="", words="", statistics=())), **fields)


class FakeReferee:
    """Answers as it is told, else as a referee of an honest submission; `orders` holds what it was asked."""

    pid = 1

    def __init__(self, **answers):
        self.answers, self.orders, self.killed, self.contestant = answers, [], False, None

    def usable(self):
        return not self.killed

    async def kill(self):
        self.killed = True

    async def ask(self, order, *, fd=None):
        self.orders.append(order)
        await trio.lowlevel.checkpoint()
        if self.killed:
            raise RefereeFault("the referee died")
        told = self.answers.get(type(order).__name__)
        if told is not None:
            return told(order) if callable(told) else told
        match order:
            case p.Configure():
                return FACTS
            case p.PrepareExams():
                return p.ExamsReady(available=order.wanted, prepared=0, seconds=0.0)
            case p.LoadSubmission():
                return p.SubmissionLoaded()
            case p.DoRun():
                return ran(order.index)
            case p.Connect():
                return p.Connected()
            case p.CompareAnchors():
                return p.AnchorsCompared(runs=(), seconds=0.0)
            case _:
                return p.Released(seconds=0.0)


class FakeContestant:
    """A process that runs until it is killed; `error` is what killing it raises."""

    pid, versions, limits, notes = 2, {}, {}, ()

    def __init__(self, error=None):
        self.error, self.killed = error, False

    def alive(self):
        return not self.killed

    def put(self, content):
        return "/submission/train.py"

    def output_tail(self):
        return "last words"

    def met(self, connected):
        pass

    async def explain_exit(self, reason):
        return msgspec.structs.replace(reason, code=1305, message="the memory limit was reached")

    async def kill(self):
        self.killed = True
        if self.error:
            raise self.error


class FakeCard:
    """Notes how long each run was watched, on trio's clock."""

    minor = driver = None

    def __init__(self, *, watched=False):
        self.watched, self.closed, self.windows = watched, False, []

    def open(self):
        pass

    def close(self):
        self.closed = True

    @contextmanager
    def window(self, ours):
        begun = trio.current_time()
        yield Seen()
        self.windows.append(trio.current_time() - begun)


def make_slot(folder, referee=None, contestant=None, card=None, **profile):
    """A slot that has been warmed; `profile` changes the tiny one."""
    settings = hparams.load()
    tiny = msgspec.structs.replace(settings.profile("tiny"), **{"runs": 2, **profile})
    settings = msgspec.structs.replace(settings, profiles={**settings.profiles, "tiny": tiny})
    slot = Slot(SlotConfig(name="cpu", device="cpu", index=0, profile_name="tiny", hparams=settings, workdir=folder))
    slot._referee, slot._contestant, slot._card, slot._facts = referee or FakeReferee(), contestant or FakeContestant(), card or FakeCard(), FACTS
    return slot


def make_job(**fields):
    content = b"def inner_steps(): pass\n"
    source = Source(sha256=hashlib.sha256(content).hexdigest(), content=content, url="", fetched_at=0.0)
    return Job("submission", source, commit_block=0, block=0, skip_rules=True, **fields)
