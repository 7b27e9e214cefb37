"""The scanner in a process of its own: for whoever may not stall, grow or crash over a hostile file, which is everybody.

Parsing holds the interpreter's lock for a quarter of a second at 500 kB, and a file can be written to use a gigabyte. The
child has limits of its own on memory and CPU time, so what it may cost is known, and a parser that crashes is a finding.
A daemon has threads and starts a new interpreter (`check_apart`); a command has none and forks (`scan_forked`), which
takes milliseconds.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import msgspec

from crusades.errors import SandboxFault
from crusades.records import Finding, to_json
from crusades.rules import BY_ID, fingerprint, scan
from crusades.rules_source import MAX_BYTES

CPU_SECONDS = 30
"""The slowest file found takes 6; an ordinary one of 500 kB less than one."""
MEMORY_BYTES = 2 << 30
"""Address space; 500 kB of the densest code take 0.6 GiB."""
WALL_SECONDS = 120.0
"""Longer than the CPU limit on a busy machine: passing it is our fault, not the file's."""
GAVE_UP = frozenset({signal.SIGXCPU, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
"""Deaths that the file itself has caused. SIGKILL is not among them: that is somebody short of memory."""


class Checked(msgspec.Struct, frozen=True):
    """What the child says about a file."""

    findings: tuple[Finding, ...]
    fingerprint: str


@functools.lru_cache(maxsize=4)
def check_apart(source: bytes, *, max_bytes: int = MAX_BYTES, timeout: float = WALL_SECONDS) -> Checked:
    """Findings and fingerprint, computed in a new process. Blocks: call it in a thread. Raises SandboxFault when the child
    cannot be run; a child that exceeds its limits or crashes is a finding (R602).

    The last few answers are kept: rules and copies are two questions about one file.
    """
    package = str(Path(__file__).resolve().parent.parent)
    environment = {"PYTHONPATH": package, "PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "crusades.rules_apart", str(max_bytes)]
    try:
        done = subprocess.run(command, input=source, capture_output=True, timeout=timeout, env=environment, cwd="/", check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxFault(f"the rule check could not be run: {error}") from error
    return _answer(done.returncode, done.stdout, done.stderr)


def scan_forked(source: bytes, *, max_bytes: int = MAX_BYTES) -> list[Finding]:
    """`scan_apart` for a command: the child is a fork of this process, so it starts at once. With other threads about, when a
    fork could inherit a lock that nobody will ever release, it is `scan_apart` after all."""
    if threading.active_count() > 1:
        return scan_apart(source, max_bytes=max_bytes)
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise SandboxFault(f"the rule check could not be run: {error}") from error
    if child == 0:
        _forked_child(writing, source, max_bytes)
    os.close(writing)
    try:
        with open(reading, "rb") as pipe:
            said = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    returncode = os.waitstatus_to_exitcode(status)
    return list(_answer(returncode, said, b"" if returncode == 0 else said).findings)


def scan_apart(source: bytes, *, max_bytes: int = MAX_BYTES) -> list[Finding]:
    """`rules.scan`, computed in a child; see check_apart."""
    return list(check_apart(source, max_bytes=max_bytes).findings)


def fingerprint_apart(source: bytes, *, max_bytes: int = MAX_BYTES) -> str:
    """`rules.fingerprint`, computed in a child; "" for a file that the child gave up on. See check_apart."""
    return check_apart(source, max_bytes=max_bytes).fingerprint


def _answer(returncode: int, said: bytes, complaint: bytes) -> Checked:
    if returncode == 0:
        try:
            return msgspec.json.decode(said, type=Checked)
        except msgspec.DecodeError as error:
            raise SandboxFault(f"the rule check's answer cannot be read: {error}") from error
    if -returncode in GAVE_UP:
        row = BY_ID["R602"]
        message = f"the parser gave up on this file ({signal.Signals(-returncode).name})"
        return Checked((Finding(rule=row.id, line=1, column=1, message=message, why=row.why, instead=row.instead),), "")
    raise SandboxFault(f"the rule check ended with {returncode}: {complaint[-500:].decode(errors='replace')}")


def _limit() -> None:
    import resource

    for kind, soft, hard in (
        (resource.RLIMIT_AS, MEMORY_BYTES, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS + 2),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def _judge(source: bytes, max_bytes: int, *, compare: bool) -> bytes:
    return to_json(Checked(tuple(scan(source, max_bytes=max_bytes)), fingerprint(source) if compare else ""))


def _forked_child(writing: int, source: bytes, max_bytes: int) -> None:
    """Never returns, and runs no clean-up of the parent's (a test runner's, say)."""
    status = 1
    try:
        faulthandler.disable()  # a crash is an answer here
        for number in (signal.SIGXCPU, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        gc.freeze()  # what was there before is not looked through, nor copied
        _limit()
        answer, status = _judge(source, max_bytes, compare=False), 0
    except BaseException as error:
        answer = "".join(traceback.format_exception(error)).encode("utf-8", "replace")
    try:
        while answer:
            answer = answer[os.write(writing, answer) :]
    finally:
        os._exit(status)


if __name__ == "__main__":
    _limit()
    sys.stdout.buffer.write(_judge(sys.stdin.buffer.read(), int(sys.argv[1]), compare=True))
