"""Exams on a real (tiny) model: columns add up to gradients, nothing repeats, and who may be served which."""

import dataclasses
import threading

import msgspec
import numpy as np
import pytest
import torch

from crusades import hparams
from crusades.bench.referee.anchor import Keeper
from crusades.bench.referee.data import SyntheticCorpus, TokenCorpus
from crusades.bench.referee.dice import Dice
from crusades.bench.referee.draft import draw_exam
from crusades.bench.referee.exam import prepare_exam, prepare_exams
from crusades.bench.referee.layout import draw_sample, kind_of, layer_of, layout_of
from crusades.bench.referee.measured import BEFORE, BODY, SEEN, UNSEEN
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.pool import ExamPool
from crusades.errors import ConfigError, RefereeFault

NOBODY = 1 << 62


@pytest.fixture(scope="module")
def profile():
    found = hparams.load().profile("tiny")
    audit = msgspec.structs.replace(found.audit, coordinates=20_000, column_coordinates=4_000, cells=8)
    return msgspec.structs.replace(found, steps=2, sequence_length=32, batch_size=4, runs=2, exam_pool=4, audit=audit)


@pytest.fixture(scope="module")
def reference(profile):
    found = load_reference(profile.model, "cpu", None)
    yield found
    found.memory.close()


@pytest.fixture
def corpus(reference):
    return SyntheticCorpus(reference.vocabulary)


@pytest.fixture
def pool(reference, corpus, profile):
    return ExamPool(reference, corpus, profile)


def test_the_parts_of_every_family_add_up_to_the_gradient(reference, corpus, profile):
    exam = prepare_exam(reference, corpus, profile, reference.initial)
    for step in range(profile.steps):
        whole = exam.gradient[step][exam.plan.chosen]
        for first, last in (exam.parts[0].families[family] for family in ("sequence", "cell", "slice")):
            assert torch.allclose(exam.columns[step, first:last].sum(0), whole, rtol=1e-4, atol=1e-7)


def test_single_tokens_are_drawn_anew_for_every_step_and_none_twice(reference, corpus, profile):
    exam = prepare_exam(reference, corpus, profile, reference.initial)
    drawn = []
    for parts in exam.parts:
        first, last = parts.families["token"]
        single = parts.fixed[first:last].flatten(1)
        assert (last - first, single.sum(1).tolist()) == (profile.audit.tokens, [1] * profile.audit.tokens)
        drawn.append(set(single.int().argmax(1).tolist()))
    assert len(drawn[0]) == profile.audit.tokens
    assert drawn[0] != drawn[1]


def test_which_tokens_are_drawn_is_said_nowhere(reference, corpus, profile):
    """An exam may serve others."""
    exam = prepare_exam(reference, corpus, profile, reference.initial)
    first, last = exam.parts[0].families["token"]
    assert set(exam.parts[0].names[first:last]) == {"a secret token"}


@pytest.mark.parametrize("tokens", [0, 10**6])
def test_what_else_is_drawn_does_not_depend_on_how_many_tokens_there_are(reference, corpus, profile, tokens):
    other = msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, tokens=tokens))
    one, two = (draw_exam(reference, corpus, p, b"s" * 16) for p in (profile, other))
    assert torch.equal(one.sample.index, two.sample.index)
    assert torch.equal(one.logit_columns, two.logit_columns)
    for mine, theirs in zip(one.parts, two.parts, strict=True):
        first, last = theirs.families["token"]
        assert torch.equal(mine.fixed[:first], theirs.fixed[:first])
        assert last - first == min(tokens, profile.batch_size * (profile.sequence_length - 1))


