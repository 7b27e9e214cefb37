"""`crusades bench` as a miner meets it: the real command, sandbox, referee and audit. One evaluation for each verdict."""

import hashlib
import json
from pathlib import Path

import pytest

from crusades import cli
from crusades.demo_parts import file_host

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
BASELINE = ROOT / "examples" / "baseline.py"
TINY = ["--profile", "tiny", "--device", "cpu", "--runs", "1", "--json"]


def bench(capsys, *words):
    """Exit code and report."""
    code = cli.main(["bench", *map(str, words), *TINY])
    return code, json.loads(capsys.readouterr().out)


def test_the_baseline_is_accepted_with_everything_that_the_contract_names(capsys):
    code, report = bench(capsys, BASELINE)
    assert (code, report["verdict"], report["code"], report["notes"]) == (0, "accepted", 0, []), report["message"]
    assert [run["scored"] for run in report["runs"]] == [False, True]
    assert report["score_mfu"] == report["runs"][1]["mfu"] > 0
    assert report["environment"]["source_sha256"] == hashlib.sha256(BASELINE.read_bytes()).hexdigest()
    assert report["environment"]["driver"] is None
    assert {"torch", "limit.memory"} <= set(report["environment"])


def test_a_cheat_is_rejected_by_the_audit(capsys):
    code, report = bench(capsys, ROOT / "examples" / "cheats" / "half_batch.py")
    assert (code, report["verdict"], report["code"], report["rule"], report["stage"]) == (1, "rejected", 1401, "sequence_attribution", "audit"), report["message"]
    assert report["measured"] > report["limit"]
    assert report["score_mfu"] is None


def test_without_rules_and_sandbox_the_audit_alone_judges_and_the_report_says_so(capsys, tmp_path):
    file = tmp_path / "train.py"
    file.write_text(BASELINE.read_text() + "\nimport gc\n")
    assert cli.main(["check", str(file)]) == 1
    capsys.readouterr()
    code, report = bench(capsys, file, "--skip-rules", "--unsafe-no-sandbox")
    assert (code, report["verdict"]) == (0, "accepted"), report["message"]
    assert "rules were not applied" in report["notes"][0]
    assert "no sandbox" in report["notes"][1]
    assert report["environment"]["limit.sandbox"] == "none"


def test_a_file_that_breaks_a_rule_is_never_run(capsys):
    code, report = bench(capsys, ROOT / "examples" / "cheats" / "clock_patch.py")
    assert (code, report["code"], report["rule"], report["runs"]) == (1, 1201, "R301", [])


def test_a_url_is_fetched_as_a_validator_would(capsys):
    """The file is rejected by a rule: that it was read is the point here."""
    cheat = (ROOT / "examples" / "cheats" / "clock_patch.py").read_bytes()
    with file_host({"train.py": cheat}) as address:
        found, missing = bench(capsys, f"{address}/train.py"), bench(capsys, f"{address}/other.py")
    assert (found[0], found[1]["rule"], found[1]["environment"]["source_sha256"]) == (1, "R301", hashlib.sha256(cheat).hexdigest())
    assert (missing[0], missing[1]["code"]) == (1, 1102)
