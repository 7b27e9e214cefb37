"""Where the tokens of an exam come from: a secret seed in, `steps` batches of int64 (batch, sequence) out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from crusades.bench.entries import needed_tokens
from crusades.errors import ConfigError
from crusades.hparams import Profile


class Corpus(Protocol):
    """Something that batches are drawn from."""

    name: str

    def draw(self, seed: bytes, rows: int, length: int) -> np.ndarray:
        """`rows` sequences of `length` tokens, int64 (rows, length), a function of the seed alone."""
        ...


def _generator(seed: bytes) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(int.from_bytes(hashlib.sha256(seed).digest()[:16], "little")))


class SyntheticCorpus:
    """Tokens with natural statistics, without any file: Zipf's law for single tokens, a sparse Markov chain for pairs.

    Every token has a few favourite successors (fixed by the vocabulary size, not by the seed), taken half of the time;
    otherwise the next token is drawn by Zipf's law with exponent 1 over a fixed permutation of the vocabulary.
    """

    FAVOURITES = 4
    FOLLOW = 0.5

    def __init__(self, vocabulary: int) -> None:
        self.name = f"synthetic-{vocabulary}"
        fixed = np.random.Generator(np.random.Philox(vocabulary))
        self._rank_to_token = fixed.permutation(vocabulary)
        weights = 1.0 / np.arange(1, vocabulary + 1)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._successors = self._zipf(fixed, (vocabulary, self.FAVOURITES))

    def _zipf(self, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        ranks = np.searchsorted(self._cumulative, generator.random(shape))
        return self._rank_to_token[np.minimum(ranks, len(self._rank_to_token) - 1)].astype(np.int64)

    def draw(self, seed: bytes, rows: int, length: int) -> np.ndarray:
        generator = _generator(seed)
        tokens = self._zipf(generator, (rows, length))
        follow = generator.random((rows, length)) < self.FOLLOW
        pick = generator.integers(0, self.FAVOURITES, (rows, length))
        for at in range(1, length):
            chained = self._successors[tokens[:, at - 1], pick[:, at]]
            tokens[:, at] = np.where(follow[:, at], chained, tokens[:, at])
        return tokens


class TokenCorpus:
    """A long row of token ids, from memory-mapped files; a sequence is a window at a random place."""

    def __init__(self, name: str, tokens: np.ndarray, vocabulary: int) -> None:
        self.name, self._tokens, self._vocabulary = name, tokens, vocabulary

    def draw(self, seed: bytes, rows: int, length: int) -> np.ndarray:
        """Raises ConfigError when the corpus is shorter than one sequence or holds ids outside of the vocabulary."""
        if len(self._tokens) <= length:
            raise ConfigError(f"corpus {self.name} has {len(self._tokens)} tokens; one sequence needs {length + 1}")
        starts = _generator(seed).integers(0, len(self._tokens) - length, rows)
        batch = np.stack([self._tokens[s : s + length] for s in starts]).astype(np.int64)
        if batch.max() >= self._vocabulary or batch.min() < 0:
            raise ConfigError(f"corpus {self.name} holds token {int(batch.max())}; the vocabulary ends at {self._vocabulary - 1}")
        return batch


def open_tokens(paths: tuple[str, ...]) -> np.ndarray:
    """Token files as one array: .npy of integers, or .bin of little-endian uint32. Raises ConfigError with the path."""
    parts = []
    for name in paths:
        path = Path(name)
        try:
            if path.suffix == ".npy":
                parts.append(_one_row(path, np.load(path, mmap_mode="r", allow_pickle=False)))
            elif path.suffix == ".bin":
                parts.append(np.memmap(path, dtype="<u4", mode="r"))
            else:
                raise ConfigError(f"{path}: token files end in .npy or .bin; `crusades setup` turns text into them")
        except (OSError, ValueError) as error:
            raise ConfigError(f"token file {path} cannot be read: {error}") from error
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _one_row(path: Path, tokens: np.ndarray) -> np.ndarray:
    if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
        raise ConfigError(f"token file {path} holds {tokens.dtype} of shape {tokens.shape}; expected one row of integers")
    return tokens


def open_corpus(profile: Profile, vocabulary: int, cache_dir: Path | None, profile_name: str = "") -> Corpus:
    """The corpus of a profile. Raises ConfigError that says what `crusades setup` would do about it."""
    settings = profile.data
    if settings.source == "synthetic":
        return SyntheticCorpus(vocabulary)
    if settings.source == "files" and not settings.paths:
        raise ConfigError('data with source = "files" needs `paths`: text (.txt) or token files (.npy, .bin)')
    need = needed_tokens(settings, profile.model, cache_dir)
    if need is None:
        return TokenCorpus(settings.paths[0], open_tokens(settings.paths), vocabulary)
    from crusades.bench.referee.cache import cached_tokens

    name, path = cached_tokens(need, profile_name)
    return TokenCorpus(name, open_tokens((str(path),)), vocabulary)
