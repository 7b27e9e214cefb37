"""What a profile needs of the cache that `crusades setup` fills: where it lies, and whether it is there.

Used by whoever fills the cache, by the referee, and by the validator before it starts: no torch.

The name of an entry says everything that decides what is in it. What may change in place (texts, tokenizers of this machine)
is named by size and time of change, so an edited file is another entry: looking must stay cheap, whatever they weigh.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from crusades.errors import ConfigError
from crusades.hparams import Data, Model, Profile

MANIFEST = "manifest.json"

CLIENT_NOTES = ".cache"
"""Where the hub's client keeps what it believes about a folder; no part of an entry."""

TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "config.json")
"""All that a tokenizer is made of; the configuration names its class."""

READY_TOKENS = (".npy", ".bin")
"""Suffixes of files that hold tokens already."""

PYTHON_TEXT = "python:"
"""Begins the name of a text that a module of Python carries."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete entry holds."""

    what: str
    files: dict[str, tuple[int, str]]
    """name → (bytes, sha256)."""
    facts: dict[str, Any] = {}


class Need(NamedTuple):
    """An entry that a profile cannot be judged without."""

    what: str
    folder: Path


# ------------------------------------------------------------------------------------------------ where it lies


def cache_root(cache_dir: Path | None) -> Path:
    """The cache's folder: as configured, else CRUSADES_CACHE, else the user's cache folder."""
    return cache_dir or Path(os.environ.get("CRUSADES_CACHE") or Path.home() / ".cache" / "crusades")


def _slug(*parts: str) -> str:
    text = "--".join(p for p in parts if p)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:80] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def model_folder(settings: Model, cache_dir: Path | None) -> Path:
    """Where a model from the hub or from a package is kept."""
    return cache_root(cache_dir) / "models" / _slug(settings.hub or settings.package, settings.revision)


def data_folder(data: Data, model: Model, cache_dir: Path | None) -> Path:
    """Where the tokens of a dataset are kept, by whatever decides the ids. Raises ConfigError for a text that is not there."""
    source = data.dataset or ",".join(map(_absolute, data.paths)) or data.source
    tokenizer = _tokenizer(data)
    # Words with a label come last: an entry that none of them concerns keeps the name that it had before there were any.
    labels = (*_label_texts(data), *_label_tokenizer(tokenizer, model))
    return cache_root(cache_dir) / "tokens" / _slug(source, data.dataset_config, data.split, tokenizer, str(data.max_tokens), data.revision, *labels)


def with_absolute_paths(profile: Profile) -> Profile:
    """The same profile for a process in another working directory."""
    model, data = profile.model, profile.data
    if model.path:
        model = msgspec.structs.replace(model, path=_absolute(model.path))
    data = msgspec.structs.replace(data, tokenizer=_tokenizer(data), paths=tuple(map(_absolute, data.paths)))
    return msgspec.structs.replace(profile, model=model, data=data)


def _absolute(path: str) -> str:
    return path if path.startswith(PYTHON_TEXT) else os.path.abspath(path)


def _tokenizer(data: Data) -> str:
    """The tokenizer that is named, as a name of the hub or a whole path."""
    return _absolute(data.tokenizer) if data.tokenizer and Path(data.tokenizer).is_dir() else data.tokenizer


def _label_texts(data: Data) -> tuple[str, ...]:
    """What the names of the texts do not say."""
    if data.source == "hub":
        return () if data.text_column == Data().text_column else (f"column {data.text_column}",)
    return tuple(f"python {platform.python_version()}" if path.startswith(PYTHON_TEXT) else _stamp(Path(path)) for path in data.paths)


def _label_tokenizer(named: str, model: Model) -> tuple[str, ...]:
    """What the name of the tokenizer does not say; all of it where none is named, since it is the model's own then."""
    if named:
        return _stamps(Path(named))
    if model.path:
        return f"tokenizer {_absolute(model.path)}", *_stamps(Path(model.path))
    own = model.hub or model.package
    return (f"tokenizer {own}@{model.revision}",) if own else ()


def _stamps(folder: Path) -> tuple[str, ...]:
    """One for every file of the tokenizer in a folder; none for a name of the hub, which is no folder."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return tuple(f"{name} {_stamp(folder / name)}" for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in TOKENIZER_FILES))


def _stamp(path: Path) -> str:
    """Size and time of change. Raises ConfigError."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"file {path}, of which the tokens are made, cannot be read: {error.strerror}") from error
    return f"{status.st_size}-{status.st_mtime_ns}"


# ------------------------------------------------------------------------------------------------ whether it is there


def needed_model(model: Model, cache_dir: Path | None) -> Need | None:
    """The model's entry. None for one that is drawn at random or lies in a folder of the operator's own."""
    name = model.hub or model.package
    return Need(f"model {name}", model_folder(model, cache_dir)) if name else None


def needed_tokens(data: Data, model: Model, cache_dir: Path | None) -> Need | None:
    """The entry of the dataset's tokens. None where they are made up, or lie in files of tokens. Raises ConfigError."""
    ready = data.source == "files" and all(Path(path).suffix in READY_TOKENS for path in data.paths)
    if data.source == "synthetic" or ready:
        return None
    return Need(f"the tokens of {data.dataset or ', '.join(data.paths)}", data_folder(data, model, cache_dir))


def must_be_cached(profile: Profile, profile_name: str, cache_dir: Path | None) -> None:
    """Raises ConfigError that names the command unless all that the profile needs is there, as far as names and sizes tell:
    the referee compares the checksums."""
    for need in (needed_model(profile.model, cache_dir), needed_tokens(profile.data, profile.model, cache_dir)):
        if need is not None:
            open_entry(need.folder, need.what, profile_name)


def setup_command(profile_name: str, *flags: str) -> str:
    """`crusades setup` as it has to be typed; without a profile it would fill the cache of the competition's."""
    return " ".join(["`crusades setup", *(["--profile", profile_name] if profile_name else []), *flags]) + "`"


def open_entry(folder: Path, what: str, profile_name: str = "", *, checksums: bool = False) -> Entry:
    """The manifest of a complete, undamaged entry. Raises ConfigError that says how to repair it."""
    try:
        entry = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Entry)
    except FileNotFoundError:
        raise ConfigError(f"the cache lacks {what} ({folder}); run {setup_command(profile_name)} to fetch it") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"the cache entry of {what} is damaged ({folder / MANIFEST}: {error}); run {setup_command(profile_name)} to fetch it again") from error
    for name, known in entry.files.items():
        if CLIENT_NOTES not in Path(name).parts and not intact(folder / name, known, checksums=checksums):
            raise ConfigError(f"the cache entry of {what} is damaged ({folder / name}); run {setup_command(profile_name, '--verify')} to fetch that file again")
    return entry


def intact(path: Path, known: tuple[int, str], *, checksums: bool) -> bool:
    """Whether a file has the size, and if asked the sha256, that its manifest says."""
    try:
        return path.is_file() and path.stat().st_size == known[0] and (not checksums or digest(path) == known[1])
    except OSError:  # a sector that cannot be read any more is damage too
        return False


def digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
