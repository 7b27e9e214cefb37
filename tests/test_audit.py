"""The audit's mathematics on cases with known answers: gradients that we make up, and AdamW done by hand."""

import dataclasses
import math

import pytest
import torch

from crusades.bench.referee import audit as audits
from crusades.bench.referee import unseen
from crusades.bench.referee.measured import BEFORE
from crusades.bench.referee.verdict import finite_result, judge, reason_of

ADAM = audits.Adam(learning_rate=1e-4, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1)
STEPS, PARTS, COORDINATES = 4, 6, 4000


def adamw(gradient: torch.Tensor, initial: torch.Tensor) -> audits.Reads:
    """Weights and moments after each step of AdamW (Loshchilov & Hutter), row 0 before the first."""
    w, m, v = [initial.double()], [torch.zeros_like(initial).double()], [torch.zeros_like(initial).double()]
    for s, g in enumerate(gradient.double()):
        m.append(ADAM.beta1 * m[-1] + (1 - ADAM.beta1) * g)
        v.append(ADAM.beta2 * v[-1] + (1 - ADAM.beta2) * g * g)
        step = ADAM.learning_rate * (m[-1] / (1 - ADAM.beta1 ** (s + 1))) / ((v[-1] / (1 - ADAM.beta2 ** (s + 1))).sqrt() + ADAM.epsilon)
        w.append(w[-1] * (1 - ADAM.learning_rate * ADAM.weight_decay) - step)
    return audits.Reads(*(torch.stack(x).float() for x in (w, m, v)))


class World:
    """A made-up exam: every part of every step has a random gradient; coordinates fall into two layers, two kinds, four tensors."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.initial = 0.02 * torch.randn(COORDINATES, generator=generator)
        self.columns = 1e-3 * (torch.randn(STEPS, PARTS, COORDINATES, generator=generator) + 0.5 * torch.randn(STEPS, 1, COORDINATES, generator=generator))
        self.gradient = self.columns.sum(1)
        reads = adamw(self.gradient, self.initial)
        tensor = torch.arange(COORDINATES) * 4 // COORDINATES
        standing = torch.full((STEPS, COORDINATES), audits.BODY, dtype=torch.uint8)
        names = ("layer 0 matrix", "layer 0 bias", "layer 1 matrix", "layer 1 bias")
        self.expected = audits.Expected(
            weights=reads.weights, exp_avg_sq=reads.exp_avg_sq[1:], gradient=self.gradient, columns=torch.cat([self.columns, self.columns], 1),
            chosen=torch.arange(COORDINATES), families={"sequence": (0, PARTS), "cell": (PARTS, 2 * PARTS)},
            part_names=tuple(f"sequence {i + 1}" for i in range(PARTS)) + tuple(f"cell {i + 1}" for i in range(PARTS)),
            groups={"layer": (tensor // 2, ("layer 0", "layer 1")), "kind": (tensor % 2, ("matrix", "bias")), "tensor": (tensor, names)}, standing=standing,
        )  # fmt: skip

    def audit(self, gradient: torch.Tensor) -> dict[str, audits.Measured]:
        return {m.name: m for m in audits.audit(adamw(gradient, self.initial), self.expected, ADAM, group_min=10)}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_the_gradient_follows_from_the_first_moment(world):
    recovered = audits.gradients(adamw(world.gradient, world.initial).exp_avg, ADAM.beta1)
    assert torch.allclose(recovered, world.gradient, rtol=1e-3, atol=1e-8)


def test_honest_work_is_near_zero_in_every_statistic(world):
    for name, measured in world.audit(world.gradient).items():
        assert max(measured.values) < (1.01 if name.startswith("optimizer") else 2e-4), name


@pytest.mark.parametrize("part", range(PARTS))
def test_a_part_left_out_of_one_step_has_coefficient_zero_there_alone(world, part):
    gradient = world.gradient.clone()
    gradient[2] -= world.columns[2, part]
    found = world.audit(gradient)["sequence_attribution"]
    assert found.values[2] == pytest.approx(1.0, abs=0.02)
    assert found.where[2] == f"sequence {part + 1}"
    assert max(found.values[s] for s in (0, 1, 3)) < 1e-3


def with_tokens(world, alike=0.0):
    """The world's exam with 16 secret tokens a step, whose columns have a share of `alike` in common; (S, 16, n) too."""
    drawn = torch.Generator().manual_seed(5)
    single = torch.randn(STEPS, 16, COORDINATES, generator=drawn) * world.gradient.abs()[:, None] / 90
    single = (1 - alike) * single + alike * world.gradient[:, None] / 90
    columns = torch.cat([world.expected.columns, single], 1)
    families, names = world.expected.families | {"token": (2 * PARTS, 2 * PARTS + 16)}, (*world.expected.part_names, *(f"token {t}" for t in range(16)))
    return dataclasses.replace(world.expected, columns=columns, families=families, part_names=names), single


