"""The scanner in a process of its own: for whoever may not stall, grow or crash over a hostile file.

Parsing holds the interpreter's lock for a quarter of a second at 500 kB, and a file can be written to use a gigabyte. The
child has limits of its own on memory and CPU time, so what it may cost is known, and a parser that crashes is a finding.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


class Checked(msgspec.Struct, frozen=True):
    """What the child says about a file."""

    findings: list[Finding]
    fingerprint: str


def check_apart(source: bytes, *, max_bytes: int = MAX_BYTES, timeout: float = WALL_SECONDS) -> Checked:
    """Findings and fingerprint, computed in a child. Blocks: call it in a thread. Raises SandboxFault when the child cannot
    be run; a child that exceeds its limits or crashes is a finding (R602)."""
    package = str(Path(__file__).resolve().parent.parent)
    environment = {"PYTHONPATH": package, "PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "crusades.rules_apart", str(max_bytes)]
    try:
        done = subprocess.run(command, input=source, capture_output=True, timeout=timeout, env=environment, cwd="/", check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxFault(f"the rule check could not be run: {error}") from error
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=Checked)
    if -done.returncode in (signal.SIGXCPU, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL):
        row = BY_ID["R602"]
        message = f"the parser gave up on this file ({signal.Signals(-done.returncode).name})"
        return Checked([Finding(rule=row.id, line=1, column=1, message=message, why=row.why, instead=row.instead)], "")
    raise SandboxFault(f"the rule check ended with {done.returncode}: {done.stderr[-500:].decode(errors='replace')}")


def scan_apart(source: bytes) -> list[Finding]:
    """`rules.scan`, computed in a child; see check_apart."""
    return check_apart(source).findings


def _child(max_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = sys.stdin.buffer.read()
    sys.stdout.buffer.write(to_json(Checked(scan(source, max_bytes=max_bytes), fingerprint(source))))


if __name__ == "__main__":
    _child(int(sys.argv[1]))
