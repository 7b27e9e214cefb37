"""The real judge on a real card: shared memory between processes, who pays when the card is full, and what is left behind.

`pytest tests/gpu` on a machine with a card. The `tiny` profile is put on it; its limits were measured on CPUs, so they are
widened: what is looked at here is the way, not the resolution.
"""

import dataclasses
import hashlib
import re
import time
from pathlib import Path

import msgspec
import pytest
import torch
import trio

from crusades import hparams
from crusades.bench.evaluate import Job, open_slot
from crusades.bench.local import BenchConfig, bench_slot
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import prepare_exam
from crusades.bench.referee.memory import host_buffer
from crusades.bench.referee.models import load_reference, read_config
from crusades.errors import DeviceFault
from crusades.records import Outcome, Source

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
BASELINE = (ROOT / "examples" / "baseline.py").read_text()
COMPILED = (ROOT / "examples" / "compile.py").read_text()
WIDER = 20

FULL = "import os, torch\ndef fill():\n    kept = []\n    while True: kept.append(torch.empty(256 << 20, dtype=torch.uint8, device='cuda'))\n"
HOSTILE = {
    "fills the card": FULL + "def inner_steps(*a): fill()\n",
    "fills the card and kills itself": FULL + "def inner_steps(*a):\n    try: fill()\n    except torch.OutOfMemoryError: os.kill(os.getpid(), 9)\n",
    "breaks its context": (
        "import torch\ndef inner_steps(*a):\n    torch.zeros(1, device='cuda')[torch.tensor([9], device='cuda')]\n    torch.cuda.synchronize()\n"),
    "trains nothing": BASELINE.replace("optimizer.step()", "pass"),
}  # fmt: skip
ENDLESS = BASELINE + """
def inner_steps(model, batches, optimizer, n, device):
    while True: torch.cuda._sleep(1 << 40)
"""
SIDE_STREAM = BASELINE + """
honest, side = inner_steps, torch.cuda.Stream()

def inner_steps(model, batches, optimizer, n, device):
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        result = honest(model, batches, optimizer, n - 1, device)
        batch = next(batches).to(device)
        torch.cuda._sleep(2_000_000_000)
        last = honest(model, iter([batch]), optimizer, 1, device)
    return InnerStepsResult(last.final_logits, result.total_tokens + last.total_tokens, last.final_loss)
"""
"""The last step is queued behind a second of waiting, on a stream that nobody was told of."""
STALE_GRAPH = BASELINE + """
def inner_steps(model, batches, optimizer, n, device):
    static, side = next(batches).to(device).clone(), torch.cuda.Stream()

    def work():
        logits = model(static[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), static[:, 1:].flatten())
        loss.backward()
        return logits, loss

    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3): work()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits, loss = work()
    for step in range(n):
        if step: next(batches)
        graph.replay()
        optimizer.step()
    return InnerStepsResult(logits.detach().clone(), n * static.numel(), loss.item())
"""
"""The graph is replayed over the first batch: nothing is copied into its input."""
HONEST = {
    "baseline": BASELINE,
    "torch.compile": COMPILED,
    "CUDA graphs": COMPILED.replace("torch.compile(loss_and_logits)", 'torch.compile(loss_and_logits, mode="reduce-overhead")').replace("logits.detach()", "logits.detach().clone()"),
}


def widened(limit):
    return [WIDER * step for step in limit] if isinstance(limit, list | tuple) else WIDER * limit


def settings():
    loaded = hparams.load(ROOT / "hparams.toml")
    tiny = loaded.profile("tiny")
    tiny = msgspec.structs.replace(tiny, limits={name: widened(limit) for name, limit in tiny.limits.items()})
    return msgspec.structs.replace(loaded, profiles={**loaded.profiles, "tiny": tiny})


def used(library):
    return library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(0)).used


async def judge_all(folder, library):
    """Verdicts by name; after each hostile one what the card still holds, and the baseline's."""
    found = {}
    config = BenchConfig(path=ROOT, hparams=settings(), profile_name="tiny", device="cuda:0", runs=1)

    async with open_slot(bench_slot(config, folder / "slot")) as slot:

        async def judge(name, text):
            try:
                found[name] = await slot.evaluate(Job(name, source_of(text), commit_block=0, block=0, skip_rules=True))
            except DeviceFault as fault:
                found[name] = fault

        for name, text in HONEST.items():
            await judge(name, text)
        await judge("works on a side stream", SIDE_STREAM)
        await judge("replays a graph of stale inputs", STALE_GRAPH)
        found["before"], referee = used(library), slot._referee
        for name, text in HOSTILE.items():
            await judge(name, text)
            found[f"held after: {name}"] = used(library)
            await judge(f"baseline after: {name}", BASELINE)
        found["same referee"] = slot._referee is referee
    return found | await judge_again(folder) | await judge_endless(folder) | await judge_pretrained(folder)


