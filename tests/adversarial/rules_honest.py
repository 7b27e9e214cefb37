'''Honest submissions, as people write them. None may have a finding: a false alarm costs a miner more than a missed trick
costs anybody, since the score rests on the audit.
'''

from __future__ import annotations

from rules_cheats import submission

COMPILED = submission(top="""
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch._inductor.config.coordinate_descent_tuning = False
    torch._dynamo.config.cache_size_limit = 64
    import torch._inductor.config as inductor_config
    inductor_config.triton.unique_kernel_names = True
    compiled = None
    """, start="""
    global compiled
    if compiled is None:
        compiled = torch.compile(model, mode="max-autotune-no-cudagraphs", dynamic=False)
    model.train()
    """)

CHUNKED = '''
"""Chunked loss. Unlike globals() or locals(), exec and eval, LOSS_CHUNK is a plain constant; see also __globals__, monotonically."""
from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LOSS_CHUNK = 1024
"""A string below a constant may mention __code__, sys.modules and open("x")."""
PATTERN = re.compile(r"layers\\.(\\d+)\\.mlp")
_CACHE: dict[str, Any] = {}


class Shapes(NamedTuple):
    batch: int
    seq: int


@dataclass(frozen=True)
class InnerStepsResult:
    final_logits: Tensor
    total_tokens: int
    final_loss: float
    notes: dict[str, float] = field(default_factory=dict)


class ChunkedLoss(torch.autograd.Function):
    """Linear and cross entropy without all logits."""

    @staticmethod
    def forward(ctx, input, weight, target):
        total = input.new_zeros((), dtype=torch.float32)
        grad_input, grad_weight = torch.empty_like(input), torch.zeros_like(weight)
        for start in range(0, input.size(0), LOSS_CHUNK):
            piece = input[start : start + LOSS_CHUNK]
            logits = (piece @ weight.t()).float()
            labels = target[start : start + LOSS_CHUNK]
            lse = torch.logsumexp(logits, dim=-1)
            total += (lse - logits.gather(1, labels[:, None]).squeeze(1)).sum()
            probability = torch.exp(logits - lse[:, None])
            probability[torch.arange(len(labels), device=logits.device), labels] -= 1.0
            probability /= target.numel()
            grad_input[start : start + LOSS_CHUNK] = probability.to(weight.dtype) @ weight
            grad_weight += probability.to(weight.dtype).t() @ piece
        ctx.save_for_backward(grad_input, grad_weight)
        return total / target.numel()

    @staticmethod
    def backward(ctx, grad_output):
        grad_input, grad_weight = ctx.saved_tensors
        return grad_input * grad_output, grad_weight * grad_output, None


def inner_steps(model: nn.Module, data_iterator, optimizer: torch.optim.Optimizer, num_steps: int, device: torch.device):
    began = time.perf_counter()
    head = model.get_output_embeddings()
    lr = optimizer.param_groups[0]["lr"]
    assert math.isfinite(lr)
    tokens = 0
    for step in range(num_steps):
        batch = next(data_iterator).to(device, non_blocking=True)
        hidden = model.model(batch[:, :-1]).last_hidden_state
        loss = ChunkedLoss.apply(hidden.flatten(0, 1), head.weight, batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch.numel()
    with torch.no_grad():
        logits = head(hidden.detach())
    print(f"{num_steps} steps in {time.perf_counter() - began:.2f} s")
    model.eval()
    return InnerStepsResult(logits, tokens, loss.item(), {"lr": lr})


if __name__ == "__main__":
    import gc
    import os
    import subprocess
    import sys

    exec("print('local test')")
    gc.collect()
    print(os.environ.get("HOME"), sys.argv, open(__file__).read()[:10], globals().keys(), subprocess)
'''

TRITON = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
    tl = None

try:
    from flash_attn import flash_attn_func
except ImportError:
    flash_attn_func = None


@dataclass
class InnerStepsResult:
    final_logits: torch.Tensor
    total_tokens: int
    final_loss: float


