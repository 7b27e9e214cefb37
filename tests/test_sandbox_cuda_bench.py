"""What `benchmarks/sandbox_cuda.py` needs of the machine but a card: that it hears which calls were refused, and finds the one to blame."""

import sys
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from sandbox_kit import needs_sandbox, policy

from crusades.sandbox import seccomp

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import sandbox_cuda as bench

pytestmark = [pytest.mark.kernel, needs_sandbox]
STAGES = ("limits", "ldconfig")


class NoCard:
    """A buffer on a card that is not there."""

    handle = "00" * 64

    def fill(self, value):
        pass

    def free_bytes(self):
        return 0


@pytest.fixture
def without_pipe2(monkeypatch):
    """A filter that has forgotten a call which starting a program needs."""
    forgetful = tuple(replace(group, calls=group.calls.replace(" pipe2 ", " ")) for group in seccomp.GROUPS)
    monkeypatch.setattr(seccomp, "GROUPS", forgetful)
    seccomp._program.cache_clear()
    yield
    seccomp._program.cache_clear()


async def test_refused_calls_are_told_stage_by_stage(without_pipe2):
    ran = await bench.attempt(replace(policy(), unknown_calls="log"), STAGES, NoCard(), 60, allowed=bench.allowances(policy()))
    assert ran["ok"], ran
    assert ran["stages"]["ldconfig"]["refused"] == ["pipe2"]
    assert "refused" not in ran["stages"]["limits"]


async def test_with_the_real_filter_nothing_is_refused_that_these_need():
    ran = await bench.attempt(replace(policy(), unknown_calls="log"), STAGES, NoCard(), 60, allowed=bench.allowances(policy()))
    assert [row for row in ran["stages"].values() if "refused" in row] == []


async def test_the_call_to_blame_is_found(without_pipe2):
    final = await bench.attempt(policy(), STAGES, NoCard(), 60)
    assert final["failed"] == ["ldconfig"]
    listened = await bench.attempt(replace(policy(), unknown_calls="log"), STAGES, NoCard(), 60, allowed=bench.allowances(policy()))
    assert listened["ok"]
    blamed = await bench.blame(policy(), STAGES, listened, NoCard(), trio.current_time() + 60)
    assert blamed["culprit"] == "pipe2"


async def test_a_wall_to_blame_is_found(monkeypatch):
    """Here: limits under which no program can be started."""
    tight = replace(policy(), limits=replace(policy().limits, max_processes=2))
    monkeypatch.setattr(bench, "walls", lambda opened: [wall for wall in real(opened) if wall[0] in ("Landlock", "limits")])
    listened = await bench.attempt(replace(tight, unknown_calls="log"), STAGES, NoCard(), 60)
    assert not listened["ok"]
    blamed = await bench.blame(tight, STAGES, listened, NoCard(), trio.current_time() + 60)
    assert blamed == {"culprit": "limits", "tried": {"Landlock": False, "limits": True}}


real = bench.walls


async def test_a_sandbox_that_cannot_be_built_is_a_result():
    ran = await bench.attempt(replace(policy(), bwrap="/no/such/bwrap"), STAGES, NoCard(), 60)
    assert not ran["ok"]
    assert "not installed" in ran["ended"]


def test_the_report_has_a_line_a_stage():
    rows = {"limits": {"ok": True, "seconds": 0.01, "value": "x"}, "import": {"ok": False, "seconds": 1.0, "value": "OSError"}}
    report = {"device": "d", "torch": "t", "cgroups": "v2", "doctor": [], "final": {"ok": False, "failed": ["import"], "stages": rows}, "seconds": 1.0,
              "listened": {"stages": {"import": {"refused": ["socket(0x1)"]}}}, "blame": {"culprit": "socket(0x1)", "tried": {}}}  # fmt: skip
    text = bench.as_text(report)
    assert "FAIL  import" in text
    assert "refused here: socket(0x1)" in text
    assert "BLAME socket(0x1)" in text
    assert text.count("not reached") == len(bench.STAGES) - 2