def token_attribution(world, gradient, expected):
    return {m.name: m for m in audits.audit(adamw(gradient, world.initial), expected, ADAM, group_min=10)}["token_attribution"]


@pytest.mark.parametrize("alike", [0.0, 0.3])
def test_a_single_token_left_out_is_named_where_the_whole_hides_it(world, alike):
    """It is a hundredth of the gradient."""
    expected, single = with_tokens(world, alike)
    gradient = world.gradient.clone()
    gradient[2] -= single[2, 11]
    found = token_attribution(world, gradient, expected)
    assert found.values[2] == pytest.approx(1.0, abs=0.1)
    assert found.where[2] == "token 11"
    assert max(found.values[s] for s in (0, 1, 3)) < 0.02
    assert world.audit(gradient)["gradient_error"].values[2] < 0.02


def test_a_token_that_counts_twice_is_as_wrong_as_one_that_is_left_out(world):
    expected, single = with_tokens(world)
    gradient = world.gradient.clone()
    gradient[1] += single[1, 3]
    assert token_attribution(world, gradient, expected).values[1] == pytest.approx(1.0, abs=0.1)


def test_a_token_whose_gradient_vanishes_says_nothing_and_one_that_is_no_number_never_passes(world):
    expected, _ = with_tokens(world)
    expected.columns[:, 2 * PARTS + 4] = 0.0
    assert max(token_attribution(world, world.gradient, expected).values) < 0.02
    gradient = world.gradient.clone()
    gradient[3] *= torch.nan
    assert not token_attribution(world, gradient, expected).values[3] < 1e9


def test_a_token_that_hardly_has_a_gradient_is_not_all_noise(world):
    """What a trained model is sure of: honest noise would be many times its part."""
    noise = 1e-3 * torch.randn(STEPS, COORDINATES, generator=torch.Generator().manual_seed(8)) * world.gradient.abs()
    expected, _ = with_tokens(world)
    plain = token_attribution(world, world.gradient + noise, expected).values
    expected.columns[:, 2 * PARTS + 4] *= 1e-3
    assert max(token_attribution(world, world.gradient + noise, expected).values) < 1.5 * max(plain)


def test_an_exam_without_single_tokens_measures_none(world):
    assert world.audit(world.gradient * 2)["token_attribution"].values == (0.0,) * STEPS


def test_half_of_the_work_of_a_part_has_coefficient_one_half(world):
    gradient = world.gradient.clone()
    gradient[1] -= 0.5 * world.columns[1, 4]
    assert world.audit(gradient)["sequence_attribution"].values[1] == pytest.approx(0.5, abs=0.02)


def test_a_stale_gradient_shows_as_the_step_before(world):
    gradient = world.gradient.clone()
    gradient[3] = gradient[2]
    assert world.audit(gradient)["stale_gradient"].values[3] == pytest.approx(1.0, abs=0.02)


