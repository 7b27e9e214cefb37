"""What is named to the miner: of made-up failures by rule, and of every shortcut on record by what it is known to leave out."""

import sys
from pathlib import Path

import pytest

from crusades.bench.referee.diagnosis import diagnose
from crusades.records import Statistic

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))


def named(**values):
    """Which statistic explains these values, all of them over their limits; `name__over` sets by how much (10 times; under 1 it passes)."""
    over = {name.removesuffix("__over"): values.pop(name) for name in list(values) if name.endswith("__over")}
    return diagnose([Statistic(name=name, value=v, limit=(v or 1.0) / over.get(name, 10.0), where="step 1") for name, v in values.items()]).name


def test_what_was_altered_on_purpose_comes_first():
    assert named(initial_state=1e-9, layer_projection=1.0, gradient_error=None) == "initial_state"


def test_what_is_no_number_comes_before_all_sizes():
    assert named(layer_projection=1.0, gradient_error=None) == "gradient_error"


def test_a_part_that_is_missing_is_named_however_far_others_are_over_their_limits():
    assert named(layer_projection=0.98, seen_typical_error=0.5, seen_typical_error__over=1e6) == "layer_projection"


def test_no_part_is_to_blame_when_all_is_missing():
    assert named(gradient_projection=0.9, layer_projection=0.95, sequence_attribution=0.9) == "gradient_projection"


def test_a_slice_is_named_where_it_stands_out_from_the_cells():
    assert named(slice_attribution=0.4, cell_attribution=0.25, gradient_error=0.4, typical_error=0.4, typical_error__over=1e6) == "slice_attribution"


def test_tokens_are_missing_where_the_whole_is_as_short_as_the_rows_of_unseen_tokens():
    assert named(unseen_projection=0.05, unseen_projection__over=20, even_projection=0.05, even_error=0.17, layer_error=0.2) == "even_projection"


def test_rows_are_missing_where_the_whole_is_not():
    assert named(unseen_projection=0.05, unseen_projection__over=20, even_projection=0.01, even_projection__over=0.9, even_error=0.17) == "unseen_projection"


def test_a_size_that_is_nothing_of_the_error_is_not_what_is_wrong():
    assert named(unseen_projection=0.01, even_projection=0.012, even_error=0.74, cell_attribution=0.5, cell_attribution__over=20) == "cell_attribution"


def test_what_the_step_before_left_is_not_called_a_missing_size():
    assert named(unseen_projection=0.1, even_projection=0.07, even_error=0.2, stale_gradient=0.1, stale_gradient__over=50) == "stale_gradient"


def test_coordinates_that_became_silent_by_chance_are_not_named():
    assert named(silent=0.003, silent__over=1e3, even_error=0.7, cell_attribution=0.5, cell_attribution__over=20) == "cell_attribution"


def test_coordinates_are_silent_where_they_are_the_error_of_some_steps():
    """`gradient_error` may be judged in other steps, where it is larger or has no limit."""
    assert named(silent=0.005, even_error=0.07, layer_error=0.1, layer_error__over=100) == "silent"


def test_the_softmax_is_named_where_others_only_say_how_much():
    assert named(softmax_attribution=0.95, tensor_error=0.4, tensor_error__over=20) == "softmax_attribution"


@pytest.mark.parametrize("quiet", ["attention_error", "last_attention_error"])
def test_where_arithmetic_is_quietest_everything_shows_and_nothing_is_explained(quiet):
    assert named(**{quiet: 0.1, f"{quiet}__over": 1e3}, layer_error=0.2, layer_error__over=2) == "layer_error"
    assert named(**{quiet: 0.1}) == quiet


def test_the_softmax_is_not_named_where_something_is_missing():
    assert named(softmax_attribution=8.0, softmax_attribution__over=50, cell_attribution=0.6) == "cell_attribution"


def test_a_slice_that_is_off_as_cells_are_is_not_to_blame():
    assert named(slice_attribution=2.6, cell_attribution=4.4, layer_projection=0.2, layer_projection__over=20) == "layer_projection"


def test_silent_coordinates_are_named_where_they_are_the_error():
    assert named(silent=0.1, gradient_error=0.31, slice_attribution=0.5, cell_attribution=1.6, outliers=0.1) == "silent"


def test_a_few_silent_coordinates_do_not_explain_an_error_everywhere():
    assert named(silent=0.005, silent__over=1e3, gradient_error=0.63, gradient_projection=0.5) == "gradient_projection"


def test_what_passes_is_compared_with_and_never_named():
    assert named(silent=0.0034, gradient_error=0.257, gradient_error__over=0.9, seen_projection=0.5, seen_projection__over=11) == "seen_projection"
    assert named(slice_attribution=0.4, cell_attribution=0.5, cell_attribution__over=0.9, layer_error=0.2, layer_error__over=11) == "layer_error"
    assert named(gradient_error=0.63, gradient_projection=0.5, gradient_projection__over=0.9, gradient_error__over=11, layer_error=0.1) == "gradient_error"


def test_the_layers_alone_tell_the_size_where_the_whole_is_not_judged():
    assert named(even_projection=0.5, even_error=0.63, unseen_projection=0.5, unseen_projection__over=1e3) == "even_projection"
    assert named(even_projection=0.9, layer_projection=0.95, even_error=0.95) == "even_projection"