async def judge_again(folder, device="cuda:0"):
    """The baseline with a pool that holds one submission's exams: a second round and a later commit each need new ones, in the memory of
    those that go."""
    loaded, found, retired = settings(), {}, []

    async def on_retired(seeds):
        retired.extend(seeds)

    tiny = msgspec.structs.replace(loaded.profile("tiny"), exam_pool=4, uneven=1e-9)
    config = BenchConfig(path=ROOT, hparams=msgspec.structs.replace(loaded, profiles={**loaded.profiles, "tiny": tiny}), profile_name="tiny", device=device, runs=3)
    async with open_slot(dataclasses.replace(bench_slot(config, folder / "again"), on_retired=on_retired)) as slot:
        for name, block in (("a second round", 0), ("a later commit", 10)):
            found[name] = await slot.evaluate(Job(name, source_of(BASELINE), commit_block=block, block=block, skip_rules=True, second_round=block == 0))
            found[f"retired by {name}"] = len(retired)
    return found


async def judge_endless(folder, device="cuda:0"):
    """A kernel that never ends, and the baseline after it; what the card holds after either."""
    loaded, found = settings(), {}
    tiny = loaded.profile("tiny")
    tiny = msgspec.structs.replace(tiny, deadlines=msgspec.structs.replace(tiny.deadlines, warmup=20.0, run=20.0))
    config = BenchConfig(path=ROOT, hparams=msgspec.structs.replace(loaded, profiles={**loaded.profiles, "tiny": tiny}), profile_name="tiny", device=device, runs=1)
    async with open_slot(bench_slot(config, folder / "endless")) as slot:
        for name, text in (("a kernel without end", ENDLESS), ("baseline after a kernel without end", BASELINE)):
            found[name] = await slot.evaluate(Job(name, source_of(text), commit_block=0, block=0, skip_rules=True))
    return found


async def judge_pretrained(folder, device="cuda:0"):
    """A bf16 model in a folder of its own, as `save_pretrained` leaves it: judged from those weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {k: v for k, v in read_config("qwen2-tiny").items() if k != "model_type"}
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **shape), dtype=torch.bfloat16).save_pretrained(folder / "weights")
    loaded, found = settings(), {}
    tiny = loaded.profile("tiny")
    # Limits of fp32 are no limits of bf16, and nobody has calibrated this one: two coarse ones, for the way and not the resolution.
    tiny = msgspec.structs.replace(tiny, model=msgspec.structs.replace(tiny.model, config="", path=str(folder / "weights"), dtype="bfloat16"),
                                   limits={"even_projection": (0.2,) * 5, "gradient_error": (0.7, 9.0, 9.0, 9.0, 9.0)}, device="cuda")  # fmt: skip
    config = BenchConfig(path=ROOT, hparams=msgspec.structs.replace(loaded, profiles={**loaded.profiles, "tiny": tiny}), profile_name="tiny", device=device, runs=1)
    async with open_slot(bench_slot(config, folder / "pretrained")) as slot:
        for name, text in (("pretrained", BASELINE), ("pretrained, half of every batch", (ROOT / "examples" / "cheats" / "half_batch.py").read_text())):
            found[name] = await slot.evaluate(Job(name, source_of(text), commit_block=0, block=0, skip_rules=True))
    return found


def source_of(text):
    content = text.encode()
    return Source(sha256=hashlib.sha256(content).hexdigest(), content=content, url="", fetched_at=0.0)


@pytest.fixture(scope="module")
def found(tmp_path_factory, library):
    return trio.run(judge_all, tmp_path_factory.mktemp("judge"), library)


@pytest.mark.parametrize("name", HONEST)
def test_honest_work_in_the_sandbox_lands_in_the_referees_memory(found, name):
    """Accepted means read: every gradient that the audit knows came out of memory that another process wrote."""
    assert found[name].verdict is Outcome.ACCEPTED, found[name].message
    assert all(run.audit.passed for run in found[name].runs)


@pytest.mark.parametrize(("name", "runs"), [("a second round", 8), ("a later commit", 4)])
def test_honest_work_passes_on_exams_that_took_the_place_of_others(found, name, runs):
    """Their weights are in the memory where the last ones were: had an exam been made of those, every honest run would fail."""
    assert found[name].verdict is Outcome.ACCEPTED, found[name].message
    assert len(found[name].runs) == runs
    assert 0 < found["retired by a second round"] < found["retired by a later commit"]


def test_a_kernel_without_end_is_a_timeout_and_the_next_submission_is_judged_right(found):
    assert found["a kernel without end"].code == 1304, found["a kernel without end"].message
    after = found["baseline after a kernel without end"]
    assert after.verdict is Outcome.ACCEPTED, after.message


def test_a_pretrained_model_in_bf16_is_judged_from_its_own_weights(found):
    assert found["pretrained"].verdict is Outcome.ACCEPTED, found["pretrained"].message
    assert found["pretrained, half of every batch"].verdict is Outcome.REJECTED
    assert found["pretrained, half of every batch"].code // 100 == 14, found["pretrained, half of every batch"].message


def test_the_report_names_card_and_driver(found):
    assert found["baseline"].environment["driver"]
    assert found["baseline"].runs[1].telemetry["samples"] > 0


def test_weights_that_nobody_touched_are_seen(found):
    assert found["trains nothing"].verdict is Outcome.REJECTED
    assert found["trains nothing"].code // 100 == 14


def test_work_on_a_side_stream_is_on_the_clock(found):
    verdict = found["works on a side stream"]
    assert verdict.verdict is Outcome.ACCEPTED, verdict.message
    assert all(run.seconds > 0.5 for run in verdict.runs)


def test_a_graph_of_stale_inputs_is_seen(found):
    assert found["replays a graph of stale inputs"].code == 1401, found["replays a graph of stale inputs"].message


def test_whoever_fills_the_card_pays_for_it_and_reads_how_far_it_came(found, library):
    """The referee's workspace is reserved: its audit of the next one runs."""
    verdict = found["fills the card"]
    assert verdict.code == 1305, verdict.message
    told = re.search(r"out of memory after a peak of (\d+\.\d\d) GiB \(as claimed\)", verdict.message)
    assert told, verdict.message
    assert verdict.measured == f"{told[1]} GiB"
    assert 1 < float(told[1]) < library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(0)).total / 2**30  # without using the card


