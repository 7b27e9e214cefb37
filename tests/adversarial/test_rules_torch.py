"""The honest corpus trains under the import hook: torch.compile, Triton and autograd work beneath guarded builtins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rules_cheats import submission
from rules_honest import HONEST
from rules_ordinary import ORDINARY

from crusades.rules import hook_table

HERE = Path(__file__).parent
GUARD = HERE.parent.parent / "crusades" / "sandbox" / "inside"

HONEST = HONEST | ORDINARY
NEEDS_A_CARD = {"cuda-graphs", "triton", "triton-kernel", "triton-descriptors", "pinned-and-asynchronous"}
"""Not run on a CPU; `gpu` runs all of them."""

TRACED = submission(
    top="""
    class Block(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input):
            for name in ("inner",):
                out = getattr(self, name)(input, use_cache=False)
            setattr(self, "seen", True)
            if type(input) is tuple or isinstance(input, type) or not isinstance(type(input), type):
                return self.__class__(self.inner, 1)
            return out.logits if hasattr(out, "logits") else None

    compiled = None
    """,
    start="""
    global compiled
    if compiled is None:
        compiled = torch.compile(Block(model), backend="aot_eager", fullgraph=True)
    """,
    step="assert compiled(batch[:, :-1]).shape[0] == 4",
)
"""Guarded builtins inside a traced function: the tracer reads through the guard."""


def train(cases, device, timeout):
    command = [sys.executable, "-I", str(HERE / "rules_torch_runner.py"), str(GUARD), device]
    done = subprocess.run(command, input=json.dumps({"table": hook_table(), "cases": cases}), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.rindex('{"plain"') :])


@pytest.mark.slow
def test_the_corpus_trains_on_a_cpu():
    compiled = HONEST["compiled"].replace('mode="max-autotune-no-cudagraphs"', 'backend="aot_eager"')
    cases = {name: source for name, source in HONEST.items() if name not in NEEDS_A_CARD} | {"compiled": compiled, "traced": TRACED}
    assert train(cases, "cpu", 300) == dict.fromkeys(cases, "")


@pytest.mark.gpu
def test_the_corpus_trains_on_a_card():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA card here: run by hand on a machine with one")
    cases = HONEST | {"traced": TRACED}
    assert train(cases, "cuda", 550) == dict.fromkeys(cases, "")