def test_size_is_not_named_where_it_explains_little():
    assert named(gradient_error=0.74, gradient_projection=0.03, cell_spread=0.4, cell_spread__over=11) == "cell_spread"


def test_a_single_token_is_named_where_it_is_missing_and_next_to_nothing_else_is():
    little = {"unseen_projection": 0.004, "unseen_projection__over": 20, "even_error": 0.12, "stale_gradient": 0.001, "stale_gradient__over": 0.5}
    assert named(token_attribution=0.98, **little) == "token_attribution"
    assert named(token_attribution=1.1, even_projection=0.01, **little) == "token_attribution"


@pytest.mark.parametrize("wrong", [{"stale_gradient": 0.008}, {"even_error": 0.5}, {"outliers": 0.1}, {"unseen_projection": 0.4}, {"token_attribution": 4.0}])
def test_a_token_that_is_off_with_others_is_not_to_blame(wrong):
    all_else = {"even_error": 0.12, "stale_gradient": 0.001, "stale_gradient__over": 0.5, "token_attribution": 1.0, "token_attribution__over": 50, "layer_error": 0.2}
    assert named(**all_else) == "token_attribution"
    assert named(**all_else | wrong) != "token_attribution"


def test_vague_words_are_the_last_resort():
    assert named(outliers=0.03, outliers__over=1e6, layer_error=0.2) == "layer_error"
    assert named(outliers=0.03, outliers__over=11, layer_typical_error=0.5) == "outliers"


def test_a_small_typical_error_is_well_described_by_its_words():
    assert named(typical_error=0.01, typical_error__over=50, layer_error=0.02) == "typical_error"


def test_the_run_as_it_was_explains_better_than_an_anchored_step():
    assert named(silent=0.1, gradient_error=0.3, anchor_sequence_attribution=0.89) == "silent"
    assert named(anchor_sequence_attribution=1.0, outliers=0.1) == "anchor_sequence_attribution"


def test_the_optimizer_is_named_only_where_nothing_else_fails():
    assert named(optimizer_weights=3.0, optimizer_weights__over=1e6, gradient_error=0.2) == "gradient_error"
    assert named(optimizer_weights=3.0, optimizer_second_moment=1.0, optimizer_second_moment__over=11) == "optimizer_second_moment"


@pytest.fixture(scope="module")
def recorded():
    from diagnoses import named as of_record

    return {profile: [(r.dimension, r.variant, s.name.removeprefix("anchor_")) for r, s, _ in of_record(profile)] for profile in ("tiny", "qwen2.5-3b")}


ALSO = {("qwen2.5-3b", "coordinates"): {"unmoved"}, ("qwen2.5-3b", "softmax, rows"): {"unseen_error"}}
"""As true where the vocabulary is drawn wide: weights of rows without a gradient do not move, and rows of tokens in no batch are wrong."""


@pytest.mark.parametrize("profile", ["tiny", "qwen2.5-3b"])
@pytest.mark.parametrize(("dimension", "part", "names"), [
    ("sequences", "dropped", {"sequence_attribution"}), ("sequences, late", "dropped", {"sequence_attribution"}),
    ("layers", "frozen", {"layer_projection"}), ("layers, late", "frozen", {"layer_projection"}),
    ("coordinates", "smallest rows zeroed", {"silent", "unseen_error", "seen_projection"}),
    ("heads", "heads frozen", {"silent", "tensor_projection"}),
    ("softmax, rows", "", {"unseen_group_spread", "unseen_moment_error", "unseen_projection"}), ("softmax", "filtered", {"unseen_projection"}),
    ("steps", "", {"unmoved", "stale_gradient", "gradient_projection"}),
    ("softmax, mean", "", {"softmax_attribution", "last_attention_error", "typical_error"}), ("tokens, weighted up", "50.0% of the tokens", {"sequence_attribution", "even_projection"}),
    ("tokens, weighted up", "1.0% of the tokens", {"token_attribution", "even_projection"}),
    ("tokens", "last 2.0% of every", {"slice_attribution"}), ("tokens", "last 25.0% of every", {"slice_attribution"}),
    ("tokens", "50.0% of the tokens", {"gradient_projection", "even_projection"}), ("tokens, late", "% of the tokens", {"gradient_projection", "even_projection", "token_attribution"}),
])  # fmt: skip
def test_a_recorded_shortcut_is_called_by_what_it_leaves_out(recorded, profile, dimension, part, names):
    found = [(variant, name) for d, variant, name in recorded[profile] if d == dimension and part in variant]
    assert found
    assert [(variant, name) for variant, name in found if name not in names | ALSO.get((profile, dimension), set())] == []


@pytest.mark.parametrize("profile", ["tiny", "qwen2.5-3b"])
def test_no_part_of_the_tokens_is_blamed_for_rows_heads_and_layers(recorded, profile):
    parts = {"slice_attribution", "cell_attribution", "token_attribution"}
    assert [(variant, name) for d, variant, name in recorded[profile] if d in ("coordinates", "heads", "layers", "layers, late", "steps") and name in parts] == []
