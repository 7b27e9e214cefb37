"""An anchored step is compared at the contestant's own weights: drift before it does not count, shirking in it does."""


import msgspec
import pytest
import torch

from crusades import hparams
from crusades.bench.referee import anchor as anchors
from crusades.bench.referee.anchor import Anchor, Claims, Keeper, Kept, candidates
from crusades.bench.referee.anchored import compare, compare_all, fine_parts, out_of_reach
from crusades.bench.referee.audit import Adam, Measured, Reads
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import ReferencePass, optimizer_settings, prepare_exam
from crusades.bench.referee.lab import Lab, Recipe, copies_for
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.reads import Reader, now_ns
from crusades.bench.referee.statistic import in_words
from crusades.bench.referee.verdict import judge

STEPS = 3
CLAIMS = Claims(None, torch.zeros(64, 1024))


@pytest.fixture(scope="module")
def profile():
    found = hparams.load().profile("tiny")
    audit = msgspec.structs.replace(found.audit, coordinates=20_000, column_coordinates=8_000, cells=8, anchored_runs=2, anchor_steps=2)
    return msgspec.structs.replace(found, steps=STEPS, sequence_length=32, batch_size=4, learning_rate=1e-2, audit=audit)


@pytest.fixture(scope="module")
def reference(profile):
    found = load_reference(profile.model, "cpu", None)
    yield found
    found.memory.close()


@pytest.fixture(scope="module")
def lab(reference, profile):
    exam = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial, b"a" * 16)
    return Lab(reference, profile, exam, reference.initial, copies=copies_for(reference, STEPS))


def drift(lab, step):
    """What rounding does to a large model, made large: the weights leave the reference's path before the last step."""
    if step < STEPS - 1:
        for _, parameter in lab.named():
            parameter.grad *= 1 + torch.randn(parameter.shape, generator=lab.generator)


def measured(lab, **recipe):
    return {m.name: m for m in lab.measure(Recipe(**recipe))[0]}


def test_honest_work_is_near_zero(lab):
    found = measured(lab)
    assert found["anchor_gradient_error"].values[-1] < 1e-4
    assert found["anchor_weights"].values == (0.0,) * STEPS
    assert found["initial_state"].values == (0.0,)
    assert found["anchor_cell_attribution"].values[-1] < 1e-3


def test_drift_before_the_step_does_not_count(lab):
    found = measured(lab, edit_gradients=drift)
    assert found["gradient_error"].values[-1] > 0.02
    assert found["anchor_gradient_error"].values[-1] < found["gradient_error"].values[-1] / 100


def test_tokens_left_out_behind_drift_are_seen(lab):
    def without_a_tenth(lab, step, losses):
        weights = torch.ones_like(losses)
        if step == STEPS - 1:
            weights[:, :3] = 0.0
        return weights

    honest, found = measured(lab, edit_gradients=drift), measured(lab, edit_gradients=drift, weights=without_a_tenth)
    assert found["anchor_gradient_error"].values[-1] > 100 * honest["anchor_gradient_error"].values[-1]
    assert found["gradient_error"].values[-1] < 3 * honest["gradient_error"].values[-1]


def test_several_runs_are_compared_one_after_the_other(lab, reference, profile):
    lab.measure(Recipe())
    last, exam = STEPS - 1, lab.exam
    before, after = exam.weights[last], torch.zeros(2, len(exam.sample))
    reference.restore(lab.initial)
    pass_ = ReferencePass(reference, profile, exam)
    for step in range(last):
        pass_.step(exam.batches[step], exam.parts[step], last=False)
    weights = reference.memory.weights.clone()
    assert torch.equal(weights[exam.sample.index], before)
    after[1] = (1 - profile.beta1) * exam.gradient[last]
    kept = Kept(0, last, exam, weights, lab.initial, before, after, CLAIMS, ())
    adam = Adam(**optimizer_settings(profile))
    for _ in range(2):
        found = {m.name: m.values[-1] for m in compare(kept, kept.initial, reference, profile, adam)}
        assert found["anchor_gradient_error"] < 1e-5


def test_weights_that_are_swapped_between_read_and_copy_are_named(lab, reference, profile):
    """The copy decides at which weights the step is judged: it must be of the weights that were read."""
    last, exam = STEPS - 1, lab.exam
    reference.memory.weights.copy_(lab.initial)
    reader = Reader(reference, exam.sample, STEPS)
    reader.read(last)
    swapped = reference.memory.weights.clone().mul_(1.001)
    kept = Kept(0, last, exam, swapped, lab.initial, reader.result().weights[last], torch.zeros(2, len(exam.sample)), CLAIMS, ())
    found = judge(compare(kept, kept.initial, reference, profile, Adam(**optimizer_settings(profile))), {})
    assert found.worst == "anchor_weights"
    assert found.words.startswith("step 3: the weights changed while the judge was reading them (anchor_weights ")


