"""`docs/attacks.md` names what really is there: a technique without its test would be a promise."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from judge_cases import EFFECTLESS, OVERREACHING
from rules_cheats import CHEATS
from rules_evasions import EVASIONS
from rules_monsters import MONSTERS

HERE = Path(__file__).parent.parent
DOCS = HERE.parent / "docs"
PAGE = (DOCS / "attacks.md").read_text()
ROWS = [line for line in PAGE.split("## The clock")[1].splitlines() if line.startswith("| ") and not line.startswith(("| technique", "|---"))]
NAMED = re.findall(r"`([^`]+)`", " ".join(row.split("|")[3] for row in ROWS))


def names_in(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def keys_of_judge() -> set[str]:
    """Names of the submissions in test_judge.py, without importing it (it needs the judge)."""
    keys = {*OVERREACHING, *EFFECTLESS}
    for node in ast.parse((HERE / "adversarial" / "test_judge.py").read_text()).body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        keys |= {key.value for key in value.keys if isinstance(key, ast.Constant)} if isinstance(value, ast.Dict) else set()
    return keys


KNOWN = {
    "judge": keys_of_judge(),
    "cheat": {cheat.name for cheat in CHEATS},
    "evasion": {cheat.name.removeprefix("evasion-") for cheat in EVASIONS},
    "monster": set(MONSTERS),
    "example": {entry["name"] for entry in tomllib.loads((HERE.parent / "examples" / "manifest.toml").read_text())["example"]},
    "shortcut": set(re.findall(r"^\| (.+?) \(exam \d+\) \|", (DOCS / "calibration" / "tiny" / "report.md").read_text(), re.MULTILINE)),
}


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_what_the_page_names_exists(name):
    kind, _, rest = name.partition(":")
    if kind in KNOWN:
        assert rest in KNOWN[kind]
        return
    file, _, test = name.partition("::")
    found = [path for path in (HERE / file, HERE / "adversarial" / file) if path.exists()]
    assert found, "no such file"
    assert test in names_in(found[0])


def test_every_technique_names_a_test():
    assert len(ROWS) > 50
    assert [row for row in ROWS if "`" not in row.split("|")[3]] == []


def test_every_submission_before_the_judge_is_on_the_page():
    on_page = {name.removeprefix("judge:") for name in NAMED if name.startswith("judge:")}
    plain = {"no inner_steps", "raises while loading", "raises while running", "noisy"}
    swallowed = {"swallows a denial while loading", "swallows a denial while running", "hides a denial behind another failure", "is denied when its result is looked at"}
    assert KNOWN["judge"] - on_page - plain - swallowed == set()
