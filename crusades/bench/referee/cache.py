"""The cache that `crusades setup` fills and that referee and contestant read offline: models and tokens, with checksums.

Every entry is a folder with a `manifest.json` written last: a folder without one is an interrupted download and counts
as missing; a file that differs from the manifest is damage. Checksums are compared when an entry is loaded (once in the
life of a referee: about a second for two gigabytes), by `crusades setup --verify`, and with the hub's own when it is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import nn

from crusades.bench.entries import CLIENT_NOTES, MANIFEST, Entry, Need, digest, intact, needed_model, open_entry
from crusades.errors import ConfigError
from crusades.hparams import Model


class Damaged(ConfigError):
    """Files of an entry are not what they should be. They are gone; the next `crusades setup` fetches them again."""


def seal(folder: Path, what: str, facts: dict[str, Any] | None = None, expected: dict[str, tuple[int | None, str | None]] | None = None) -> Entry:
    """Write the manifest of a finished entry: from now on it counts. Raises Damaged where it is not as `expected` (name →
    bytes and sha256, each as far as known), having removed what is not."""
    names = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and CLIENT_NOTES not in p.relative_to(folder).parts)
    entry = Entry(what=what, files={str(p.relative_to(folder)): (p.stat().st_size, digest(p)) for p in names}, facts=facts or {})
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
        bad = [name for name, known in entry.files.items() if not intact(folder / name, known, checksums=True)]
    manifest.unlink()
    if bad:
        _remove(folder, bad)
    return bad


def load_pretrained(settings: Model, cache_dir: Path | None, profile_name: str = "") -> tuple[nn.Module, dict[str, Any], str]:
    """A model with its weights, its configuration, and its name for people. Never dials. Raises ConfigError."""
    import torch
    from transformers import AutoModelForCausalLM

    need = needed_model(settings, cache_dir)
    if need is None:
        folder, name = Path(settings.path), Path(settings.path).name
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} is no model in Hugging Face format: it has no config.json")
    else:
        folder, name = need.folder, settings.hub or settings.package
        open_entry(folder, need.what, profile_name, checksums=True)
    try:
        config = json.loads((folder / "config.json").read_text())
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings.dtype), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name} cannot be loaded from {folder}: {error}") from error
    return model, config, name


def cached_tokens(need: Need, profile_name: str = "") -> tuple[str, Path]:
    """Name and token file of a dataset that `crusades setup` has tokenised. Raises ConfigError."""
    entry = open_entry(need.folder, need.what, profile_name, checksums=True)
    return entry.what, need.folder / "tokens.bin"


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
        raise ConfigError(f"{what} makes {count} token{'' if count == 1 else 's'}, too few to learn from; correct `dataset`, `split` or `paths` in the profile's data section")
    seal(folder, what, {"tokens": count, **(facts or {})})
    return count