def test_a_cell_is_the_sum_of_its_tokens(reference, corpus, profile):
    every = profile.batch_size * (profile.sequence_length - 1)
    exam = prepare_exam(reference, corpus, msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, tokens=every)), reference.initial)
    for step, parts in enumerate(exam.parts):
        first, last = parts.families["token"]
        for cell in range(*parts.families["cell"]):
            inside = parts.fixed[cell].flatten()
            mine = [row for row in range(first, last) if bool(inside[parts.fixed[row].flatten()].all())]
            assert len(mine) == int(inside.sum())
            assert torch.allclose(exam.columns[step, mine].sum(0), exam.columns[step, cell], rtol=1e-4, atol=1e-7)


def test_a_vocabulary_that_is_drawn_wider_is_so_alone(reference, profile):
    wide = load_reference(msgspec.structs.replace(profile.model, vocabulary_scale=2.0), "cpu", None)
    weights, wider = (found.layout.views(found.redraw(7)) for found in (reference, wide))
    assert torch.allclose(wider["model.embed_tokens.weight"], 2 * weights["model.embed_tokens.weight"])
    assert all(torch.equal(wider[name], weights[name]) for name in weights if "embed" not in name)
    wide.memory.close()


def test_a_sequence_column_is_the_gradient_of_that_sequence_alone(reference, corpus, profile):
    exam = prepare_exam(reference, corpus, profile, reference.initial)
    reference.restore(reference.initial)
    tokens = torch.from_numpy(exam.batches[0])[1:2]
    logits = reference.model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum") / (profile.batch_size * (profile.sequence_length - 1))
    loss.backward()
    flat = torch.zeros(reference.layout.elements)
    for view, parameter in zip(reference.layout.views(flat).values(), reference.model.parameters(), strict=True):
        view.copy_(parameter.grad)
    reference.model.zero_grad(set_to_none=True)
    assert torch.allclose(exam.columns[0, 1], flat[exam.sample.index[exam.plan.chosen]], rtol=1e-3, atol=1e-7)


def test_coordinates_are_told_apart_by_the_tokens_of_each_steps_batch(reference, corpus, profile):
    exam = prepare_exam(reference, corpus, profile, reference.initial)
    embedding = next(s for s in reference.layout.specs if s.shape[0] == reference.vocabulary)
    inside = (exam.sample.index >= embedding.offset) & (exam.sample.index < embedding.offset + embedding.shape[0] * embedding.shape[1])
    tokens = (exam.sample.index - embedding.offset) // embedding.shape[1]
    first, second = (torch.from_numpy(exam.batches[step]).flatten() for step in (0, 1))
    for step, now, before in ((0, first, first[:0]), (1, second, first)):
        stands = exam.standings[step]
        assert torch.equal(stands == BODY, ~inside)
        assert torch.equal(stands == SEEN, inside & torch.isin(tokens, now))
        assert torch.equal(stands == BEFORE, inside & torch.isin(tokens, before) & ~torch.isin(tokens, now))
        assert torch.equal(stands == UNSEEN, inside & ~torch.isin(tokens, torch.cat([now, before])))
        assert min(int((stands == place).sum()) for place in (BODY, SEEN, UNSEEN)) > 100


def test_the_reference_may_stop_after_the_first_step(reference, corpus, profile):
    short = msgspec.structs.replace(profile, audit=msgspec.structs.replace(profile.audit, reference_steps=1))
    exam, whole = (prepare_exam(reference, corpus, p, reference.initial, b"c" * 16) for p in (short, profile))
    assert (exam.whole, whole.whole) == (False, True)
    assert (len(exam.parts), len(exam.weights), len(exam.batches)) == (1, 2, profile.steps)
    for name in ("columns", "gradient", "exp_avg_sq"):
        assert torch.equal(getattr(exam, name)[0], getattr(whole, name)[0])


def test_the_same_seed_gives_the_same_exam_and_another_seed_another(reference, corpus, profile):
    one, again, other = (prepare_exam(reference, corpus, profile, reference.initial, seed) for seed in (b"a" * 16, b"a" * 16, b"b" * 16))
    assert np.array_equal(one.batches, again.batches)
    assert torch.equal(one.sample.index, again.sample.index)
    assert torch.equal(one.gradient, again.gradient)
    assert not np.array_equal(one.batches, other.batches)
    assert not torch.equal(one.parts[0].fixed, other.parts[0].fixed)


