"""Nothing that can be written crashes, hangs or bloats the scanner."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rules_monsters import MONSTERS

from crusades.rules import BY_ID, fingerprint
from crusades.rules_scan import _scan

PATIENCE = 20.0
"""CPU seconds. The slowest needs two on an idle machine; the point is that none needs minutes."""


@pytest.mark.parametrize("name", MONSTERS)
def test_a_monster_gives_findings_soon(name):
    source = MONSTERS[name]()
    started = time.process_time()
    found = _scan(source, 500_000)
    assert found
    assert all(f.rule in BY_ID for f in found)
    assert time.process_time() - started < PATIENCE


@pytest.mark.parametrize("name", ["empty", "random-bytes", "lone-surrogate", "unary", "hexadecimal", "one-line", "nested-f-strings", "classes-in-classes"])
def test_a_monster_has_a_fingerprint(name):
    assert len(fingerprint(MONSTERS[name]())) == 64


def test_no_monster_takes_much_memory():
    """All of them, one after the other, in one process."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rules_monsters import MONSTERS; from crusades.rules import scan\n"
        "for make in MONSTERS.values(): assert scan(make())"
    )
    here = Path(__file__).parent
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([sys.executable, "-c", code, str(here)], cwd=here.parent.parent, check=True, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert max(before, after) < 1 << 20, "a gibibyte"
