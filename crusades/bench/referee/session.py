"""One contestant, from its first frame to its last: drip-feeds batches, reads secretly, keeps the clock.

What the contestant does wrong raises `Charged` in here and leaves as a `Reason`; what we do wrong is any other exception.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from crusades.bench import protocol as p
from crusades.bench.referee.anchor import Anchor
from crusades.bench.referee.audit import Reads
from crusades.bench.referee.exam import Exam
from crusades.bench.referee.models import Reference
from crusades.bench.referee.reads import Reader, now_ns
from crusades.bench.referee.wire import Wire, WireClosed, WireTimeout
from crusades.errors import ProtocolError, SandboxFault
from crusades.faults import fault
from crusades.hparams import Profile
from crusades.records import Reason, Stage
from crusades.sandbox.output import printable

C = TypeVar("C", bound=p.Frame)
MESSAGE_CAP = 16_000
"""Characters of a reason that may quote a contestant."""


class Charged(Exception):
    """The submission failed: carries the reason that its miner reads."""

    def __init__(self, reason: Reason, *, gone: bool = False) -> None:
        super().__init__(reason.message)
        self.reason, self.gone = reason, gone


def charge(name: str, stage: Stage, message: str, *, gone: bool = False, **fields: Any) -> Charged:
    """A `Charged` for the fault-table row `name`. Parts of `message` may be the contestant's own words: what is left of them
    is bounded, and holds nothing that a terminal or a log would obey."""
    row = fault(name)
    shown = printable(message.encode("utf-8", "replace"))[:MESSAGE_CAP]
    return Charged(Reason(code=row.code, stage=stage, message=shown, hint=row.advice, **fields), gone=gone)


_RULE = re.compile(r"R\d{3}")
_FAILED = {"rule": "rule", "memory": "out-of-memory", "missing": "no-inner-steps", "result": "bad-result", "exit": "exited"}


@dataclass(frozen=True)
class Timing:
    """What the clock saw of one run, in seconds."""

    step_seconds: tuple[float, ...]
    """By step, the referee's own reads and copies subtracted."""
    read_seconds: float
    copy_seconds: float
    excess_seconds: float
    """What reads and copies took beyond their idle time: not subtracted."""

    @property
    def seconds(self) -> float:
        """The run's time: what is scored."""
        return sum(self.step_seconds)


@dataclass(frozen=True)
class Outcome:
    """One completed run: the clock's and the memory's word, and the contestant's claims."""

    timing: Timing
    reads: Reads
    done: p.Done
    logits: torch.Tensor
    peak_memory: int | None
    """Bytes on the card, as claimed."""


