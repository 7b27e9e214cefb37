"""What `crusades calibrate` compiles on a card."""

import gc

import pytest
import torch

from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import prepare_exam
from crusades.bench.referee.lab import Lab
from crusades.bench.referee.recipe import Recipe

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]  # of the compiler: no tensor cores for float32, a graph with nothing in it


def test_a_variant_with_cuda_graphs_has_the_right_gradients_and_leaves_no_memory_behind(small):
    """Gradients lie in a graph's own memory, which its next replay overwrites; and the graphs hold it until they are forgotten."""
    reference, profile = small
    exam = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial)
    lab = Lab(reference, profile, exam, reference.initial)
    measured, _ = lab.measure(Recipe(micro=2))
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    compiled, _ = lab.measure(Recipe(compile="reduce-overhead", micro=2))
    errors = [{m.name: m.values[0] for m in found}["gradient_error"] for found in (measured, compiled)]
    assert errors[1] < 2 * errors[0] + 0.01, errors
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < reference.layout.nbytes // 2, "gradients alone are twice that"