def test_an_exam_serves_a_submission_once(pool):
    pool.ensure("s", 10, 1)
    pool.take("s", 10, block=20)
    assert pool.available("s", 10) == 0


def test_a_queue_shares_exams(pool):
    pool.ensure("s", 10, 2)
    first, _ = pool.take("s", 10, block=20)
    assert pool.take("t", 15, block=21)[0] is first
    assert pool.ensure("t", 15, 1).prepared == 0


def test_shared_exams_are_drawn_and_come_before_those_that_nobody_has_met(pool, monkeypatch):
    """In an order of ours, a miner's first submission could note down what the second will meet."""
    pool.ensure("s", 10, 3)
    shared = [pool.take("s", 10, block=20)[0] for _ in range(2)]
    offered = []
    monkeypatch.setattr("crusades.bench.referee.pool.secrets.choice", lambda these: offered.append([exam for exam, _ in these]) or these[-1])
    assert pool.take("t", 15, block=21)[0] is offered[0][-1]
    assert sorted(map(id, offered[0])) == sorted(map(id, shared))


def test_a_submission_committed_after_an_exams_first_use_gets_another(pool):
    pool.ensure("s", 10, 1)
    pool.take("s", 10, block=20)
    assert pool.available("late", 21) == 0
    assert pool.available("early", 20) == 1


def test_taking_what_nobody_prepared_is_our_fault(pool):
    with pytest.raises(RefereeFault):
        pool.take("s", 10, block=20)


def test_what_is_told_to_be_there_is_there_whatever_was_retired(pool):
    """A queue, each committed after the exams' first use: what the last left over must not go once it has been counted."""
    for number in range(1, 7):
        done = pool.ensure(f"s{number}", 100 * number, 3)
        assert pool.available(f"s{number}", 100 * number) == done.available >= 3
        for _ in range(2):
            pool.take(f"s{number}", 100 * number, block=100 * number + 50)


def test_the_pool_is_bounded_and_retired_seeds_are_told(pool):
    retired = []
    for name in "abcdef":
        retired += pool.ensure(name, NOBODY, 2).retired_seeds
        pool.take(name, NOBODY, block=1)
        pool.take(name, NOBODY, block=1)
    assert len(set(retired)) == len(retired) >= 4
    assert all(len(seed) == 32 for seed in retired)


def initials(pool, names):
    """What each of these submissions, none of which may share exams, starts from."""
    found = []
    for name in names:
        pool.ensure(name, NOBODY, 2)
        found.append(pool.take(name, NOBODY, block=1)[1])
        pool.take(name, NOBODY, block=1)
    return found


def test_the_buffer_of_retired_weights_is_used_again(pool):
    found = initials(pool, "abcdef")
    assert len({initial.data_ptr() for initial in found}) < 6
    assert len({each.initial.data_ptr() for each in pool._sets}) == len(pool._sets), "no buffer serves two sets at a time"


def test_weights_that_every_set_shares_are_never_drawn_over(reference, corpus, profile):
    trained = dataclasses.replace(reference, pretrained=True)
    before = trained.initial.clone()
    pool = ExamPool(trained, corpus, profile)
    assert all(initial is trained.initial for initial in initials(pool, "abcdef"))
    assert pool._spare == []
    assert torch.equal(trained.initial, before)


def test_every_set_starts_from_new_weights(pool):
    pool.ensure("a", 1, 1)
    _, first = pool.take("a", 1, block=1)
    pool.ensure("b", 5, 1)
    _, second = pool.take("b", 5, block=9)
    assert not torch.equal(first, second)


