"""Who leads, who gets what, and why: pure. Everybody with the same scored submissions computes the same answer.

Submissions are looked at in the order they were committed (block, then uid, then id), whatever order they were judged in.
The first leads. A later one takes the lead when its score *exceeds* the leader's by more than `margin`, so that noise and
copies do not; ties therefore go to the earlier commit. A leader who improves on itself keeps the lead and raises the bar.

Weights are paid to hotkeys that are registered now, and were when they committed, for submissions that are final on chain.
A vector is empty rather than doubtful: without anybody to pay there is none, burn or no burn, and `reasons` says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crusades.hparams import Scoring
from crusades.records import HistoryPoint, Neuron, Record, Standing, Submission


class Standings(Record, frozen=True, kw_only=True):
    """The whole answer."""

    rows: tuple[Standing, ...] = ()
    """One per hotkey: the leader, the others who can be paid by score, then those who cannot and why."""
    leader: Standing | None = None
    weights: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it
    """hotkey → share of 1, the burn included under the owner's hotkey. Empty: set no weights."""
    history: tuple[HistoryPoint, ...] = ()
    """Every submission that counted, in the order of commits, with the lead as it stood then."""
    reasons: tuple[str, ...] = ()
    """What an operator should know: why there are no weights, where the burn goes."""


@dataclass(frozen=True)
class _Lead:
    """Who leads after some submission."""

    row: Submission
    score: float
    since: int
    """Commit block at which the hotkey took the lead."""


def standings(scored: Sequence[Submission], settings: Scoring, neurons: Sequence[Neuron], owner_uid: int | None) -> Standings:
    """Rank `scored` submissions and share out the weights. `neurons` are the subnet's keys now."""
    counted = sorted((row for row in scored if _score(row) > 0), key=_order)
    history, _ = _play(counted, settings.margin)
    by_hotkey = {neuron.hotkey: neuron for neuron in neurons}
    barred = {row.id: why for row in counted if (why := _barred(row, by_hotkey))}
    eligible = [row for row in counted if row.id not in barred]
    _, lead = _play(eligible, settings.margin)
    ranked = _ranked(eligible, lead)
    shares, reasons = _shares(ranked, settings, neurons, owner_uid, any_scored=bool(counted))
    paid = _pay(ranked, shares, settings)
    rows = [_row(rank, row, lead, settings.margin, paid) for rank, row in enumerate(ranked, start=1)]
    hopeless = _ranked([row for row in counted if row.id in barred and row.hotkey not in {one.hotkey for one in ranked}], None)
    rows += [_standing(len(rows) + n, row, 0.0, barred[row.id]) for n, row in enumerate(hopeless, start=1)]
    return Standings(rows=tuple(rows), leader=rows[0] if lead is not None else None, weights=shares, history=history, reasons=reasons)


# ------------------------------------------------------------------------------------------------ the lead


def _play(rows: Sequence[Submission], margin: float) -> tuple[tuple[HistoryPoint, ...], _Lead | None]:
    """The lead, submission by submission."""
    lead: _Lead | None = None
    points = []
    for row in rows:
        before = lead
        lead = _next_lead(before, row, margin)
        points.append(HistoryPoint(at=row.created_at, block=row.commit_block, submission_id=row.id, hotkey=row.hotkey, score_mfu=_score(row),
                                   leader_mfu=lead.score, took_lead=before is None or before.row.hotkey != lead.row.hotkey))
    return tuple(points), lead


def _next_lead(lead: _Lead | None, row: Submission, margin: float) -> _Lead:
    score = _score(row)
    if lead is None:
        return _Lead(row, score, row.commit_block)
    if row.hotkey == lead.row.hotkey:
        return _Lead(row, score, lead.since) if score > lead.score else lead
    return _Lead(row, score, row.commit_block) if score > lead.score * (1.0 + margin) else lead


def _ranked(rows: Sequence[Submission], lead: _Lead | None) -> list[Submission]:
    """The best of each hotkey: the leader, then by score, then by commit."""
    best: dict[str, Submission] = {}
    for row in rows:  # in the order of commits, so that of two equal scores the earlier stays
        if row.hotkey not in best or _score(row) > _score(best[row.hotkey]):
            best[row.hotkey] = row
    leader = lead.row.hotkey if lead is not None else None
    return sorted(best.values(), key=lambda row: (row.hotkey != leader, -_score(row), _order(row)))


