"""Hostile submissions before the real judge, in the real sandbox, with the rules switched off: what the walls, the referee
and the audit make of them. Every case is one evaluation; two slots take them off one list, because most of the time is the
start of the next sandbox. On each slot the honest baseline comes last and must be judged as if nothing had happened.
"""

import hashlib
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from judge_cases import EFFECTLESS, OVERREACHING

from crusades import hparams
from crusades.bench.card import Seen
from crusades.bench.evaluate import Job, open_slot
from crusades.bench.slot import SlotConfig
from crusades.errors import DeviceFault
from crusades.nvml import Blame
from crusades.records import Outcome, Source

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
BASELINE = (ROOT / "examples" / "baseline.py").read_text()

TRAIN = BASELINE + "\nhonest = inner_steps\n"
"""The baseline's loop under another name, to be bent by a case."""

FORGED_FRAME = '''
import json, struct, socket
channel = socket.socket(fileno=3)  # kept: one that is collected closes the descriptor
def say(**fields):
    header = json.dumps(fields).encode()
    channel.sendall(struct.pack("<II", len(header), 0) + header)
'''

CASES: dict[str, tuple[str, set[int]]] = {
    "no inner_steps": ("x = 1\n", {1202}),
    "raises while loading": ("raise RuntimeError('no')\n", {1301}),
    "exits while loading": ("import os\nos._exit(0)\n", {1303}),
    "loops while loading": ("while True: pass\n", {1304}),
    "eats memory while loading": ("kept = []\nwhile True: kept.append(bytearray(64 << 20))\n", {1305}),
    "loses a child for its memory while loading": (
        "import os, signal\nfor _ in range(4):\n    if os.fork() == 0:\n        kept = bytearray(1 << 30)\n        kept[::4096] = b'x' * (1 << 18)\n        signal.pause()\n"
        "os.wait()\nos._exit(0)\n", {1304, 1305}),  # 1304 where no cgroup counts: then none is killed
    "raises while running": ("def inner_steps(*a):\n    raise RuntimeError('no')\n", {1302}),
    "exits politely": ("import sys\ndef inner_steps(*a):\n    sys.exit(0)\n", {1303}),
    "exits at once": ("import os\ndef inner_steps(*a):\n    os._exit(0)\n", {1303}),
    "kills itself": ("import os\ndef inner_steps(*a):\n    os.kill(os.getpid(), 9)\n", {1303}),
    "loops for ever": ("def inner_steps(*a):\n    while True: pass\n", {1304}),
    "eats memory": ("def inner_steps(*a):\n    kept = []\n    while True: kept.append(bytearray(64 << 20))\n", {1305}),
    "asks for more memory than there is": ("import torch\ndef inner_steps(*a): torch.empty(1 << 45)\n", {1305}),
    "returns nothing": ("def inner_steps(model, it, opt, n, device):\n    for _ in range(n): next(it)\n", {1307}),
    "asks for two batches of five": (TRAIN + "def inner_steps(m, it, o, n, d):\n    return honest(m, it, o, 2, d)\n", {1309}),
    "writes garbage to every descriptor": (
        "import os\ndef inner_steps(*a):\n    for fd in range(3, 64):\n        try: os.write(fd, b'\\xff' * 4096)\n        except OSError: pass\n    while True: pass\n", {1306}),
    "forges the last frame": (
        FORGED_FRAME + "def inner_steps(*a):\n    say(t='done', run=0, claimed_ns=1, final_loss=1.0, total_tokens=5120, logits_shape=[8, 127, 1024], batches=5)\n    while True: pass\n", {1309}),
    "speaks as the referee": (FORGED_FRAME + "def inner_steps(*a):\n    say(t='ran')\n    while True: pass\n", {1306}),
    "forges a next frame before the update": (
        FORGED_FRAME + TRAIN + "def inner_steps(m, it, o, n, d):\n    next(it)\n    say(t='next', step=1)\n    return honest(m, it, o, n - 1, d)\n", {1306}),
    "nests a frame deeply": (
        "import os, struct\ndef inner_steps(*a):\n    h = b'{\"x\":' + b'[' * 2000\n    os.write(3, struct.pack('<II', len(h), 0) + h)\n    while True: pass\n", {1306}),
    "closes every descriptor": ("import os\ndef inner_steps(*a):\n    os.closerange(3, 1024)\n    while True: pass\n", {1303}),
    "leaves weights that are not numbers": (
        TRAIN + "def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    [p.data.fill_(float('nan')) for p in m.parameters()]\n    return r\n", {1402}),
    "lies about its tokens": (TRAIN + "def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    r.total_tokens *= 2\n    return r\n", {1404}),
    "claims numbers that no float holds": (
        FORGED_FRAME + TRAIN + "def inner_steps(m, it, o, n, d):\n    honest(m, it, o, n, d)\n    say(t='done', run=0, claimed_ns=10**400, final_loss=1.0, total_tokens=10**400, logits_shape=[8, 127, 1024], batches=5)\n    while True: pass\n", {1306}),
    "speaks to the terminal in a frame": (FORGED_FRAME + "def inner_steps(*a):\n    say(t='\\x1b[2J\\u202e')\n    while True: pass\n", {1306}),
    "speaks to the terminal in a failure": (
        FORGED_FRAME + "def inner_steps(*a):\n    say(t='failed', stage='run', kind='rule', message='\\x1b]0;x\\x07\\u202e' * 900, rule='\\x1b[2J', line=-7)\n    while True: pass\n", {1201}),
    "speaks to the terminal in an exception": ("def inner_steps(*a):\n    raise RuntimeError('\\x1b[2J\\u202e' * 5000)\n", {1302}),
    "lies about its loss": (TRAIN + "def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    r.final_loss -= 1\n    return r\n", {1404}),
    "returns somebody else's logits": (TRAIN + "def inner_steps(m, it, o, n, d):\n    r = honest(m, it, o, n, d)\n    r.final_logits = r.final_logits.roll(1, 0)\n    return r\n", {1404}),
    "trains a copy of the weights": (
        TRAIN + "def inner_steps(m, it, o, n, d):\n    for p in m.parameters(): p.data = p.data.clone()\n    return honest(m, it, o, n, d)\n", {1401}),
    "puts the weights back": (
        TRAIN + "def inner_steps(m, it, o, n, d):\n    kept = [p.detach().clone() for p in m.parameters()]\n    r = honest(m, it, o, n, d)\n    [p.data.copy_(k) for p, k in zip(m.parameters(), kept)]\n    return r\n", {1401}),
    "raises the learning rate": (TRAIN + "def inner_steps(m, it, o, n, d):\n    o.param_groups[0]['lr'] = 3e-4\n    return honest(m, it, o, n, d)\n", {1401}),
    **OVERREACHING,
}  # fmt: skip
GUARDED: dict[str, tuple[str, str, int]] = {
    "swallows a denial while loading": ("try:\n    import os\nexcept BaseException:\n    pass\n" + BASELINE, "R101", 2),
    "swallows a denial while running": (
        TRAIN + "def inner_steps(m, it, o, n, d):\n    try:\n        import socket\n    except BaseException:\n        pass\n    return honest(m, it, o, n, d)\n", "R102", -4),
    "hides a denial behind another failure": ("try:\n    import gc\nexcept BaseException:\n    raise ValueError('something else')\n", "R103", 2),
    "is denied when its result is looked at": (
        TRAIN + "class Late:\n    def __init__(self, r): self.r = r\n    final_logits = property(lambda s: s.r.final_logits)\n    final_loss = property(lambda s: s.r.final_loss)\n"
        "    @property\n    def total_tokens(self):\n        try:\n            eval('1')\n        except BaseException:\n            return self.r.total_tokens\n"
        "def inner_steps(m, it, o, n, d):\n    return Late(honest(m, it, o, n, d))\n", "R201", -5),
}  # fmt: skip
"""Run under the import hook, without the scanner, which would have named each of them: (source, rule, line; from the end if negative)."""
NOISY = TRAIN + "def inner_steps(m, it, o, n, d):\n    print('\\x1b[2J' + 'x' * 2_000_000)\n    return honest(m, it, o, n, d)\n"


