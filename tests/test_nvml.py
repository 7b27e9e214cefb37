"""The cards: none here, fake ones through the binding's own names, and what an event means for a run."""

import os
import threading
from types import SimpleNamespace

import pytest

from crusades.errors import DeviceFault
from crusades.nvml import Sample, Sampler, Xid, classify, descends_from, devices, summarise


class FakeNvml:
    """The part of the NVML binding that we use, with one healthy card and one that has fallen off the bus."""

    class NVMLError(Exception):
        def __init__(self, value):
            self.value = value

    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_UNINITIALIZED, NVML_ERROR_TIMEOUT, NVML_ERROR_NOT_SUPPORTED = 15, 1, 10, 3
    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 1
    nvmlEventTypeXidCriticalError, nvmlEventTypeDoubleBitEccError = 8, 2

    def __init__(self):
        self.events = []
        self.lost = False
        self.looked = threading.Semaphore(0)

    def nvmlDeviceGetCount(self): return 2
    def nvmlDeviceGetMinorNumber(self, handle): return 3
    def nvmlSystemGetDriverVersion(self): return b"570.86"
    def nvmlDeviceGetName(self, handle): return b"Fake H100"
    def nvmlDeviceGetUUID(self, handle): return "GPU-0"
    def nvmlDeviceGetMemoryInfo(self, handle): return SimpleNamespace(total=80 << 30)
    def nvmlEventSetCreate(self): return object()
    def nvmlDeviceRegisterEvents(self, handle, types, events): pass
    def nvmlDeviceGetClockInfo(self, handle, kind): return 1980
    def nvmlDeviceGetTemperature(self, handle, kind): return 55
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle): return 0x4
    def nvmlDeviceGetComputeRunningProcesses(self, handle): return [SimpleNamespace(pid=os.getpid())]
    def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter): raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetHandleByIndex(self, index):
        if index:
            raise self.NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return index

    def nvmlDeviceGetPowerUsage(self, handle):
        if self.lost:
            raise self.NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        self.looked.release()
        return 350_000

    def nvmlEventSetWait_v2(self, events, timeout):
        if not self.events:
            raise self.NVMLError(self.NVML_ERROR_TIMEOUT)
        return SimpleNamespace(eventType=8, eventData=self.events.pop())


def test_a_driver_that_went_away_has_no_cards(monkeypatch):
    gone = FakeNvml()

    def refuse():
        raise gone.NVMLError(gone.NVML_ERROR_UNINITIALIZED)

    gone.nvmlDeviceGetCount = refuse
    assert devices(gone) == ()


def ours(pid):
    return {1: True, 2: False}.get(pid)


def test_a_machine_without_a_driver_has_no_devices():
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has an NVIDIA driver")
    assert devices() == ()


def test_a_card_that_does_not_answer_is_left_out():
    assert [(d.slot, d.name) for d in devices(FakeNvml())] == [("cuda:0", "Fake H100")]


@pytest.mark.parametrize("code", [13, 31, 43, 45])
def test_what_a_program_does_to_itself_is_the_submissions_own(code):
    blame = classify([], [Xid(at=0.0, code=code)], ours)
    assert str(code) in blame.own
    assert not blame.void


@pytest.mark.parametrize("code", [48, 79, 94])
def test_hardware_errors_void_the_run(code):
    blame = classify([], [Xid(at=0.0, code=code)], ours)
    assert str(code) in blame.void
    assert not blame.own


def test_an_error_that_is_in_no_list_blames_nobody():
    blame = classify([], [Xid(at=0.0, code=999)], ours)
    assert (blame.void, blame.own, blame.unknown) == ("", "", "Xid 999")


@pytest.mark.parametrize(("bits", "word"), [(0x20, "thermal"), (0x40, "thermal"), (0x80, "brake")])
def test_a_slowdown_in_any_sample_voids_the_run(bits, word):
    assert word in classify([Sample(at=0.0), Sample(at=1.0, throttle=bits)], [], ours).void


def test_a_power_cap_is_normal():
    assert classify([Sample(at=0.0, throttle=0x4)], [], ours).void == ""


def test_a_foreign_process_voids_and_an_invisible_one_does_not():
    assert "process 2 " in classify([Sample(at=0.0, pids=(1, 2, 3))], [], ours).void
    assert classify([Sample(at=0.0, pids=(1, 3))], [], ours).void == ""


def test_only_new_ecc_errors_count():
    old = [Sample(at=0.0, ecc_uncorrected=4), Sample(at=1.0, ecc_uncorrected=4)]
    assert classify(old, [], ours).void == ""
    assert "2 uncorrected" in classify([*old, Sample(at=2.0, ecc_uncorrected=6)], [], ours).void


def test_the_summary_has_means_and_extremes_and_leaves_out_what_the_card_does_not_say():
    told = summarise([Sample(at=0.0, sm_clock_mhz=1000, power_watts=300.0, temperature_celsius=50), Sample(at=1.0, sm_clock_mhz=2000, temperature_celsius=60)])
    assert told == {"samples": 2.0, "throttle_reasons": 0.0, "sm_clock_mhz": 1500.0, "sm_clock_min_mhz": 1000.0, "power_watts": 300.0, "temperature_max_celsius": 60.0}


def test_descent_is_read_from_proc():
    assert descends_from(os.getpid(), frozenset({os.getppid()})) is True
    assert descends_from(os.getppid(), frozenset({os.getpid()})) is False
    assert descends_from(2**22 + 1, frozenset({1})) is None


def test_the_sampler_sees_a_window_and_the_errors_in_it():
    nvml = FakeNvml()
    sampler = Sampler(0, nvml, interval=0.001)
    sampler.start()
    with sampler.window() as window:
        nvml.events.append(31)
        for _ in range(5):
            assert nvml.looked.acquire(timeout=5)
    sampler.stop()
    assert window.telemetry()["power_watts"] == 350.0
    assert "Xid 31" in window.blame(frozenset({os.getpid()})).own


def test_a_card_lost_in_the_run_voids_it():
    nvml = FakeNvml()
    sampler = Sampler(0, nvml, interval=0.001)
    sampler.start()
    with sampler.window() as window:
        nvml.lost = True
        sampler._thread.join(timeout=5)
    assert "lost" in window.blame(frozenset()).void


def test_an_error_that_queues_behind_many_is_seen_at_the_next_look():
    nvml = FakeNvml()
    sampler = Sampler(0, nvml, interval=0.001)
    nvml.events += [79, *[31] * 20]  # taken from the end
    sampler._events = object()
    sampler._poll_events()
    assert [xid.code for xid in sampler._xids] == [31] * 20 + [79]


def test_a_cards_node_has_the_number_that_the_driver_gave_it():
    assert [(d.index, d.minor) for d in devices(FakeNvml())] == [(0, 3)]


def test_a_card_that_never_answered_is_our_fault():
    with pytest.raises(DeviceFault, match="card 1"):
        Sampler(1, FakeNvml()).start()