def _barred(row: Submission, by_hotkey: Mapping[str, Neuron]) -> str:
    """Why a scored submission can get no weight; empty when it can. Nobody is accused while the list of keys is unknown."""
    neuron = by_hotkey.get(row.hotkey)
    if neuron is None and by_hotkey:
        return "the hotkey is not registered any more"
    if neuron is not None and neuron.registered_block > row.commit_block:
        return f"the hotkey was registered anew in block {neuron.registered_block}, after this commitment"
    if row.provisional:
        return "the commitment is not final on chain yet"
    return ""


# ------------------------------------------------------------------------------------------------ the weights


def _shares(ranked: Sequence[Submission], settings: Scoring, neurons: Sequence[Neuron], owner_uid: int | None, *,
            any_scored: bool) -> tuple[dict[str, float], tuple[str, ...]]:
    if not neurons:
        return {}, ("the list of the subnet's keys is not known: no weights",)
    if not ranked:
        return {}, ("nobody who has scored can be paid: no weights" if any_scored else "nobody has scored yet: no weights",)
    reasons = []
    shares: dict[str, float] = {}
    if settings.burn > 0:
        owner = next((neuron.hotkey for neuron in neurons if neuron.uid == owner_uid), None)
        if owner is None:
            return {}, ("a burn share is asked for, and the subnet owner's key has no uid: burning to anybody else would be a gift; no weights",)
        reasons.append(f"{settings.burn:.1%} is burned through the owner's uid {owner_uid}; it costs the whole subnet emission")
        shares[owner] = settings.burn
    for row, share in zip(ranked, _split(len(ranked), settings), strict=False):
        shares[row.hotkey] = shares.get(row.hotkey, 0.0) + share * (1.0 - settings.burn)
    total = math.fsum(shares.values())
    return {hotkey: share / total for hotkey, share in shares.items() if share > 0}, tuple(reasons)


def _split(number: int, settings: Scoring) -> list[float]:
    """Shares of the unburned weights by rank: the leader's, then the rest falling evenly with rank (3 : 2 : 1). Where
    there is nobody to share the rest with, the leader gets it."""
    others = min(settings.runners_up, number - 1)
    if others == 0:
        return [1.0]
    steps = others * (others + 1) / 2
    return [settings.winner_share, *((1.0 - settings.winner_share) * (others - place) / steps for place in range(others))]


def _pay(ranked: Sequence[Submission], shares: Mapping[str, float], settings: Scoring) -> dict[str, float]:
    """What each row gets as a competitor; a burn share under the same hotkey is not its merit."""
    if not shares:
        return {}
    return {row.hotkey: share * (1.0 - settings.burn) for row, share in zip(ranked, _split(len(ranked), settings), strict=False)}


# ------------------------------------------------------------------------------------------------ the rows


def _row(rank: int, row: Submission, lead: _Lead | None, margin: float, paid: Mapping[str, float]) -> Standing:
    assert lead is not None, "a ranked row without a leader"
    return _standing(rank, row, paid.get(row.hotkey, 0.0), _why(row, lead, margin))


def _why(row: Submission, lead: _Lead, margin: float) -> str:
    if row.hotkey == lead.row.hotkey:
        return f"leads since block {lead.since}"
    gap = _score(row) / lead.score - 1.0
    if gap > 0:
        return f"{gap:.2%} ahead of the leader; the lead takes more than {margin:.2%}"
    if gap == 0:
        return "equals the leader, who came first"
    return f"{-gap:.2%} behind the leader" + (f"; the lead takes more than {margin:.2%} ahead" if margin else "")


def _standing(rank: int, row: Submission, weight: float, why: str) -> Standing:
    return Standing(rank=rank, submission_id=row.id, hotkey=row.hotkey, uid=row.uid, score_mfu=_score(row), commit_block=row.commit_block, weight=weight, why=why)


def _score(row: Submission) -> float:
    """The score if it is one, else 0, which never counts."""
    score = row.score_mfu
    return score if score is not None and math.isfinite(score) else 0.0


def _order(row: Submission) -> tuple[int, float, str]:
    return (row.commit_block, math.inf if row.uid is None else row.uid, row.id)