def test_a_killed_process_is_the_submissions_end(found):
    assert found["fills the card and kills itself"].code == 1303


def test_a_broken_context_is_the_submissions_own(found):
    assert found["breaks its context"].code in (1302, 1308), found["breaks its context"]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_card_is_free_again_when_the_evaluation_ends(found, name):
    assert found[f"held after: {name}"] - found["before"] < 1 << 30


@pytest.mark.parametrize("name", HOSTILE)
def test_the_next_submission_is_judged_right(found, name):
    verdict = found[f"baseline after: {name}"]
    assert verdict.verdict is Outcome.ACCEPTED, verdict.message


def test_no_submission_took_the_referee_down(found):
    assert found["same referee"]


def test_a_host_buffer_is_pinned_exactly_as_long_as_it_lives():
    for _ in range(3):  # the same address again, most likely: a forgotten registration would fail
        buffer = host_buffer(3 << 20, torch.bfloat16, "cuda")
        assert buffer.is_pinned()
        assert len(buffer) == 3 << 20
        assert torch.equal(buffer.cuda().cpu(), buffer)
        del buffer


def test_columns_in_bf16_add_up_to_the_gradient():
    profile = hparams.load(ROOT / "hparams.toml").profile("tiny")
    profile = msgspec.structs.replace(profile, model=msgspec.structs.replace(profile.model, dtype="bfloat16"), audit=msgspec.structs.replace(profile.audit, coordinates=20_000, reference_steps=1, tokens=10_000))
    reference = load_reference(profile.model, "cuda", None)
    try:
        exam = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial)
    finally:
        reference.memory.close()
    assert exam.columns.is_pinned()
    whole = exam.gradient[0][exam.plan.chosen]
    for first, last in exam.parts[0].families.values():  # with all tokens these add up, too
        assert float((exam.columns[0, first:last].sum(0) - whole).norm() / whole.norm()) < 0.01


def test_six_gigabytes_of_weights_are_restored_in_less_than_a_third_of_a_second():
    reference = load_reference(hparams.load(ROOT / "hparams.toml").profile("qwen2.5-3b").model, "cuda", None)
    try:
        initial = reference.redraw(1)
        reference.restore(initial)
        started = time.monotonic()
        reference.restore(initial)
        assert time.monotonic() - started < 0.3
    finally:
        reference.memory.close()
