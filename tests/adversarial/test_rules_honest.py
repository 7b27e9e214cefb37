"""Honest code has no findings: the corpus, and the files that miners start from."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from rules_honest import HONEST
from rules_ordinary import ORDINARY

from crusades.rules import first_reason, scan

EXAMPLES_FOLDER = Path(__file__).parent.parent.parent / "examples"
EXAMPLES = sorted(EXAMPLES_FOLDER.glob("*.py"))


HONEST = HONEST | ORDINARY


@pytest.mark.parametrize("name", HONEST)
def test_no_false_alarm(name):
    assert [(f.rule, f.line, f.message) for f in scan(HONEST[name])] == []


@pytest.mark.parametrize("name", HONEST)
def test_the_corpus_is_python(name):
    ast.parse(HONEST[name].removeprefix("\ufeff"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_examples_are_clean(path):
    assert scan(path.read_bytes()) == []


MANIFEST = tomllib.loads((EXAMPLES_FOLDER / "manifest.toml").read_text())["example"]


@pytest.mark.parametrize("entry", MANIFEST, ids=lambda entry: entry["name"])
def test_the_manifest_expects_what_the_rules_say(entry):
    """A cheat that the audit must catch has to get past the rules; one that the rules must catch names which."""
    found = scan((EXAMPLES_FOLDER / entry["file"]).read_bytes())
    expected = [rule for rule in entry.get("rules", []) if rule.startswith("R")]
    assert (first_reason(found).rule in expected) if expected else found == []


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()", "re.compile('x')", "torch.compile(model)", "x.open(1)", "self.exec()", "a.input", "d['eval'] = 1", "f(compile=True)",
        "dict(open=1)", "'eval'", "LOSS_CHUNK = 1", "x = lambda input: input", "[open for open in ()]", "y = x.state", "x.state = 1",
        "x.record = 1", "self.wait = 1", "loss.backward()", "x.data_ptr()", "super().__init__()", "x.__class__.__name__", "f.__name__ = 'g'",
        "t.__len__()", "x = '{0.shape}'.format(x)", "torch.cuda.synchronize()", "del x.grad", "x.grad = None", "x.data = y", "x.config = y",
        "self.config.hidden = 1", "getattr(x, 'weight')", "getattr(x, f'layer_{i}')", "getattr(x, name)", "setattr(x, name, y)",
        "hasattr(torch, 'compile')", "hasattr(F, 'rms_norm')", "getattr(torch, 'bfloat16')", "isinstance(x, torch.Tensor)", "type(x) is int",
        "torch.manual_seed(0)", "torch.set_num_threads(2)", "torch.nn.Parameter(x, requires_grad=False)", "x.requires_grad", "x.detach()",
        "torch.zeros(1, requires_grad=False)", "torch.library.Library('mine', 'DEF')", "torch.signal", "torch.types", "torch.select(x, 0, 1)",
        "torch.profiler.profile()", "torch.cuda.nvtx.range_push('a')", "torch.utils.checkpoint.checkpoint(f, x)", "torch.func.vmap(f)",
        "print(*x)", "exit_code = 1", "x.load()", "x.save(1)", "state['step'] = 1", "x['params'] = 1", "torch.fx.Graph()",
        "torch.jit.script(f)", "x.update({})", "config.update(x)", "torch.get_default_dtype()", "torch.is_grad_enabled()",
    ],
)  # fmt: skip
def test_ordinary_lines(line):
    source = f"import re, torch\nimport torch.nn.functional as F\ndef inner_steps(model, data, optimizer, steps, device, x=0, y=0, i=0, f=0, name='a', self=0, d=0):\n    {line}\n"
    assert [(f.rule, f.message) for f in scan(source)] == []
