"""The cache that `crusades setup` fills and that referee and contestant read offline: models and tokens, with checksums.

Every entry is a folder with a `manifest.json` written last: a folder without one is an interrupted download and counts
as missing; a file that differs from the manifest is damage. Checksums are compared when an entry is loaded (once in the
life of a referee: about a second for two gigabytes), by `crusades setup --verify`, and with the hub's own when it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import nn

from crusades.errors import ConfigError
from crusades.hparams import Data, Model

MANIFEST = "manifest.json"


CLIENT_NOTES = ".cache"
"""Where the hub's client keeps what it believes about a folder; no part of an entry."""


class Damaged(ConfigError):
    """Files of an entry are not what they should be. They are gone; the next `crusades setup` fetches them again."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete entry holds."""

    what: str
    files: dict[str, tuple[int, str]]
    """name → (bytes, sha256)."""
    facts: dict[str, Any] = {}


def cache_root(cache_dir: Path | None) -> Path:
    """The cache's folder: as configured, else CRUSADES_CACHE, else the user's cache folder."""
    return cache_dir or Path(os.environ.get("CRUSADES_CACHE") or Path.home() / ".cache" / "crusades")


def _slug(*parts: str) -> str:
    text = "--".join(p for p in parts if p)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:80] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def model_folder(settings: Model, cache_dir: Path | None) -> Path:
    """Where a model from the hub or from a package is kept."""
    return cache_root(cache_dir) / "models" / _slug(settings.hub or settings.package, settings.revision)


def data_folder(settings: Data, cache_dir: Path | None) -> Path:
    """Where the tokens of a dataset are kept; the tokenizer and the number of tokens are part of the name."""
    source = settings.dataset or ",".join(settings.paths) or settings.source
    return cache_root(cache_dir) / "tokens" / _slug(source, settings.dataset_config, settings.split, settings.tokenizer, str(settings.max_tokens), settings.revision)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, what: str, facts: dict[str, Any] | None = None, expected: dict[str, tuple[int | None, str | None]] | None = None) -> Entry:
    """Write the manifest of a finished entry: from now on it counts. Raises Damaged where it is not as `expected` (name →
    bytes and sha256, each as far as known), having removed what is not."""
    names = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and CLIENT_NOTES not in p.relative_to(folder).parts)
    entry = Entry(what=what, files={str(p.relative_to(folder)): (p.stat().st_size, _digest(p)) for p in names}, facts=facts or {})
    bad = [name for name, known in (expected or {}).items() if not _is(entry.files.get(name), known)]
    if bad:
        _remove(folder, bad)
        raise Damaged(f"{folder / bad[0]} is not what was announced")
    draft = folder / (MANIFEST + ".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(entry), indent=1))
    draft.replace(folder / MANIFEST)
    return entry


def _is(found: tuple[int, str] | None, known: tuple[int | None, str | None]) -> bool:
    return found is not None and all(k is None or k == f for f, k in zip(found, known, strict=True))


def _remove(folder: Path, names: list[str]) -> None:
    """Take files away, and with them the client's notes, by which it would believe to have them."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / CLIENT_NOTES, ignore_errors=True)


def drop_damage(folder: Path) -> list[str]:
    """Before an entry is made again: forget its manifest and remove what differs from it. Returns the names removed.

    A folder without a manifest is an interrupted download, of which nothing is removed; of one with an unreadable manifest
    nothing is believed."""
    manifest, bad = folder / MANIFEST, list[str]()
    if not manifest.exists():
        return bad
    try:
        entry = msgspec.json.decode(manifest.read_bytes(), type=Entry)
    except (OSError, msgspec.DecodeError):
        bad = [p.name for p in folder.iterdir() if p.is_file() and p != manifest]
    else:
        bad = [name for name, known in entry.files.items() if not _intact(folder / name, known, checksums=True)]
    manifest.unlink()
    if bad:
        _remove(folder, bad)
    return bad


def _intact(path: Path, known: tuple[int, str], *, checksums: bool) -> bool:
    return path.is_file() and path.stat().st_size == known[0] and (not checksums or _digest(path) == known[1])


def open_entry(folder: Path, what: str, *, checksums: bool = False) -> Entry:
    """The manifest of a complete, undamaged entry. Raises ConfigError that says how to repair it."""
    repair = "run `crusades setup` to fetch it"
    try:
        entry = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Entry)
    except FileNotFoundError:
        raise ConfigError(f"{what} is not in the cache ({folder}); {repair}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"the cache entry of {what} is damaged ({folder / MANIFEST}: {error}); {repair} again") from error
    for name, known in entry.files.items():
        if CLIENT_NOTES not in Path(name).parts and not _intact(folder / name, known, checksums=checksums):
            raise ConfigError(f"the cache entry of {what} is damaged ({folder / name}); run `crusades setup --verify` to fetch that file again")
    return entry


def load_pretrained(settings: Model, cache_dir: Path | None) -> tuple[nn.Module, dict[str, Any], str]:
    """A model with its weights, its configuration, and its name for people. Never dials. Raises ConfigError."""
    import torch
    from transformers import AutoModelForCausalLM

    if settings.path:
        folder, name = Path(settings.path), Path(settings.path).name
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} is no model in Hugging Face format: it has no config.json")
    else:
        name = settings.hub or settings.package
        folder = model_folder(settings, cache_dir)
        open_entry(folder, f"model {name}", checksums=True)
    try:
        config = json.loads((folder / "config.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings.dtype), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name} cannot be loaded from {folder}: {error}") from error
    return model, config, name


def cached_tokens(settings: Data, cache_dir: Path | None) -> tuple[str, Path]:
    """Name and token file of a dataset that `crusades setup` has tokenised. Raises ConfigError."""
    folder = data_folder(settings, cache_dir)
    entry = open_entry(folder, f"the tokens of {settings.dataset or ', '.join(settings.paths) or settings.source}", checksums=True)
    return entry.what, folder / "tokens.bin"


def write_tokens(folder: Path, what: str, tokens: Iterator[np.ndarray], limit: int, facts: dict[str, Any] | None = None) -> int:
    """Append arrays of ids to tokens.bin (little-endian uint32) until `limit`; seal. Returns how many there are. Raises
    ConfigError, and seals nothing, when there are too few to learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / "tokens.bin").open("wb") as file:
        for part in tokens:
            kept = part[: limit - count].astype("<u4")
            file.write(kept.tobytes())
            count += len(kept)
            if count >= limit:
                break
    if count < 2:
        raise ConfigError(f"{what} holds no text; correct `dataset`, `split` or `paths` in the profile's data section")
    seal(folder, what, {"tokens": count, **(facts or {})})
    return count
