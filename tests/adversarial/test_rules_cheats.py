"""Every cheat of the corpus is named by its rule, and the corpus touches every rule."""

from __future__ import annotations

import pytest
from rules_cheats import CHEATS, submission
from rules_evasions import EVASIONS

from crusades.rules import RULES, scan


def test_the_template_itself_is_clean():
    assert scan(submission()) == []


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda c: c.name)
def test_the_scanner_names_the_cheat(cheat):
    found = scan(cheat.source)
    assert cheat.rule in {f.rule for f in found}, [(f.rule, f.line, f.message) for f in found]


@pytest.mark.parametrize("evasion", EVASIONS, ids=lambda e: e.name)
def test_the_scanner_sees_through_the_disguise(evasion):
    found = scan(evasion.source)
    assert evasion.rule in {f.rule for f in found}, [(f.rule, f.line, f.message) for f in found]


@pytest.mark.parametrize("cheat", [c for c in CHEATS if c.rule not in ("R602", "R703")], ids=lambda c: c.name)
def test_a_finding_points_into_the_file(cheat):
    lines = cheat.source.split("\n")
    for finding in scan(cheat.source):
        assert 1 <= finding.line <= len(lines)
        assert 1 <= finding.column <= len(lines[finding.line - 1]) + 1


def test_every_rule_has_a_cheat():
    assert {rule.id for rule in RULES} == {cheat.rule for cheat in CHEATS}


def test_names_are_unique():
    names = [case.name for case in (*CHEATS, *EVASIONS)]
    assert len(set(names)) == len(names)
