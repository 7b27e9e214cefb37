"""Train one variant (`variants.py`) on one exam, here in the referee's own process, and audit it.

Only for `crusades calibrate` and for tests of the audit: the variants are our own code, so nothing is sandboxed. The
shared memory, the reads and the audit are those of a real run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from crusades.bench.inside.model import make_optimizer
from crusades.bench.referee import audit as audits
from crusades.bench.referee import verdict
from crusades.bench.referee.anchor import Anchor, Claims, Kept
from crusades.bench.referee.anchored import compare
from crusades.bench.referee.exam import Exam, expected_of, optimizer_settings
from crusades.bench.referee.layout import layer_of
from crusades.bench.referee.memory import host_buffer
from crusades.bench.referee.models import Reference
from crusades.bench.referee.reads import Reader
from crusades.bench.referee.recipe import Inapplicable, Recipe
from crusades.errors import ConfigError
from crusades.hparams import Profile


@dataclass(frozen=True)
class State:
    """Where training stood before one step: the flat segments, and the rows that were read until then."""

    flats: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    reads: audits.Reads

    @staticmethod
    def of(reference: Reference, reads: audits.Reads, step: int) -> State:
        """A copy of how things stand."""
        rows = audits.Reads(*(r[: step + 1].clone() for r in _rows(reads)))
        return State(tuple(flat.clone() for flat in _flats(reference)), rows)  # type: ignore[arg-type]

    def put_back(self, reference: Reference, optimizer: torch.optim.Optimizer, reads: audits.Reads) -> None:
        """Go on from here: memory, the rows of `reads`, and the optimizer's count of steps."""
        for flat, kept in zip(_flats(reference), self.flats, strict=True):
            flat.copy_(kept)
        for rows, done in zip(_rows(reads), _rows(self.reads), strict=True):
            rows[: len(done)].copy_(done)
        for state in optimizer.state.values():
            state["step"].fill_(len(self.reads.weights) - 1)


def _flats(reference: Reference) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return reference.memory.weights, reference.memory.exp_avg, reference.memory.exp_avg_sq


def _rows(reads: audits.Reads) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return reads.weights, reads.exp_avg, reads.exp_avg_sq