def test_a_handful_of_weights_that_make_a_step_trivial_is_out_of_reach(lab, reference, profile):
    """A final norm of zero and a bias that swallows the rest: the step's true gradient is then one vector, and costs nothing. They
    need not be among the sampled coordinates."""
    last, exam, adam = STEPS - 1, lab.exam, Adam(**optimizer_settings(profile))
    lab.measure(Recipe())
    honest = lab.copies[last].clone()
    sampled = set(exam.sample.index.tolist())
    unsampled = next(i for i in range(len(honest)) if i not in sampled)
    values = {}
    for name, weight in (("honest", float(honest[unsampled])), ("poisoned", 1e10)):
        weights = honest.clone()
        weights[unsampled] = weight
        kept = Kept(0, last, exam, weights, lab.initial, weights[exam.sample.index], torch.zeros(2, len(exam.sample)), CLAIMS, ())
        found = compare(kept, kept.initial, reference, profile, adam)
        values[name] = next(m.values[last] for m in found if m.name == "anchor_reach")
    assert values == {"honest": 0.0, "poisoned": 1 / len(honest)}
    assert judge(found, {}).worst == "anchor_reach"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_adamw_reaches_no_farther_than_is_allowed_whatever_the_gradients(reference, dtype, beta2):
    """Random signs and sizes over many orders of magnitude, and weights of many sizes, rounded as the profile's are."""
    generator = torch.Generator().manual_seed(5)
    initial = (torch.randn(40_000, generator=generator) * 10.0 ** torch.randint(-6, 2, (40_000,), generator=generator)).to(dtype)
    weight = torch.nn.Parameter(initial.clone())
    settings = {"lr": 1e-4, "betas": (0.9, beta2), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW([weight], **settings)
    adam = Adam(learning_rate=1e-4, beta1=0.9, beta2=beta2, epsilon=1e-8, weight_decay=0.1)
    for step in range(1, 6):
        scale = 10.0 ** torch.randint(-8, 3, (40_000,), generator=generator)
        weight.grad = (torch.randn(40_000, generator=generator) * scale).to(dtype)
        optimizer.step()
        assert out_of_reach(weight.data, initial, adam, step) == 0.0
    weight.data[7] += 1.0
    assert out_of_reach(weight.data, initial, adam, 5) == pytest.approx(1 / 40_000)
    weight.data[8] = float("nan")
    assert out_of_reach(weight.data, initial, adam, 5) == pytest.approx(2 / 40_000)


def test_the_result_is_compared_at_the_contestants_own_weights_behind_drift(lab):
    """Drift moves loss and logits away from the exam's; at its own weights they are what honest work gives, and a claim is a claim."""
    found = measured(lab, edit_gradients=drift)
    assert found["final_loss"].values[0] > 1e-3
    assert found["anchor_final_loss"].values[0] < 1e-5
    assert found["anchor_final_logits"].values[0] < 1e-4 < found["final_logits"].values[0]


def test_where_the_reference_takes_one_step_the_others_are_judged_at_their_anchors(reference, profile):
    short = msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, reference_steps=1))
    exam = prepare_exam(reference, SyntheticCorpus(reference.vocabulary), short, reference.initial, b"b" * 16)
    lab = Lab(reference, short, exam, reference.initial, copies=copies_for(reference, STEPS))

    def without_a_tenth(lab, step, losses):
        weights = torch.ones_like(losses)
        if step == STEPS - 1:
            weights[:, :3] = 0.0
        return weights

    honest, cheat = measured(lab), measured(lab, weights=without_a_tenth, first=STEPS - 1)
    assert not {"final_loss", "final_logits", "update_error"} & set(honest)
    assert honest["gradient_error"].values[1:] == (0.0,) * (STEPS - 1)
    for name in ("gradient_error", "even_error", "typical_error", "cell_spread"):
        assert 0 < honest[f"anchor_{name}"].values[-1] < 1e-3
        assert cheat[f"anchor_{name}"].values[-1] > 30 * honest[f"anchor_{name}"].values[-1]
        assert cheat[f"anchor_{name}"].values[1] == 0.0, "before its first step it is eager training, which is not compared again"
    assert honest["anchor_final_loss"].values[0] < 1e-5


def test_only_the_last_step_has_a_result(lab, reference, profile):
    exam = lab.exam
    for step, has in ((1, False), (STEPS - 1, True)):
        kept = Kept(0, step, exam, lab.initial, lab.initial, exam.weights[0], torch.zeros(2, len(exam.sample)), CLAIMS, ())
        names = {m.name for m in compare(kept, kept.initial, reference, profile, Adam(**optimizer_settings(profile)))}
        assert ("anchor_final_logits" in names) is has