class Session:
    """The referee's side of one contestant's channel."""

    def __init__(self, wire: Wire, reference: Reference, profile: Profile) -> None:
        self._wire, self._reference, self._profile = wire, reference, profile
        self.hostile = False
        """Whether a submission has been loaded: until then only our harness runs on the other side."""

    # ---------------------------------------------------------------- set-up

    def build(self, optimizer: dict[str, float], timeout: float) -> p.Hello:
        """Let the harness build its model. No submission is loaded yet, so every failure is ours."""
        hello = self._expect(p.Hello, Stage.LOAD, timeout)
        reference, profile = self._reference, self._profile
        order = p.Build(
            config=reference.config, model_type=reference.model_type, dtype=profile.model.dtype, attention=profile.model.attention,
            device=reference.device, parameters=reference.layout.specs, batch_size=profile.batch_size,
            sequence_length=profile.sequence_length, steps=profile.steps, optimizer=optimizer,
        )  # fmt: skip
        self._wire.send(order)
        self._expect(p.Built, Stage.LOAD, timeout)
        return hello

    def load(self, path: str, rules: dict[str, Any], meanwhile: Callable[[], None]) -> None:
        """Map the memory, then import the submission; from then on the other side is hostile. `meanwhile` is called while it maps,
        which on a card takes a context of its own."""
        memory = self._reference.memory
        self._reference.clear()  # the last contestant's weights are in there, or what it has written between the segments
        self._wire.send(memory.attach_frame())
        if memory.fd is not None:
            self._wire.send_descriptor(memory.fd)
        meanwhile()
        self._expect(p.Attached, Stage.LOAD, self._profile.deadlines.load)
        self.hostile = True
        self._send(p.Load(path=path, rules=rules), Stage.LOAD)
        self._expect(p.Loaded, Stage.LOAD, self._profile.deadlines.load)

    # ---------------------------------------------------------------- a run

    def run(self, index: int, exam: Exam, initial: torch.Tensor, anchor: Anchor | None, allowed_read: float, meanwhile: Callable[[], None]) -> Outcome:
        """One run with one exam; each read takes at most `allowed_read` seconds off the clock. `meanwhile` is called when the memory
        has been read for the last time, while the contestant shows its result. Raises Charged."""
        stage, profile = (Stage.RUN if index else Stage.WARMUP), self._profile
        batches = [np.ascontiguousarray(b).tobytes() for b in exam.batches]
        reader = Reader(self._reference, exam.sample, profile.steps, anchor, allowed_read)
        self._reference.finish_restore(initial)
        self._send(p.Prepare(run=index), stage)
        self._expect(p.Ready, stage, profile.deadlines.result)
        if anchor is not None:
            anchor.begin()
        reader.read(0)
        timing, done = self._timed(index, stage, batches, reader)
        logits, peak = self._show(exam, done, stage, meanwhile)
        return Outcome(timing, reader.result(), done, logits, peak)

    def _timed(self, index: int, stage: Stage, batches: list[bytes], reader: Reader) -> tuple[Timing, p.Done]:
        budget = self._profile.deadlines.run if index else self._profile.deadlines.warmup
        deadline = time.monotonic() + budget
        marks, steps = [], self._profile.steps
        started = now_ns()
        self._send(p.Go(run=index), stage, batches[0])
        for step in range(1, steps + 1):
            claim = self._claim(stage, deadline, budget)
            reader.read(step)
            marks.append(now_ns())
            if isinstance(claim, p.Done):
                break
            if claim.step != step or step == steps:
                raise self._unexpected(claim, stage)
            self._send(p.Batch(step=step), stage, batches[step])
        if not isinstance(claim, p.Done) or step < steps:  # counted by us: what the frame says is a claim
            raise charge("wrong-step-count", stage, f"inner_steps returned after {step} of {steps} batches", measured=step, limit=steps)
        # row 0 was read before the clock started
        return Timing(reader.steps_of(started, marks), sum(reader.read_seconds[1:]), sum(reader.copy_seconds[1:]), sum(reader.excess[1:])), claim

    def _show(self, exam: Exam, done: p.Done, stage: Stage, meanwhile: Callable[[], None]) -> tuple[torch.Tensor, int | None]:
        rows, positions, vocabulary = self._profile.batch_size, self._profile.sequence_length - 1, self._reference.vocabulary
        if tuple(done.logits_shape) != (rows, positions, vocabulary):
            shape = "×".join(map(str, done.logits_shape))
            raise charge("bad-result", stage, f"final_logits has shape {shape}; expected {rows}×{positions}×{vocabulary}", measured=shape)
        self._send(p.Show(rows=tuple(exam.logit_rows.tolist()), columns=tuple(exam.logit_columns.tolist())), stage)
        meanwhile()
        shown, payload = self._receive(p.Logits, stage, self._profile.deadlines.result)
        expected = exam.logits.numel() * 4
        if len(payload) != expected:
            raise charge("bad-frame", stage, f"the logits sample has {len(payload)} bytes; expected {expected}")
        return torch.frombuffer(bytearray(payload), dtype=torch.float32).view(exam.logits.shape), shown.peak_memory

    # ---------------------------------------------------------------- frames

    def _send(self, frame: p.Frame, stage: Stage, payload: bytes = b"") -> None:
        try:
            self._wire.send(frame, payload)
        except WireClosed as error:
            raise charge("exited", stage, "the process ended before the run was over", gone=True) from error
        except WireTimeout as error:
            raise charge("timeout", stage, "the process stopped reading its channel") from error

    def _claim(self, stage: Stage, deadline: float, budget: float) -> p.Next | p.Done:
        claim, _ = self._frame(stage, max(0.0, deadline - time.monotonic()), budget)
        if isinstance(claim, p.Next | p.Done):
            return claim
        raise self._unexpected(claim, stage)

    def _expect(self, kind: type[C], stage: Stage, timeout: float) -> C:
        return self._receive(kind, stage, timeout)[0]

    def _receive(self, kind: type[C], stage: Stage, timeout: float) -> tuple[C, bytes]:
        claim, payload = self._frame(stage, timeout, timeout)
        if not isinstance(claim, kind):
            raise self._unexpected(claim, stage)
        return claim, payload

    def _frame(self, stage: Stage, timeout: float, budget: float) -> tuple[p.Claim, bytes]:
        try:
            claim, payload = self._wire.receive(p.claims, timeout=timeout)
        except WireClosed as error:
            failure = charge("exited", stage, "the process ended before the run was over", gone=True)
            raise self._ours_or(failure) from error
        except WireTimeout as error:
            failure = charge("timeout", stage, f"no answer within {budget:.0f} s", measured=f"> {budget:.0f} s", limit=budget)
            raise self._ours_or(failure) from error
        except ProtocolError as error:
            raise self._ours_or(charge("bad-frame", stage, str(error))) from error
        if isinstance(claim, p.Failed):
            raise self._ours_or(self._failed(claim, stage))
        return claim, payload

    def _failed(self, claim: p.Failed, stage: Stage) -> Charged:
        default = "load-failed" if claim.stage == "load" else "raised"
        line = claim.line if claim.line and claim.line > 0 else None
        rule = claim.rule if _RULE.fullmatch(claim.rule) else ""
        measured, message = None, claim.message
        if claim.kind == "memory" and claim.peak_memory is not None:
            measured = f"{claim.peak_memory / 2**30:.2f} GiB"
            message = f"out of memory after a peak of {measured} (as claimed): {message}"
        return charge(_FAILED.get(claim.kind, default), stage, (f"line {line}: " if line else "") + message, rule=rule, line=line, measured=measured)

    def _unexpected(self, claim: p.Frame, stage: Stage) -> Exception:
        name = type(claim).__name__.lower()
        return self._ours_or(charge("bad-frame", stage, f"the frame {name!r} came out of turn", measured=name))

    def _ours_or(self, failure: Charged) -> Exception:
        """Before the submission is loaded nothing hostile runs: what fails then is ours."""
        return failure if self.hostile else SandboxFault(f"the sandboxed harness failed: {failure.reason.message}")

    def close(self) -> None:
        """Say good-bye if anyone listens, and close the channel."""
        try:
            self._wire.send(p.Bye(), timeout=1.0)
        except (WireClosed, WireTimeout):
            self.hostile = True  # it is dead or hostile already; the daemon kills the namespace either way
        self._wire.close()
