"""The real judge in the shape that the 3B profile has: the reference takes the first step alone, every late step is judged
where it is anchored. One step at half strength, whichever it is, is met in its own place."""

import hashlib
from pathlib import Path

import msgspec
import pytest
import trio

from crusades import hparams
from crusades.bench.evaluate import Job, open_slot
from crusades.bench.slot import SlotConfig
from crusades.records import Outcome, Source, Stage

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
BASELINE = (ROOT / "examples" / "baseline.py").read_text()
LIMIT = 0.01


def half_strength(step):
    """The baseline with half of the gradient in one step, counted from 1."""
    text = BASELINE.replace("for _ in range(num_steps):", "for step in range(num_steps):")
    return text.replace("loss.backward()", f"(loss * (0.5 if step == {step - 1} else 1.0)).backward()")


TRIVIAL = BASELINE.replace("for _ in range(num_steps):", "for step in range(num_steps):").replace("        optimizer.step()\n", """        optimizer.step()
        with torch.no_grad():
            norm = dict(model.named_parameters())["model.norm.weight"]
            if step == 0:
                kept = norm.clone()
            norm.copy_(kept if step == num_steps - 2 else torch.zeros_like(norm) if step < num_steps - 2 else norm)
""")
"""A final norm of zero: nothing before it has a gradient then, and steps two to four cost next to nothing. Before the last it is put back."""
UNEVEN = BASELINE.replace("import torch", "import time\n\nimport torch", 1).replace("for _ in range(num_steps):", "CALLS.append(1)\n    time.sleep(9 * (len(CALLS) in (3, 4, 5)))\n    for _ in range(num_steps):") + "\nCALLS = []\n"
"""Slower by seconds in three of four scored runs, as an honest program is whose card waits for a busy host."""
PROGRAMS = {"baseline": BASELINE, "step 1": half_strength(1), "step 3": half_strength(3), "step 5": half_strength(5), "trivial": TRIVIAL}


async def judge_all(folder):
    settings = hparams.load(ROOT / "hparams.toml")
    profile = settings.profile("tiny")
    profile = msgspec.structs.replace(
        profile, runs=4, exam_pool=5, audit=msgspec.structs.replace(profile.audit, reference_steps=1, anchored_runs=4),
        limits={"gradient_error": (LIMIT, *[1e9] * 4), "anchor_gradient_error": (1e9, *[LIMIT] * 4)})  # fmt: skip
    settings = msgspec.structs.replace(settings, profiles={**settings.profiles, "tiny": profile})
    verdicts, told, retired = {}, {}, []

    async def on_retired(seeds):
        retired.extend(seeds)

    config = SlotConfig(name="cpu", device="cpu", index=0, profile_name="tiny", hparams=settings, workdir=folder / "slot", on_retired=on_retired)
    async with open_slot(config) as slot:
        for name, text in PROGRAMS.items():
            source, told[name] = Source(sha256=hashlib.sha256(text.encode()).hexdigest(), content=text.encode(), url="", fetched_at=0.0), []
            verdicts[name] = await slot.evaluate(Job(name, source, commit_block=0, block=0, skip_rules=True, on_progress=told[name].append))
        uneven = msgspec.structs.replace(slot._profile, uneven=0.5)  # also where a busy machine makes the fast ones take ten seconds
        before = len(retired)
        slot._profile, source = uneven, Source(sha256=hashlib.sha256(UNEVEN.encode()).hexdigest(), content=UNEVEN.encode(), url="", fetched_at=0.0)
        verdicts["uneven"] = await slot.evaluate(Job("uneven", source, commit_block=0, block=0, skip_rules=True))
        told["retired"] = len(retired) - before
    return verdicts, told


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return trio.run(judge_all, tmp_path_factory.mktemp("judge"))


def test_the_cheats_are_other_programs():
    assert [text.count("0.5 if step ==") for text in PROGRAMS.values()] == [0, 1, 1, 1, 0]
    assert TRIVIAL.count("        optimizer.step()\n        with torch.no_grad():\n            norm") == 1


def test_honest_work_passes_and_every_late_step_was_anchored_somewhere(judged):
    verdict = judged[0]["baseline"]
    assert verdict.verdict is Outcome.ACCEPTED, verdict.message
    anchored = [s for run in verdict.runs for s in run.audit.statistics if s.name == "anchor_gradient_error"]
    assert sorted(s.where for s in anchored) == ["step 2", "step 3", "step 4", "step 5"]
    assert all(s.value < 1e-4 for s in anchored)


def test_a_first_step_at_half_strength_is_rejected_in_the_warm_up(judged):
    verdict = judged[0]["step 1"]
    assert (verdict.verdict, verdict.code, verdict.stage, verdict.rule) == (Outcome.REJECTED, 1401, Stage.AUDIT, "gradient_error")
    assert verdict.measured == pytest.approx(0.5, abs=0.01)
    assert len(verdict.runs) == 1
    assert "comparing anchored steps" not in judged[1]["step 1"]


@pytest.mark.parametrize("step", [3, 5])
def test_a_late_step_at_half_strength_is_rejected_after_the_runs(judged, step):
    verdict = judged[0][f"step {step}"]
    assert (verdict.verdict, verdict.code, verdict.stage, verdict.rule) == (Outcome.REJECTED, 1401, Stage.AUDIT, "anchor_gradient_error")
    assert verdict.message.startswith(f"step {step}: ")
    assert verdict.measured == pytest.approx(0.5, abs=0.01)
    assert len(verdict.runs) == 5
    assert verdict.score_mfu is None


def test_weights_that_make_late_steps_trivial_are_rejected_though_their_gradients_are_right(judged):
    verdict = judged[0]["trivial"]
    assert (verdict.verdict, verdict.code, verdict.rule) == (Outcome.REJECTED, 1401, "anchor_reach")
    assert len(verdict.runs) == 5


def test_people_are_told_what_happens_after_the_runs(judged):
    assert judged[1]["step 5"][-1] == "comparing anchored steps"


def test_uneven_runs_are_judged_once_more_by_another_process_on_other_exams(judged):
    """Every run of both rounds is audited, and every late step is anchored in both."""
    verdict = judged[0]["uneven"]
    assert verdict.verdict is Outcome.ACCEPTED, verdict.message
    assert [run.seconds > 9 for run in verdict.runs] == [False, False, True, True, True] * 2, "the second process has begun to count anew"
    assert [run.index for run in verdict.runs] == list(range(10))
    assert len({run.final_loss for run in verdict.runs}) == 10
    anchored = [s.where for run in verdict.runs for s in run.audit.statistics if s.name == "anchor_gradient_error"]
    assert sorted(anchored) == sorted(["step 2", "step 3", "step 4", "step 5"] * 2)
    assert "judged once more" in "".join(verdict.notes)
    assert judged[1]["retired"] >= 5, "a small pool has no room for both rounds' exams: the first set went, and its memory has other weights now"
