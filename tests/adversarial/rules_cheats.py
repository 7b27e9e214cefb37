"""Cheats that show in the source: whole submissions, each with the rule that must name it.

Every text is a runnable train.py around the plain loop. The names say where the technique is known from: earlier rounds'
archived exploits and attack suites, and the catalogue of what was tried against other judges of GPU code.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

_TEMPLATE = '''\
from dataclasses import dataclass

import torch
import torch.nn.functional as F
{top}

@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


def inner_steps(model, data_iterator, optimizer, num_steps, device):
{start}
    for step in range(num_steps):
        batch = next(data_iterator).to(device)
{step}
        logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
{end}
    return {result}
'''

HONEST_RESULT = "InnerStepsResult(logits.detach(), num_steps * batch.numel(), loss.item())"


def submission(top: str = "", start: str = "pass", step: str = "pass", end: str = "pass", result: str = HONEST_RESULT) -> str:
    """The plain loop with something added: at the top of the file, before the loop, in each step, after the loop."""
    fill = {"start": textwrap.indent(textwrap.dedent(start).strip(), " " * 4), "step": textwrap.indent(textwrap.dedent(step).strip(), " " * 8)}
    return _TEMPLATE.format(top=textwrap.dedent(top).strip(), end=textwrap.indent(textwrap.dedent(end).strip(), " " * 4), result=result, **fill)


class Cheat(NamedTuple):
    """One technique."""

    name: str
    rule: str
    source: str


def _c(name: str, rule: str, **parts: str) -> Cheat:
    return Cheat(name, rule, submission(**parts))


_LAZY = """
class Later:
    def __init__(self, work): self.work = work
    def {method}(self, *args): return self.work()
