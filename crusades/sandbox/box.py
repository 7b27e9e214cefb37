"""A running sandbox: watch it, read what it prints, and end it with everything it started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Callable

import msgspec
import trio

from crusades.errors import SandboxFault
from crusades.sandbox.cgroups import Group
from crusades.sandbox.identity import Identity
from crusades.sandbox.output import Tail
from crusades.sandbox.policy import Limits

END_PATIENCE = 15.0
"""Seconds for a killed namespace to be gone. A process inside a driver call can need seconds."""
PATIENCE_PER_GIB = 8.0
"""More of them for each GiB that it has used: the kernel frees four million empty files, 4 GiB, in 19 seconds on a busy machine."""
MOST_PATIENCE = 60.0
"""Seconds at most: a stop of the daemon waits as long, and systemd kills it after 90 (`deploy/crusades-validator.service`)."""
DRAIN_PAUSE = 0.005
"""Seconds between reads of 64 KiB: a flood is read at 13 MB/s at most, and costs us no more than that."""
POLL = 0.005
"""Seconds between looks at a cgroup that is about to be empty."""
TEARDOWN_PATIENCE = 2.0
"""Seconds that the thread blocks for a namespace to be gone when the event loop ends around a running sandbox."""
CHUNK = 1 << 16
_SIGNAL_BASE = 128
"""bubblewrap reports a death by signal n as exit code 128 + n."""


class ExitStatus(msgspec.Struct, frozen=True):
    """How the program ended. Exactly one of `code` and `signal` is set."""

    code: int | None
    signal: int | None
    oom_killed: bool
    """The kernel killed one of its processes for reaching its own memory limit."""
    text: str
    """For people."""
    machine_oom: bool = False
    """The kernel killed one of its processes though it was within its limit: memory was short outside."""


class Box:
    """A running sandbox. Made by `spawn`; must be ended by `kill`, which is idempotent, whatever else happened.

    A task of trio's own watches it, because its end must be noticed and its output read whether or not anyone waits.
    When trio ends first, that task kills it.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], init: int, pid: int, output: int, status: int, group: Group | None, who: Identity,
        limits: Limits, enforced: dict[str, str], *, reported: bytes = b"",
    ) -> None:  # fmt: skip
        self.pid = pid
        """Host pid of the namespace's init."""
        self.who = who
        """Its user on the host."""
        self.limits = enforced
        """What is bounded by what."""
        self._process, self._init, self._output, self._status = process, init, output, status
        self._group, self._sizes = group, limits
        self._reported = reported
        """What bubblewrap had reported beside the pid when we met."""
        self._tail = Tail(limits.output_bytes)
        self._killed = trio.Event()
        self._stuck = False
        self._oom_kills = 0
        self._own_limit = False
        self._gone = trio.Event()
        self._outcome: ExitStatus | SandboxFault | None = None
        self.peak_bytes = 0
        """Most memory ever used, known after the end where a cgroup counted it."""
        trio.lowlevel.spawn_system_task(self._watch, name=f"sandbox {pid}")

    def __repr__(self) -> str:
        return f"<Box pid {self.pid} {'gone' if self._gone.is_set() else 'running'} {self._tail!r}>"

    def alive(self) -> bool:
        """Whether anything of it still runs."""
        return not self._gone.is_set() and self._process.poll() is None

    def output_tail(self) -> str:
        """The last of stdout and stderr, together, made printable."""
        return self._tail.text()

    def members(self) -> list[int]:
        """Host pids inside, where a cgroup counts them."""
        return self._group.members() if self._group else []

    async def wait(self) -> ExitStatus:
        """Until nothing of it is left. Raises SandboxFault when the program was never started, or cannot be got rid of."""
        await self._gone.wait()
        if isinstance(self._outcome, ExitStatus):
            return self._outcome
        raise self._outcome or SandboxFault("the sandbox ended with the event loop")

    async def kill(self) -> None:
        """End everything in the PID namespace; nothing of it is left when this returns. Not cancellable while that takes.

        Raises SandboxFault when a process does not die (stuck in a driver).
        """
        with trio.CancelScope(shield=True):
            if not self._gone.is_set():  # afterwards the descriptor may be another's
                self._killed.set()
                self._signal_init()
            await self._gone.wait()
        if self._stuck and isinstance(self._outcome, SandboxFault):
            raise self._outcome

    def _signal_init(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init, signal.SIGKILL)

    async def _watch(self) -> None:
        """From start to end: drain, see the program end, end what it left behind, settle the accounts."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain)
                await self._monitor_ends()
                self._signal_init()  # what the program left behind
                if not self._stuck:
                    with trio.move_on_after(self._patience()) as patience:
                        await trio.lowlevel.wait_readable(self._init)
                    self._stuck = patience.cancelled_caught
                with trio.move_on_after(0 if self._stuck else END_PATIENCE):
                    await _until(self._cgroup_gone)
                self._last_words()
                self._outcome = self._judge()
                nursery.cancel_scope.cancel()
        finally:
            self._close()

    async def _monitor_ends(self) -> None:
        """Until bubblewrap's monitor has ended. It outlives init, which outlives everybody inside: once it is killed, only so long."""
        async def impatient() -> None:
            await self._killed.wait()
            await trio.sleep(self._patience())
            self._stuck = True
            nursery.cancel_scope.cancel()

        monitor = os.pidfd_open(self._process.pid)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(impatient)
                await trio.lowlevel.wait_readable(monitor)
                nursery.cancel_scope.cancel()
        finally:
            os.close(monitor)

    def _patience(self) -> float:
        """Seconds for what is killed now to be gone."""
        held = self._sizes.memory_bytes if self._group is None else self._group.peak_bytes()
        return min(MOST_PATIENCE, END_PATIENCE + PATIENCE_PER_GIB * held / (1 << 30))

    async def _drain(self) -> None:
        """Keep the pipe flowing, at a bounded rate."""
        while True:
            await trio.lowlevel.wait_readable(self._output)
            try:
                chunk = os.read(self._output, CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                return
            self._tail.add(chunk)
            await trio.sleep(DRAIN_PAUSE)

    def _last_words(self) -> None:
        """Everyone is dead: what is left in the pipe is all there will be, at most its 64 KiB."""
        while chunk := read_now(self._output):
            self._tail.add(chunk)

    def _cgroup_gone(self) -> bool:
        if self._group is None:
            return True
        self._oom_kills = self._group.oom_kills() or self._oom_kills
        self._own_limit = self._group.at_its_limit(self._sizes.memory_bytes) or self._own_limit
        self.peak_bytes = self._group.peak_bytes() or self.peak_bytes
        return self._group.remove()

    def _judge(self) -> ExitStatus | SandboxFault:
        if self._stuck:
            return SandboxFault(f"a process of sandbox {self.pid} does not die: look at `ps -o pid,stat,wchan,cmd` and the driver's log")
        self._process.wait()
        code = _exit_code(self._reported + read_now(self._status))
        if code is None and not self._killed.is_set() and not self._oom_kills:
            said = self._tail.text().strip()
            return SandboxFault(f"the sandbox could not be built: {said or f'bubblewrap ended with {self._process.returncode}'}")
        return self._status_of(code)

    def _status_of(self, code: int | None) -> ExitStatus:
        number = signal.SIGKILL if code is None else code - _SIGNAL_BASE if code > _SIGNAL_BASE else None
        oom = bool(self._oom_kills) and self._own_limit
        if self._oom_kills and not oom:
            text = (f"the machine ran out of memory, or the group that the validator is in, and the kernel killed it: it had used {self.peak_bytes / (1 << 30):.2f} GiB "
                    f"of its {self._sizes.memory_bytes / (1 << 30):.2f}")
        elif oom:
            text = f"the memory limit of {self._sizes.memory_bytes / (1 << 30):.2f} GiB was reached"
        elif number is None:
            text = f"exit code {code}"
        elif self._killed.is_set() and number == signal.SIGKILL:
            text = "killed by us"
        else:
            text = _SIGNAL_TEXTS.get(number, f"killed by signal {number}")
        return ExitStatus(code if number is None else None, number, oom, text, bool(self._oom_kills) and not oom)

    def _close(self) -> None:
        """The last act, also when the event loop is being torn down: nothing may outlive it."""
        if self._stuck:
            self._process.kill()  # what does not die is init or below; this only waits for it
            self._process.wait()
        elif self._process.poll() is None:  # the event loop is going: no more waiting for its events
            self._signal_init()
            _block_until_readable(self._init, TEARDOWN_PATIENCE)
            try:
                self._process.wait(TEARDOWN_PATIENCE)  # it reaps init, and ends
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._cgroup_gone()
        for descriptor in (self._init, self._output, self._status):
            os.close(descriptor)
        if not self._stuck:  # else nobody else is to be that user
            self.who.release()
        self._gone.set()


_SIGNAL_TEXTS = {
    int(signal.SIGSYS): "killed by the system-call filter (SIGSYS): it made a call that no submission needs",
    int(signal.SIGSEGV): "killed by SIGSEGV (it touched memory that is not its own)",
    int(signal.SIGXCPU): "killed by SIGXCPU (CPU time limit)",
    int(signal.SIGXFSZ): "killed by SIGXFSZ (file size limit)",
    int(signal.SIGBUS): "killed by SIGBUS (a file or /dev/shm ran out of room)",
    int(signal.SIGABRT): "aborted (SIGABRT)",
    int(signal.SIGKILL): "killed by SIGKILL",
}


def _exit_code(reports: bytes) -> int | None:
    """bubblewrap's second report; absent when the program was never started."""
    for line in reports.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["exit-code"])
    return None


async def _until(done: Callable[[], bool]) -> None:
    """Ask a cheap question until it says yes: a cgroup empties a moment after its last process is dead, and tells nobody (version 1)."""
    while not done():  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(POLL)


def _block_until_readable(descriptor: int, seconds: float) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.poll(seconds * 1000)


def read_now(descriptor: int) -> bytes:
    """What can be read without waiting; nothing at the end, too."""
    try:
        return os.read(descriptor, CHUNK)
    except BlockingIOError:
        return b""
