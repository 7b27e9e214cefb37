"""The part of the hidden states' gradient that moments of the output layer's rows do not make: what it is, and who lacks it."""

import msgspec
import pytest
import torch

from crusades import hparams
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import expected_of, prepare_exam
from crusades.bench.referee.lab import Lab
from crusades.bench.referee.layout import layer_of
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.recipe import Recipe
from crusades.bench.referee.softmax import DEPTH, attribution
from crusades.bench.referee.variants_softmax import chances, head_by_mean, head_by_moments


@pytest.fixture(scope="module")
def profile():
    found = hparams.load().profile("tiny")
    audit = msgspec.structs.replace(found.audit, coordinates=60_000, column_coordinates=4_000, cells=8, anchored_runs=0)
    return msgspec.structs.replace(found, steps=2, sequence_length=64, batch_size=4, runs=2, audit=audit)


@pytest.fixture(scope="module")
def reference(profile):
    found = load_reference(profile.model, "cpu", None)
    yield found
    found.memory.close()


@pytest.fixture(scope="module")
def exam(reference, profile):
    return prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial, b"s" * 16)


def beyond_moments(logits, hidden, weight, positions):
    """(tokens, hidden) float64, by the definition: Σ p·W − μ − C·h over the number of positions."""
    probabilities, rows = logits.double().softmax(1), weight.double()
    mean = rows.mean(0)
    centred = rows - mean
    covariance = centred.t() @ centred / len(rows)
    return (probabilities @ rows - mean - hidden.double() @ covariance) / positions


def gradient_at(reference, exam, *, without_beyond):
    """The sampled gradient (n,) of the first batch, and with the part taken out of what the head gives its hidden states."""
    reference.restore(reference.initial)
    tokens, head = torch.from_numpy(exam.batches[0]), reference.model.get_output_embeddings()
    positions, kept = tokens.shape[0] * (tokens.shape[1] - 1), []
    handle = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    logits = reference.model(tokens[:, :-1]).logits
    handle.remove()
    hidden = kept[0]
    if without_beyond:
        part = beyond_moments(logits.detach().flatten(0, 1), hidden.detach().flatten(0, 1), head.weight.detach(), positions).view_as(hidden).float()
        hidden.register_hook(lambda gradient: gradient - part)
    (torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum") / positions).backward()
    flat = torch.zeros(reference.layout.elements)
    for view, parameter in zip(reference.layout.views(flat).values(), reference.model.parameters(), strict=True):
        view.copy_(parameter.grad)
    reference.model.zero_grad(set_to_none=True)
    return flat[exam.sample.index]


def test_it_is_what_the_gradient_loses_when_moments_stand_for_the_rows(reference, exam):
    lost = gradient_at(reference, exam, without_beyond=False) - gradient_at(reference, exam, without_beyond=True)
    there = exam.beyond[0] != 0
    assert int(there.sum()) > 1_000
    assert float((exam.beyond[0, there] - lost[there]).norm() / lost[there].norm()) < 1e-3


def test_it_is_followed_through_the_matrices_of_the_last_layers_alone(reference, exam):
    first = reference.layers - max(1, reference.layers // DEPTH)
    for spec, (a, b) in zip(reference.layout.specs, exam.sample.bounds, strict=True):
        inside = len(spec.shape) == 2 and first <= layer_of(spec.name, reference.layers) < reference.layers
        assert bool((exam.beyond[0, a:b] != 0).any()) == inside, spec.name


def test_micro_batches_add_up(reference, profile, exam):
    small = msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, micro_batch=1))
    again = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), small, reference.initial, b"s" * 16)
    assert float((again.beyond[0] - exam.beyond[0]).norm() / exam.beyond[0].norm()) < 1e-3


def test_the_statistic_is_the_share_that_is_missing(reference, exam):
    expected = expected_of(exam, "cpu")
    scale = torch.ones_like(expected.gradient)
    for share in (0.0, 0.25, 1.0):
        found = attribution(expected.gradient - share * expected.beyond, scale, expected, 512)
        assert found.values == pytest.approx((share, share), abs=1e-4)


def test_too_few_coordinates_say_nothing(exam):
    expected = expected_of(exam, "cpu")
    assert attribution(0 * expected.gradient, torch.ones_like(expected.gradient), expected, 10**9).values == (0.0, 0.0)


def test_what_is_no_number_is_not_within(exam):
    expected = expected_of(exam, "cpu")
    value = attribution(expected.gradient * torch.nan, torch.ones_like(expected.gradient), expected, 512).values[0]
    assert not value <= 1e9


def test_honest_work_has_all_of_it_and_work_by_moments_lacks_it(reference, profile, exam):
    lab = Lab(reference, profile, exam, reference.initial)

    def measured(recipe):
        return {m.name: m.values for m in lab.measure(recipe)[0]}["softmax_attribution"]

    assert max(measured(Recipe(micro=2))) < 1e-3
    assert measured(Recipe(backward_of_head=head_by_moments((0, 1)), micro=2))[0] > 0.5


def test_rows_are_drawn_in_proportion_to_their_size_and_those_that_are_too_large_for_certain():
    found = chances(torch.tensor([1.0, 3.0, 100.0, 4.0, 50.0]), 3)
    assert found.tolist() == pytest.approx([1 / 8, 3 / 8, 1.0, 4 / 8, 1.0])


def test_a_head_made_of_large_rows_first_is_nearer_to_the_truth_than_of_any_rows(reference, profile, exam):
    lab = Lab(reference, profile, exam, reference.initial)
    head = torch.nn.Linear(64, reference.vocabulary, bias=False)
    x = torch.randn(128, 64, generator=lab.generator)
    logits = 3 * torch.randn(128, reference.vocabulary, generator=lab.generator)
    dy = logits.softmax(1) - torch.nn.functional.one_hot(torch.from_numpy(exam.batches[0]).flatten()[:128], reference.vocabulary)
    true = dy @ head.weight.detach()

    def off(by_size):
        return float((head_by_mean((0,), 8, by_size=by_size)(lab, 0, head, x, dy)[0] - true).norm())

    assert 0 < off(True) < off(False) / 1.5


def test_a_gradient_at_the_weights_before_the_last_update_is_another_and_leaves_the_right_weights(reference, profile, exam):
    lab = Lab(reference, profile, exam, reference.initial)
    found = {m.name: m.values for m in lab.measure(Recipe(early=(1,)))[0]}
    assert found["even_error"][0] < 1e-4 < 1e-2 < found["even_error"][1]
    assert max(found["optimizer_weights"]) <= 1.0
