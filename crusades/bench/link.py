"""The daemon's end of the control wire to a referee: its process, its frames, its death."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from pathlib import Path

import trio

from crusades.bench import protocol as p
from crusades.errors import ProtocolError, RefereeFault

LOG_BYTES = 8_000
"""How much of a dead referee's log goes into the fault."""
GONE_TIMEOUT = 30.0
"""Seconds that a killed referee may take to die: it gives tens of gigabytes back, and a driver that hangs keeps it for ever."""
LOOK = "look at `ps -o pid,stat,wchan,cmd` and the driver's log"
_undying: dict[int, subprocess.Popen[bytes]] = {}
"""By card: a referee that was killed and did not die. Slots come and go, such a process stays, and its memory with it."""
PASSED_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""All that a referee inherits; never a token."""


class RefereeLink:
    """One referee process. One order at a time; after a cancelled `ask` it is not usable any more."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, log: Path, gpu: int | None = None) -> None:
        self._process, self._socket, self._log, self._gpu = process, trio.socket.from_stdlib_socket(sock), log, gpu
        self._buffer = bytearray()
        self._owed = False
        self._dead = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def usable(self) -> bool:
        """Alive, as far as anyone has noticed, and at nobody's order."""
        return not self._dead and not self._owed and self._process.poll() is None

    async def ask(self, order: p.Order, *, fd: int | None = None) -> p.Report:
        """Send one order (and a descriptor after it), wait for its report. Raises RefereeFault when the referee is gone."""
        if self._owed:
            raise RefereeFault("the referee still owes a report")
        await trio.lowlevel.checkpoint_if_cancelled()  # else nothing is sent, and nothing is owed
        self._owed = True
        try:
            await self._send(p.encode(order))
            if fd is not None:
                await self._socket.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            return await self._report()
        except OSError as error:
            raise self._gone() from error

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._socket.send(view) :]

    async def _report(self) -> p.Report:
        while True:
            found = self._take_frame()
            if found is not None:
                self._owed = False
                return found
            try:
                chunk = await self._socket.recv(1 << 16)
            except OSError as error:
                raise self._gone() from error
            if not chunk:
                raise self._gone()
            self._buffer += chunk

    def _take_frame(self) -> p.Report | None:
        size = p.PREFIX.size
        if len(self._buffer) < size:
            return None
        try:
            header, payload = p.decode_prefix(bytes(self._buffer[:size]), header_cap=p.TRUSTED_HEADER_CAP, payload_cap=p.TRUSTED_PAYLOAD_CAP)
            if len(self._buffer) < size + header + payload:
                return None
            report: p.Report = p.decode_header(p.reports, bytes(self._buffer[size : size + header]))
        except ProtocolError as error:
            raise RefereeFault(f"the referee broke protocol: {error}") from error
        del self._buffer[: size + header + payload]
        return report

    def _gone(self) -> RefereeFault:
        self._dead = True
        return RefereeFault(f"the referee died (exit code {self._process.poll()}); its last words:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        try:
            return self._log.read_bytes()[-LOG_BYTES:].decode("utf-8", "replace").strip()
        except OSError as error:
            return f"(its log cannot be read: {error})"

    async def kill(self) -> None:
        """Kill it and wait until it is gone. Raises RefereeFault when it does not die; no other one is started on its card then."""
        self._dead = True
        self._socket.close()
        if self._process.poll() is None:
            self._process.kill()
            pidfd = os.pidfd_open(self._process.pid)
            try:
                with trio.move_on_after(GONE_TIMEOUT, shield=True):
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
            if self._process.poll() is None:
                if self._gpu is not None:
                    _undying[self._gpu] = self._process
                raise RefereeFault(f"the referee, process {self.pid}, does not die {GONE_TIMEOUT:.0f} s after it was killed: {LOOK}")


def start_referee(workdir: Path, gpu: int | None) -> RefereeLink:
    """Spawn a referee that sees only card `gpu` (none when None). From the trio thread, which outlives it. Raises RefereeFault
    while an earlier one on that card does not die."""
    if gpu is not None and (old := _undying.pop(gpu, None)) is not None and old.poll() is None:
        _undying[gpu] = old
        raise RefereeFault(f"process {old.pid}, a referee that was killed, still does not die and holds cuda:{gpu}: {LOOK}")
    ours, theirs = socket.socketpair()
    log = workdir / "referee.log"
    environment = {key: os.environ[key] for key in PASSED_ENVIRONMENT if key in os.environ}
    # NVML counts cards by bus address; without this order CUDA counts the fastest first.
    environment |= {"HOME": str(workdir), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu)}
    # its home is not ours, the cache that `crusades setup` filled is
    environment["CRUSADES_CACHE"] = os.path.abspath(os.environ.get("CRUSADES_CACHE") or Path.home() / ".cache" / "crusades")
    environment["GOMP_SPINCOUNT"] = "3000"  # as in the sandbox: threads that spin for long starve everything else on a small machine, and each other
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with theirs, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "crusades.bench.referee.process", "--fd", str(theirs.fileno())],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=(theirs.fileno(),), env=environment, cwd=workdir, start_new_session=True,
        )  # fmt: skip
    return RefereeLink(process, ours, log, gpu)
