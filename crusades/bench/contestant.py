"""One contestant process as the daemon sees it: a sandbox (or, for a miner without one, a plain process), its folder, its end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from crusades.bench import protocol as p
from crusades.errors import SandboxFault
from crusades.faults import fault
from crusades.records import Reason
from crusades.sandbox.box import ExitStatus
from crusades.sandbox.policy import ENVIRONMENT

if TYPE_CHECKING:
    from crusades.bench.slot import SlotConfig

PACKAGE = Path(__file__).resolve().parents[1]
INSIDE_HARNESS, INSIDE_GUARD, INSIDE_SUBMISSION = "/inside/harness", "/inside/guard", "/submission"
OPEN_PREFIX = "crusades-contestant-"
"""Before the process number, of folders in the common temporary folder."""
EXIT_PATIENCE = 5.0
"""Seconds to wait for the exit status of a process whose channel has ended."""


class Box(Protocol):
    """What a contestant needs of a sandbox (`crusades.sandbox.launch`)."""

    limits: dict[str, str]

    @property
    def pid(self) -> int: ...
    async def wait(self) -> ExitStatus: ...
    async def kill(self) -> None: ...
    def alive(self) -> bool: ...
    def output_tail(self) -> str: ...


class Contestant:
    """A pre-warmed process that is given one submission, once."""

    def __init__(self, box: Box, directory: tempfile.TemporaryDirectory[str], path: str, notes: tuple[str, ...]) -> None:
        self._box, self._directory, self._path = box, directory, path
        self.notes = notes
        self.versions: dict[str, str] = {}
        self.limits: dict[str, str] = dict(box.limits)

    def met(self, connected: p.Connected) -> None:
        """What the harness said of itself, before any submission was loaded."""
        self.versions = connected.versions
        self.limits |= {f"inside.{k}": v for k, v in connected.limits.items()}

    def put(self, content: bytes) -> str:
        """Lay the submission into the folder that the sandbox sees read-only; returns its path inside."""
        target = Path(self._directory.name) / "train.py"
        target.write_bytes(content)
        target.chmod(0o444)
        return self._path

    @property
    def pid(self) -> int:
        """The outermost process on the host; everything of the submission descends from it."""
        return self._box.pid

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._box.alive()

    def output_tail(self) -> str:
        """The last of its stdout and stderr."""
        return self._box.output_tail()

    async def explain_exit(self, reason: Reason) -> Reason:
        """The channel has ended: say how the process ended, and charge memory when that is why. Raises SandboxFault where it is the machine's."""
        with trio.move_on_after(EXIT_PATIENCE):
            status = await self._box.wait()
            if status.machine_oom:
                raise SandboxFault(status.text)  # no fault of a card, and a second slot of this machine would be no witness
            if status.oom_killed:
                row = fault("out-of-memory")
                return Reason(code=row.code, stage=reason.stage, message=f"{row.title}: {status.text}", hint=row.advice)
            return Reason(code=reason.code, stage=reason.stage, message=f"{reason.message}: {status.text}", rule=reason.rule, hint=reason.hint)
        return reason

    async def kill(self) -> None:
        """Kill the whole namespace; gone when this returns. Raises SandboxFault when a process does not die; its folder goes anyway."""
        with trio.CancelScope(shield=True):
            try:
                await self._box.kill()
            finally:
                self._directory.cleanup()


@dataclass(frozen=True)
class Started:
    """A contestant that the referee has not met, and our end of its channel."""

    contestant: Contestant
    channel: socket.socket

    async def kill(self) -> None:
        """As `Contestant.kill`."""
        self.channel.close()
        await self.contestant.kill()


def start_contestant(config: SlotConfig, channel: socket.socket, node: int | None) -> Contestant:
    """Spawn a contestant with `channel` as its only door, on card /dev/nvidia`node` or on none, from the trio thread
    (design.md §3). Raises SandboxFault."""
    directory = _directory(config)
    Path(directory.name).chmod(0o755)
    if not config.sandboxed:
        note = "no sandbox: this process could have done anything to this machine and to the measurement"
        return Contestant(_PlainBox(config, channel), directory, str(Path(directory.name) / "train.py"), (note,))
    from crusades.sandbox.launch import spawn
    from crusades.sandbox.policy import contestant_policy

    policy = contestant_policy(config.hparams.sandbox, gpu=node)
    mounts = {PACKAGE / "bench" / "inside": INSIDE_HARNESS, PACKAGE / "sandbox" / "inside": INSIDE_GUARD, Path(directory.name): INSIDE_SUBMISSION}
    box = spawn(policy, [sys.executable, "-I", f"{INSIDE_HARNESS}/main.py"], channel=channel, mounts=mounts)
    return Contestant(box, directory, f"{INSIDE_SUBMISSION}/train.py", ())


def _directory(config: SlotConfig) -> tempfile.TemporaryDirectory[str]:
    """Where a submission will lie. A sandbox that root starts is another user's, who cannot enter a folder of root's; what will lie there is public."""
    if not config.sandboxed or os.geteuid() != 0:
        return tempfile.TemporaryDirectory(prefix="contestant-", dir=config.workdir)
    for left in Path(tempfile.gettempdir()).glob(f"{OPEN_PREFIX}*-*"):  # by processes that were killed
        if not Path("/proc", left.name.removeprefix(OPEN_PREFIX).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{OPEN_PREFIX}{os.getpid()}-")


def _exit_status(returncode: int) -> ExitStatus:
    if returncode >= 0:
        return ExitStatus(code=returncode, signal=None, oom_killed=False, text=f"exit code {returncode}")
    return ExitStatus(code=None, signal=-returncode, oom_killed=False, text=f"killed by {signal.Signals(-returncode).name}")


class _PlainBox:
    """A process group without walls, for `crusades bench --unsafe-no-sandbox` alone."""

    def __init__(self, config: SlotConfig, channel: socket.socket) -> None:
        self.limits = {"sandbox": "none"}
        # its own: the next one may start before this one's is read
        self._output = tempfile.TemporaryFile(dir=config.workdir)  # noqa: SIM115 - as long as the process
        environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "LANG") if key in os.environ}
        environment["GOMP_SPINCOUNT"] = ENVIRONMENT["GOMP_SPINCOUNT"]  # as in the sandbox: a busy machine would end a run at its deadline
        environment |= {"HOME": str(config.workdir), "CRUSADES_CHANNEL_FD": str(channel.fileno()), "TMPDIR": tempfile.gettempdir()}
        environment |= {"HF_HUB_OFFLINE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(config.index) if config.device == "cuda" else ""}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(PACKAGE / "bench" / "inside" / "main.py")], stdin=subprocess.DEVNULL, stdout=self._output,
            stderr=subprocess.STDOUT, pass_fds=(channel.fileno(),), env=environment, cwd=config.workdir, start_new_session=True,
        )  # fmt: skip
        self._tail_bytes = config.hparams.sandbox.output_bytes

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    async def wait(self) -> ExitStatus:
        if self._process.poll() is None:
            pidfd = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return _exit_status(self._process.wait())

    async def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.wait()

    def output_tail(self) -> str:
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), self._tail_bytes, max(0, size - self._tail_bytes)).decode("utf-8", "replace")
