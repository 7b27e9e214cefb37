"""The attention's output matrices, where honest arithmetic is quietest: which are looked at, what is said, and who is seen there."""

import math

import msgspec
import pytest
import torch

from crusades import hparams
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import prepare_exam
from crusades.bench.referee.lab import Lab
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.quiet import attention_errors
from crusades.bench.referee.recipe import Recipe
from crusades.bench.referee.variants_softmax import head_by_mean

LAYERS, EACH = 4, 100


def made_up(name="model.layers.{}.self_attn.o_proj.weight", other="model.layers.{}.mlp.down_proj.weight"):
    """Two tensors of `EACH` coordinates in each of four layers: (gradient (1, n), groups)."""
    names = tuple(kind.format(layer) for layer in range(LAYERS) for kind in (name, other))
    ids = torch.arange(len(names)).repeat_interleave(EACH)
    return torch.randn(1, len(ids), generator=torch.Generator().manual_seed(1)), {"tensor": (ids, names)}


def errors(own, true, groups, group_min=EACH):
    found = attention_errors(own, true, groups, group_min)
    assert [m.name for m in found] == ["attention_error", "last_attention_error"]
    return tuple(m.values[0] for m in found)


def off_in(true, groups, part, share):
    """`true` with the gradients of all tensors that have `part` in their names off by `share`."""
    ids, names = groups["tensor"]
    chosen = torch.tensor([part in name for name in names])[ids]
    return torch.where(chosen, true * (1 + share), true)


def test_what_all_its_coordinates_are_off_by_is_the_value():
    true, groups = made_up()
    assert errors(off_in(true, groups, "o_proj", 0.03), true, groups) == pytest.approx((0.03, 0.03), rel=1e-4)


def test_the_last_layer_is_looked_at_by_itself():
    true, groups = made_up()
    upper, last = errors(off_in(true, groups, "layers.3.self_attn", 0.03), true, groups)
    assert last == pytest.approx(0.03, rel=1e-4)
    assert upper < last / 2


@pytest.mark.parametrize("part", ["down_proj", "layers.0.", "layers.1."])
def test_other_matrices_and_the_lower_half_are_not_looked_at(part):
    true, groups = made_up()
    assert errors(off_in(true, groups, part, 0.5), true, groups) == (0.0, 0.0)


def test_where_the_last_layer_has_too_few_coordinates_the_one_before_is_added():
    true, groups = made_up()
    own = off_in(true, groups, "layers.2.self_attn", 0.03)
    assert errors(own, true, groups)[1] == 0.0
    own = off_in(own, groups, "layers.3.self_attn", 0.01)
    assert 0.01 < errors(own, true, groups, group_min=EACH + 1)[1] < 0.03


def test_too_few_coordinates_in_all_say_nothing():
    true, groups = made_up()
    assert errors(-true, true, groups, group_min=2 * EACH + 1) == (0.0, 0.0)


@pytest.mark.parametrize("name", [
    "model.layers.{}.self_attn.o_proj.weight", "transformer.h.{}.attn.c_proj.weight", "model.decoder.layers.{}.self_attn.out_proj.weight",
    "gpt_neox.layers.{}.attention.dense.weight", "transformer.h.{}.self_attention.dense.weight",
])  # fmt: skip
def test_the_matrix_is_known_by_the_names_that_transformers_gives_it(name):
    true, groups = made_up(name)
    assert min(errors(off_in(true, groups, name.split("{}")[1], 0.03), true, groups)) == pytest.approx(0.03, rel=1e-4)


@pytest.mark.parametrize("name", ["transformer.h.{}.mlp.c_proj.weight", "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight", "model.layers.{}.self_attn.o_proj.bias"])
def test_what_is_none_is_not_taken_for_one(name):
    true, groups = made_up(name)
    assert errors(-true, true, groups) == (0.0, 0.0)


def test_what_is_no_number_is_not_within():
    true, groups = made_up()
    assert all(not value <= 1e9 for value in errors(true * math.nan, true, groups))


def test_a_gradient_that_should_be_nothing_says_nothing():
    true, groups = made_up()
    assert errors(0 * true, 0 * true, groups) == (0.0, 0.0)


def test_an_estimate_of_what_the_head_gives_is_seen_in_the_last_layer():
    profile = hparams.load().profile("tiny")
    audit = msgspec.structs.replace(profile.audit, coordinates=60_000, column_coordinates=4_000, cells=8, anchored_runs=0)
    profile = msgspec.structs.replace(profile, steps=2, sequence_length=64, batch_size=4, runs=2, audit=audit)
    reference = load_reference(profile.model, "cpu", None)
    exam = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial, b"q" * 16)
    lab = Lab(reference, profile, exam, reference.initial)

    def measured(recipe):
        return {m.name: m.values[0] for m in lab.measure(recipe)[0]}["last_attention_error"]

    honest, estimated = measured(Recipe(micro=2)), measured(Recipe(backward_of_head=head_by_mean((0, 1), 4, by_size=True), micro=2))
    reference.memory.close()
    assert 0 < honest < 1e-5 < 1e-4 < estimated
