"""Which rules were in force when: a submission is judged by those of its commit block (docs/design.md §4). Pure.

Nobody tells a validator from which block on an `hparams.toml` counts, so it notes that itself: what it is started with is in
force for commitments after the head that it sees first, and what was in force before stays so for what was committed
before. The editions are a fact in the store, so restarts, backups and exports keep them. An edition holds what a miner
can feel, and nothing of the operator's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from crusades.hparams import Chain, Competition, HParams, Profile, Sandbox, Scoring
from crusades.records import Record

log = logging.getLogger("crusades.rulebook")

FACT = "rules"
"""Name of the fact in the store."""
MOST = 100
"""Editions kept; the oldest go first."""


class Edition(Record, frozen=True, kw_only=True):
    """One set of rules, and the first block whose commitments it governs."""

    from_block: int
    version: str
    """`hparams.rules_version`."""
    profile: str
    felt: dict[str, Any]
    """The sections that the version is a hash of, as JSON."""


class Dues(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of `hparams.Chain` that a miner can feel: what a commitment costs, and how soon the next one counts. An edition
    of a program that did not note them asks for nothing."""

    fee_rao: int = 0
    fee_address: str = ""
    min_commit_interval: int = 0


class Felt(msgspec.Struct, frozen=True, kw_only=True):
    """`Edition.felt` as this program reads it; an edition of a program that knew other keys may not be readable."""

    competition: Competition
    profile: Profile
    max_bytes: int
    sandbox: Sandbox
    scoring: Scoring
    dues: Dues = Dues()


@dataclass(frozen=True)
class Rules:
    """What a judge is opened with."""

    version: str
    profile: str
    hparams: HParams


@dataclass
class Rulebook:
    """The editions, oldest first, and the rules of this process."""

    current: Rules
    editions: list[Edition] = field(default_factory=list)
    unusable: set[str] = field(default_factory=set)
    """Editions that this program or machine cannot judge by any more."""

    def version_at(self, block: int) -> str:
        """The version in force for a commitment of this block. Before the first edition, the first."""
        known = [edition for edition in self.editions if edition.from_block <= block] or self.editions[:1]
        return known[-1].version if known else self.current.version

    def at(self, block: int) -> Rules:
        """The rules to judge a commitment of this block by; ours where those of then cannot be applied any more."""
        version = self.version_at(block)
        if version == self.current.version or version in self.unusable:
            return self.current
        edition = next(one for one in reversed(self.editions) if one.version == version)
        try:
            rules = rebuild(self.current.hparams, edition)
        except msgspec.ValidationError as error:
            self.refuse(version, f"this program cannot read them ({error})")
            return self.current
        if rules.hparams.rules_version(rules.profile) != version:
            self.refuse(version, "this program has other settings, and knows no value of then for them")
            return self.current
        if rules.hparams.profile(rules.profile).device != self.current.hparams.profile(self.current.profile).device:
            self.refuse(version, "they are for another kind of device")
            return self.current
        return rules

    def dues_at(self, block: int) -> Chain:
        """The settings of today with the fee and the interval of a commitment of this block. They need no judge, so those of then
        hold even where its other rules cannot be applied any more."""
        version, now = self.version_at(block), self.current.hparams.chain
        if version == self.current.version:
            return now
        felt = next(one for one in reversed(self.editions) if one.version == version).felt
        try:
            return with_dues(now, msgspec.convert(felt.get("dues", {}), Dues))
        except msgspec.ValidationError as error:
            log.warning("the fee of rules %s cannot be read (%s); today's is asked", version, error)
            return now

    def refuse(self, version: str, why: str) -> None:
        """From now on, what was committed under this edition is judged by the rules of today."""
        log.warning("rules %s cannot be applied any more: %s; what was committed under them is judged by %s", version, why, self.current.version)
        self.unusable.add(version)

    def note(self, block: int) -> bool:
        """The first head of this process: from the next block on, its rules are in force. False when they were already."""
        if self.editions and self.editions[-1].version == self.current.version:
            return False
        self.editions = [*self.editions, describe(self.current, block + 1 if self.editions else 0)][-MOST:]
        return True


def describe(rules: Rules, from_block: int) -> Edition:
    """An edition of these rules."""
    settings = rules.hparams
    felt = Felt(competition=settings.competition, profile=settings.profile(rules.profile), max_bytes=settings.fetch.max_bytes, sandbox=settings.sandbox, scoring=settings.scoring,
                dues=Dues(**{key: getattr(settings.chain, key) for key in Dues.__struct_fields__}))
    return Edition(from_block=from_block, version=rules.version, profile=rules.profile, felt=msgspec.json.decode(msgspec.json.encode(felt)))


def rebuild(now: HParams, edition: Edition) -> Rules:
    """The settings of today with the rules of then. Raises msgspec.ValidationError for what this program cannot read."""
    felt = msgspec.convert(edition.felt, Felt)
    replace = msgspec.structs.replace
    settings = replace(now, competition=felt.competition, profiles={**now.profiles, edition.profile: felt.profile}, sandbox=felt.sandbox, scoring=felt.scoring,
                       fetch=replace(now.fetch, max_bytes=felt.max_bytes), chain=with_dues(now.chain, felt.dues))
    return Rules(edition.version, edition.profile, settings)


def with_dues(now: Chain, dues: Dues) -> Chain:
    """These settings with the dues of an edition."""
    return msgspec.structs.replace(now, **msgspec.structs.asdict(dues))


def decode(stored: Sequence[Any] | None) -> list[Edition]:
    """The fact in the store."""
    return msgspec.convert(stored or [], list[Edition])
