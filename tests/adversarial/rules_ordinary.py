'''Thirty pieces of ordinary training code, as they stand in tutorials and repositories: `TOP` goes to the top of a file, `STEP`
into the loop. None may have a finding.
'''

import textwrap

from rules_cheats import submission

TOP: dict[str, str] = {
    "own-objects-with-known-names": """
        class Stats:
            count = 0
            elapsed_time = 0.0

        class Group:
            def __init__(self):
                self.param_groups, self.stats, self.config = [1], Stats(), Stats()

        class Runner:
            def __init__(self, config, **kwargs):
                self.config, self.stats = config, Stats()
                for k, v in kwargs.items():
                    setattr(self, f"_{k}", v)

            def note(self, elapsed):
                self.stats.elapsed_time = elapsed
                self.stats.elapsed_time = 0
                self.config.hidden_size = 3
                type(self).count = getattr(self, "_" + str(elapsed), 1)

        runner, a, g = Runner(Stats(), kind=1), Stats(), Group()
        runner.config.block = 1
        runner.note(2.0)
        a.elapsed_time = time.perf_counter() - time.perf_counter()
        type(a).count = 1
        a.__class__.count = 2
        g.param_groups[0] = 1
        g.param_groups.append(2)

        def reset(stats):
            type(stats).count = 0
        reset(a)

        def options(opt=None):
            opt = dict(opt or {})
            opt["lr"] = 1
            return opt

        def more(opt):
            opt.width = 1
        more(a)
        options()
        """,
    "names-put-together": """
        def pick(x, a, b, i):
            names = f"{a}_{b}", "w" + str(i), f"w{i}", "%s_%d" % (a, i), "{}_{}".format(a, b), a + "_" + b
            return [getattr(x, name, None) for name in names], getattr(x, f"{a}_{b}", 0), getattr(x, "w" + str(i), 0), getattr(x, "%s_%s" % (a, b), 0)

        pick(print, "a", "b", 1)
        """,
    "hints-in-strings": """
        from typing import Optional
        def f(x: "Optional[open]" = None, y: "dict[str, input]" = None) -> "eval": return x
        """,
    "module-as-default": """
        def f(x, lib=F, *, nn=torch.nn): return lib.relu(x), nn.Identity()
        """,
    "signs-of-other-scripts": """
        µ, Δt = 1e-6, 2.0
        print("µs", µ * Δt, "👩‍💻 🏳️‍🌈 👨‍👩‍👧", "naïve façade ﬁne")
        """,
    "namesakes-of-forbidden-modules": """
        from transformers import logging as messages
        from transformers.utils import logging
        import transformers
        logging.set_verbosity_error()
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.get_logger("train")
        torch._logging.set_logs(dynamo=30)
        window = torch.signal.windows.hann(4)
        chosen = torch.select(torch.eye(2), 0, 1), torch.trace(torch.eye(2)), torch.cuda.is_available()
        license = "MIT"
        print(license, torch.eye(2).numpy().flags)
        """,
    "own-operators-by-variables": """
        OP = "mine::" + "double"

        def register(op=OP):
            @torch.library.custom_op(op, mutates_args=())
            def double(x: torch.Tensor) -> torch.Tensor:
                return x * 2
            torch.library.register_fake(double, lambda x: x) if not callable(double) else None
            double.register_fake(lambda x: torch.empty_like(x))
            torch.library.register_autograd(OP, lambda ctx, grad: grad * 2)
            return double

        lib = torch.library.Library("mine2", "DEF")
        lib.define("f(Tensor x) -> Tensor")
        lib.impl("f", lambda x: x, "CPU")
        hidden = torch.ones(2).detach_()
        register()
        """,
    "own-things-as-arguments": """
        def counted(function, table):
            table["calls"] = 0
            def wrapped(*args):
                table["calls"] += 1
                return function(*args)
            wrapped.original = function
            return wrapped

        class Table:
            dtype = torch.bfloat16
            sizes = [torch.Size([1])]

        TABLE = {}
        relu = counted(F.relu, TABLE)
        relu.table = TABLE
        Table.dtype = torch.float32
        layers = [layer for layer in (torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))]
        layers[0].calls = 1
        list(map(torch.nn.Linear, [1], [2]))[0].weight.seen = True
        """,
    "classes-and-their-classes": """
        import abc
        import itertools
        from enum import Enum, EnumMeta

        class Base(abc.ABC, metaclass=abc.ABCMeta):
            def copy(self):
                return self.__class__(1, 2)
            def again(self, *args):
                return type(self)(*args)

        class Once(type):
            made = {}
            def __call__(cls, *args, **kwargs):
                if cls not in cls.made:
                    cls.made[cls] = super().__call__(*args, **kwargs)
                return cls.made[cls]
            def __new__(mcs, name, bases, members):
                return super().__new__(mcs, name, bases, members)

        class Settings(metaclass=Once):
            width: int = 1

        class Names(EnumMeta):
            def __len__(cls): return 3

        class Kind(Enum):
            A = 1

        def same(x, y, kind: type = int, *kinds: type[Base]):
            rebuilt = type(x)(y, x) if type(x) is type(y) else x.__class__("name", y, 1)
            if isinstance(x, type) and issubclass(x, (type, Base)):
                return type(x).__name__, list(map(type, [x, y])), dict.fromkeys(itertools.groupby([x, y], key=type))
            return rebuilt, type(x).__call__, {int: type, "a": type(y)}, type(x) in (int, type), Kind("a"), Settings(1)
        """,
    "autograd-function": """
        class SwiGLU(torch.autograd.Function):
            @staticmethod
            @torch.amp.custom_fwd(device_type="cuda")
            def forward(ctx, gate, up):
                ctx.save_for_backward(gate, up)
                ctx.mark_non_differentiable()
                return F.silu(gate) * up

            @staticmethod
            @torch.amp.custom_bwd(device_type="cuda")
            @torch.autograd.function.once_differentiable
            def backward(ctx, grad):
                gate, up = ctx.saved_tensors
                s = torch.sigmoid(gate)
                need_gate, need_up = ctx.needs_input_grad
                return grad * up * s * (1 + gate * (1 - s)) if need_gate else None, grad * gate * s if need_up else None
        """,
    "compile-options": """
        torch._dynamo.config.suppress_errors = False
        torch._dynamo.config.recompile_limit = 16
        torch._inductor.config.max_autotune = True
        torch._inductor.config.triton.cudagraphs = False
        torch._inductor.config.epilogue_fusion = True
        import torch._dynamo
        @torch.compile(fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
        def fused(x, w):
            return F.rms_norm(x, (x.size(-1),), w)
        @torch.compiler.disable
        def eager(x):
            return x
        """,
    "compile-lazily": """
        @functools.lru_cache(maxsize=None)
        def compiled(kind):
            return torch.compile(kind, backend="inductor", options={"shape_padding": True})
        """,
    "triton-kernel": """
        import triton
        import triton.language as tl
        from triton.language.extra import libdevice

        @triton.autotune(configs=[triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=w, num_stages=s) for m in (64, 128) for n in (64, 128) for w in (4, 8) for s in (2, 3)], key=["M", "N"])
        @triton.heuristics({"EVEN": lambda args: args["N"] % args["BLOCK_N"] == 0})
        @triton.jit
        def cross_entropy_kernel(logits, labels, losses, M, N, stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr):
            row = tl.program_id(axis=0)
            label = tl.load(labels + row)
            high, total = -float("inf"), 0.0
            for start in tl.range(0, N, BLOCK_N):
                at = start + tl.arange(0, BLOCK_N)
                x = tl.load(logits + row * stride + at, mask=at < N, other=-float("inf")).to(tl.float32)
                new = tl.maximum(high, tl.max(x, axis=0))
                total = total * tl.exp(high - new) + tl.sum(tl.exp(x - new), axis=0)
                high = new
            tl.store(losses + row, high + tl.log(total) - tl.load(logits + row * stride + label).to(tl.float32))
            tl.debug_barrier()

        def launch(logits, labels):
            losses = torch.empty(len(labels), device=logits.device)
            grid = lambda meta: (triton.cdiv(logits.shape[0], 1),)
            cross_entropy_kernel[grid](logits, labels, losses, *logits.shape, logits.stride(0))
            return losses
        """,
    "triton-descriptors": """
        import triton
        import triton.language as tl
        from triton.tools.tensor_descriptor import TensorDescriptor
        @triton.jit
        def copy(source, target, N: tl.constexpr):
            tl.store(target + tl.arange(0, N), tl.load(source + tl.arange(0, N)))
        """,
    "custom-operator": """
        @torch.library.custom_op("mine::scale", mutates_args=())
        def scale(x: torch.Tensor, by: float) -> torch.Tensor:
            return x * by
        @scale.register_fake
        def _(x, by):
            return torch.empty_like(x)
        def setup(ctx, inputs, output):
            _, ctx.by = inputs
        scale.register_autograd(lambda ctx, grad: (grad * ctx.by, None), setup_context=setup)
        """,
    "contextlib": """
        import contextlib
        @contextlib.contextmanager
        def timed(name, into):
            began = time.perf_counter()
            try:
                yield
            finally:
                into[name] = into.get(name, 0.0) + time.perf_counter() - began
        maybe = contextlib.nullcontext
        quiet = contextlib.suppress(RuntimeError)
        """,
    "functools": """
        from functools import cache, cached_property, partial, reduce, wraps
        def logged(function):
            @wraps(function)
            def inner(*args, **kwargs):
                return function(*args, **kwargs)
            return inner
        silu = partial(F.silu, inplace=True)
        total = reduce(lambda a, b: a * b, (1, 2, 3), 1)
        class Shapes:
            @cached_property
            def size(self):
                return 3
        """,
    "dataclasses-and-typing": """
        from collections import OrderedDict, defaultdict, deque
        from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
        from dataclasses import asdict, field, replace
        from enum import IntEnum, auto
        from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, NamedTuple, Optional, Protocol, TypeVar, Union, cast, overload
        if TYPE_CHECKING:
            from transformers import PreTrainedModel
        T = TypeVar("T")
        LR: Final = 1e-4
        class Mode(IntEnum):
            FAST = auto()
            SLOW = auto()
        @dataclass(slots=True, frozen=True)
        class Plan(Generic[T]):
            steps: int = 5
            extra: dict[str, T] = field(default_factory=dict, repr=False)
            kind: ClassVar[Literal["a", "b"]] = "a"
            def __post_init__(self):
                if self.steps < 1:
                    raise ValueError(f"{self.steps=}")
        def apply(function: Callable[[torch.Tensor], torch.Tensor], values: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
            yield from map(function, values)
        """,
    "module-with-parameters": """
        class Norm(torch.nn.Module):
            __constants__ = ["eps"]
            weight: torch.Tensor
            def __init__(self, size: int, eps: float = 1e-6) -> None:
                super().__init__()
                self.eps = eps
                self.weight = torch.nn.Parameter(torch.ones(size))
                self.register_buffer("scale", torch.tensor(1.0), persistent=False)
                self.reset_parameters()
            def reset_parameters(self):
                torch.nn.init.ones_(self.weight)
            def forward(self, x):
                return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
            def extra_repr(self):
                return f"{tuple(self.weight.shape)}, eps={self.eps}"
            def __repr__(self):
                return f"{self.__class__.__name__}({self.extra_repr()})"
            def __len__(self):
                return self.weight.numel()
            def __call__(self, *args, **kwargs):
                return super().__call__(*args, **kwargs)
        """,
    "attention": """
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        def causal(b, h, q, k):
            return q >= k
        def attend(q, k, v, groups):
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION], set_priority=True):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1, scale=1.0 / math.sqrt(q.size(-1)))
        """,
    "attention-interface": """
        from transformers import AttentionInterface
        from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, apply_rotary_pos_emb, rotate_half
        def mine(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling).transpose(1, 2).contiguous(), None
        """,
    "optional-kernels": """
        try:
            from flash_attn import flash_attn_func, flash_attn_varlen_func
            from flash_attn.ops.triton.layer_norm import rms_norm_fn
        except ImportError:
            flash_attn_func = flash_attn_varlen_func = rms_norm_fn = None
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
            HAVE_LIGER = True
        except (ImportError, RuntimeError):
            HAVE_LIGER = False
        """,
    "graphs-and-streams": """
        class Graphed:
            def __init__(self, function, example):
                self.static, self.graph, self.pool = example.clone(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        function(self.static)
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(self.graph, pool=self.pool, stream=side, capture_error_mode="thread_local"):
                    self.out = function(self.static)
            def __call__(self, x):
                self.static.copy_(x, non_blocking=True)
                self.graph.replay()
                return self.out
        """,
    "events": """
        class Stopwatch:
            def __enter__(self):
                self.a, self.b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.a.record()
                return self
            def __exit__(self, *error):
                self.b.record()
                self.b.synchronize()
                self.ms = self.a.elapsed_time(self.b)
        """,
    "hooks-and-saved-tensors": """
        def keep(module, args, output):
            module.last = output
        def pack(x):
            return x.to(torch.bfloat16)
        def unpack(x):
            return x.float()
        saving = torch.autograd.graph.saved_tensors_hooks(pack, unpack)
        """,
    "arithmetic": """
        import itertools
        import statistics
        from fractions import Fraction
        from operator import add, itemgetter, mul
        SIZES = tuple(itertools.accumulate((1, 2, 3), mul))
        RATIO = Fraction(1, 3)
        WARM = [math.cos(math.pi * i / 10) for i in range(10)]
        best = max(enumerate(WARM), key=itemgetter(1))
        assert statistics.median(WARM) <= 1 and math.prod(SIZES) > 0 and math.ceil(2.5) == 3
        """,
    "text-and-regular-expressions": """
        import re
        import string
        from textwrap import dedent
        LAYER = re.compile(r"model\\\\.layers\\\\.(?P<number>\\\\d+)\\\\.(?P<rest>.+)$", re.VERBOSE | re.IGNORECASE)
        MESSAGE = "evaluates to {:.3f} (execution time {time:>8.2f} s) on %s; opens the gates, compiles, imports"
        NAMES = string.ascii_lowercase
        """,
    "numpy-and-random": """
        import random
        import numpy as np
        rng = np.random.default_rng(0)
        random.seed(0)
        torch.manual_seed(0)
        ORDER = np.argsort(rng.random(8)).tolist()
        """,
    "errors-and-warnings": """
        import warnings
        warnings.filterwarnings("ignore", category=UserWarning, message=".*lr_scheduler.*")
        class ShapeError(ValueError):
            def __init__(self, shape, *args):
                super().__init__(f"bad shape {shape}", *args)
                self.shape = shape
        """,
    "match-and-walrus": """
        def kind(x):
            match x:
                case torch.Tensor() if x.dim() == 2:
                    return "matrix"
                case {"loss": loss, **rest}:
                    return loss
                case [first, *_]:
                    return first
                case str() | bytes() as text:
                    return text
                case _:
                    return None
        if (n := len("abc")) > 2:
            pass
        """,
    "async-generators-and-globals": """
        _buffers = {}
        _count = 0
        def buffer(key, make):
            global _count
            _count += 1
            if key not in _buffers:
                _buffers[key] = make()
            return _buffers[key]
        def outer():
            seen = 0
            def inner():
                nonlocal seen
                seen += 1
                return seen
            return inner
        """,
    "named-like-forbidden-things": """
        LOSS_CHUNK, EVALUATE, open_rows, exec_time, globals_step, importance, compile_model = 1024, True, 1, 0.1, 2, 0.5, True
        class Evaluator:
            def eval(self): return self
            def exec(self): return self
            def open(self): return self
            def compile(self): return self
            def input(self): return 1
            system, popen, fork, time, os, sys = 1, 2, 3, 4, 5, 6
        e = Evaluator().eval().exec().open().compile()
        values = dict(eval=1, exec=2, open=3, input=4, os=5, sys=6)
        """,
    "fp8-and-low-precision-checks": """
        FP8_MAX = torch.finfo(torch.float8_e4m3fn).max if hasattr(torch, "float8_e4m3fn") else 448.0
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
        """,
}
STEP: dict[str, str] = {
    "autocast-and-clipping": """
        with torch.autocast(device_type="cuda", dtype=torch.bfloat16, cache_enabled=False):
            out = model(batch[:, :-1], use_cache=False, return_dict=True)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=float("inf"), foreach=True)
        """,
    "checkpointing": """
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        hidden = torch.utils.checkpoint.checkpoint(model.model, batch[:, :-1], use_reentrant=False, preserve_rng_state=False)
        """,
    "loop-over-layers": """
        for number, (name, layer) in enumerate(zip(range(99), model.model.layers, strict=False)):
            layer.mlp.forward = functools.partial(layer.mlp.forward)
            layer.self_attn.layer_idx = number
            for child_name, child in layer.named_children():
                setattr(layer, child_name, child)
                assert getattr(layer, child_name) is child and hasattr(child, "forward"), f"{name}.{child_name}"
        model.set_attn_implementation("sdpa")
        model.config.use_cache = False
        """,
    "gradients-by-hand": """
        grads = torch.autograd.grad(model(batch[:, :-1]).logits.sum(), list(model.parameters()), allow_unused=True, materialize_grads=True)
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = g if p.grad is None else p.grad.add_(g)
        del grads
        """,
    "pinned-and-asynchronous": """
        if batch.device.type == "cpu" and torch.cuda.is_available():
            batch = batch.pin_memory().to(device, non_blocking=True)
        torch.cuda.current_stream().synchronize() if torch.cuda.is_available() else None
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_zero_(grads) if grads else None
        """,
    "profiler": """
        with torch.profiler.record_function("forward"), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as prof:
            model(batch)
        print(prof.key_averages().table(sort_by="cpu_time_total", row_limit=3))
        """,
}
_IMPORTS = "import functools\nimport math\nimport time\n"
ORDINARY = {name: submission(top=_IMPORTS + textwrap.dedent(text)) for name, text in TOP.items()} | {
    name: submission(top=_IMPORTS, step=text) for name, text in STEP.items()
}
