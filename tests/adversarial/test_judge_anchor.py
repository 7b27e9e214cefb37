"""A shortcut in the last step alone before the real judge, with every limit but those of the anchored step switched off."""

import hashlib
from pathlib import Path

import msgspec
import pytest
import trio

from crusades import hparams
from crusades.bench.evaluate import Job, SlotConfig, open_slot
from crusades.records import Outcome, Source, Stage

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
BASELINE = (ROOT / "examples" / "baseline.py").read_text()
LAST_STEP_HALF = BASELINE.replace("for _ in range(num_steps):", "for step in range(num_steps):").replace("loss.backward()", "(loss * (0.5 if step == num_steps - 1 else 1.0)).backward()")


async def judge_both(folder):
    settings = hparams.load(ROOT / "hparams.toml")
    profile = settings.profile("tiny")
    profile = msgspec.structs.replace(profile, runs=1, limits={"anchor_gradient_error": 0.01}, audit=msgspec.structs.replace(profile.audit, anchored_runs=2, anchor_steps=1))
    settings = msgspec.structs.replace(settings, profiles={**settings.profiles, "tiny": profile})
    verdicts, told = {}, []
    async with open_slot(SlotConfig(name="cpu", device="cpu", index=0, profile_name="tiny", hparams=settings, workdir=folder / "slot")) as slot:
        for name, text in (("baseline", BASELINE), ("cheat", LAST_STEP_HALF)):
            source = Source(sha256=hashlib.sha256(text.encode()).hexdigest(), content=text.encode(), url="", fetched_at=0.0)
            verdicts[name] = await slot.evaluate(Job(name, source, commit_block=0, block=0, skip_rules=True, on_progress=told.append))
    return verdicts, told


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return trio.run(judge_both, tmp_path_factory.mktemp("judge"))


def anchored(run):
    return {s.name: s for s in run.audit.statistics if s.name.startswith("anchor_")}


def test_the_cheat_is_another_program():
    assert LAST_STEP_HALF.count("0.5 if step == num_steps - 1") == 1


def test_honest_work_passes_and_carries_the_anchored_statistics(judged):
    verdict = judged[0]["baseline"]
    assert verdict.verdict is Outcome.ACCEPTED, verdict.message
    for run in verdict.runs:
        assert anchored(run)["anchor_gradient_error"].value < 1e-4


def test_a_last_step_at_half_strength_is_rejected_after_the_runs(judged):
    verdict = judged[0]["cheat"]
    assert (verdict.verdict, verdict.code, verdict.stage, verdict.rule) == (Outcome.REJECTED, 1401, Stage.AUDIT, "anchor_gradient_error")
    assert verdict.message.startswith("step 5: ")
    assert verdict.measured == pytest.approx(0.5, abs=0.01)
    assert len(verdict.runs) == 2
    assert verdict.score_mfu is None


def test_people_are_told_what_happens_after_the_runs(judged):
    assert "comparing anchored steps" in judged[1]
