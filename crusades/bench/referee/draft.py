"""What an exam is before the reference has computed anything: everything that is drawn, by a secret seed and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from crusades.bench.referee.columns import ColumnPlan, Parts, draw_parts, plan_columns, with_tokens
from crusades.bench.referee.data import Corpus
from crusades.bench.referee.dice import Dice, in_order
from crusades.bench.referee.layout import Sample, draw_sample, vocabulary_rows
from crusades.bench.referee.measured import BEFORE, BODY, SEEN, UNSEEN
from crusades.bench.referee.models import Reference
from crusades.hparams import Profile


@dataclass
class Draft:
    """All tensors on the host; n sampled coordinates, S steps, of which the reference takes R (`reference_steps`)."""

    seed: bytes
    batches: np.ndarray
    """int64 (S, batch, sequence)."""
    sample: Sample
    plan: ColumnPlan
    parts: tuple[Parts, ...]
    """Of each of the R steps."""
    logit_rows: torch.Tensor
    logit_columns: torch.Tensor
    standings: torch.Tensor
    """uint8 (S, n): where the coordinates stand in each step, as `measured.Expected` has it."""


def draw_exam(reference: Reference, corpus: Corpus, profile: Profile, seed: bytes) -> Draft:
    """The exam of `seed`. Needs nothing of the device, and so may go on beside whatever it does."""
    dice, audit, steps, positions = Dice(seed), profile.audit, profile.steps, profile.sequence_length - 1
    batches = corpus.draw(seed, steps * profile.batch_size, profile.sequence_length).reshape(steps, profile.batch_size, profile.sequence_length)
    single = Dice(seed + b"tokens")  # of their own, so that what else is drawn does not depend on how many there are
    sample = draw_sample(reference.layout, audit.coordinates, audit.min_per_tensor, dice)
    return Draft(
        seed=seed, batches=batches, sample=sample,
        plan=plan_columns(reference.model, reference.layout, sample, audit.column_coordinates, dice),
        parts=tuple(with_tokens(draw_parts(profile.batch_size, positions, audit.cells, dice), audit.tokens, single) for _ in range(min(audit.reference_steps, steps))),
        logit_rows=in_order(dice.permutation(profile.batch_size * positions)[: audit.logit_positions]),
        logit_columns=in_order(dice.permutation(reference.vocabulary)[: audit.logit_columns]),
        standings=_standings(batches, vocabulary_rows(reference.layout, sample, reference.vocabulary)),
    )  # fmt: skip


def _standings(batches: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
    """By the tokens of every step's batch, and of those before it; `rows` (n,) are the tokens whose rows of embedding or head the
    coordinates are in, or −1."""
    found, inside = torch.full((len(batches), len(rows)), BODY, dtype=torch.uint8), rows >= 0
    of_token = torch.full((1 + int(max(rows.max(), batches.max())),), UNSEEN, dtype=torch.uint8)
    for stands, tokens in zip(found, torch.from_numpy(batches).flatten(1), strict=True):
        of_token[tokens] = SEEN
        stands[inside] = of_token[rows[inside]]
        of_token[tokens] = BEFORE
    return found
