"""The texts that `crusades setup` turns into tokens: from a dataset of the hub, from files, or from Python itself."""

from __future__ import annotations

import gzip
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crusades.bench.referee.setup_hub import Snapshot, fetch_file, look_up
from crusades.errors import ConfigError
from crusades.hparams import Data

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json.gz", ".txt")
"""What can be read of a dataset."""


def texts_of(data: Data, on_progress: Callable[[str], None]) -> tuple[Iterator[str], dict[str, Any]]:
    """Every text of the source, and what to write down about it. Raises ConfigError or HubFault, some of it while iterated."""
    if data.source == "files":
        return _file_texts(data), {}
    snapshot = look_up(data.dataset, "dataset", data.revision)
    names = choose_files(snapshot, data)
    return _hub_texts(snapshot, names, data.text_column, on_progress), {"commit": snapshot.commit, "files": names}


def choose_files(snapshot: Snapshot, data: Data) -> list[str]:
    """The files of the wanted split and configuration. Raises ConfigError that names what there is."""
    files = sorted(f for f in snapshot.files if f.endswith(SUFFIXES))
    if not files:
        raise ConfigError(f"dataset {snapshot.repo} has no file that ends in {', '.join(SUFFIXES)}")
    chosen = [f for f in files if _says(f, data.split) and _says(f, data.dataset_config)]
    if not chosen:
        wanted = " and ".join(f"{key} = {value!r}" for key, value in (("split", data.split), ("dataset_config", data.dataset_config)) if value)
        shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
        raise ConfigError(f"no file of dataset {snapshot.repo} fits {wanted}; there are {shown}. Correct the profile's data section; an empty value takes every file")
    return chosen


def _says(name: str, word: str) -> bool:
    """Whether `word` stands in a file's path by itself: "train" in data/train-00000.parquet, not in pretrained.txt."""
    return not word or re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", name) is not None


def _hub_texts(snapshot: Snapshot, names: list[str], column: str, on_progress: Callable[[str], None]) -> Iterator[str]:
    for name in names:
        on_progress(f"fetching {name}")
        yield from read_texts(fetch_file(snapshot, name), column)


def _file_texts(data: Data) -> Iterator[str]:
    for name in data.paths:
        if name.startswith("python:"):  # English that every Python installation carries, for tests without a network
            yield from _python_texts(name.removeprefix("python:"))
        else:
            yield from read_texts(Path(name), data.text_column, plain=True)


def _python_texts(module: str) -> Iterator[str]:
    try:
        topics = importlib.import_module(module).topics
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"python:{module} carries no texts here ({error}); python:pydoc_data.topics does") from error
    yield from topics.values()


def read_texts(path: Path, column: str, *, plain: bool = False) -> Iterator[str]:
    """The texts of one file. Raises ConfigError that names file, line and column. `plain`: whatever its suffix, it is one text."""
    try:
        if plain or path.suffix == ".txt":
            yield path.read_text("utf-8")
        elif path.suffix == ".parquet":
            yield from _read_parquet(path, column)
        else:
            yield from _read_lines(path, column)
    except (OSError, EOFError, ValueError) as error:  # ValueError: not UTF-8, not JSON, no parquet file
        raise ConfigError(f"text file {path} cannot be read: {error}") from error


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ConfigError("this dataset is in parquet files: `pip install pyarrow`, then run the same command again") from error
    file = parquet.ParquetFile(path)
    if column not in file.schema_arrow.names:
        raise ConfigError(_no_column(path, column, file.schema_arrow.names))
    row = 0
    for batch in file.iter_batches(columns=[column]):
        for value in batch.column(column).to_pylist():
            row += 1
            yield from _text(value, column, f"{path}, row {row}")


def _read_lines(path: Path, column: str) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            record = json.loads(line)
            if not isinstance(record, dict) or column not in record:
                raise ConfigError(_no_column(f"{path}, line {number}", column, record if isinstance(record, dict) else ()))
            yield from _text(record[column], column, f"{path}, line {number}")


def _text(value: object, column: str, where: str) -> Iterator[str]:
    """An empty field is no text; anything else but text is a wrong column."""
    if isinstance(value, str):
        yield value
    elif value is not None:
        raise ConfigError(f"{where}: column {column!r} holds {type(value).__name__}, not text; set `text_column` in the profile's data section")


def _no_column(where: object, column: str, names: Any) -> str:
    return f"{where}: there is no column {column!r} but {', '.join(map(repr, names)) or 'none at all'}; set `text_column` in the profile's data section"
