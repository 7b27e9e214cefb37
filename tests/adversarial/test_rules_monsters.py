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
from crusades.rules_apart import MEMORY_BYTES
from crusades.rules_scan import scan_unguarded
from crusades.rules_source import collector_paused

PATIENCE = 6.0
"""CPU seconds. The slowest needs less than one on an idle machine; the point is that none needs minutes at the largest size."""


@pytest.mark.parametrize("name", MONSTERS)
def test_a_monster_gives_findings_soon(name):
    source = MONSTERS[name]()
    started = time.process_time()
    with collector_paused():
        found = scan_unguarded(source, 500_000)
    assert found
    assert all(f.rule in BY_ID for f in found)
    assert time.process_time() - started < PATIENCE


@pytest.mark.parametrize("name", ["empty", "random-bytes", "lone-surrogate", "unary", "hexadecimal", "nested-f-strings", "classes-in-classes"])
def test_a_monster_has_a_fingerprint(name):
    assert len(fingerprint(MONSTERS[name]())) == 64


@pytest.mark.parametrize("name", ["comparisons", "one-line"])
def test_the_densest_files_fit_into_the_child(name):
    """Well under the address space that `rules_apart` grants."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import rules_monsters as m; from crusades.rules import scan; m.SIZE = m.LARGEST;"
        "assert scan(m.MONSTERS[sys.argv[2]]())"
    )
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, str(here), name], cwd=here.parent.parent, check=True, timeout=120)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < (MEMORY_BYTES >> 10) // 2
