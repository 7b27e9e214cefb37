"""What the referee copies beside other work of the card arrives whole."""

import pytest
import torch

from crusades.bench.referee.anchor import Claims, Keeper
from crusades.bench.referee.anchored import compare_all
from crusades.bench.referee.audit import Adam, Reads
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import optimizer_settings, prepare_exam

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


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
    for kept, measured in compare_all(keeper, reference, profile, Adam(**optimizer_settings(profile))):
        seen.append(kept.run)
        assert torch.equal(kept.weights, stood[kept.run])
        assert {m.name: max(m.values) for m in measured}["anchor_weights"] == 0.0
    assert seen == [1, 2]