PROGRAMS = {**{name: text for name, (text, _) in CASES.items()}, **{name: text for name, (text, _, _) in GUARDED.items()}, **EFFECTLESS, "noisy": NOISY}


def _slot(name: str, settings: hparams.HParams, folder: Path) -> SlotConfig:
    return SlotConfig(name=name, device="cpu", index=0, profile_name="tiny", hparams=settings, workdir=folder)


async def judge(slot, name: str, text: str):
    content = text.encode()
    source = Source(sha256=hashlib.sha256(content).hexdigest(), content=content, url="", fetched_at=0.0)
    return await slot.evaluate(Job(name, source, commit_block=0, block=0, skip_rules=name not in GUARDED))


async def work_off(slot, waiting: list[str], verdicts) -> None:
    """One slot's share of the list, and what an honest miner gets on it afterwards."""
    while waiting:
        name = waiting.pop(0)
        verdicts[name] = await judge(slot, name, PROGRAMS[name])
    verdicts[f"baseline on {slot.config.name}"] = await judge(slot, "baseline", BASELINE)


async def judge_all(folder: Path, wanted: set[str]):
    settings = hparams.load(ROOT / "hparams.toml")
    deadlines = msgspec.structs.replace(settings.profile("tiny").deadlines, warmup=20.0, run=20.0, load=20.0, result=10.0)
    profile = msgspec.structs.replace(settings.profile("tiny"), runs=1, deadlines=deadlines)
    box = msgspec.structs.replace(settings.sandbox, memory_bytes=2 << 30)
    settings = msgspec.structs.replace(settings, profiles={**settings.profiles, "tiny": profile}, sandbox=box)
    verdicts = {}
    waiting = [name for name in PROGRAMS if name in wanted]
    async with open_slot(_slot("cpu", settings, folder / "first")) as slot, open_slot(_slot("second", settings, folder / "second")) as second:
        referees = slot._referee, second._referee
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work_off, slot, waiting, verdicts)
            nursery.start_soon(work_off, second, waiting, verdicts)
        verdicts["same referees"] = (slot._referee, second._referee) == referees
        source = Source(sha256=hashlib.sha256(BASELINE.encode()).hexdigest(), content=BASELINE.encode(), url="", fetched_at=0.0)
        for disturbed in [number for number in (2, 3) if f"hot {number}" in wanted]:
            slot._card, told = HotCard(1 + disturbed), []
            job = Job(f"hot {disturbed}", source, commit_block=0, block=0, skip_rules=True, on_progress=told.append)
            try:
                verdicts[f"hot {disturbed}"] = await slot.evaluate(job)
            except DeviceFault as fault:
                verdicts[f"hot {disturbed}"] = fault
            verdicts[f"told {disturbed}"] = told
    return verdicts


