"""What a run's time is worth: no late step counts as faster than one that was verified. Pure (design.md §2.2).

The anchored step of a run is compared at the contestant's own weights (`referee/anchor.py`), that of the others is not, and
nobody knows beforehand which it will be. What a program could gain by shirking a late step in the runs that happen not to be
anchored there is its speed in them; so that speed is not paid.

One step in thirty takes 2 to 13 % longer by accident (docs/log.md, 2026-11-26). Where that is a verified one, it
must not slow the other runs down: what is known of honest steps is also how long this one took at most in the other runs, and
how long the fastest step took that was verified anywhere, since late steps do the same work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from crusades.records import Run


def credited(runs: Sequence[Run], anchored: Mapping[int, int], tolerance: float) -> list[Run]:
    """The runs, scored ones with the seconds they are credited with where that is more than was measured. `anchored`: place in
    `runs` → step (0-based) that was verified there. A step counts for at least (1 − `tolerance`) of its fastest verified time,
    or of the longest that it took elsewhere or the shortest that any verified step took, whichever of these two is more, if
    that is less; one that was verified in no run that counts, for its own."""
    counted = [place for place, run in enumerate(runs) if run.scored and not run.void]
    verified: dict[int, float] = {}
    for place, step in anchored.items():
        if place in counted:
            verified[step] = min(verified.get(step, math.inf), runs[place].step_seconds[step])
    shortest = min(verified.values(), default=0.0)
    floors = {}
    for step, seconds in verified.items():
        elsewhere = (runs[place].step_seconds[step] for place in counted if anchored.get(place) != step)
        floors[step] = (1 - tolerance) * min(seconds, max([shortest, *elsewhere]))
    return [_credit(run, floors) if run.scored else run for run in runs]


def _credit(run: Run, floors: Mapping[int, float]) -> Run:
    missing = sum(max(0.0, floors.get(step, 0.0) - own) for step, own in enumerate(run.step_seconds))
    if missing <= 0:
        return run
    seconds = run.seconds + missing
    return msgspec.structs.replace(run, credited_seconds=seconds, mfu=run.mfu * run.seconds / seconds)


def words(runs: Sequence[Run]) -> tuple[str, ...]:
    """A sentence for every run that was credited with more time than it took."""
    return tuple(
        f"run {run.index} took {run.seconds:.3f} s and is credited with {run.credited_seconds:.3f} s: a late step was faster in it than where that step was verified"
        for run in runs if run.credited_seconds is not None and not run.void
    )  # fmt: skip
