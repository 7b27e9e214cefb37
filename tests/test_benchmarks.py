"""What the programs of `benchmarks/` print, where it can be looked at without an evaluation."""

import ast
import sys
from pathlib import Path

from crusades import hparams
from crusades.bench.local import BenchConfig
from crusades.records import Audit, Outcome, Run, Verdict

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import evaluations
import unseen_time

ROOT = Path(__file__).parent.parent


def run_of(read_seconds):
    return Run(index=1, scored=True, seconds=2.0, claimed_seconds=2.0, read_seconds=read_seconds, mfu=40.0, tokens_per_second=1.0, final_loss=1.0, audit=Audit(worst="", words="", statistics=()))


def test_of_reads_both_the_median_and_the_worst_are_told():
    config = BenchConfig(path=ROOT / "examples" / "baseline.py", hparams=hparams.load(ROOT / "hparams.toml"), profile_name="tiny")  # of five steps
    verdict = Verdict(verdict=Outcome.ACCEPTED, score_mfu=40.0, runs=(run_of(0.005), run_of(0.010), run_of(0.040)))
    told = evaluations.summary(config, {"DoRun": [2.1, 2.1, 2.1]}, [verdict], {"wall_s": 9.0})
    assert (told["read_ms_median"], told["read_ms_worst"]) == (2.0, 8.0)


def test_a_head_from_a_part_of_its_rows_takes_the_place_of_the_honest_one(tmp_path):
    found = {path.name: path.read_text() for path in unseen_time.files(tmp_path)}
    assert found["fast.py"] == found["fast_again.py"] == (ROOT / "examples" / "fast.py").read_text()
    for parts in unseen_time.PARTS:
        tree = ast.parse(text := found[f"head_1_of_{parts}.py"])
        honest, other = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "HeadLoss")
        assert f"\nPARTS = {parts}\n" in text
        assert signatures(honest) == signatures(other)
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert {node.func.value.id for node in ast.walk(other) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)} <= defined


def signatures(of):
    """Method → names of its arguments."""
    return {node.name: [a.arg for a in node.args.args] for node in of.body if isinstance(node, ast.FunctionDef)}


def test_milliseconds_of_the_attention_outputs_are_told_as_shares_of_a_run():
    assert unseen_time.shares({"true_ms": 20.0, "saved_ms_with_basis": -40.0}, run_s=2.0) == {"true_percent": 1.0, "saved_percent_with_basis": -2.0}
