"""The referee's desk: what each order of the daemon does. One contestant at a time."""

from __future__ import annotations

import platform
import socket
import time
from pathlib import Path

import torch
import transformers

from crusades.bench import mfu
from crusades.bench import protocol as p
from crusades.bench.referee import audit as audits
from crusades.bench.referee import verdict
from crusades.bench.referee.anchor import Claims, Keeper
from crusades.bench.referee.anchored import compare_all
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.dice import Dice
from crusades.bench.referee.exam import Exam, expected_of, optimizer_settings, prepare_exam
from crusades.bench.referee.layout import draw_sample
from crusades.bench.referee.models import Reference, load_reference
from crusades.bench.referee.pool import ExamPool, matmul_tflops
from crusades.bench.referee.reads import Reader, idle_read
from crusades.bench.referee.room import Room
from crusades.bench.referee.session import Charged, Outcome, Session, charge
from crusades.bench.referee.wire import Wire
from crusades.errors import ConfigError, DeviceFault, RefereeFault, SandboxFault
from crusades.hparams import Profile
from crusades.records import Audit, Run, Stage


class Desk:
    """Holds the model, the exams and at most one session."""

    def __init__(self, wire: Wire, network: str) -> None:
        self._wire, self._network = wire, network
        self._session: Session | None = None
        self._expected: audits.Expected | None = None
        """Of the run that is being made, on the device, once it is over."""
        self._settled = False
        """Whether the card is as a contestant is to find it: nothing was computed and nobody was connected since."""
        self._reference: Reference | None = None

    def handle(self, order: p.Order) -> p.Report:
        """Do what the daemon asks. Our own failures leave as exceptions."""
        match order:
            case p.Configure():
                return self._configure(order)
            case p.PrepareExams():
                return self._prepare(order)
            case p.Connect():
                return self._connect(order)
            case p.LoadSubmission():
                return self._load(order)
            case p.DoRun():
                return self._run(order)
            case p.CompareAnchors():
                return self._compare_anchors()
            case p.Release():
                return self._release()

    @staticmethod
    def code_of(error: Exception) -> int:
        """The fault-table row of our own failure. A sticky CUDA error in here is the card's: another context cannot cause one."""
        if isinstance(error, DeviceFault | torch.OutOfMemoryError | torch.AcceleratorError):
            return 2003
        if isinstance(error, SandboxFault):
            return 2001
        return 2006 if isinstance(error, ConfigError) else 2002

    # ---------------------------------------------------------------- set-up

    def _configure(self, order: p.Configure) -> p.Configured:
        started = time.monotonic()
        self._profile: Profile = order.profile
        self._device = order.device
        self._room = Room(order.device, order.profile.guaranteed_bytes)
        cache = Path(order.cache_dir) if order.cache_dir else None
        self._reference = load_reference(order.profile.model, order.device, cache, order.profile_name)
        corpus = open_corpus(order.profile, self._reference.vocabulary, cache, order.profile_name)
        self._pool = ExamPool(self._reference, corpus, order.profile)
        self._keeper = Keeper(self._reference, order.profile)
        self._typical_sample = draw_sample(self._reference.layout, order.profile.audit.coordinates, order.profile.audit.min_per_tensor, Dice(bytes(16)))
        self._peak = self._find_peak()
        if order.device == "cuda":
            self._rehearse(prepare_exam(self._reference, corpus, order.profile, self._reference.initial))
        self._settle()
        return p.Configured(
            device=self._device_name(), model=self._reference.name, parameters=self._reference.layout.parameters,
            peak_tflops=self._peak.tflops, peak_source=self._peak.source, versions=self._versions(), seconds=time.monotonic() - started,
        )  # fmt: skip

    def _rehearse(self, exam: Exam) -> None:
        """Read, copy and audit once while the card is empty: whatever the driver and the libraries load when it is first
        used must not have to find room beside a contestant that fills the card."""
        assert self._reference is not None
        reader = Reader(self._reference, exam.sample, self._profile.steps, self._keeper.anchor())
        for row in range(self._profile.steps + 1):
            reader.read(row)
        audits.audit(reader.result(), expected_of(exam, self._device), self._adam(), self._profile.audit.group_min)
        self._keeper.settle()

    def _device_name(self) -> str:
        if self._device == "cuda":
            return torch.cuda.get_device_name()
        cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
        return f"{cpu}, {torch.get_num_threads()} threads"

    def _find_peak(self) -> mfu.Peak:
        if self._profile.peak_tflops:
            return mfu.Peak(self._profile.peak_tflops, "hparams")
        known = mfu.table_peak(torch.cuda.get_device_name()) if self._device == "cuda" else None
        if known:
            return mfu.Peak(known, "table")
        return mfu.Peak(matmul_tflops(self._device, getattr(torch, self._profile.model.dtype)), "measured")

    def _versions(self) -> dict[str, str]:
        found = {"referee_python": platform.python_version(), "torch": str(torch.__version__), "transformers": transformers.__version__, "referee_network": self._network}
        if self._device == "cuda":
            found["cuda"] = torch.version.cuda or ""
        return found

    def _prepare(self, order: p.PrepareExams) -> p.ExamsReady:
        if self._session is not None and self._session.hostile:
            raise RefereeFault("an exam was ordered while a contestant exists")
        if self._pool.available(order.submission_id, order.commit_block) < order.wanted:
            self._settled = False
            self._room.reclaim()
        done = self._pool.ensure(order.submission_id, order.commit_block, order.wanted, self._keeper.load)
        if done.prepared:
            self._settle()
        return p.ExamsReady(available=done.available, prepared=done.prepared, seconds=done.seconds, retired_seeds=done.retired_seeds)

    def _settle(self) -> None:
        """Drop what a reference pass left, overwrite the card's free memory, keep the audit's workspace, and measure on the
        idle device what reads and copies need."""
        assert self._reference is not None
        self._reference.model.zero_grad(set_to_none=True)
        self._room.settle()
        self._allowed_read = idle_read(self._reference, self._typical_sample)
        self._keeper.settle()
        self._settled = True

    # ---------------------------------------------------------------- a contestant

    def _connect(self, order: p.Connect) -> p.Connected:
        if self._session is not None or self._reference is None:
            raise RefereeFault("connect came out of turn")
        self._settled = False
        channel = socket.socket(fileno=self._wire.receive_descriptor())
        contestant = Wire(channel, header_cap=p.CONTESTANT_HEADER_CAP, payload_cap=p.CONTESTANT_PAYLOAD_CAP)
        self._session = Session(contestant, self._reference, self._profile)
        hello = self._session.build(optimizer_settings(self._profile), order.deadline)
        return p.Connected(versions=hello.versions, limits=hello.limits)

    def _open_session(self) -> Session:
        if self._session is None:
            raise RefereeFault("no contestant is connected")
        return self._session

    def _load(self, order: p.LoadSubmission) -> p.SubmissionLoaded:
        self._keeper.begin(order.runs)
        try:
            self._open_session().load(order.path, order.rules, meanwhile=lambda: self._bring_weights(order))
        except Charged as failure:
            return p.SubmissionLoaded(reason=failure.reason, contestant_gone=failure.gone)
        return p.SubmissionLoaded()

    def _run(self, order: p.DoRun) -> p.Ran:
        session = self._open_session()
        exam, initial = self._pool.take(order.submission_id, order.commit_block, order.block)
        anchor = self._keeper.anchor(repeats=order.repeats)
        try:
            outcome = session.run(order.index, exam, initial, anchor, self._allowed_read, meanwhile=lambda: self._run_over(order, exam))
            measured = self._measure(outcome, exam)
        except Charged as failure:
            return p.Ran(reason=failure.reason, contestant_gone=failure.gone)
        except RuntimeError as error:
            if not self._room.starved(error):
                raise
            stage = Stage.RUN if order.scored else Stage.WARMUP
            return p.Ran(reason=charge("out-of-memory", stage, "the card was filled until the judge itself had no memory left to work with").reason)
        finally:
            self._expected = None  # in the memory that is kept for the next one's
        run = self._run_record(order, outcome, verdict.judge(measured, self._profile.limits))
        reason = verdict.reason_of(run.audit)
        if reason is None:
            self._keeper.keep(anchor, exam, initial, outcome.reads, measured, Claims(outcome.done.final_loss, outcome.logits))
        return p.Ran(run=run, reason=reason)

    def _run_over(self, order: p.DoRun, exam: Exam) -> None:
        """While the contestant shows its result: what the audit needs comes to the device, then the next run's weights."""
        self._expected = expected_of(exam, self._device)
        self._bring_weights(order)

    def _bring_weights(self, order: p.LoadSubmission | p.DoRun) -> None:
        """Begin to restore what the submission's next run starts from, if it has one, beside whatever the device does."""
        assert self._reference is not None
        if (following := self._pool.initial_for(order.submission_id, order.commit_block)) is not None:
            self._reference.begin_restore(following)

    def _run_record(self, order: p.DoRun, outcome: Outcome, audit: Audit) -> Run:
        tokens = self._profile.steps * self._profile.batch_size * self._profile.sequence_length
        timing, done = outcome.timing, outcome.done
        seconds = timing.seconds
        return Run(
            index=order.index, scored=order.scored, seconds=seconds, claimed_seconds=done.claimed_ns / 1e9, read_seconds=timing.read_seconds,
            copy_seconds=timing.copy_seconds, excess_seconds=timing.excess_seconds,
            mfu=mfu.mfu_percent(self._flops_per_token(), tokens, seconds, self._peak.tflops), tokens_per_second=tokens / seconds,
            final_loss=done.final_loss, step_seconds=timing.step_seconds,
            peak_memory_bytes=outcome.peak_memory, audit=audit,
        )  # fmt: skip

    def _flops_per_token(self) -> float:
        assert self._reference is not None
        return mfu.flops_per_token(self._reference.layout.parameters, layers=self._reference.layers, hidden=self._reference.hidden,
                                   sequence_length=self._profile.sequence_length, attention=self._profile.attention_flops)  # fmt: skip

    def _measure(self, outcome: Outcome, exam: Exam) -> list[audits.Measured]:
        profile, tokens = self._profile, self._profile.steps * self._profile.batch_size * self._profile.sequence_length
        assert self._expected is not None
        measured = audits.audit(outcome.reads, self._expected, self._adam(), profile.audit.group_min)
        if exam.whole:
            measured += verdict.result_statistics(outcome.done.final_loss, exam.losses[-1], outcome.logits, exam.logits)
        measured.append(verdict.finite_result(outcome.done.final_loss, outcome.logits))
        return [*measured, verdict.tokens_statistic(outcome.done.total_tokens, tokens)]

    def _adam(self) -> audits.Adam:
        return audits.Adam(**optimizer_settings(self._profile))

    # ---------------------------------------------------------------- after the contestant

    def _compare_anchors(self) -> p.AnchorsCompared:
        """Only when the contestant is dead: the reference computes on the card, and its batches pass through it."""
        assert self._reference is not None
        started = time.monotonic()
        self._end_session()
        found = []
        for kept, measured in compare_all(self._keeper, self._reference, self._profile, self._adam()):
            audit = verdict.judge([*kept.measured, *measured], self._profile.limits)
            found.append(p.AnchoredRun(place=kept.run, step=kept.step, audit=audit, reason=verdict.reason_of(audit)))
        self._keeper.kept.clear()
        self._settle()
        return p.AnchorsCompared(runs=tuple(found), seconds=time.monotonic() - started)

    def _release(self) -> p.Released:
        started = time.monotonic()
        if self._session is not None or not self._settled:  # after anchors were compared there is nothing left to clean
            self._end_session()
            if self._device == "cuda":
                self._settle()
        return p.Released(seconds=time.monotonic() - started)

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._reference is not None:
            self._reference.abandon_restore()
        self._room.wait()
