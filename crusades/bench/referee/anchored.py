"""What is done with an anchored run's copies when its contestant is dead: the step's gradient at its own weights, and whether
training can have led to those weights (`anchor` says why).

The reference needs the weights' segment of the shared memory and none of the moments': while it computes one step, the next
one's weights come from the host into a moment's place, and the initial weights to where the copies of the runs were. That
begins when the step has all it needs: its own few megabytes would wait for six thousand.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import TypeVar

import torch

from crusades.bench.referee import audit as audits
from crusades.bench.referee.anchor import CHUNK_ELEMENTS, Keeper, Kept
from crusades.bench.referee.audit import UNSEEN, Adam, Expected, Measured
from crusades.bench.referee.columns import Parts, draw_parts, head_of, with_tokens
from crusades.bench.referee.dice import Dice
from crusades.bench.referee.exam import Exam, ReferencePass, groups_of
from crusades.bench.referee.memory import Beside
from crusades.bench.referee.models import Reference
from crusades.bench.referee.statistic import PREFIX
from crusades.bench.referee.verdict import result_statistics
from crusades.hparams import Profile

T = TypeVar("T")


def compare_all(keeper: Keeper, reference: Reference, profile: Profile, adam: Adam) -> list[tuple[Kept, list[Measured]]]:
    """Every run that was kept, in the order of the runs, with its anchored step's statistics. Only when no contestant exists."""
    memory, beside, order = reference.memory, Beside(reference.device), keeper.kept[::-1]  # the last one's copy is still on the device
    found: list[tuple[Kept, list[Measured]]] = []
    if order:
        memory.weights.copy_(keeper.at_hand(order[0]), non_blocking=True)
    for kept, following in itertools.zip_longest(order, order[1:]):

        def bring(kept: Kept = kept, following: Kept | None = following) -> None:
            with beside.begin():
                keeper.load(kept.initial)
                if following is not None:
                    memory.exp_avg.copy_(following.weights, non_blocking=True)

        statistics = compare_here(kept, reference, profile, adam, meanwhile=bring)
        beside.join()
        found.append((kept, [*statistics, _reach(kept, keeper.load(kept.initial), reference, profile, adam)]))
        if following is not None:
            memory.weights.copy_(memory.exp_avg)
    return found[::-1]


def compare(kept: Kept, initial: torch.Tensor, reference: Reference, profile: Profile, adam: Adam) -> list[Measured]:
    """The statistics of one step from wherever its weights are; `initial` is `kept.initial`, here or on the device."""
    reference.restore(kept.weights)
    return [*compare_here(kept, reference, profile, adam), _reach(kept, initial, reference, profile, adam)]


def compare_here(kept: Kept, reference: Reference, profile: Profile, adam: Adam, *, meanwhile: Callable[[], object] = lambda: None) -> list[Measured]:
    """The anchored step's statistics, 0 in every other step, at the weights that stand in the shared memory. Trains nothing.

    What the exam says of its own steps is not used: gradient and columns are those at the contestant's weights, with cells of
    this step's own. Those weights were copied after they were read: `anchor_weights` is the share of coordinates that changed in between, for a
    copy of other weights would make other weights' gradient right. After the last step the contestant's result is compared, too.
    """
    exam, last, device = kept.exam, kept.step == profile.steps - 1, reference.device
    pass_ = ReferencePass(reference, profile, exam)
    changed = audits.share(pass_.weights[0].cpu() != kept.read)
    parts = fine_parts(exam, kept.step, profile)
    standing = exam.standings[kept.step]
    of_head = unseen_of_head(exam, reference, standing)
    gradient, columns = pass_.gradient(exam.batches[kept.step], parts, last=last, of_head=of_head, meanwhile=meanwhile)
    reference.model.zero_grad(set_to_none=True)
    planned = len(exam.plan)
    own = Expected(
        weights=kept.read[None].to(device), exp_avg_sq=exam.exp_avg_sq.to(device) if exam.whole else None, gradient=gradient[None], columns=columns[None, :, :planned],
        chosen=exam.plan.chosen.to(device), families=parts.families, part_names=parts.names, groups=groups_of(exam.sample, device), standing=standing.to(device)[None],
        of_head=of_head.to(device), head_columns=columns[:, planned:], beyond=pass_.beyond[-1][None],
    )  # fmt: skip
    found = [Measured("weights", (changed,), ("",)), *audits.anchored(kept.exp_avg.to(device), own, adam, profile.steps, profile.audit.group_min)]
    found = [_at_step(kept, profile, m) for m in found]
    if last:
        found += [Measured(PREFIX + m.name, m.values, m.where) for m in result_statistics(kept.claims.loss, float(pass_.losses[-1]), kept.claims.logits, pass_.logits.cpu())]
    return found