def test_no_32_bits_of_a_seed_are_enough_to_know_the_secret_places():
    """torch's generator keeps as many: two seeds that agree there gave one sample."""
    one, other = (Dice(low + high * 12) for low, high in ((b"abcd", b"\x00"), (b"abcd", b"\x01")))
    assert not torch.equal(one.below(1 << 40, (100,)), other.below(1 << 40, (100,)))
    assert torch.equal(Dice(b"a" * 16).permutation(50), Dice(b"a" * 16).permutation(50))
    assert sorted(Dice(b"a" * 16).permutation(50).tolist()) == list(range(50))


def test_exams_that_are_drawn_beside_each_other_are_those_of_their_seeds(reference, corpus, profile):
    seeds = [bytes([n]) * 16 for n in range(3)]
    together = list(prepare_exams(reference, corpus, profile, reference.initial, seeds))
    for exam, seed in zip(together, seeds, strict=True):
        alone = prepare_exam(reference, corpus, profile, reference.initial, seed)
        assert exam.seed == seed
        assert np.array_equal(exam.batches, alone.batches)
        for name in ("gradient", "columns", "weights"):
            assert torch.equal(getattr(exam, name), getattr(alone, name)), name
    assert not list(prepare_exams(reference, corpus, profile, reference.initial, []))


def test_the_next_exam_is_drawn_while_one_is_computed(reference, corpus, profile):
    """The computation of the first waits until the second is asked for, so that one after the other would never end."""
    asked = threading.Event()

    class Noting:
        name, drawn = corpus.name, 0

        def draw(self, *arguments):
            self.drawn += 1
            if self.drawn == 2:
                asked.set()
            return corpus.draw(*arguments)

    hook = reference.model.register_forward_pre_hook(lambda *_: assert_set(asked))
    try:
        assert len(list(prepare_exams(reference, Noting(), profile, reference.initial, [b"x" * 16, b"y" * 16]))) == 2
    finally:
        hook.remove()


def assert_set(event):
    assert event.wait(timeout=60), "nothing was drawn meanwhile"


def test_the_secret_places_do_not_follow_from_the_batches_stream(reference):
    """Whoever sees a stream's batches must not see its places: the keys differ."""
    seed = b"s" * 16
    shown = np.random.Generator(np.random.Philox(key=int.from_bytes(seed, "little")))
    assert not torch.equal(Dice(seed).below(1 << 40, (100,)), torch.from_numpy(shown.integers(0, 1 << 40, 100)))


def test_nothing_that_is_written_into_the_shared_memory_outlives_a_restore(reference):
    """Between the segments and between the parameters too: a submission could leave there what the next one wants to know."""
    memory = reference.memory
    whole = torch.frombuffer(memory._map, dtype=torch.uint8)
    whole.fill_(0x5A)
    reference.restore()
    start, nbytes = memory.offsets[0], reference.layout.nbytes
    assert torch.equal(whole[start : start + nbytes], reference.initial.view(torch.uint8))
    assert not whole[start + nbytes :].any()
    assert memory.nbytes > 3 * nbytes, "there is no room between the segments here, and nothing was shown"


def other_weights(reference):
    return torch.full_like(reference.initial, 2.0)


def test_what_was_begun_is_what_a_restore_leaves(reference):
    for begun, wanted in ((None, None), (other_weights(reference), None), (None, other_weights(reference))):
        reference.memory.exp_avg.fill_(1.0)
        reference.begin_restore(begun)
        reference.finish_restore(wanted)
        assert torch.equal(reference.memory.weights, reference.initial if wanted is None else wanted)
        assert not reference.memory.exp_avg.any()


@pytest.mark.parametrize("meanwhile", ["clear", "restore"])
def test_what_was_begun_and_written_over_is_restored_anew(reference, meanwhile):
    """The last run of one contestant begins it, and the next one's memory is cleared before its first."""
    reference.begin_restore()
    reference.clear() if meanwhile == "clear" else reference.restore(other_weights(reference))
    reference.finish_restore()
    assert torch.equal(reference.memory.weights, reference.initial)


