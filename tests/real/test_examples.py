"""Every example that the demo leaves out, before the real judge; the others are judged in test_demo.py."""

import hashlib
from pathlib import Path

import pytest

from crusades import demo_parts, hparams, rules
from crusades.bench.evaluate import Job, open_slot
from crusades.bench.slot import SlotConfig
from crusades.records import Outcome, Source

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
MANIFEST = demo_parts.read_manifest(EXAMPLES)


@pytest.mark.kernel
@pytest.mark.slow
async def test_the_judge_says_what_the_manifest_expects(tmp_path):
    settings = hparams.load(ROOT / "hparams.toml")
    config = SlotConfig(name="cpu", device="cpu", index=0, profile_name="tiny", hparams=settings, workdir=tmp_path / "slot")
    wrong = []
    async with open_slot(config) as slot:
        for number, example in enumerate(e for e in MANIFEST if not e.demo):
            content = (EXAMPLES / example.file).read_bytes()
            source = Source(sha256=hashlib.sha256(content).hexdigest(), content=content, url="", fetched_at=0.0)
            verdict = await slot.evaluate(Job(f"example-{number}", source, commit_block=0, block=0))
            if verdict.verdict != example.expected or (example.rules and verdict.rule not in example.rules):
                wrong.append((example.name, verdict.verdict, verdict.rule, verdict.message))
    assert not wrong


@pytest.mark.parametrize("example", MANIFEST, ids=lambda e: e.name)
def test_the_rules_stop_what_they_should_and_nothing_else(example):
    findings = rules.scan((EXAMPLES / example.file).read_bytes())
    ids = {f.rule for f in findings}
    if example.expected == Outcome.REJECTED and ids:
        assert ids & set(example.rules), findings
    else:
        assert not findings
