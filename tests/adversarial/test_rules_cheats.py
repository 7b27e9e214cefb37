"""Every cheat of the corpus is named by its rule, and the corpus touches every rule."""

from __future__ import annotations

import ast

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


@pytest.mark.parametrize("where", ["before", "after"])
def test_no_message_quotes_what_a_terminal_obeys(where):
    """Every string of every cheat with an escape sequence and a reversal in it, and long."""
    hostile, told = "\x1b[2J\u202e" + "x" * 1000, 0
    for cheat in (*CHEATS, *EVASIONS):
        if cheat.rule in ("R601", "R602", "R703"):
            continue
        tree = ast.parse(cheat.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = hostile + node.value if where == "before" else node.value + hostile
        for finding in scan(ast.unparse(tree)):
            assert finding.message.isprintable(), (cheat.name, finding.message)
            assert len(finding.message) < 2000
            told += "u202e" in finding.message
    assert told, "no message quotes a string: this tests nothing"


def test_every_rule_has_a_cheat():
    assert {rule.id for rule in RULES} == {cheat.rule for cheat in CHEATS}


def test_names_are_unique():
    names = [case.name for case in (*CHEATS, *EVASIONS)]
    assert len(set(names)) == len(names)
