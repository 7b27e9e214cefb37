"""What the referee copies beside other work of the card arrives whole."""

import json
from pathlib import Path

import msgspec
import pytest
import torch

from crusades import hparams
from crusades.bench.referee.anchor import Claims, Keeper
from crusades.bench.referee.anchored import compare_all
from crusades.bench.referee.audit import Adam, Reads
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.desk import expected_of
from crusades.bench.referee.exam import optimizer_settings, prepare_exam
from crusades.bench.referee.models import load_reference, read_config

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def small(tmp_path):
    """A reference of 200 MB on the card, with anchors: large enough that copies beside other work overlap it."""
    profile = hparams.load(ROOT / "hparams.toml").profile("tiny")
    config = {**read_config("qwen2.5-3b"), "num_hidden_layers": 2, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 50_000}
    path = tmp_path / "small.json"
    path.write_text(json.dumps(config))
    model = msgspec.structs.replace(profile.model, config=str(path), dtype="bfloat16")
    audit = msgspec.structs.replace(profile.audit, coordinates=20_000, reference_steps=1, anchored_runs=2)
    reference = load_reference(model, "cuda", None)
    yield reference, msgspec.structs.replace(profile, model=model, audit=audit)
    reference.memory.close()


def test_what_is_restored_beside_other_work_is_whole(small):
    reference, _ = small
    other = reference.redraw(5)
    for initial in (reference.initial, other) * 3:
        reference.memory.exp_avg.fill_(1.0)
        torch.cuda.synchronize()
        busy = torch.randn(4096, 4096, device="cuda")
        reference.begin_restore(initial)
        for _ in range(20):
            busy = busy @ busy.sigmoid()
        reference.finish_restore(initial)
        assert torch.equal(reference.memory.weights.cpu(), initial)
        assert not reference.memory.exp_avg.any()


def test_copies_that_go_out_beside_a_restore_are_of_the_weights_that_stood_there(small):
    """What is compared in the end is what the contestant had before its step, run after run, wherever it lay meanwhile."""
    reference, profile = small
    keeper = Keeper(reference, profile)
    keeper.settle()
    keeper.begin(3)
    keeper._step_of = {1: 1, 2: 2}
    exam = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial)
    moments = torch.zeros(profile.steps + 1, len(exam.sample), device="cuda")
    stood = {}
    for run in range(3):
        anchor = keeper.anchor()
        anchor.begin()
        reference.finish_restore()
        for step in range(profile.steps):
            reference.memory.weights.normal_()
            if step in anchor.kept:
                stood[run] = reference.memory.weights.clone().cpu()
            anchor.before(step)
        read = moments + stood[run][exam.sample.index].cuda() if run in stood else moments
        reference.begin_restore()
        keeper.keep(anchor, exam, reference.initial, Reads(read.bfloat16(), moments, moments), [], Claims(None, exam.logits))
    seen = []
    expected = expected_of(exam, "cuda")
    for kept, measured in compare_all(keeper, reference, profile, lambda exam: expected, Adam(**optimizer_settings(profile))):
        seen.append(kept.run)
        assert torch.equal(kept.weights, stood[kept.run])
        assert {m.name: max(m.values) for m in measured}["anchor_weights"] == 0.0
    assert seen == [1, 2]
