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
from crusades.bench.referee.variants_attacks import attacks
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


def test_other_matrices_and_the_lower_half_are_not_looked_at():
    true, groups = made_up()
    own = true
    for part in ("down_proj", "layers.0.self_attn", "layers.1.self_attn"):
        own = off_in(own, groups, part, 0.5)
    assert errors(own, true, groups) == (0.0, 0.0)


def test_all_of_the_upper_half_is_looked_at():
    true, groups = made_up()
    own = off_in(off_in(true, groups, "layers.2.self_attn", 0.5), groups, "layers.3.self_attn", 0.5)
    assert errors(own, true, groups)[0] == pytest.approx(0.5, rel=1e-4)


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
    "gpt_neox.layers.{}.attention.dense.weight", "transformer.h.{}.self_attention.dense.weight", "model.layers.{}.self_attn.dense.weight",
    "transformer.h.{}.attn.attention.out_proj.weight", "model.layers.{}.attention.wo.weight",
])  # fmt: skip
def test_the_matrix_is_known_by_the_names_that_transformers_gives_it(name):
    true, groups = made_up(name)
    assert min(errors(off_in(true, groups, name.split("{}")[1], 0.03), true, groups)) == pytest.approx(0.03, rel=1e-4)


@pytest.mark.parametrize("name", [
    "transformer.h.{}.mlp.c_proj.weight", "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight", "model.layers.{}.self_attn.o_proj.bias",
    "model.layers.{}.mamba.out_proj.weight", "decoder.layers.{}.DenseReluDense.wo.weight",
])  # fmt: skip
def test_what_is_none_is_not_taken_for_one(name):
    true, groups = made_up(name)
    assert errors(-true, true, groups) == (0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_within(value):
    true, groups = made_up()
    assert all(not found <= 1e9 for found in errors(true * value, true, groups))


def test_coordinates_without_a_gradient_do_not_hide_those_that_have_one():
    true, groups = made_up()
    mostly = torch.where(torch.arange(true.shape[1]) % 3 == 0, true, 0 * true)
    assert errors(1.03 * mostly, mostly, groups, group_min=20) == pytest.approx((0.03, 0.03), rel=1e-4)


@pytest.mark.parametrize("names", [("model.layers.0.self_attn.o_proj.weight",), ("lm_head.weight",), ()])
def test_a_model_of_one_layer_or_none_has_values_too(names):
    true, groups = torch.ones(1, EACH * len(names)), {"tensor": (torch.arange(len(names)).repeat_interleave(EACH), names)}
    expected = 0.25 if "o_proj" in "".join(names) else 0.0
    assert errors(1.25 * true, true, groups) == (expected, expected)


def test_a_gradient_that_should_be_nothing_says_nothing():
    true, groups = made_up()
    assert errors(0 * true, 0 * true, groups) == (0.0, 0.0)


@pytest.fixture(scope="module")
def measured():
    """recipe → statistics of the first step, by a small model on the CPU."""
    profile = hparams.load().profile("tiny")
    audit = msgspec.structs.replace(profile.audit, coordinates=60_000, column_coordinates=4_000, cells=8, anchored_runs=0)
    profile = msgspec.structs.replace(profile, steps=2, sequence_length=64, batch_size=4, runs=2, audit=audit)
    reference = load_reference(profile.model, "cpu", None)
    lab = Lab(reference, profile, prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial, b"q" * 16), reference.initial)
    yield lambda recipe: {m.name: m.values[0] for m in lab.measure(recipe)[0]}
    reference.memory.close()


def test_honest_work_is_near_zero_in_both(measured):
    found = measured(Recipe(micro=2))
    assert 0 < found["attention_error"] < 1e-5
    assert 0 < found["last_attention_error"] < 1e-5


def test_an_estimate_of_what_the_head_gives_is_seen_in_the_last_layer(measured):
    assert measured(Recipe(backward_of_head=head_by_mean((0, 1), 4, by_size=True), micro=2))["last_attention_error"] > 1e-4


def test_true_gradients_for_the_first_tokens_make_such_an_estimate_harder_to_see_and_do_not_hide_it(measured):
    naive, knowing = (measured(Recipe(backward_of_head=head_by_mean((0, 1), 4, by_size=True, true_positions=share), micro=2))["last_attention_error"] for share in (0.0, 0.25))
    assert 1e-4 < knowing < naive


@pytest.fixture
def few():
    return next(v.recipe for v in attacks(2, 4, low_precision=False) if v.name.startswith("weight gradients from 1/2 of the directions"))


def test_output_matrices_from_a_few_directions_are_seen_in_the_upper_half(measured, few):
    assert measured(few)["attention_error"] > 1e-3


def test_a_variant_that_draws_directions_is_the_same_whatever_was_drawn_before(measured, few):
    first = measured(few)
    torch.rand(1)
    assert measured(few)["attention_error"] == first["attention_error"]