def test_the_weights_that_are_foretold_are_those_of_the_next_exam(pool):
    """While all exams come from one set: then they need not be brought twice."""
    pool.ensure("a", 10, 2)
    foretold = pool.initial_for("a", 10)
    assert pool.take("a", 10, 20)[1] is foretold
    assert pool.take("a", 10, 20)[1] is pool.initial_for("b", 10)
    assert pool.initial_for("a", 10) is None, "it was served all"


def test_exams_are_made_from_the_weights_that_their_runs_start_from_although_sets_share_memory(reference, corpus, profile):
    """The memory of a retired set is used again; a copy of what was in it must not pass for a copy of the new weights."""
    profile = msgspec.structs.replace(profile, exam_pool=2, audit=msgspec.structs.replace(profile.audit, anchored_runs=1))
    pool, keeper = ExamPool(reference, corpus, profile), Keeper(reference, profile)
    for block in range(3):
        pool.ensure(f"miner {block}", 10 * (block + 1), 2, keeper.load)
        exam, initial = pool.take(f"miner {block}", 10 * (block + 1), 10 * block + 5)
        assert torch.equal(exam.weights[0], initial[exam.sample.index])
        assert keeper.load(initial) is keeper._buffer  # as after a comparison
    assert len({s.initial.data_ptr() for s in pool._sets}) == 1, "nothing is shown where every set has memory of its own"
    assert pool._spare == []


def test_every_tensor_is_sampled(reference):
    sample = draw_sample(reference.layout, 1000, 64, Dice(b"1"))
    for spec, (first, last) in zip(reference.layout.specs, sample.bounds, strict=True):
        local = sample.index[first:last] - spec.offset
        assert 0 < len(local) <= np.prod(spec.shape)
        assert int(local.min()) >= 0
        assert int(local.max()) < np.prod(spec.shape)


def test_a_tied_head_is_counted_once(reference):
    assert "lm_head.weight" not in {s.name for s in reference.layout.specs}
    assert reference.layout.parameters == sum(p.numel() for p in reference.model.parameters())


@pytest.mark.parametrize(("name", "layer", "kind"), [
    ("model.embed_tokens.weight", -1, "embed_tokens"), ("model.layers.3.self_attn.k_proj.weight", 3, "k_proj"), ("model.layers.3.self_attn.k_proj.bias", 3, "bias"),
    ("model.layers.0.input_layernorm.weight", 0, "norm"), ("model.norm.weight", 4, "norm"), ("lm_head.weight", 4, "lm_head"), ("transformer.h.2.mlp.c_fc.weight", 2, "c_fc"),
])  # fmt: skip
def test_names_tell_layer_and_kind(name, layer, kind):
    assert (layer_of(name, 4), kind_of(name)) == (layer, kind)


def test_layout_works_without_memory():
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2, bias=False))
    layout = layout_of(module, torch.bfloat16)
    assert layout.parameters == 30
    assert all(spec.offset * 2 % 256 == 0 for spec in layout.specs)


def test_synthetic_text_follows_zipf_and_repeats_for_a_seed():
    corpus = SyntheticCorpus(500)
    tokens = corpus.draw(b"x", 50, 200)
    assert np.array_equal(tokens, corpus.draw(b"x", 50, 200))
    counts = np.sort(np.bincount(tokens.flatten(), minlength=500))[::-1]
    assert counts[0] > 20 * counts[100] > 0


def test_a_corpus_with_foreign_tokens_is_refused():
    with pytest.raises(ConfigError, match="vocabulary"):
        TokenCorpus("x", np.arange(1000), 10).draw(b"s", 2, 50)


def test_a_corpus_shorter_than_a_sequence_is_refused():
    with pytest.raises(ConfigError, match="one sequence"):
        TokenCorpus("x", np.arange(10), 100).draw(b"s", 2, 50)
