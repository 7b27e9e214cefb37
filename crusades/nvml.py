"""What the cards say: which there are, and what happened on one while a run was timed.

NVML is asked from a thread of its own, because a call can take milliseconds and a lost card takes seconds to answer.
Without a driver there are no devices and nothing here fails. What voids a run, and what is the submission's own doing,
is a pure function of the samples (`classify`); a void must never be a way to roll again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crusades.errors import DeviceFault
from crusades.records import Record

SAMPLE_INTERVAL = 0.05
"""Seconds between samples: thirty or more in a run of 1.5 s, at about 0.3 ms of NVML time each."""
LATE = 3 * SAMPLE_INTERVAL
"""Seconds after a failure in which the card's own word on it still arrives."""
MOST_EVENTS = 100
"""Events taken in one look: whoever raises more of them cannot keep the thread."""
KEPT_SAMPLES = 40_000
"""Half an hour of samples; a run is shorter."""

OWN_XIDS = {13: "graphics engine exception", 31: "GPU memory page fault", 43: "stopped processing", 45: "channel removed"}
"""What a program does to itself by a bad kernel or a bad pointer: the submission's own."""
HARDWARE_XIDS = {
    48: "double-bit ECC error", 62: "internal micro-controller halt", 63: "row remapping", 64: "row remapping failure", 74: "NVLink error",
    79: "fallen off the bus", 92: "high single-bit ECC rate", 94: "contained ECC error", 95: "uncontained ECC error", 119: "GSP time-out",
    120: "GSP error", 140: "unrecovered ECC error",
}
"""What no program can cause on a healthy card."""
SLOWDOWNS = {0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake slowdown"}
"""Bits of the clock event reasons that make a run slower than the card is. A power cap (0x04) is the card's normal state under load."""


# ------------------------------------------------------------------------------------------------ records


class Device(Record, frozen=True, kw_only=True):
    """One card."""

    index: int
    """NVML's number, which is also CUDA's in bus order."""
    minor: int
    """The number in the name of its node, /dev/nvidiaN: another one on many hosts with several cards, and in containers."""
    name: str
    uuid: str
    memory_bytes: int

    @property
    def slot(self) -> str:
        """The slot's name."""
        return f"cuda:{self.index}"


class Sample(Record, frozen=True, kw_only=True):
    """One look at a card. `at` is on the monotonic clock; None where the card does not say."""

    at: float
    sm_clock_mhz: int | None = None
    power_watts: float | None = None
    temperature_celsius: int | None = None
    throttle: int = 0
    pids: tuple[int, ...] = ()
    ecc_uncorrected: int | None = None


class Xid(Record, frozen=True, kw_only=True):
    """One critical error that the driver reported."""

    at: float
    code: int


class Blame(Record, frozen=True, kw_only=True):
    """Whose doing the events of a window were; each is empty or words."""

    void: str = ""
    """Hardware or a neighbour: the run does not count and is repeated."""
    broken: str = ""
    """The part of `void` that can make a program fail, and not only be slow."""
    own: str = ""
    """The submission broke something: its failure."""
    unknown: str = ""
    """Nobody can say from here; a control run decides."""


# ------------------------------------------------------------------------------------------------ pure


def classify(samples: Sequence[Sample], xids: Sequence[Xid], is_ours: Callable[[int], bool | None]) -> Blame:
    """What the events of one run mean. `is_ours(pid)` answers None when it cannot tell, and then nobody is accused."""
    own = [f"Xid {xid.code} ({OWN_XIDS[xid.code]})" for xid in xids if xid.code in OWN_XIDS]
    void = [f"Xid {xid.code} ({HARDWARE_XIDS[xid.code]})" for xid in xids if xid.code in HARDWARE_XIDS]
    unknown = [f"Xid {xid.code}" for xid in xids if xid.code not in OWN_XIDS and xid.code not in HARDWARE_XIDS]
    counters = [sample.ecc_uncorrected for sample in samples if sample.ecc_uncorrected is not None]
    if counters and counters[-1] > counters[0]:
        void.append(f"{counters[-1] - counters[0]} uncorrected ECC errors")
    broken = "; ".join(void)
    bits = _all_bits(samples)
    void += [words for bit, words in SLOWDOWNS.items() if bits & bit]
    foreign = sorted({pid for sample in samples for pid in sample.pids if is_ours(pid) is False})
    if foreign:
        void.append(f"process {', '.join(map(str, foreign))} on the card is not ours")
    return Blame(void="; ".join(void), broken=broken, own="; ".join(dict.fromkeys(own)), unknown="; ".join(dict.fromkeys(unknown)))


def summarise(samples: Sequence[Sample], xids: Sequence[Xid] = ()) -> dict[str, float]:
    """The window as the numbers of `records.Run.telemetry`."""
    clocks = [sample.sm_clock_mhz for sample in samples if sample.sm_clock_mhz is not None]
    power = [sample.power_watts for sample in samples if sample.power_watts is not None]
    heat = [sample.temperature_celsius for sample in samples if sample.temperature_celsius is not None]
    told: dict[str, float] = {"samples": float(len(samples)), "throttle_reasons": float(_all_bits(samples))}
    if clocks:
        told |= {"sm_clock_mhz": sum(clocks) / len(clocks), "sm_clock_min_mhz": float(min(clocks))}
    if power:
        told["power_watts"] = sum(power) / len(power)
    if heat:
        told["temperature_max_celsius"] = float(max(heat))
    if xids:
        told["xid"] = float(xids[-1].code)
    return told


def _all_bits(samples: Sequence[Sample]) -> int:
    bits = 0
    for sample in samples:
        bits |= sample.throttle
    return bits


def descends_from(pid: int, ancestors: frozenset[int], proc: Path = Path("/proc")) -> bool | None:
    """Whether `pid` is one of `ancestors` or a descendant. None when the process cannot be seen (it has ended, or this
    daemon lives in a container whose process numbers are not the driver's)."""
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        if pid in ancestors:
            return True
        seen.add(pid)
        try:
            stat = (proc / str(pid) / "stat").read_text()
        except OSError:
            return None
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


# ------------------------------------------------------------------------------------------------ the library


def load() -> Any | None:
    """The initialised NVML binding, or None where there is no driver (the usual case on a CPU machine)."""
    import pynvml  # type: ignore[import-untyped]  # ships no types

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def devices(nvml: Any | None = None) -> tuple[Device, ...]:
    """Every card that answers. A card that has fallen off the bus is left out, which takes its slot out of service."""
    nvml = nvml or load()
    if nvml is None:
        return ()
    found = []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:  # the driver went away under us: no card answers, as when there never was one
        return ()
    for index in range(count):
        with suppress(nvml.NVMLError):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append(Device(
                index=index, minor=nvml.nvmlDeviceGetMinorNumber(handle), name=_text(nvml.nvmlDeviceGetName(handle)),
                uuid=_text(nvml.nvmlDeviceGetUUID(handle)), memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
            ))  # fmt: skip
    return tuple(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def driver_version(nvml: Any) -> str | None:
    """The driver's version; None where it does not say."""
    try:
        return _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None


def glance(index: int, nvml: Any | None = None) -> Sample | None:
    """One look at a card, for the metrics; None when it does not answer. Takes milliseconds: call it in a thread."""
    nvml = nvml or load()
    if nvml is None:
        return None
    try:
        return _look(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError:
        return None


def _look(nvml: Any, handle: Any) -> Sample:
    """Everything a card says of itself. NVMLError only when the card is lost."""

    def ask(call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(handle, *args)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_UNINITIALIZED):
                raise
            return None

    power = ask(nvml.nvmlDeviceGetPowerUsage)
    processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses) or ()
    return Sample(
        at=time.monotonic(),
        sm_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        power_watts=None if power is None else power / 1000,
        temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        throttle=ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0,
        pids=tuple(process.pid for process in processes),
        ecc_uncorrected=ask(nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC),
    )


class Sampler:
    """Watches one card from a thread from `start` to `stop`; `window` gives what it saw meanwhile.

    Errors: `start` raises DeviceFault when the card does not answer at all. A reading that the card does not offer is
    None in the samples; a card lost later shows as `lost`.
    """

    def __init__(self, index: int, nvml: Any, *, interval: float = SAMPLE_INTERVAL) -> None:
        self.index, self.interval, self.lost = index, interval, ""
        self._nvml = nvml
        self._samples: deque[Sample] = deque(maxlen=KEPT_SAMPLES)
        self._xids: deque[Xid] = deque(maxlen=1000)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"nvml-{index}", daemon=True)
        self._events: Any = None
        self._handle: Any = None

    def start(self) -> None:
        """Begin sampling; the first sample exists when this returns."""
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(self.index)
        except self._nvml.NVMLError as error:
            raise DeviceFault(f"card {self.index} does not answer: {error}") from error
        with suppress(self._nvml.NVMLError):  # containers and some boards offer no events: Xids then show as CUDA errors only
            self._events = self._nvml.nvmlEventSetCreate()
            wanted = self._nvml.nvmlEventTypeXidCriticalError | self._nvml.nvmlEventTypeDoubleBitEccError
            self._nvml.nvmlDeviceRegisterEvents(self._handle, wanted, self._events)
        self._samples.append(_look(self._nvml, self._handle))
        self._thread.start()

    def stop(self) -> None:
        """End the thread; idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Everything sampled inside the block; read it after the block."""
        window = Window(self, time.monotonic())
        try:
            yield window
        finally:
            window.end = time.monotonic()

    def between(self, begin: float, end: float) -> tuple[list[Sample], list[Xid]]:
        """Samples and Xids of a span, with the last sample before it, so that a short span is never empty."""
        samples, xids = list(self._samples), list(self._xids)
        before = [sample for sample in samples if sample.at < begin][-1:]
        return before + [s for s in samples if begin <= s.at <= end], [x for x in xids if begin <= x.at <= end]

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self._samples.append(_look(self._nvml, self._handle))
                self._poll_events()
            except self._nvml.NVMLError as error:
                self.lost = str(error)
                return

    def _poll_events(self) -> None:
        """All that wait: one at a time, the hardware's would queue behind those of a bad kernel."""
        for _ in range(MOST_EVENTS if self._events is not None else 0):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError as error:
                if getattr(error, "value", None) != self._nvml.NVML_ERROR_TIMEOUT:
                    raise
                return
            if event.eventType & self._nvml.nvmlEventTypeXidCriticalError:
                self._xids.append(Xid(at=time.monotonic(), code=int(event.eventData)))


class Window:
    """What one card did during a run."""

    def __init__(self, sampler: Sampler, begin: float) -> None:
        self._sampler, self.begin, self.end = sampler, begin, begin

    def telemetry(self) -> dict[str, float]:
        """For `records.Run.telemetry`."""
        return summarise(*self._sampler.between(self.begin, self.end))

    def blame(self, ours: frozenset[int]) -> Blame:
        """Whose doing it was; `ours` are the host process numbers of referee and contestant. A lost card is nobody's run."""
        if self._sampler.lost:
            words = f"the card was lost: {self._sampler.lost}"
            return Blame(void=words, broken=words)
        samples, xids = self._sampler.between(self.begin, self.end)
        return classify(samples, xids, lambda pid: descends_from(pid, ours))