def test_an_anchored_step_has_cells_of_its_own_which_nobody_can_foresee(lab, profile):
    fine = msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, fine_cells=20))
    one, other = (fine_parts(lab.exam, step, fine) for step in (1, 2))
    first, last = one.families["cell"]
    assert last - first == 20
    assert torch.equal(one.fixed[first:last].sum(0), torch.ones_like(one.fixed[0], dtype=torch.int64)), "cells partition the tokens"
    assert not torch.equal(one.fixed[first:last], other.fixed[first:last])
    assert torch.equal(one.fixed, fine_parts(lab.exam, 1, fine).fixed)


def test_words_name_the_step_and_the_part(lab):
    found = judge([Measured("anchor_layer_projection", (0.0, 1.0), ("", "layer 3"))], {"anchor_layer_projection": (0.0, 0.1)})
    assert found.words == "step 2: layer 3 was not trained in full (anchor_layer_projection 1, limit 0.1)"
    assert in_words(found.statistics[0]) == found.words


# ------------------------------------------------------------------------------------------------ which runs, which steps


@pytest.mark.parametrize(("steps", "last", "expected"), [(5, 1, [4]), (5, 2, [3, 4]), (5, 9, [1, 2, 3, 4]), (1, 1, [])])
def test_the_last_steps_may_be_anchored_and_never_the_first(profile, steps, last, expected):
    audit = msgspec.structs.replace(profile.audit, anchor_steps=last)
    assert list(candidates(msgspec.structs.replace(profile, steps=steps, audit=audit))) == expected


def test_the_copy_before_the_chosen_step_is_kept_and_the_others_leave_no_trace(reference):
    kept = torch.zeros_like(reference.memory.weights)
    anchor = Anchor(reference, range(1, 4), {2: kept})
    seen = []
    for step in range(4):
        reference.memory.weights.fill_(step + 1.0)
        anchor.before(step)
        seen.append(float(kept[0]))
        assert bool((kept == kept[0]).all())
    assert seen == [0.0, 0.0, 3.0, 3.0]


def test_a_keeper_keeps_as_many_runs_as_asked_with_the_moments_around_their_step(reference, profile, lab):
    keeper = Keeper(reference, profile)
    keeper.begin(6)
    chosen = dict(keeper._step_of)
    moments = torch.arange(STEPS + 1.0)[:, None].expand(-1, 4)
    for run in range(6):
        anchor = keeper.anchor()
        reference.memory.weights.fill_(float(run))
        for step in range(STEPS):
            anchor.before(step)
        keeper.keep(anchor, lab.exam, lab.initial, Reads(moments, moments, moments), [], CLAIMS)
    assert {kept.run: kept.step for kept in keeper.kept} == chosen
    assert len(chosen) == 2
    for kept in keeper.kept:
        assert float(kept.weights[0]) == kept.run
        assert kept.exp_avg[:, 0].tolist() == [kept.step, kept.step + 1]


def test_the_choice_is_drawn_anew_for_every_contestant(reference, profile):
    keeper, drawn = Keeper(reference, profile), set()
    for _ in range(200):
        keeper.begin(6)
        drawn.add(frozenset(keeper._step_of))
    assert drawn == {frozenset({a, b}) for a in range(1, 6) for b in range(1, a)}, "scored runs before the warm-up"


def test_a_single_scored_run_is_anchored_and_so_is_its_warm_up(reference, profile):
    keeper = Keeper(reference, profile)
    keeper.begin(2)
    assert set(keeper._step_of) == {0, 1}


def one_run(keeper, lab, **repeats):
    anchor, rows = keeper.anchor(**repeats), torch.zeros(STEPS + 1, 4)
    anchor.begin()
    for step in anchor.kept:
        anchor.copy(step)
    keeper.keep(anchor, lab.exam, lab.initial, Reads(rows, rows, rows), [], CLAIMS)
    return anchor


def test_the_repetition_of_a_void_run_takes_its_anchor(reference, profile, lab):
    keeper = Keeper(reference, profile)
    keeper.begin(6)
    keeper._step_of = {1: 2, 4: 1}
    kept = {}
    for place in range(8):
        kept[place] = tuple(one_run(keeper, lab, repeats=place in (2, 6)).kept)
    assert kept == {0: (), 1: (2,), 2: (2,), 3: (), 4: (), 5: (1,), 6: (1,), 7: ()}
    assert [(k.run, k.step) for k in keeper.kept] == [(2, 2), (6, 1)]


