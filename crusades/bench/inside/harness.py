"""Lets a submission train in the referee's memory, one batch at a time. Says only what it is asked; nothing it says is believed."""

from __future__ import annotations

import gc
import math
import mmap
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import model as models
import torch
from wire import Channel

MESSAGE_CAP = 16_000
"""Characters of a traceback that are sent: well under the referee's header cap."""

HOST_ALLOCATOR = "DefaultCPUAllocator: "
"""What torch says where it finds no host memory (c10/core/impl/alloc_cpu.cpp): an exception of no class of its own. A submission that
says so itself labels its own failure, as it could in a frame."""


class SubmissionFailed(Exception):
    """The submission cannot go on; carries what the referee is told."""

    def __init__(self, stage: str, kind: str, message: str, *, rule: str = "", line: int | None = None, peak: int | None = None) -> None:
        super().__init__(message)
        self.fields = {"stage": stage, "kind": kind, "message": message[-MESSAGE_CAP:], "rule": rule, "line": line, "peak_memory": peak}


def failure_of(error: BaseException, stage: str, path: str) -> SubmissionFailed:
    """What to report about an exception of the submission: kind, text, and the line in train.py."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = lines[-1] if lines else None
    if type(error).__name__ == "RuleViolation":
        return _broken_rule(error, stage, line)
    text = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, torch.OutOfMemoryError):
        return SubmissionFailed(stage, "memory", text, line=line, peak=_peak())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and HOST_ALLOCATOR in text):
        return SubmissionFailed(stage, "memory", text, line=line, peak=_host_peak())
    kind = "exit" if isinstance(error, SystemExit | KeyboardInterrupt) else "exception"
    return SubmissionFailed(stage, kind, text, line=line)


def _peak() -> int:
    """Bytes: the most that the allocator held on the card, or without a card that this process had in memory."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else _host_peak()


def _host_peak() -> int:
    """Bytes: the most that this process had in the host's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _broken_rule(violation: Any, stage: str, line: int | None = None) -> SubmissionFailed:
    """Rule and line travel in fields of their own; the message is the rest."""
    return SubmissionFailed(stage, "rule", str(violation.message), rule=str(violation.rule), line=violation.line or line)


class DripIterator:
    """The submission's `data_iterator`: the next batch comes when the referee has read the weights of the step before."""

    def __init__(self, contestant: Contestant, first: torch.Tensor) -> None:
        self._contestant, self._waiting, self.asked = contestant, first, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        if self.asked == 0:
            batch, self._waiting = self._waiting, None  # type: ignore[assignment]
        elif self.asked < self._contestant.steps:
            batch = self._contestant.exchange(self.asked)
        else:
            raise StopIteration
        self.asked += 1
        return batch