def test_a_frozen_layer_is_named(world):
    gradient = world.gradient.clone()
    gradient[:, COORDINATES // 2 :] = 0
    found = world.audit(gradient)
    assert found["layer_projection"].values == pytest.approx((1.0,) * STEPS)
    assert set(found["layer_projection"].where) == {"layer 1"}


def test_scaling_the_gradient_shows_in_the_projection_alone(world):
    found = world.audit(world.gradient * 1.1)
    assert found["gradient_projection"].values == pytest.approx((0.1,) * STEPS, abs=1e-3)
    assert max(found["outliers"].values) == 0.0


def test_one_percent_of_zeroed_coordinates_is_counted(world):
    gradient = world.gradient.clone()
    gradient[:, ::100] = 0
    found = world.audit(gradient)
    assert found["silent"].values == pytest.approx((0.01,) * STEPS, abs=0.006)
    assert found["outliers"].values == pytest.approx(found["silent"].values)


def test_unbiased_sub_sampling_shows_as_spread(world):
    gradient = world.gradient.clone()
    gradient[3] = 2 * world.columns[3, ::2].sum(0)
    spread = world.audit(gradient)["cell_spread"]
    assert spread.values[3] == pytest.approx(1.0, abs=0.05)  # half of the parts at 0, half at 2
    assert max(spread.values[:3]) < 1e-3


def test_steps_that_the_reference_did_not_take_are_not_compared_and_keep_their_arithmetic(world):
    gradient = world.gradient.clone()
    gradient[1:] -= world.columns[1:, 2]
    short = dataclasses.replace(world.expected, weights=world.expected.weights[:2], exp_avg_sq=None, gradient=world.gradient[:1], columns=world.expected.columns[:1], standing=world.expected.standing[:1])
    reads = adamw(gradient, world.initial)
    reads.weights[3:] += 1e-5
    found = {m.name: m for m in audits.audit(reads, short, ADAM, group_min=10)}
    for name in ("gradient_error", "even_error", "sequence_attribution", "cell_spread", "layer_error", "step_error"):
        assert found[name].values[0] < 2e-4, name
        assert found[name].values[1:] == (0.0,) * (STEPS - 1), name
        assert found[name].where[1:] == ("",) * (STEPS - 1)
    assert "update_error" not in found
    assert found["optimizer_weights"].values[2] > 10


def test_a_coordinate_with_next_to_no_second_moment_does_not_drown_the_even_error(world):
    """Adam's unit gives it a weight without bounds."""
    gradient, expected = world.gradient.clone(), dataclasses.replace(world.expected, exp_avg_sq=world.expected.exp_avg_sq.clone())
    expected.exp_avg_sq[-1, 5] = 1e-20
    gradient[1, 5] += 1e-5
    found = {m.name: m for m in audits.audit(adamw(gradient, world.initial), expected, ADAM, group_min=10)}
    assert found["gradient_error"].values[1] > 0.02
    assert found["even_error"].values[1] < 1e-3


def test_a_little_missing_everywhere_moves_the_typical_error_and_much_in_a_few_places_does_not(world):
    gradient = world.gradient.clone()
    gradient[1] *= 0.99
    gradient[2, ::10] = 0
    gradient[3, : COORDINATES // 2] *= 0.98
    found = world.audit(gradient)
    assert found["typical_error"].values[1] == pytest.approx(0.01, rel=0.05)
    assert found["typical_error"].values[2] < 1e-3
    assert found["layer_typical_error"].values[3] == pytest.approx(0.02, rel=0.05)
    assert found["layer_typical_error"].where[3] == "layer 0"


def test_a_tensor_that_should_have_no_gradient_must_not_have_one_unseen(world):
    gradient = world.gradient.clone()
    gradient[:, COORDINATES * 3 // 4 :] = 0
    short = dataclasses.replace(world.expected, weights=world.expected.weights[:2], exp_avg_sq=None, gradient=gradient[:1], columns=world.expected.columns[:1],
                                standing=world.expected.standing[:1])  # fmt: skip
    honest, found = ({m.name: m.values[0] for m in audits.audit(adamw(g, world.initial), short, ADAM, group_min=10)} for g in (gradient, world.gradient))
    assert honest["even_error"] < 1e-3
    assert found["even_error"] > 0.5


def with_vocabulary(world):
    """The world with its first quarter in the vocabulary's rows: of tokens in the batch, in none, and in an earlier one, by thirds."""
    standing, third = world.expected.standing.clone(), COORDINATES // 12
    for place, stands in enumerate((audits.SEEN, audits.UNSEEN, BEFORE)):
        standing[:, place * third : (place + 1) * third] = stands
    standing[:, 3 * third : COORDINATES // 4] = audits.SEEN
    return dataclasses.replace(world.expected, standing=standing), third


@pytest.mark.parametrize(("place", "moved"), [(0, {"seen"}), (1, {"unseen"}), (2, set())])
def test_rows_of_the_vocabulary_are_told_apart_by_the_batchs_tokens(world, place, moved):
    expected, third = with_vocabulary(world)
    gradient = world.gradient.clone()
    gradient[2, place * third : (place + 1) * third] *= 0.5
    found = {m.name: m for m in audits.audit(adamw(gradient, world.initial), expected, ADAM, group_min=10)}
    wrong = {name for name in ("seen", "unseen") if found[f"{name}_error"].values[2] > 0.3 and found[f"{name}_projection"].values[2] > 0.3}
    assert wrong == moved
    assert found["unseen_typical_error"].values[2] == pytest.approx(0.5 if "unseen" in moved else 0.0, abs=1e-3)
    assert found["gradient_error"].values[2] > 0.05


def test_the_rounding_of_an_old_moment_is_no_error_of_the_gradient(world):
    """In bf16 a gradient that adds a hundredth to its moment is off by a tenth of itself and more, and nobody is to blame."""
    generator = torch.Generator().manual_seed(1)
    before, true = torch.randn(COORDINATES, generator=generator).bfloat16(), 0.1 * torch.randn(1, COORDINATES, generator=generator)
    expected = dataclasses.replace(world.expected, gradient=true, standing=torch.full((1, COORDINATES), audits.UNSEEN, dtype=torch.uint8))

    def off(factor: float) -> tuple[float, float]:
        after = (before.float() * ADAM.beta1 + factor * true[0] * (1 - ADAM.beta1)).bfloat16()
        moments = torch.stack([before, after])
        plain = (audits.gradients(moments, ADAM.beta1)[0] - true[0]).abs().mean() / true.abs().mean()
        return float(plain), unseen.moment_error(moments, expected, ADAM, 10).values[0]

    plain, honest = off(1.0)
    assert honest == 0.0
    assert plain > 0.1
    assert off(1.02)[1] == pytest.approx(0.02, rel=0.3)


def rows_of_a_head(generator, *, alike, tokens=0.03):
    """Cells' shares (64, n) of a gradient that hardly depends on the cell, in rows of very different sizes, and the moment before."""
    sizes = torch.ones(COORDINATES) if alike else 10.0 ** torch.randint(-3, 1, (COORDINATES,), generator=generator)
    columns = sizes * torch.randn(COORDINATES, generator=generator) / 64 * (1 + tokens * torch.randn(64, COORDINATES, generator=generator))
    return columns, (columns.sum(0) * torch.randn(COORDINATES, generator=generator)).bfloat16()


@pytest.mark.parametrize("alike", [True, False])
def test_tokens_left_out_are_seen_in_rows_whose_gradient_hardly_depends_on_them(world, alike):
    """An eighth of the cells, weighted up, where all cells' gradients are nearly the same: every row is right within a hundredth."""
    generator = torch.Generator().manual_seed(2)
    columns, before = rows_of_a_head(generator, alike=alike)
    true = columns.sum(0)
    expected = dataclasses.replace(
        world.expected, gradient=true[None], standing=torch.full((1, COORDINATES), audits.UNSEEN, dtype=torch.uint8), families={"cell": (0, 64)},
        of_head=torch.arange(COORDINATES), head_columns=columns)  # fmt: skip

    def found(gradient: torch.Tensor, least: int = 10, dtype: torch.dtype = torch.bfloat16) -> tuple[float, float]:
        moments = torch.stack([before.to(dtype), (before.float() * ADAM.beta1 + gradient * (1 - ADAM.beta1)).to(dtype)])
        return unseen.moment_error(moments, expected, ADAM, 10).values[0], unseen.group_spread(moments, expected, ADAM, least).values[0]

    honest = found(true * (1 + 0.002 * torch.randn(COORDINATES, generator=generator)))
    cheat = found(8 * columns[torch.randperm(64, generator=generator)[:8]].sum(0))
    assert cheat[0] < 0.015
    assert cheat[1] > 10 * honest[1]
    assert found(true * 1.5, dtype=torch.float32)[1] < 1e-4, "what all tokens lack alike is for other statistics"
    assert found(true, least=COORDINATES + 1)[1] == 0.0, "too few to be judged"


def test_rows_without_any_gradient_are_no_ground_to_judge_on(world):
    expected = dataclasses.replace(world.expected, gradient=torch.zeros(1, COORDINATES), families={"cell": (0, 64)},
                                   of_head=torch.arange(COORDINATES), head_columns=torch.zeros(64, COORDINATES))  # fmt: skip
    assert unseen.group_spread(torch.zeros(2, COORDINATES), expected, ADAM, 10).values == (0.0,)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("which", [slice(None), slice(0, 10)])
def test_rows_whose_gradient_is_no_number_do_not_pass(world, broken, which):
    columns = torch.randn(64, COORDINATES, generator=torch.Generator().manual_seed(5))
    columns[:, which] = broken
    expected = dataclasses.replace(world.expected, gradient=columns.sum(0)[None], families={"cell": (0, 64)}, of_head=torch.arange(COORDINATES), head_columns=columns)
    spread = unseen.group_spread(torch.zeros(2, COORDINATES), expected, ADAM, 10).values[0]
    assert math.isnan(spread) or broken == 1e30, "a number, however large, is for other statistics, and no reason to raise"


def test_the_medians_of_groups_are_those_of_each_group_by_itself():
    generator = torch.Generator().manual_seed(4)
    off, ids = torch.rand(1000, generator=generator), torch.randint(0, 7, (1000,), generator=generator)
    off[torch.rand(1000, generator=generator) < 0.2] = -1.0
    off[(ids == 2).nonzero()[3]] = float("nan")
    off[ids == 5] = -1.0
    alone = torch.tensor([audits._median(off[ids == group]) for group in range(9)])
    assert torch.equal(audits._medians(off, ids, 9).nan_to_num(nan=-7.0), alone.nan_to_num(nan=-7.0))
    assert alone[[5, 7, 8]].tolist() == [0.0, 0.0, 0.0]
    assert bool(alone[2].isnan())


def test_rows_of_the_vocabulary_have_no_part_in_the_statistics_of_layers_and_kinds(world):
    expected, third = with_vocabulary(world)
    gradient = world.gradient.clone()
    gradient[:, : 3 * third] = 0
    found = {m.name: m for m in audits.audit(adamw(gradient, world.initial), expected, ADAM, group_min=10)}
    for name in ("even_error", "even_projection", "typical_error", "layer_error", "layer_typical_error", "kind_projection", "tensor_error"):
        assert max(found[name].values) < 1e-3, name


def test_too_few_rows_are_not_judged_by_themselves(world):
    expected, third = with_vocabulary(world)
    found = {m.name: m for m in audits.audit(adamw(0 * world.gradient, world.initial), expected, ADAM, group_min=2 * third)}
    assert found["unseen_error"].values == (0.0,) * STEPS
    assert found["even_projection"].values == pytest.approx((1.0,) * STEPS)


def test_coordinates_without_a_gradient_are_no_part_of_the_typical_error(world):
    gradient = world.gradient.clone()
    gradient[:, 1::2] = 0
    expected = dataclasses.replace(world.expected, gradient=gradient)
    found = {m.name: m for m in audits.audit(adamw(gradient, world.initial), expected, ADAM, group_min=10)}
    assert max(found["typical_error"].values) < 1e-3
    nothing = torch.zeros_like(gradient)
    assert audits._typical(nothing, nothing, expected.groups, 10)[0].values == (0.0,) * STEPS


def test_true_moments_with_false_weights_fail_the_arithmetic(world):
    reads = adamw(world.gradient, world.initial)
    reads.weights[2:] += 1e-5
    found = {m.name: m for m in audits.audit(reads, world.expected, ADAM, group_min=10)}
    assert found["optimizer_weights"].values[1] > 10
    assert max(found["optimizer_second_moment"].values) < 1.01


def test_a_false_second_moment_fails_the_arithmetic(world):
    reads = adamw(world.gradient, world.initial)
    reads.exp_avg_sq[3] *= 1.01
    found = {m.name: m for m in audits.audit(reads, world.expected, ADAM, group_min=10)}
    assert found["optimizer_second_moment"].values[2] > 10


def test_weights_that_never_moved_are_counted(world):
    reads = adamw(world.gradient, world.initial)
    reads.weights[2] = reads.weights[1]
    found = {m.name: m for m in audits.audit(reads, world.expected, ADAM, group_min=10)}
    assert found["unmoved"].values[1] == 1.0
    assert found["unmoved"].values[0] == 0.0


@pytest.mark.parametrize("segment", ["weights", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [1e-9, math.nan])
def test_a_single_coordinate_altered_before_the_clock_started_fails_without_any_limit(world, segment, value):
    reads = adamw(world.gradient, world.initial)
    getattr(reads, segment)[0, 7] = value
    judged = judge(audits.audit(reads, world.expected, ADAM, group_min=10), {})
    assert judged.worst == "initial_state"
    assert judged.words == "before step 1: weights or moments were altered before the clock started (initial_state 0.00025, limit 0)"


def test_a_groups_infinite_gradient_is_infinitely_wrong(world):
    reads = adamw(world.gradient, world.initial)
    reads.exp_avg[2:, 5] = math.inf
    found = {m.name: m for m in audits.audit(reads, world.expected, ADAM, group_min=10)}
    assert found["layer_error"].values[1] == math.inf
    assert found["layer_error"].where[1] == "layer 0"


@pytest.mark.parametrize(("loss", "logit", "share"), [(2.5, 0.0, 0), (None, 0.0, 1), (math.inf, 0.0, 1), (2.5, math.nan, 1), (None, -math.inf, 2)])
def test_a_result_that_is_no_number_fails_without_any_limit(loss, logit, share):
    logits = torch.zeros(4, 3)
    logits[1, 1] = logit
    judged = judge([finite_result(loss, logits)], {})
    assert judged.statistics[0].value == share / 13
    assert (reason_of(judged).code if share else reason_of(judged)) == (1402 if share else None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(world, value):
    reads = adamw(world.gradient, world.initial)
    reads.exp_avg[2, 5] = value
    judged = judge(audits.audit(reads, world.expected, ADAM, group_min=10), {"gradient_error": 1.0, "layer_error": 1.0, "optimizer_weights": 2.0})
    assert not judged.passed
    assert reason_of(judged).code == 1402


def test_a_zero_column_gets_no_coefficient_and_breaks_nothing():
    columns = torch.zeros(2, 50)
    columns[0] = torch.linspace(1, 2, 50)
    assert audits.solve(columns, 3 * columns[0]).tolist() == pytest.approx([3.0, 0.0], abs=1e-6)


def test_small_groups_are_not_judged_on_their_own(world):
    gradient = world.gradient.clone()
    gradient[:, COORDINATES // 2 :] = 0
    measured = audits.audit(adamw(gradient, world.initial), world.expected, ADAM, group_min=COORDINATES)
    assert max(next(m for m in measured if m.name == "tensor_error").values) == 0.0