def test_between_two_runs_as_much_time_passes_whether_something_is_kept_or_not(reference, profile, lab):
    """The next run's clock waits for it, so that audit and restore may go on meanwhile."""
    keeper = Keeper(reference, profile)
    keeper.begin(6)
    keeper._step_of, keeper._rest = {1: 2}, 0.05
    ends, rows = [0], torch.zeros(STEPS + 1, 4)
    for _ in range(3):
        anchor = keeper.anchor()
        anchor.begin()
        assert now_ns() - ends[-1] >= 0.05e9
        ends.append(now_ns())
        keeper.keep(anchor, lab.exam, lab.initial, Reads(rows, rows, rows), [], CLAIMS)


def test_the_same_bytes_go_to_the_host_whether_something_is_kept_or_not(reference, profile, lab, monkeypatch):
    monkeypatch.setattr(anchors, "PIECE_ELEMENTS", 300_000)
    keeper = Keeper(reference, profile)
    keeper.begin(6)
    keeper._step_of = {0: 1, 1: 2}
    one_run(keeper, lab), one_run(keeper, lab)
    whole = [kept.weights.clone() for kept in keeper.kept]
    gone = []
    real = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda into, flat, *more, **settings: gone.append(len(flat)) or real(into, flat, *more, **settings))
    one_run(keeper, lab)  # no place is left
    assert sum(gone) == len(keeper._buffer)
    assert all(torch.equal(kept.weights, weights) for kept, weights in zip(keeper.kept, whole, strict=True))


def test_initial_weights_come_to_where_the_copies_were_once(reference, profile):
    keeper = Keeper(reference, profile)
    one, other = torch.full_like(reference.initial, 1.0), torch.full_like(reference.initial, 2.0)

    assert float(keeper.load(one)[-1]) == 1.0
    keeper._buffer.fill_(5.0)
    assert float(keeper.load(one)[-1]) == 5.0, "it was brought a second time"
    assert float(keeper.load(other)[-1]) == 2.0
    keeper.begin(6)
    keeper._step_of = {0: 1}
    anchor = keeper.anchor()
    reference.memory.weights.fill_(3.0)
    anchor.copy(1)
    assert float(keeper.load(other)[0]) == 2.0, "a run has used the buffer since"


def test_the_last_copy_is_used_where_it_is_until_another_run_takes_its_place(reference, profile, lab):
    keeper = Keeper(reference, profile)
    keeper.begin(6)
    keeper._step_of = {1: 2, 2: 1}
    one_run(keeper, lab)
    one_run(keeper, lab)
    first = keeper.kept[0]
    assert keeper.at_hand(first) is keeper._buffer
    one_run(keeper, lab)
    one_run(keeper, lab)  # keeps nothing, and leaves the buffer alone
    assert keeper.at_hand(first) is first.weights
    assert keeper.at_hand(keeper.kept[1]) is keeper._buffer
    keeper.load(lab.initial)
    assert keeper.at_hand(keeper.kept[1]) is keeper.kept[1].weights


def test_all_that_was_kept_is_compared_each_at_its_own_weights(reference, profile, lab):
    """However the weights come there, and whichever initial weights a run had."""
    keeper, adam = Keeper(reference, profile), Adam(**optimizer_settings(profile))
    other, exam = lab.initial.clone(), lab.exam
    for run, (step, initial) in enumerate(((1, lab.initial), (STEPS - 1, other))):
        weights = lab.initial * (1 + 0.01 * run)
        keeper.kept.append(Kept(run, step, exam, weights, initial, weights[exam.sample.index], torch.randn(2, len(exam.sample)), CLAIMS, ()))
    alone = [compare(kept, kept.initial, reference, profile, adam) for kept in keeper.kept]
    together = list(compare_all(keeper, reference, profile, adam))
    assert [kept.run for kept, _ in together] == [0, 1]
    assert [measured for _, measured in together] == alone
    assert alone[0] != alone[1]


def test_nothing_kept_is_nothing_compared(reference, profile):
    assert not list(compare_all(Keeper(reference, profile), reference, profile, Adam(**optimizer_settings(profile))))


def test_pauses_are_longer_than_the_copies_they_hide(reference, profile):
    keeper = Keeper(reference, profile)
    assert (keeper.pause, keeper._rest) == (0.0, 0.0)
    keeper.settle()
    assert min(keeper.pause, keeper._rest) > 0


def test_every_step_has_its_turn_before_any_has_a_second(reference, profile):
    keeper = Keeper(reference, profile)
    for _ in range(50):
        keeper.begin(6)
        assert sorted(keeper._step_of.values()) == [1, 2]


def test_a_profile_without_anchors_makes_no_copy(reference, profile):
    keeper = Keeper(reference, msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, anchored_runs=0)))
    keeper.begin(6)
    keeper.settle()
    assert keeper.anchor() is None
    keeper.keep(None, None, None, None, [], CLAIMS)
    assert keeper.kept == []