if triton is not None:

    @triton.autotune(configs=[triton.Config({"BLOCK": b}, num_warps=w) for b in (1024, 2048) for w in (4, 8)], key=["n"])
    @triton.jit
    def rms_norm_kernel(x_ptr, w_ptr, out_ptr, stride, n, eps, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        cols = tl.arange(0, BLOCK)
        mask = cols < n
        x = tl.load(x_ptr + row * stride + cols, mask=mask, other=0.0).to(tl.float32)
        var = tl.sum(x * x, axis=0) / n
        y = x * tl.rsqrt(var + eps)
        w = tl.load(w_ptr + cols, mask=mask, other=0.0)
        tl.store(out_ptr + row * stride + cols, (y * w).to(out_ptr.dtype.element_ty), mask=mask)

    @torch.library.custom_op("mine::rms_norm", mutates_args=())
    def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        grid = lambda meta: (rows,)
        rms_norm_kernel[grid](x, weight, out, x.stride(-2), x.shape[-1], eps)
        return out

    @rms_norm.register_fake
    def _(x, weight, eps):
        return torch.empty_like(x)

    torch.library.register_autograd("mine::rms_norm", lambda ctx, g: (g, None, None))
else:
    rms_norm = None


class FusedNorm(torch.nn.Module):
    __slots__ = ()

    def __init__(self, norm):
        super().__init__()
        self.weight = norm.weight
        self.eps = getattr(norm, "variance_epsilon", 1e-6)

    def __repr__(self):
        return f"{self.__class__.__name__}({self.eps})"

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps) if rms_norm else F.rms_norm(x, (x.size(-1),), self.weight, self.eps)


def replace_norms(model):
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent = model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], FusedNorm(module))
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            projection = getattr(layer.self_attn, name)
            setattr(layer.self_attn, f"{name}_view", projection.weight)
        layer.mlp.forward = torch.compile(layer.mlp.forward)


def inner_steps(model, data_iterator, optimizer, num_steps, device):
    if not getattr(model, "_norms_replaced", False):
        replace_norms(model)
        model._norms_replaced = True
    for _ in range(num_steps):
        batch = next(data_iterator).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=hasattr(torch, "compile")):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return InnerStepsResult(logits.detach(), num_steps * batch.numel(), loss.item())