class HotCard:
    """Thermal slowdown during the first `windows` runs (warm-up included)."""

    watched = True
    minor = driver = None

    def __init__(self, windows):
        self.left = windows

    @contextmanager
    def window(self, ours):
        self.left -= 1
        assert len(ours) == 2
        yield Seen({"samples": 1.0}, Blame(void="hardware thermal slowdown") if self.left >= 0 else Blame())

    def close(self):
        pass


@pytest.fixture(scope="module")
def verdicts(request, tmp_path_factory):
    """Of every submission that a selected test names, by its parameter or in its text: `-k` saves the others' time."""
    wanted: set[str] = set()
    for item in request.session.items:
        if item.path == request.path:
            wanted |= {item.callspec.params.get("name", "")} if hasattr(item, "callspec") else set()
            wanted |= {name for constant in item.function.__code__.co_consts for name in (constant if isinstance(constant, tuple) else (constant,)) if isinstance(name, str)}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")  # two slots share the cores; a model this small only waits for its threads
        return trio.run(judge_all, tmp_path_factory.mktemp("judge"), wanted)


@pytest.mark.parametrize("name", CASES)
def test_it_is_rejected_for_what_it_did(verdicts, name):
    verdict = verdicts[name]
    assert verdict.verdict is Outcome.REJECTED, verdict
    assert verdict.code in CASES[name][1], verdict.message
    assert verdict.message
    assert verdict.score_mfu is None


