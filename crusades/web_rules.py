"""Glue to the pure modules behind two documents: the ranking (`crusades.scoring`) and the rules (`crusades.rules`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from crusades.board import Board
from crusades.hparams import HParams, Scoring
from crusades.records import Submission, to_builtins
from crusades.rules import RULES
from crusades.scoring import Standings, standings
from crusades.web_views import Rank


def rank_by(settings: Scoring, board: Board) -> Rank:
    """The competition's ranking, with the neurons that the board shows."""

    def rank(scored: Sequence[Submission]) -> Standings:
        return standings(scored, settings, board.neurons, board.owner_uid)

    return rank


def rules_document(hparams: HParams, board: Board, rules_version: str) -> dict[str, Any]:
    """`/api/v1/rules`: the rule table, and everything of `hparams.toml` that a miner can feel."""
    name = board.profile or hparams.competition.profile
    profile = to_builtins(hparams.profile(name))
    return {
        "rules_version": rules_version,
        "profile": name,
        "rules": [to_builtins(rule) if isinstance(rule, msgspec.Struct) else rule for rule in RULES],
        "workload": profile,
        "max_bytes": hparams.fetch.max_bytes,
        "sandbox": to_builtins(hparams.sandbox),
        "scoring": to_builtins(hparams.scoring),
    }
