"""Any causal language model of Hugging Face's: built without dropout, loaded from a folder, seen whole by the audit."""

import msgspec
import pytest
import torch
import transformers

from crusades import hparams
from crusades.bench.inside import model as shared
from crusades.bench.referee import cache
from crusades.bench.referee.data import SyntheticCorpus
from crusades.bench.referee.exam import prepare_exam
from crusades.bench.referee.lab import Lab
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.recipe import Recipe
from crusades.errors import ConfigError
from crusades.hparams import Model

TINY = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},  # Conv1D, biases, learned positions, dropout 0.1
    "opt": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 64, "layerdrop": 0.5},
    "llama": {**LLAMA, "tie_word_embeddings": False, "attention_dropout": 0.1},
    "qwen2": {**LLAMA, "tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Architecture → a model in Hugging Face format."""
    torch.manual_seed(0)
    found = {}
    for name, sizes in CONFIGS.items():
        found[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **TINY, **sizes)).save_pretrained(found[name])
    return found


@pytest.fixture(params=CONFIGS)
def reference(request, folders):
    found = load_reference(Model(path=str(folders[request.param])), "cpu", None)
    yield found
    found.memory.close()


@pytest.fixture
def profile():
    found = hparams.load().profile("tiny")
    audit = msgspec.structs.replace(found.audit, coordinates=4_000, column_coordinates=2_000, cells=4, group_min=32, anchored_runs=0, logit_columns=64, logit_positions=16)
    return msgspec.structs.replace(found, steps=2, sequence_length=16, batch_size=4, audit=audit)


@pytest.fixture
def exam(reference, profile):
    return prepare_exam(reference, SyntheticCorpus(reference.vocabulary), profile, reference.initial, b"m" * 16)


def test_a_folder_gives_the_model_that_was_saved_there(reference, folders):
    saved = transformers.AutoModelForCausalLM.from_pretrained(folders[reference.model_type]).eval()
    x = torch.arange(20).view(2, 10)
    assert torch.allclose(reference.model(x).logits, saved(x).logits, atol=1e-5)


def test_training_twice_gives_the_same_gradient(reference):
    def gradient():
        reference.model.zero_grad(set_to_none=True)
        reference.model(torch.arange(40).view(2, 20)).logits.square().mean().backward()
        return [q.grad.clone() for q in reference.model.parameters()]

    assert reference.model.training
    assert all(torch.equal(a, b) for a, b in zip(gradient(), gradient(), strict=True))
    reference.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_is_dropped_whatever_the_configuration_says(name):
    built = shared.build({**TINY, **CONFIGS[name]}, name, "float32", "sdpa")
    values = {k: v for k, v in built.config.to_dict().items() if "drop" in k and isinstance(v, float | int) and not isinstance(v, bool)}
    assert values
    assert set(values.values()) == {0.0}
    assert not any(m.p for m in built.modules() if isinstance(m, torch.nn.Dropout))


def test_the_parts_of_every_family_add_up_to_the_gradient(reference, profile, exam):
    for step in range(profile.steps):
        whole = exam.gradient[step][exam.plan.chosen]
        for first, last in (exam.parts[0].families[family] for family in ("sequence", "cell", "slice")):
            assert torch.allclose(exam.columns[step, first:last].sum(0), whole, rtol=1e-3, atol=1e-6)


def test_every_matrix_of_the_blocks_carries_columns_and_none_of_the_vocabulary_does(reference, exam):
    matrices = {s.name for s in reference.layout.specs if len(s.shape) == 2 and not any(w in s.name for w in ("wpe", "embed_positions"))}
    of_vocabulary = {s.name for s in reference.layout.specs if s.shape[0] == reference.vocabulary}
    assert of_vocabulary
    assert matrices - of_vocabulary <= exam.plan.slices.keys()
    assert not of_vocabulary & exam.plan.slices.keys()


def test_honest_work_is_near_zero_and_missing_work_is_not(reference, profile, exam):
    def error(**recipe):
        return next(m for m in Lab(reference, profile, exam, reference.initial).measure(Recipe(**recipe))[0] if m.name == "gradient_error").values[-1]

    assert error() < 1e-3
    assert error(weights=lambda lab, step, losses: (lab.random(*losses.shape) > 0.3).to(losses.dtype)) > 0.05


def test_a_layer_can_be_left_out_of_any_architecture(reference, profile, exam):
    lab = Lab(reference, profile, exam, reference.initial)
    found = {m.name: m.values for m in lab.measure(Recipe(without_layer=lambda step: 0 if step else None))[0]}
    assert found["layer_error"][1] > 0.5
    assert sum(isinstance(m, torch.nn.ModuleList) and len(m) == reference.layers for m in reference.model.modules()) == 1


def test_an_untied_head_has_weights_of_its_own(folders):
    found = load_reference(Model(path=str(folders["llama"])), "cpu", None)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= {s.name for s in found.layout.specs}
    found.memory.close()


def test_a_buffer_that_belongs_to_the_weights_is_refused(folders, monkeypatch):
    load = cache.load_pretrained

    def with_buffer(*arguments):
        source, config, name = load(*arguments)
        source.register_buffer("router_bias", torch.ones(3))
        return source, config, name

    monkeypatch.setattr(cache, "load_pretrained", with_buffer)
    with pytest.raises(ConfigError, match="router_bias"):
        load_reference(Model(path=str(folders["gpt2"])), "cpu", None)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_reference(Model(path=str(tmp_path)), "cpu", None)


def test_a_folder_without_weights_is_named(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders["gpt2"] / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_reference(Model(path=str(tmp_path)), "cpu", None)