@dataclass
class Lab:
    """A reference model, an exam, and the state of the variant that is being trained."""

    reference: Reference
    profile: Profile
    exam: Exam
    initial: torch.Tensor
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(11))
    previous: dict[str, torch.Tensor] = field(default_factory=dict)
    """Gradients of the step before, for variants that reuse them."""
    keep_previous: bool = False
    copies: dict[int, torch.Tensor] = field(default_factory=dict)
    """step → a flat buffer for the weights before it (`copies_for`); empty = nothing is anchored."""
    states: dict[int, State] = field(default_factory=dict)
    """step → what a plain eager run of this exam left before it; a variant starts at the last one not after its `first`."""
    keep_states: tuple[int, ...] = ()
    """Steps before which `measure` adds to `states`; only for plain eager training."""
    before: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """On the host: the weights before the last update, for variants that go back to them."""
    step: int = 0
    left_out: float = 0.0
    """What an adaptive recipe has left out so far, of a run's arithmetic."""

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that have a gradient."""
        return [(n, q) for n, q in self.reference.model.named_parameters() if q.grad is not None]

    def layer(self, name: str) -> int:
        """The block of a parameter."""
        return layer_of(name, self.reference.layers)

    def random(self, *shape: int) -> torch.Tensor:
        """Uniform numbers on the device, from the lab's own generator."""
        return torch.rand(*shape, generator=self.generator).to(self.reference.device)

    # ---------------------------------------------------------------- training

    def measure(self, recipe: Recipe) -> tuple[list[audits.Measured], float]:
        """Train by `recipe`, audit: every statistic, and the seconds that training took."""
        self.reference.restore(self.initial)
        self.generator.manual_seed(11)
        torch.manual_seed(11)  # some variants draw on the device
        self.previous, self.left_out = {}, 0.0
        anchor = Anchor(self.reference, range(1, self.profile.steps), self.copies)
        reader = Reader(self.reference, self.exam.sample, self.profile.steps, anchor)
        reader.read(0)
        optimizer = self._optimizer(recipe)
        self.step = max((s for s in self.states if s <= recipe.first), default=0)
        if self.step:
            self.states[self.step].put_back(self.reference, optimizer, reader.result())
        started = time.monotonic()
        train = self._train_submission if recipe.submission else self._train
        loss, logits = train(recipe, optimizer, reader)
        if recipe.adaptive and not self.left_out:
            raise Inapplicable("it found nothing that it could leave out")
        seconds = time.monotonic() - started - sum(reader.off(row) + reader.excess[row] for row in range(1, self.profile.steps + 1))
        adam = audits.Adam(**optimizer_settings(self.profile))
        measured = audits.audit(reader.result(), expected_of(self.exam, self.reference.device), adam, self.profile.audit.group_min)
        tokens = self.profile.steps * self.profile.batch_size * self.profile.sequence_length
        measured.append(verdict.tokens_statistic(tokens, tokens))
        if self.exam.whole:
            measured += verdict.result_statistics(loss, self.exam.losses[-1], logits, self.exam.logits)
        self.reference.model.zero_grad(set_to_none=True)
        return measured + self._anchored(reader.result(), adam, Claims(loss, logits), recipe.first), seconds

    def _anchored(self, reads: audits.Reads, adam: audits.Adam, claims: Claims, first: int) -> list[audits.Measured]:
        """Every step but the first at the variant's own weights: each statistic's values side by side; 0 in the steps before
        `first`, which are plain eager training."""
        found = dict[str, audits.Measured]()
        for step, weights in self.copies.items():
            if step < first:
                continue
            kept = Kept(0, step, self.exam, weights, self.initial, reads.weights[step].cpu(), reads.exp_avg[step : step + 2], claims, ())
            for m in compare(kept, self.initial, self.reference, self.profile, adam):
                before = found.get(m.name, m)
                found[m.name] = audits.Measured(m.name, (*before.values[:step], *m.values[step:]), (*before.where[:step], *m.where[step:]))
        return list(found.values())

    def _train(self, recipe: Recipe, optimizer: torch.optim.Optimizer, reader: Reader) -> tuple[float, torch.Tensor]:
        forward = self._forward(recipe)
        loss, logits = 0.0, torch.zeros(self.exam.logits.shape)
        with contextlib.ExitStack() as stack:
            self._enter(recipe, stack)
            for step in range(self.step, self.profile.steps):
                self.step = step
                loss, logits = self._step(recipe, step, optimizer, forward)
                reader.read(step + 1)
                if step + 1 in self.keep_states:
                    self.states[step + 1] = State.of(self.reference, reader.result(), step + 1)
        return loss, logits

    def _train_submission(self, recipe: Recipe, optimizer: torch.optim.Optimizer, reader: Reader) -> tuple[float, torch.Tensor]:
        """An example's inner_steps, drip-fed as in a real run."""
        inner_steps = _load_submission(recipe.submission).inner_steps

        def drip() -> Iterator[torch.Tensor]:
            for step, batch in enumerate(self.exam.batches):
                if step:
                    reader.read(step)
                yield torch.from_numpy(batch)

        result = inner_steps(self.reference.model, drip(), optimizer, self.profile.steps, torch.device(self.reference.device))
        reader.read(self.profile.steps)
        flat = result.final_logits.detach().flatten(0, 1)
        rows, columns = self.exam.logit_rows.to(flat.device), self.exam.logit_columns.to(flat.device)
        return float(result.final_loss), flat[rows][:, columns].float().cpu()

    def _optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        parameters = list(self.reference.model.parameters())
        optimizer = make_optimizer(parameters, optimizer_settings(self.profile))
        if recipe.foreach is not None:
            for group in optimizer.param_groups:
                group.update(fused=None, foreach=recipe.foreach)
        first, second = (self.reference.layout.views(m) for m in (self.reference.memory.exp_avg, self.reference.memory.exp_avg_sq))
        device = self.reference.device if optimizer.param_groups[0]["fused"] else "cpu"
        for name, parameter in self.reference.model.named_parameters():
            step = torch.zeros((), device=device)
            optimizer.state[parameter] = {"step": step, "exp_avg": first[name], "exp_avg_sq": second[name]}
        return optimizer

    def _forward(self, recipe: Recipe) -> Callable[..., torch.Tensor]:
        model = self.reference.model
        called = torch.compile(model, mode=None if recipe.compile == "default" else recipe.compile) if recipe.compile else model

        def forward(x: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
            if recipe.compile:
                torch.compiler.cudagraph_mark_step_begin()  # else torch believes that the last call's output is still wanted
            logits: torch.Tensor = called(x, **extra).logits
            return logits

        return forward

    def _enter(self, recipe: Recipe, stack: contextlib.ExitStack) -> None:
        model: Any = self.reference.model  # whatever class of transformers it is
        if recipe.compile:
            torch._dynamo.reset()
            stack.callback(torch._dynamo.reset)  # graphs hold the memory of all that they compute
        if recipe.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            stack.callback(model.gradient_checkpointing_disable)
        if recipe.attention:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            stack.enter_context(sdpa_kernel(getattr(SDPBackend, recipe.attention)))
        if recipe.autocast:
            stack.enter_context(torch.autocast(self.reference.device, dtype=getattr(torch, recipe.autocast)))
        if recipe.backward_of_linear or recipe.forward_of_linear or recipe.backward_of_head:
            stack.enter_context(self._edited_linears(recipe))

    def _step(self, recipe: Recipe, step: int, optimizer: torch.optim.Optimizer, forward: Callable[..., torch.Tensor]) -> tuple[float, torch.Tensor]:
        tokens = torch.from_numpy(self.exam.batches[step]).to(self.reference.device)
        size = recipe.micro or len(tokens)
        total, kept = 0.0, torch.zeros(self.exam.logits.shape)
        if step in recipe.early:
            now = self._go_back()
        for start in range(0, len(tokens), size):
            total += self._micro_batch(recipe, step, tokens, slice(start, start + size), forward, kept)
            if recipe.compile == "reduce-overhead" and not start:  # the graph's own memory: its next replay would overwrite them
                for _, parameter in self.named():
                    assert parameter.grad is not None
                    parameter.grad = parameter.grad.clone()
        if step in recipe.early:  # what is claimed is true all the same
            self.reference.memory.weights.copy_(now)
            asked = dataclasses.replace(recipe, stale=(step,))
            total = sum(self._micro_batch(asked, step, tokens, slice(start, start + size), forward, kept) for start in range(0, len(tokens), size))
        if step in recipe.stale and self.previous:
            for name, parameter in self.reference.model.named_parameters():
                parameter.grad = self.previous[name].clone()
        if recipe.edit_gradients:
            recipe.edit_gradients(self, step)
        if self.keep_previous or recipe.stale:
            self.previous = {n: q.grad.clone() for n, q in self.named() if q.grad is not None}
        if step + 1 in recipe.early:
            self.before = self.reference.memory.weights.to("cpu", copy=True)
        if step not in recipe.no_update:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total, kept

    def _go_back(self) -> torch.Tensor:
        """Put back the weights that stood before the last update; returns those that stood there now, on the host."""
        now = self.reference.memory.weights.to("cpu", copy=True)
        self.reference.memory.weights.copy_(self.before)
        return now

    def _micro_batch(self, recipe: Recipe, step: int, tokens: torch.Tensor, rows: slice, forward: Callable[..., torch.Tensor], kept: torch.Tensor) -> float:
        x, y = tokens[rows, :-1], tokens[rows, 1:]
        with self._shortened(recipe, step):
            logits = forward(x, **self._mask(recipe, step, x))
        if recipe.edit_logit_gradient:
            logits.register_hook(recipe.edit_logit_gradient)
        losses = self._losses(recipe, logits, y)
        positions = tokens.shape[0] * y.shape[1]
        weight = recipe.weights(self, step, losses.detach()) if recipe.weights else None
        loss = (losses if weight is None else losses * weight).sum() / positions
        if step not in recipe.stale and step not in recipe.no_update:
            loss.backward()
        if step == self.profile.steps - 1:
            self._keep(logits.detach(), rows, kept)
        return float(losses.detach().sum() / positions)

    def _losses(self, recipe: Recipe, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(sequences, positions) cross-entropies."""
        if recipe.loss == "chunked":
            parts = [F.cross_entropy(part.flatten(0, 1).float(), t.flatten(), reduction="none").view(t.shape)
                     for part, t in zip(logits.split(64, 1), y.split(64, 1), strict=True)]  # fmt: skip
            return torch.cat(parts, 1)
        used = logits.float() if recipe.loss == "float" or recipe.autocast else logits
        return F.cross_entropy(used.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)

    def _keep(self, logits: torch.Tensor, rows: slice, kept: torch.Tensor) -> None:
        width = logits.shape[1]
        first, last = rows.start * width, rows.start * width + logits.shape[0] * width
        inside = (self.exam.logit_rows >= first) & (self.exam.logit_rows < last)
        local = (self.exam.logit_rows[inside] - first).to(logits.device)
        kept[inside] = logits.flatten(0, 1)[local][:, self.exam.logit_columns.to(logits.device)].float().cpu()

    # ---------------------------------------------------------------- edits

    def _mask(self, recipe: Recipe, step: int, x: torch.Tensor) -> dict[str, torch.Tensor]:
        window = recipe.window(step) if recipe.window else 0
        if not window:
            return {}
        at = torch.arange(x.shape[1], device=x.device)
        allowed = (at[None] <= at[:, None]) & (at[:, None] - at[None] < window)
        dtype = self.reference.layout.dtype
        mask = torch.zeros(1, 1, x.shape[1], x.shape[1], device=x.device, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        return {"attention_mask": mask.expand(x.shape[0], -1, -1, -1)}

    @contextlib.contextmanager
    def _shortened(self, recipe: Recipe, step: int) -> Iterator[None]:
        out = recipe.without_layer(step) if recipe.without_layer else None
        if out is None:
            yield
            return
        owner, name, whole = self._blocks()
        setattr(owner, name, nn.ModuleList([layer for i, layer in enumerate(whole) if i != out]))
        try:
            yield
        finally:
            setattr(owner, name, whole)

    def _blocks(self) -> tuple[nn.Module, str, nn.ModuleList]:
        """The list of blocks, and where it hangs: `model.layers` of a Llama, `transformer.h` of a GPT-2."""
        for owner in self.reference.model.modules():
            for name, child in owner.named_children():
                if isinstance(child, nn.ModuleList) and len(child) == self.reference.layers:
                    return owner, name, child
        raise Inapplicable("this architecture keeps its blocks in no list")

    @contextlib.contextmanager
    def _edited_linears(self, recipe: Recipe) -> Iterator[None]:
        model: Any = self.reference.model
        head, forward_edit, lab = model.get_output_embeddings(), recipe.forward_of_linear, self
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        linears = [m for m in linears if (recipe.backward_of_head if m is head else recipe.backward_of_linear or forward_edit)]

        class Edited(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w, b, module):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
                ctx.save_for_backward(x, w)
                ctx.module, ctx.bias = module, b is not None
                made = forward_edit(lab, lab.step, module, x) if forward_edit else None
                return F.linear(x, w, b) if made is None else made if b is None else made + b

            @staticmethod
            def backward(ctx, dy):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
                x, w = ctx.saved_tensors
                flat, inputs = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
                edit = recipe.backward_of_head if ctx.module is head else recipe.backward_of_linear
                made = edit(lab, lab.step, ctx.module, inputs, flat) if edit else None
                dx, dw = made if made is not None else (None, flat.t() @ inputs)
                dx = flat @ w if dx is None else dx
                return dx.reshape(x.shape), dw, flat.sum(0) if ctx.bias else None, None

        for module in linears:
            module.forward = functools.partial(_call, Edited, module)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in linears:
                del module.forward


def _call(function: Any, module: nn.Linear, x: torch.Tensor) -> Any:
    return function.apply(x, module.weight, module.bias, module)


def copies_for(reference: Reference, steps: int) -> dict[int, torch.Tensor]:
    """Buffers for the weights before every step but the first, on the host; make them once for many variants."""
    flat = reference.memory.weights
    return {s: host_buffer(len(flat), flat.dtype, reference.device) for s in range(1, steps)}


def _load_submission(path: str) -> ModuleType:
    """A train.py as a module, once per path: what it compiled for one exam serves the next."""
    name = "submission_" + Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