@pytest.mark.parametrize("name", GUARDED)
def test_a_denial_that_was_swallowed_is_final(verdicts, name):
    source, rule, line = GUARDED[name]
    verdict = verdicts[name]
    expected = line if line > 0 else len(source.splitlines()) + 1 + line
    assert (verdict.verdict, verdict.code, verdict.rule, verdict.line) == (Outcome.REJECTED, 1201, rule, expected), verdict.message
    assert verdict.message.count("line") == 1, "the line is named once"


@pytest.mark.parametrize("name", CASES)
def test_no_message_moves_a_cursor(verdicts, name):
    message = verdicts[name].message
    assert len(message) < 20_000
    assert not any((ord(c) < 0x20 and c != "\n") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066" for c in message + (verdicts[name].rule or ""))


@pytest.mark.parametrize("name", EFFECTLESS)
def test_a_trick_without_effect_gets_the_score_of_its_work(verdicts, name):
    """MFU times seconds and peak is the same for everybody: what the process says of time and results is in none of them."""
    verdict, baseline = verdicts[name], verdicts["baseline on cpu"]
    assert verdict.verdict is Outcome.ACCEPTED, verdict.message
    assert verdict.score_mfu == next(run.mfu for run in verdict.runs if run.scored)
    work = [run.mfu * run.seconds * row.peak_tflops for row in (verdict, baseline) for run in row.runs]  # each slot has measured its own peak
    assert work == pytest.approx([work[0]] * len(work))
    assert all(run.seconds > 0.01 for run in verdict.runs)


def test_what_is_said_of_time_is_a_claim(verdicts):
    claimed = {name: [run.claimed_seconds for run in verdicts[name].runs] for name in ("stops every clock", "turns a clock back")}
    assert claimed["stops every clock"] == [0.0, 0.0]
    assert all(seconds < 0 for seconds in claimed["turns a clock back"])


def test_work_put_off_until_the_result_is_read_is_on_the_clock(verdicts):
    assert all(run.seconds > 0.3 for run in verdicts["dawdles in its result"].runs)


def test_a_printed_verdict_is_output_and_nothing_else(verdicts):
    verdict = verdicts["prints a verdict"]
    assert '"score_mfu": 100.0' in verdict.output_tail
    assert verdict.score_mfu < 100


def test_a_flood_of_output_is_cut_and_costs_nobody_anything(verdicts):
    assert verdicts["noisy"].verdict is Outcome.ACCEPTED, verdicts["noisy"].message
    assert 0 < len(verdicts["noisy"].output_tail) <= 64 << 10


def test_pythons_collector_is_on_again_when_a_submission_runs(verdicts):
    """It is off while the harness imports."""
    assert "collector: True" in verdicts["prints a verdict"].output_tail


@pytest.mark.parametrize("slot", ["cpu", "second"])
def test_the_next_submission_is_judged_right(verdicts, slot):
    verdict = verdicts[f"baseline on {slot}"]
    assert verdict.verdict is Outcome.ACCEPTED, verdict.message
    assert all(run.audit.passed for run in verdict.runs)


def test_no_submission_took_the_referee_down(verdicts):
    assert verdicts["same referees"]


def test_a_void_run_is_recorded_and_made_again(verdicts):
    verdict = verdicts["hot 2"]
    assert verdict.verdict is Outcome.ACCEPTED
    assert [(run.index, run.void) for run in verdict.runs] == [(0, ""), (1, "hardware thermal slowdown"), (1, "hardware thermal slowdown"), (1, "")]
    assert verdict.score_mfu == verdict.runs[-1].mfu
    assert "run 1 of 1 is void: hardware thermal slowdown" in verdicts["told 2"]


def test_a_card_that_voids_every_run_is_our_fault_and_no_lottery(verdicts):
    assert isinstance(verdicts["hot 3"], DeviceFault)
    assert "3 runs of one round were void" in str(verdicts["hot 3"])
