"""Runs Python inside a real sandbox and hands back what it said. Used by test_sandbox*.py and adversarial/."""

import dataclasses
import json
import shutil
import socket
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
import trio

import crusades.sandbox
from crusades import hparams
from crusades.errors import SandboxFault
from crusades.sandbox import cgroups
from crusades.sandbox.launch import Box, ExitStatus, spawn
from crusades.sandbox.policy import Policy, contestant_policy

GUARD = Path(crusades.sandbox.__file__).parent / "inside"
MIB = 1 << 20
SMALL = hparams.Sandbox(memory_bytes=192 * MIB, max_processes=64, tmp_bytes=32 * MIB, max_open_files=256)
"""Small enough that every bomb goes off within a second."""
PRELUDE = """
import sys, os, json, errno, ctypes, signal, socket
assert os.getpid() == 2, "not in a PID namespace: what follows could hurt the machine"
sys.path.insert(0, "/inside/guard")
import limits
REPORT = limits.apply()
libc = ctypes.CDLL(None, use_errno=True)

def say(value):
    print("\\n" + json.dumps(value), flush=True)

def tried(call, *arguments):
    "Name of the errno that a call ends with, or 'done'."
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "done"

def syscall(number, *arguments):
    "Name of the errno of a raw system call, or 'done'."
    if libc.syscall(number, *arguments) < 0:
        return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))
    return "done"

def fate(act):
    "Do it in a child: 'exit N' or the name of the signal that ended it."
    child = os.fork()
    if not child:
        try:
            act()
        except BaseException:
            os._exit(99)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
"""


@dataclasses.dataclass
class Ran:
    """What came of a program."""

    status: ExitStatus
    output: str

    @property
    def said(self):
        """The last value that it said."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        assert lines, f"it said nothing: {self.status}"
        try:
            return json.loads(lines[-1])
        except ValueError:
            raise AssertionError(f"it said something else: {self.status}\n{self.output}") from None


def why_no_sandbox() -> str:
    """Why no sandbox can be made on this machine, or nothing."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    try:
        trio.run(_try)
    except SandboxFault as error:
        return str(error)
    return ""


async def _try() -> None:
    await run("pass", prelude="")


def policy(settings: hparams.Sandbox = SMALL) -> Policy:
    return contestant_policy(settings)


def card_policy() -> Policy:
    """The policy of a slot with a card, on a machine that has none: its nodes are /dev/null's."""
    real = contestant_policy(SMALL, gpu=0)
    nodes = {m.inside: msgspec.structs.replace(m, host="/dev/null") for m in real.mounts if m.inside.startswith("/dev/nvidia")}
    return msgspec.structs.replace(real, mounts=tuple(nodes.get(m.inside, m) for m in real.mounts))


def start(source: str, channel: socket.socket, *, using: Policy | None = None, mounts=None, prelude: str = PRELUDE) -> Box:
    """Start `source`; the caller kills the box."""
    program = prelude + textwrap.dedent(source)
    return spawn(using or policy(), [sys.executable, "-I", "-c", program], channel=channel, mounts={GUARD: "/inside/guard", **(mounts or {})})


async def run(source: str, *, using: Policy | None = None, mounts=None, prelude: str = PRELUDE, deadline: float = 30.0) -> Ran:
    """Run `source` to its end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        box = start(source, theirs, using=using, mounts=mounts, prelude=prelude)
        try:
            with trio.fail_after(deadline):
                status = await box.wait()
        finally:
            await box.kill()
    return Ran(status, box.output_tail())


def family(box: Box) -> list[int]:
    """Host pids of everything in the box: whoever is orphaned there becomes init's child."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue  # gone meanwhile
        state, parent = text.rpartition(")")[2].split()[:2]
        if state != "Z":  # dead, and waiting for the host's init to take note
            parents[int(stat.parent.name)] = int(parent)
    found = {box.pid} & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


CGROUPS = cgroups.hierarchy().complete
"""Without them memory is bounded per process only, and memory files by their size alone: docs/security.md says so."""
_missing = why_no_sandbox()
needs_sandbox = pytest.mark.skipif(bool(_missing), reason=f"no sandbox here: {_missing}")
