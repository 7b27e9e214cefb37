"""What Prometheus may ask: every metric of the validator in one place, in base units, with its reason as help text.

`docs/operating.md`, the dashboard and the alert rules in `deploy/` may only use names from here; a test compares them.
Setting a value costs microseconds, so callers set what they know when they know it; nothing is computed at scrape time
but the ages, which grow by themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from crusades import __version__
from crusades.faults import FAULTS
from crusades.nvml import Sample
from crusades.records import SlotView, Status

EVALUATION_BUCKETS = (5, 10, 20, 40, 60, 120, 300, 600, 1200, 2400)
"""Seconds: `tiny` on a CPU takes about ten, the 3B model on a card some minutes."""


class Metrics:
    """One registry, one attribute per metric. `render` gives the text of `/metrics`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._since: dict[str, float] = {}
        self._chain()
        self._weights()
        self._work()
        self._machine()
        for unknown in (self.registered, self.permit, self.weights_age_blocks, self.weights_age_tempos, self.weights_equal, self.disk_free):
            unknown.set(math.nan)  # NaN fires no alert, and a zero would be a claim
        self.build_info.labels(version=__version__).set(1)

    def _gauge(self, name: str, why: str, *labels: str) -> Gauge:
        return Gauge(f"crusades_{name}", why, labels, registry=self.registry)

    def _counter(self, name: str, why: str, *labels: str) -> Counter:
        return Counter(f"crusades_{name}", why, labels, registry=self.registry)

    def _age(self, name: str, why: str) -> None:
        """A gauge of the seconds since `happened(name)`; NaN, which fires no alert, before it happened."""
        self._gauge(name, why).set_function(lambda: self._clock() - self._since[name] if name in self._since else float("nan"))

    def happened(self, name: str, at: float | None = None) -> None:
        """The event behind an age gauge happened now (or at a Unix time)."""
        self._since[name] = self._clock() if at is None else at

    # -- by subject --------------------------------------------------------------------------------------

    def _chain(self) -> None:
        self.head_block = self._gauge("chain_head_block", "Best block seen")
        self.finalized_block = self._gauge("chain_finalized_block", "Last finalised block seen")
        self._age("chain_head_age_seconds", "Since the head moved: a stuck node has an open socket too")
        self.reads = self._counter("chain_reads_total", "Reads of the commitments", "result")
        self.registered = self._gauge("registered", "1 while our hotkey holds a uid of the subnet")
        self.permit = self._gauge("validator_permit", "1 while our uid holds a validator permit")
        self.stake = self._gauge("stake_weight", "Stake of our uid as the chain weighs it, in alpha")

    def _weights(self) -> None:
        self.weights_age_blocks = self._gauge("weights_age_blocks", "Blocks since the chain's last update of our weights")
        self.weights_age_tempos = self._gauge("weights_age_tempos", "The same in tempos: two is late, twelve is out of consensus")
        self.weights_equal = self._gauge("weights_equal", "1 when the chain holds the vector that we asked for, as read back")
        self.weights_overdue = self._gauge("weights_overdue", "1 when nothing that we asked for has been on chain for longer than sealed weights take")
        self.weights_held = self._gauge("weights_held", "1 while weights are held on purpose")
        self.weights_attempts = self._counter("weights_attempts_total", "Attempts to set weights", "outcome")
        self.rehearsals = self._counter("weights_rehearsals_total", "Pre-flights without sending, one each epoch", "result")

    def _work(self) -> None:
        self.submissions = self._gauge("submissions", "Submissions in the store", "status")
        self.queue_length = self._gauge("queue_length", "Submissions waiting for a slot")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "How long the oldest of them has waited")
        self.fetches = self._counter("fetches_total", "Downloads of submissions", "result")
        self.evaluations = self._counter("evaluations_total", "Evaluations that ended", "outcome")
        self.second_rounds = self._counter("second_rounds_total", "Evaluations made once more because their runs were uneven: something kept the card waiting")
        self.evaluation_seconds = Histogram("crusades_evaluation_seconds", "From slot taken to verdict", buckets=EVALUATION_BUCKETS, registry=self.registry)
        self.faults = self._counter("faults_total", "Faults by row of the fault table", "code", "whose")
        self.slot_in_service = self._gauge("slot_in_service", "0 while a slot is out of service", "slot")
        self.slot_busy = self._gauge("slot_busy", "1 while a slot evaluates", "slot")

    def _machine(self) -> None:
        self.build_info = self._gauge("build_info", "Always 1; the label is the version", "version")
        self.ready = self._gauge("ready", "1 while every subsystem is ready")
        self.problems = self._gauge("problems", "How many subsystems report a problem")
        self.progress_age = self._gauge("progress_age_seconds", "Since a subsystem's last progress", "subsystem")
        self.late = self._gauge("subsystem_late", "1 while a subsystem is past its own deadline", "subsystem")
        self.stalls = self._counter("event_loop_stalls_total", "Steps of a task that held the event loop longer than 50 ms, computing or waiting", "how")
        for how in ("computing", "waiting"):
            self.stalls.labels(how=how)  # a rate needs a zero to start from
        self.stall_max = self._gauge("event_loop_stall_max_seconds", "The longest step since the last look")
        self.disk_free = self._gauge("disk_free_bytes", "Free in the state directory")
        self.store_bytes = self._gauge("store_bytes", "Size of the database")
        self._age("backup_age_seconds", "Since the newest backup")
        self.device_clock = self._gauge("device_sm_clock_hertz", "SM clock", "slot")
        self.device_power = self._gauge("device_power_watts", "Power draw", "slot")
        self.device_heat = self._gauge("device_temperature_celsius", "Temperature", "slot")
        self.device_throttle = self._gauge("device_throttle_reasons", "NVML's clock event reasons, as bits", "slot")

    # -- several at once ---------------------------------------------------------------------------------

    def count_fault(self, code: int) -> None:
        """One more of a row of the fault table."""
        self.faults.labels(code=str(code), whose=FAULTS[code].whose.value).inc()

    def show_counts(self, counts: Mapping[str, int]) -> None:
        """Submissions by status; a status that nobody is in shows as 0, so that a graph has no holes."""
        for status in Status:
            self.submissions.labels(status=status.value).set(counts.get(status.value, 0))
        self.queue_length.set(counts.get(Status.QUEUED.value, 0))

    def show_slots(self, slots: Mapping[str, SlotView]) -> None:
        """What every slot is doing."""
        for name, view in slots.items():
            self.slot_in_service.labels(slot=name).set(view.state != "out of service")
            self.slot_busy.labels(slot=name).set(view.state == "running")

    def forget_slot(self, name: str, *, in_service: int | None = None) -> None:
        """What a slot that is gone no longer says; `in_service` stays to be said of one that is missed."""
        for gauge in (self.slot_in_service, self.slot_busy, self.device_clock, self.device_power, self.device_heat, self.device_throttle):
            gauge.remove(name)
        if in_service is not None:
            self.slot_in_service.labels(slot=name).set(in_service)

    def show_card(self, slot: str, sample: Sample) -> None:
        """What a card said at one glance."""
        if sample.sm_clock_mhz is not None:
            self.device_clock.labels(slot=slot).set(sample.sm_clock_mhz * 1e6)
        if sample.power_watts is not None:
            self.device_power.labels(slot=slot).set(sample.power_watts)
        if sample.temperature_celsius is not None:
            self.device_heat.labels(slot=slot).set(sample.temperature_celsius)
        self.device_throttle.labels(slot=slot).set(sample.throttle)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