class Contestant:
    """Everything between the channel and `inner_steps`."""

    def __init__(self, channel: Channel, guard: Any) -> None:
        self._channel, self._guard = channel, guard
        self.steps = 0
        self._logits: torch.Tensor | None = None

    # ---------------------------------------------------------------- set-up

    def build(self, order: dict[str, Any], _: bytearray) -> None:
        """The model on the meta device: all that can be done before memory and submission are known."""
        self._order, self.steps = order, order["steps"]
        self._device = order["device"]
        self.model = models.build(order["config"], order["model_type"], order["dtype"], order["attention"])
        names = {name for name, _ in self.model.named_parameters()}
        if names != {p["name"] for p in order["parameters"]}:
            raise RuntimeError("the model built here has other parameters than the referee's; versions differ?")
        gc.freeze()  # what the imports left is not walked through again, in nobody's timed run either
        gc.enable()
        self._channel.send("built", parameters=sum(p.numel() for p in self.model.parameters()))

    def attach(self, order: dict[str, Any], _: bytearray) -> None:
        """Map the referee's memory and make parameters and moments views of it."""
        dtype = getattr(torch, self._order["dtype"])
        flat = self._map_host(order) if order["kind"] == "memfd" else _map_cuda(order)
        segments = [flat[start:] for start in order["segments"]]
        last = self._order["parameters"][-1]
        elements = last["offset"] + math.prod(last["shape"])
        self._weights, self._exp_avg, self._exp_avg_sq = (
            self._views(segment[: elements * dtype.itemsize].view(dtype)) for segment in segments
        )
        models.bind(self.model, self._weights, self._device)
        self._channel.send("attached")

    def _map_host(self, order: dict[str, Any]) -> torch.Tensor:
        descriptor = self._channel.receive_descriptor()
        self._map = mmap.mmap(descriptor, order["nbytes"], mmap.MAP_SHARED)
        os.close(descriptor)
        return torch.frombuffer(self._map, dtype=torch.uint8)

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            p["name"]: flat[p["offset"] : p["offset"] + math.prod(p["shape"])].view(p["shape"]) for p in self._order["parameters"]
        }

    def load(self, order: dict[str, Any], _: bytearray) -> None:
        """Import the submission under the guard. From here on this process is hostile."""
        self._path = order["path"]
        try:
            self._guard.install(order["rules"])
            module = self._guard.load(self._path)
        except BaseException as error:
            self._refuse_swallowed("load")
            raise failure_of(error, "load", self._path) from error
        self._refuse_swallowed("load")
        inner_steps = getattr(module, "inner_steps", None)
        if not callable(inner_steps):
            raise SubmissionFailed("load", "missing", "train.py defines no function inner_steps")
        self._inner_steps: Callable[..., Any] = inner_steps
        self._channel.send("loaded")

    # ---------------------------------------------------------------- a run

    def prepare(self, order: dict[str, Any], _: bytearray) -> None:
        """A new AdamW whose moments are the referee's memory."""
        self._logits = None
        for parameter in self.model.parameters():
            parameter.grad = None
            parameter.requires_grad_(True)
        self.model.train()
        cuda = self._device != "cpu"
        self._optimizer = models.make_optimizer(list(self.model.parameters()), self._order["optimizer"])
        for name, parameter in self.model.named_parameters():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=self._device if cuda else "cpu"),
                "exp_avg": self._exp_avg[name],
                "exp_avg_sq": self._exp_avg_sq[name],
            }
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self._synchronize()
        self._channel.send("ready", run=order["run"])

    def go(self, order: dict[str, Any], payload: bytearray) -> None:
        """Call inner_steps, then answer for its result. The clock runs in the referee."""
        started = time.monotonic_ns()
        batches = DripIterator(self, self._batch(payload))
        try:
            result = self._inner_steps(self.model, batches, self._optimizer, self.steps, torch.device(self._device))
            self._synchronize()
        except BaseException as error:
            self._refuse_swallowed("run")
            raise failure_of(error, "run", self._path) from error
        claimed = time.monotonic_ns() - started
        self._done(order["run"], result, claimed, batches.asked)

    def _refuse_swallowed(self, stage: str) -> None:
        """A denial is final even when the submission caught it. It shares this process and could hide one: none here proves nothing."""
        violations = getattr(self._guard, "violations", None)
        if violations:
            raise _broken_rule(violations[0], stage) from violations[0]

    def exchange(self, step: int) -> torch.Tensor:
        """Say that the last step is in the parameters; get the next batch."""
        self._synchronize()
        self._channel.send("next", step=step)
        order, payload = self._channel.receive()
        if order["t"] != "batch" or order["step"] != step:
            raise RuntimeError(f"expected batch {step}, got {order['t']}")
        return self._batch(payload)

    def _batch(self, payload: bytearray) -> torch.Tensor:
        shape = (self._order["batch_size"], self._order["sequence_length"])
        return torch.frombuffer(payload, dtype=torch.int64).view(shape)

    def _done(self, run: int, result: Any, claimed: int, asked: int) -> None:
        try:
            logits, tokens, loss = result.final_logits, int(result.total_tokens), float(result.final_loss)
            shape = [int(n) for n in logits.shape]
        except BaseException as error:
            message = f"inner_steps must return an object with final_logits, total_tokens and final_loss ({type(error).__name__}: {error})"
            raise SubmissionFailed("result", "result", message) from error
        self._refuse_swallowed("run")  # off the clock, and after the result was looked at
        self._logits = logits
        self._channel.send(
            "done", run=run, claimed_ns=claimed, final_loss=loss if math.isfinite(loss) else None, total_tokens=tokens,
            logits_shape=shape, batches=asked,
        )  # fmt: skip

    def show(self, order: dict[str, Any], _: bytearray) -> None:
        """The final logits at the positions and columns that the referee names."""
        try:
            assert self._logits is not None
            peak = torch.cuda.max_memory_allocated() if self._device != "cpu" else None
            flat = self._logits.detach().reshape(-1, self._logits.shape[-1])
            rows = torch.tensor(order["rows"], device=flat.device)
            columns = torch.tensor(order["columns"], device=flat.device)
            sample = flat[rows][:, columns].float().cpu().contiguous()
        except BaseException as error:
            raise SubmissionFailed("result", "result", f"final_logits cannot be read: {error}") from error
        self._logits = None
        self._channel.send("logits", payload=sample.numpy().tobytes(), peak_memory=peak)

    def _synchronize(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()


def _map_cuda(order: dict[str, Any]) -> torch.Tensor:
    """Open the referee's allocation in this process (cudaIpcOpenMemHandle)."""
    import ctypes

    torch.cuda.init()
    torch.empty(1, device="cuda")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        library = next(line.split()[-1] for line in maps if "libcudart" in line)
    runtime = ctypes.CDLL(library)

    class Handle(ctypes.Structure):
        _fields_ = (("reserved", ctypes.c_char * 64),)

    handle, pointer = Handle.from_buffer_copy(bytes.fromhex(order["handle"])), ctypes.c_void_p()
    status = runtime.cudaIpcOpenMemHandle(ctypes.byref(pointer), handle, ctypes.c_uint(1))
    if status != 0:
        raise RuntimeError(f"cudaIpcOpenMemHandle failed with {status}")

    class Foreign:
        __cuda_array_interface__: ClassVar = {"shape": (order["nbytes"],), "typestr": "|u1", "data": (pointer.value, False), "version": 3}

    return torch.as_tensor(Foreign(), device="cuda")


def serve(channel: Channel, guard: Any) -> None:
    """Answer the referee until it says bye."""
    contestant = Contestant(channel, guard)
    handlers = {"build": contestant.build, "attach": contestant.attach, "load": contestant.load,
                "prepare": contestant.prepare, "go": contestant.go, "show": contestant.show}  # fmt: skip
    while True:
        order, payload = channel.receive()
        if order["t"] == "bye":
            return
        try:
            handlers[order["t"]](order, payload)
        except SubmissionFailed as failure:
            sys.stderr.write("".join(traceback.format_exception(failure.__cause__ or failure)))
            channel.send("failed", **failure.fields)