"""

CHEATS: tuple[Cheat, ...] = (
    # ---------------------------------------------------------------- archived exploits
    _c("v17-result-object-trains-when-read", "R303", top="""
        calls = 0
        class Result:
            def __getattribute__(self, name):
                return 1
        """, end="return Result()"),
    _c("v19-descriptor-named-backwards", "R206", top="""
        def later(self, instance, owner=None):
            return instance
        Logits = type("Logits", (), {"__teg__"[::-1]: later})
        """),
    _c("v19-subtraction-patched-under-an-alias", "R302", top="from torch import Tensor as T\nT.__sub__ = lambda a, b: torch.sub(a, b) * 0.01"),
    _c("rival-denial-of-service", "R102", top="import urllib.request\nurllib.request.urlopen"),
    # ---------------------------------------------------------------- clocks
    _c("judge-module-imported", "R103", top="import harness\nharness.time = None"),
    _c("clock-replaced", "R301", top="import time\ntime.perf_counter = lambda: 0.0"),
    _c("clock-replaced-under-an-alias", "R301", top="import time as t\nt.monotonic = lambda: 0.0"),
    _c("clock-replaced-by-setattr", "R301", top='import time\nsetattr(time, "perf_counter_ns", lambda: 0)'),
    _c("event-time-replaced", "R301", top="torch.cuda.Event.elapsed_time = lambda self, other: 0.1"),
    _c("event-record-replaced", "R301", top="torch.cuda.Event.record = lambda self, stream=None: None"),
    _c("synchronize-replaced", "R301", top="torch.cuda.synchronize = lambda device=None: None"),
    _c("synchronize-deleted", "R301", top="del torch.cuda.synchronize"),
    _c("clock-replaced-by-from-import-of-cuda", "R301", top="from torch import cuda\ncuda.synchronize = print"),
    # ---------------------------------------------------------------- operators and modules
    _c("loss-poisoned", "R302", top="torch.nn.functional.cross_entropy = lambda a, b: a.sum() * 0"),
    _c("loss-poisoned-through-F", "R302", top="F.cross_entropy = lambda *a, **k: torch.zeros(())"),
    _c("backward-replaced", "R302", top="torch.Tensor.backward = lambda self: None"),
    _c("autograd-backward-replaced", "R302", top="torch.autograd.backward = lambda *a, **k: None"),
    _c("operator-deleted", "R302", top="del torch.Tensor.__rsub__"),
    _c("operator-in-augmented-assignment", "R302", top="torch.Tensor.norm += 1"),
    _c("classes-patched-in-a-loop", "R302", top="for kind in (torch.Tensor, torch.nn.Parameter):\n    kind.__sub__ = lambda a, b: a"),
    _c("optimizer-class-patched", "R302", top="from torch import optim\noptim.AdamW.step = lambda self, closure=None: None"),
    _c("allclose-patched", "R302", top="torch.allclose = lambda *a, **k: True"),
    _c("model-class-patched-by-type", "R302", start="type(model).forward = lambda self, x: x"),
    _c("model-class-patched-by-dunder-class", "R302", start="model.__class__.forward = lambda self, x: x"),
    _c("transformers-patched", "R302", top="import transformers.models.qwen2.modeling_qwen2 as q\nq.apply_rotary_pos_emb = lambda *a: a[:2]"),
    _c("operator-in-the-dispatcher", "R305", top='lib = torch.library.Library("aten", "IMPL")\nlib.impl("sub.Tensor", lambda a, b: a, "CPU")'),
    _c("operator-by-impl", "R305", top='@torch.library.impl("aten::mm", "CPU")\ndef mm(a, b):\n    return a'),
    _c("class-of-an-object-changed", "R302", start="model.__class__ = torch.nn.Identity"),
    # ---------------------------------------------------------------- training less
    _c("layers-frozen", "R501", start="for p in model.parameters():\n    p.requires_grad = False"),
    _c("layers-frozen-by-call", "R501", start="model.get_input_embeddings().requires_grad_(False)"),
    _c("layers-frozen-by-setattr", "R501", start='for p in model.parameters():\n    setattr(p, "requires_grad", False)'),
    _c("layers-frozen-by-a-condition", "R501", start="for n, p in model.named_parameters():\n    p.requires_grad_(n.endswith('bias'))"),
    _c("gradients-off", "R402", step="torch.set_grad_enabled(step < 3)"),
    _c("gradients-off-by-alias", "R402", top="from torch.autograd import set_grad_enabled as on", step="on(False)"),
    _c("inference-mode", "R402", step="with torch.inference_mode():\n    model(batch)"),
    _c("sliding-window", "R403", start="model.config.sliding_window = 64"),
    _c("window-by-update", "R403", start='model.config.update({"use_sliding_window": True})'),
    _c("fewer-layers", "R403", start="config = model.config\nconfig.num_hidden_layers = 1"),
    _c("fewer-heads-by-setattr", "R403", start='setattr(model.config, "num_attention_heads", 1)'),
    _c("fp16-accumulation", "R401", top="torch.backends.cuda.matmul.allow_fp16_accumulation = True"),
    _c("determinism-switched", "R401", top="torch.backends.cudnn.deterministic = False"),
    _c("default-dtype", "R401", top="torch.set_default_dtype(torch.float16)"),
    # ---------------------------------------------------------------- the optimizer and the iterator
    _c("optimizer-step-replaced", "R502", start="optimizer.step = lambda closure=None: None"),
    _c("optimizer-renamed-and-patched", "R502", start="o = optimizer\no.zero_grad = lambda **k: None"),
    _c("optimizer-step-replaced-in-a-helper", "R502", top="def tune(optimizer):\n    optimizer.step = print", start="tune(optimizer)"),
    _c("optimizer-wrapped-original-reached", "R502", start="optimizer.optimizer.state.clear()"),
    _c("optimizer-state-written", "R502", start="optimizer.state[next(model.parameters())] = {}"),
    _c("optimizer-moments-written", "R502", start='for s in optimizer.state.values():\n    s["exp_avg"].zero_()'),
    _c("optimizer-rate", "R502", start='optimizer.param_groups[0]["lr"] = 1.0'),
    _c("optimizer-rate-in-a-loop", "R502", start='for group in optimizer.param_groups:\n    group["weight_decay"] = 0.0'),
    _c("optimizer-group-emptied", "R502", start='optimizer.param_groups[0]["params"].clear()'),
    _c("optimizer-replaced", "R503", start="optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)"),
    _c("optimizer-by-dict", "R202", start='optimizer.__dict__["step"] = print'),
    _c("optimizer-by-object-setattr", "R202", start='object.__setattr__(optimizer, "step", print)'),
    _c("optimizer-hooked", "R502", start="optimizer.register_step_pre_hook(lambda *a: None)"),
    _c("iterator-patched", "R504", start="data_iterator.asked = -1"),
    _c("judge-reached-through-the-iterator", "R504", start="data_iterator._contestant._channel.send('done')"),
    _c("iterator-renamed-and-read", "R504", start="batches = data_iterator\ngetattr(batches, '_contestant')"),
    _c("optimizer-set-by-an-unknown-name", "R502", start="for n in dir_of: setattr(optimizer, n, print)", top="dir_of = ('step',)"),
    # ---------------------------------------------------------------- work at another time
    _c("lazy-getattr", "R303", top=_LAZY.format(method="__getattr__")),
    _c("lazy-descriptor", "R303", top=_LAZY.format(method="__get__")),
    _c("lazy-tensor-subclass", "R303", top="class Lazy(torch.Tensor):\n    @classmethod\n    def __torch_function__(cls, f, t, a=(), k=None): return f(*a)"),
    _c("lazy-by-assignment", "R303", top="class Lazy:\n    __getattribute__ = lambda self, name: 1"),
    _c("work-in-a-destructor", "R303", top=_LAZY.format(method="__del__")),
    _c("work-at-exit", "R104", top="import atexit\natexit.register(print)"),
    _c("background-thread", "R104", top="import threading\nthreading.Thread(target=print).start()"),
    _c("background-pool", "R104", top="from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)"),
    _c("background-process", "R104", top="from torch import multiprocessing as mp\nmp.spawn(print)"),
    _c("event-loop", "R104", top="import asyncio\nasyncio.run"),
    _c("signal-handler", "R104", top="import signal\nsignal.signal(signal.SIGALRM, print)"),
    # ---------------------------------------------------------------- what is not given
    _c("weights-from-disk", "R106", start='model.load_state_dict(torch.load("/models/after.pt"))'),
    _c("weights-from-the-hub", "R106", top="from transformers import AutoModel", start='AutoModel.from_pretrained("x")'),
    _c("weights-by-numpy", "R106", top='import numpy as np\nw = np.load("w.npy", allow_pickle=True)'),
    _c("weights-mapped", "R106", top='w = torch.from_file("/dev/shm/w", size=4)'),
    _c("hub", "R106", top='torch.hub.load("a/b", "c")'),
    _c("pickle", "R106", top="import pickle\npickle.loads(b'')"),
    _c("file-cache", "R201", start='open("/tmp/cache", "w").write("x")'),
    _c("file-cache-by-path", "R101", top='from pathlib import Path\nPath("/dev/shm/x").write_text("x")'),
    _c("environment-read", "R101", top="import os\nos.environ"),
    _c("clocks-of-the-card", "R101", top='import subprocess\nsubprocess.run(["nvidia-smi", "-lgc", "1980"])'),
    _c("package-installed", "R101", top='import sys, subprocess\nsubprocess.run([sys.executable, "-m", "pip"])'),
    _c("descriptor-written", "R101", top='import os\nos.write(3, b"{}")'),
    _c("network", "R102", top="import socket\nsocket.socket()"),
    _c("device-memory-by-address", "R304", top='class Foreign:\n    __cuda_array_interface__ = {"shape": (1,), "typestr": "|u1", "data": (1, False), "version": 3}'),
    _c("memory-shared", "R304", start="next(model.parameters()).untyped_storage()._share_cuda_()"),
    _c("memory-by-dlpack", "R304", top="from torch.utils.dlpack import from_dlpack"),
    # ---------------------------------------------------------------- native code
    _c("ctypes", "R105", top="import ctypes\nctypes.CDLL(None)"),
    _c("ctypes-of-numpy", "R105", top="import numpy\nnumpy.ctypeslib.load_library"),
    _c("extension", "R105", top="from torch.utils.cpp_extension import load_inline"),
    _c("extension-as-attribute", "R105", top="torch.utils.cpp_extension.load_inline"),
    _c("library-loaded", "R105", top='torch.ops.load_library("x.so")'),
    _c("c-bindings", "R111", top="torch._C._set_grad_enabled(False)"),
    _c("c-bindings-imported", "R111", top="from torch import _C"),
    _c("memory-mapped-process", "R105", top="import mmap"),
    # ---------------------------------------------------------------- looking around
    _c("frames", "R202", top="def up():\n    try:\n        raise ValueError\n    except ValueError as e:\n        return e.__traceback__.tb_frame.f_back"),
    _c("generator-frame", "R202", top="g = (i for i in ())\ng.gi_frame.f_globals"),
    _c("coroutine-frame", "R202", top="async def c(): pass\nx = c()\nx.cr_frame"),
    _c("async-generator-frame", "R202", top="async def c():\n    yield 1\nc().ag_frame"),
    _c("function-globals", "R202", top="print(F.cross_entropy.__globals__)"),
    _c("code-replaced", "R202", top="F.cross_entropy.__code__ = (lambda *a, **k: 0).__code__"),
    _c("subclasses", "R202", top="().__class__.__base__.__subclasses__()"),
    _c("class-order", "R202", top="bool.mro()"),
    _c("internals-by-string", "R204", top='KEY = "__globals__"'),
    _c("builtins-by-name", "R201", top="__builtins__"),
    _c("module-table", "R101", top='import sys\nsys.modules["__main__"]'),
    _c("objects-by-collector", "R103", top="import gc\ngc.get_objects()"),
    _c("loggers", "R103", top="import logging\nlogging.root.manager"),
    _c("mock", "R103", top="from unittest import mock\nmock.patch"),
    _c("weak-references", "R103", top="import weakref"),
    _c("inspection", "R103", top="import inspect\ninspect.stack()"),
    _c("traceback-module", "R103", top="import traceback"),
    _c("importlib", "R103", top='from importlib import import_module\nimport_module("os")'),
    _c("modules-of-torch", "R110", top='torch.os.system("true")'),
    _c("modules-of-dataclasses", "R110", top="import dataclasses\ndataclasses.sys.modules"),
    _c("modules-imported-from-others", "R110", top="from contextlib import os"),
    _c("modules-with-underscore", "R110", top="import random\nrandom._os.getpid()"),
    _c("attrgetter", "R203", top='from operator import attrgetter\nattrgetter("a.b")'),
    # ---------------------------------------------------------------- dynamic code
    _c("exec", "R201", top='exec("x = 1")'),
    _c("eval", "R201", top='y = eval("1")'),
    _c("compile", "R201", top='compile("1", "", "eval")'),
    _c("import-function", "R201", top='__import__("os")'),
    _c("globals", "R201", top='globals()["F"] = None'),
    _c("vars", "R201", top='vars(F)["cross_entropy"] = None'),
    _c("breakpoint", "R201", top="breakpoint()"),
    _c("code-object", "R206", top="from types import CodeType"),
    _c("type-hints", "R201", top="import typing\ntyping.get_type_hints(print, globalns={})"),
    _c("main-block-name", "R205", top='__name__ = "__main__"\nif __name__ == "__main__":\n    import json'),
    _c("star-import", "R108", top="from math import *"),
    _c("unlisted", "R109", top="import antigravity"),
    _c("relative", "R109", top="from . import harness"),
    _c("torch-renamed", "R107", top="import torch as th"),
    _c("torch-assigned", "R107", top="th = torch"),
    _c("torch-passed", "R107", top="def g(m):\n    m.x = 1\ng(torch)"),
    # ---------------------------------------------------------------- text
    Cheat("bidirectional-text", "R601", submission(top="x = 1  # \u202e } \u2066if ok\u2069 \u2066")),
    Cheat("invisible-character", "R601", submission(top='secret = "a\u200bb"')),
    Cheat("folded-name", "R601", submission(top='ｅｖａｌ("1")')),
    Cheat("folded-name-is-still-eval", "R201", submission(top='𝓮𝓿𝓪𝓵("1")')),
    Cheat("other-encoding", "R601", "# -*- coding: utf-7 -*-\n" + submission()),
    Cheat("escape-sequence", "R601", submission(top='print("\x1b[2J")')),
    Cheat("null-byte", "R602", submission() + "\0"),
    Cheat("too-large", "R602", submission() + "#" * 500_001),
    Cheat("too-deep", "R602", submission(top="x = " + "-" * 700 + "1")),
    # ---------------------------------------------------------------- the contract
    Cheat("nothing-there", "R701", "import torch\n"),
    Cheat("only-in-the-main-block", "R701", 'if __name__ == "__main__":\n    def inner_steps(a, b, c, d, e): pass\n'),
    Cheat("too-few-arguments", "R702", "def inner_steps(model, data): pass\n"),
    Cheat("coroutine", "R702", "async def inner_steps(a, b, c, d, e): pass\n"),
    Cheat("html", "R703", "<!doctype html><html>"),
)  # fmt: skip