'''

CUDA_GRAPHS = submission(top="""
    graph, static_batch, static_loss, static_logits = None, None, None, None

    def one_step(model, batch):
        logits = model(batch[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        return loss, logits

    def capture(model, batch):
        global graph, static_batch, static_loss, static_logits
        static_batch = batch.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                one_step(model, static_batch)
        torch.cuda.current_stream().wait_stream(side)
        for p in model.parameters():
            p.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            static_loss, static_logits = one_step(model, static_batch)
    """, start="""
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start_event.record()
    """, step="""
    if graph is None and device.type == "cuda":
        capture(model, batch)
    if graph is not None:
        static_batch.copy_(batch, non_blocking=True)
        graph.replay()
    """, end="""
    end_event.record()
    torch.cuda.synchronize()
    print(start_event.elapsed_time(end_event))
    """)

CHECKPOINTED = submission(top="""
    import functools
    from contextlib import nullcontext
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    SAVED = (torch.ops.aten.mm.default, torch.ops.aten._scaled_dot_product_flash_attention.default)

    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op in SAVED else CheckpointPolicy.PREFER_RECOMPUTE

    def wrap(layer):
        inner = layer.forward
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)

        @functools.wraps(inner)
        def forward(*args, **kwargs):
            return checkpoint(inner, *args, use_reentrant=False, context_fn=contexts, **kwargs)

        layer.forward = forward
    """, start="""
    model.config.use_cache = False
    model.config._attn_implementation = "sdpa"
    if hasattr(model, "gradient_checkpointing_disable"):
        model.gradient_checkpointing_disable()
    for layer in model.model.layers:
        wrap(layer)
    kernels = functools.partial(sdpa_kernel, [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]) if device.type == "cuda" else nullcontext
    """, step="""
    with kernels():
        x = F.scaled_dot_product_attention(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), is_causal=True)
    """)

STREAMS = submission(top="""
    from types import MethodType, SimpleNamespace
    state = SimpleNamespace(copy=None)

    def fast(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
    """, start="""
    if device.type == "cuda":
        state.copy = state.copy or torch.cuda.Stream(priority=-1)
    for block in model.model.layers:
        block.mlp.forward = MethodType(fast, block.mlp)
    for p in model.parameters():
        assert p.requires_grad
        p.requires_grad_(True)
    handles = [p.register_post_accumulate_grad_hook(lambda p: None) for p in optimizer.param_groups[0]["params"]]
    """, step="""
    if state.copy is not None:
        with torch.cuda.stream(state.copy):
            weights = batch.cpu().float().pin_memory().to(device, non_blocking=True)
        weights.record_stream(torch.cuda.current_stream())
        torch.cuda.current_stream().wait_stream(state.copy)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None
    """, end="for handle in handles: handle.remove()")

NAMES = submission(top='''
    """About eval(), exec and __globals__."""
    import collections
    import operator
    from functools import lru_cache, partial, reduce
    from typing import TYPE_CHECKING, Callable, Optional, Protocol, TypedDict

    if TYPE_CHECKING:
        from torch import Tensor

    __all__ = ["inner_steps"]
    __version__ = "1.0"
    dir_name = "dir"
    MESSAGES = {"globals": "globals", "eval": 'uses eval("x")', "time": "monotonic", "load": "_C"}
    LOCALS = ["locals", "vars", "open", "exec", "_CACHE", "initial_state", "getattr", "step_count"]

    class Settings(TypedDict, total=False):
        compile: bool
        open: int

    class Step(Protocol):
        def __call__(self, input: "Tensor", *, eval: bool = False) -> "Optional[Tensor]": ...

    class Meter:
        """Looks at __dict__ in its docstring only."""
        __slots__ = ("count", "state", "record")
        __match_args__ = ("count",)

        def __init__(self, state=None): self.count, self.state, self.record = 0, state, []
        def __len__(self): return self.count
        def __enter__(self): return self
        def __exit__(self, *exc): return False
        def __iter__(self): yield from self.record
        def __getitem__(self, i): return self.record[i]
        def __setattr__(self, name, value): super().__setattr__(name, value)
        @property
        def mean(self): return sum(self.record) / max(1, self.count)
        @classmethod
        def make(cls): return cls()
        @staticmethod
        def compile(x): return x
        def open(self, input): self.config = input; self.state = {}; self.state["a"] = 1; return self
        def synchronize(self): torch.cuda.synchronize()
        def eval(self): return self.compile(self.open(1))

    def compile(model, *, open=3, vars=None):
        input, dir = model, open
        return [input for input in (dir, vars)]

    def optimise(opt, optim=None): return opt

    @lru_cache(maxsize=None)
    def table(n: int) -> "torch.Tensor":
        type_ = type(n)
        return torch.arange(n) if type_ is int else torch.empty(0)
    ''', start="""
    meter = Meter.make()
    meter.state = {"exp": 1}
    compiled = compile(model, open=1)
    total = reduce(operator.mul, (1, 2), 1)
    run: Callable = partial(table, 4)
    groups = collections.defaultdict(list)
    for n, p in model.named_parameters():
        groups[p.dtype].append(p)
    if (k := len(groups)) > 1 and isinstance(model, torch.nn.Module):
        print("dtypes:", k, [f"{d}".split(".")[-1] for d in groups], id(model))
    match k:
        case 1: pass
        case _: print(meter.eval(), run())
    """, step="""
    batch_ = batch.to(torch.long); optimise(optimizer)
    with torch.no_grad(), torch.profiler.record_function("step"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    """)

UNICODE = submission(top='# Größe, 学習率, λ — comments may be written in any language\nβ1, η, größe = 0.9, 1e-4, "naïve café 🚀"')

ACCUMULATED = submission(start="scaler = None\nparameters = [p for p in model.parameters() if p.requires_grad]", step="""
    for rows in batch.split(2):
        part = F.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum")
        (part / (batch.size(0) * (batch.size(1) - 1))).backward()
    embeddings = model.get_input_embeddings()(batch)
    embeddings = embeddings.detach().requires_grad_()
    pieces = [piece.requires_grad_(True) for piece in embeddings.split(1)]
    leaf = batch.float()
    leaf.requires_grad = True
    """)

INDIRECT = submission().replace("def inner_steps(", "def _steps(") + "\n\ninner_steps = torch.compiler.disable(_steps)\n"

WITH_DEFAULTS = submission().replace("num_steps, device)", "num_steps=5, device=None, num_gpus=1, **extra)")

HONEST: dict[str, str] = {
    "plain": submission(),
    "compiled": COMPILED,
    "chunked-loss": CHUNKED,
    "triton": TRITON,
    "cuda-graphs": CUDA_GRAPHS,
    "checkpointed": CHECKPOINTED,
    "streams": STREAMS,
    "names": NAMES,
    "unicode": UNICODE,
    "accumulated": ACCUMULATED,
    "indirect": INDIRECT,
    "with-defaults": WITH_DEFAULTS,
    "windows-newlines": submission().replace("\n", "\r\n"),
    "byte-order-mark": "\ufeff" + submission(),
    "declares-utf-8": "# -*- coding: utf-8 -*-\n" + submission(),
}