def unseen_of_head(exam: Exam, reference: Reference, standing: torch.Tensor) -> torch.Tensor:
    """int64 (h,): the sampled coordinates in the head's rows of tokens that no batch had yet, by where all of them stand (n,)."""
    found = head_of(reference.model, reference.layout)
    if found is None:
        return torch.zeros(0, dtype=torch.int64)
    first, last = exam.sample.bounds[reference.layout.specs.index(found[1])]
    return (standing[first:last] == UNSEEN).nonzero()[:, 0] + first


def _reach(kept: Kept, initial: torch.Tensor, reference: Reference, profile: Profile, adam: Adam) -> Measured:
    """`anchor_reach` is the share of *all* weights that are where AdamW cannot have brought them: a few hundred that were never
    sampled could make a step's true gradient trivial."""
    return _at_step(kept, profile, Measured("reach", (out_of_reach(reference.memory.weights, initial, adam, kept.step),), ("",)))


def _at_step(kept: Kept, profile: Profile, m: Measured) -> Measured:
    return Measured(PREFIX + m.name, _at(kept.step, profile.steps, m.values[0], 0.0), _at(kept.step, profile.steps, m.where[0], ""))


REACH = 2.0
"""Learning rates that a weight may move in a step at most. AdamW moves it by |m̂| / √v̂ of one: by Cauchy and Schwarz at most
√(Σ aᵢ²/bᵢ) over the shares a, b that step i has in m̂ and v̂, which is 1.003 in step 5 (β₁ 0.9, β₂ 0.95) and 1.011 (β₂ 0.999)."""


def out_of_reach(weights: torch.Tensor, initial: torch.Tensor, adam: Adam, steps: int) -> float:
    """The share of `weights` (elements,) that are farther from `initial` than `steps` of AdamW can carry them, their rounding
    and decay counted. `initial` may be elsewhere. In the weights' own precision, for which REACH leaves room, and which moves
    half as many bytes as float32."""
    rounding = steps * (torch.finfo(weights.dtype).eps + adam.learning_rate * abs(adam.weight_decay))
    moved = REACH * steps * adam.learning_rate * (1 + rounding)
    pieces = list(zip(weights.split(CHUNK_ELEMENTS), initial.split(CHUNK_ELEMENTS), strict=True))
    farthest = torch.stack([_beyond(now, then, rounding).max() for now, then in pieces]).tolist()
    # what is no number is not within
    astray = sum(int((~(_beyond(*piece, rounding) <= moved)).sum()) for piece, most in zip(pieces, farthest, strict=True) if not most <= moved)
    return astray / len(weights)


def _beyond(now: torch.Tensor, then: torch.Tensor, share: float) -> torch.Tensor:
    """|now − then| less `share` of |then|."""
    then = then.to(now.device)
    return (now - then).abs_().sub_(then.abs(), alpha=share)


def fine_parts(exam: Exam, step: int, profile: Profile) -> Parts:
    """The parts of an anchored step, with `fine_cells` cells: as secret as the exam's seed, and drawn when they are needed."""
    seed = hashlib.sha256(exam.seed + step.to_bytes(4, "little")).digest()
    parts = draw_parts(profile.batch_size, profile.sequence_length - 1, profile.audit.fine_cells, Dice(seed))
    return with_tokens(parts, profile.audit.tokens, Dice(seed + b"tokens"))


def _at(step: int, steps: int, value: T, other: T) -> tuple[T, ...]:
    return tuple(value if s == step else other for s in range(steps))
