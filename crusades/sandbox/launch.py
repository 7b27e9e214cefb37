"""Start a program behind all walls, watch it, and end it with everything it started. Theory of operation: the package's docstring."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from crusades.errors import SandboxFault
from crusades.sandbox import cgroups, host
from crusades.sandbox.box import Box, ExitStatus, read_now
from crusades.sandbox.identity import Identity, take
from crusades.sandbox.policy import CHANNEL_FD, NOBODY, PROC_STEERING, Limits, Mount, Policy
from crusades.sandbox.seccomp import compile_filter

SHIM = ('while [ "$1" != -- ]; do echo 0 > "$1" || exit 70; shift; done; shift; ulimit -c 0; echo 1000 > /proc/self/oom_score_adj || :; '
        'exec 3<&0 0</dev/null; exec "$@"')
"""Run by /bin/sh: enter the cgroups named before `--`, be the first whom the kernel kills when the machine's memory ends (which is
our fault, but the referee and the daemon live), put the channel (passed as standard input) on 3, become bubblewrap."""
START_PATIENCE = 3.0
"""Seconds for bubblewrap to report its child, which it does before it mounts anything, after about 5 ms. The event loop waits as long."""
_FIRST_FD = 10
"""Descriptors that we pass to the shell are numbered from here, away from those that it moves."""

__all__ = ["Box", "ExitStatus", "spawn"]


def spawn(policy: Policy, argv: Sequence[str], *, channel: socket.socket, mounts: Mapping[Path, str] | None = None) -> Box:
    """Start `argv` behind the walls of `policy`, with `channel` as descriptor 3 and `mounts` (host folder → path inside) read-only.

    Call it on a thread that lives as long as the program may (the trio thread): the program dies with that *thread*. Blocks
    for about 10 ms. `channel` stays the caller's, who closes it. Raises SandboxFault when the sandbox cannot be built.
    """
    extra = tuple(Mount(inside, "given by the caller", str(host)) for host, inside in (mounts or {}).items())
    bwrap = bwrap_path(policy)
    found = cgroups.hierarchy()
    group = cgroups.create(found, policy.limits)
    if group is None and policy.require_cgroup:
        raise SandboxFault(f"memory and pids cgroups are mandatory for root, and there are none: {found.why}")
    who = take([m.host for m in (*policy.mounts, *extra) if m.kind in ("ro", "device")], gpu=policy.gpu, bwrap=bwrap)
    enforced = enforcement(policy.limits, group) | {"user": who.told()}
    try:
        with _descriptors() as keep:
            output, output_inside = keep.pipe(passed=False)  # passed as 1 and 2
            status, status_inside = keep.pipe(passed=True)
            files = {m.inside: keep.text(m.host) for m in policy.mounts if m.kind == "text"}
            arguments = command(policy, argv, extra, files=files, seccomp=keep.own(compile_filter(policy)), status=status_inside, group=group, who=who)
            process = subprocess.Popen(
                arguments, stdin=channel.fileno(), stdout=output_inside, stderr=output_inside, pass_fds=keep.passed(),
                env=host.outer_environment(), cwd="/", start_new_session=True,
            )  # fmt: skip
            keep.release(output, status)
    except OSError as error:
        _discard(group, who)
        raise SandboxFault(f"cannot start the sandbox: {error}") from error
    except SandboxFault:
        _discard(group, who)
        raise
    return _meet(process, output, status, group, who, policy.limits, enforced)


def command(
    policy: Policy, argv: Sequence[str], extra: Sequence[Mount], *, files: Mapping[str, int], seccomp: int, status: int,
    group: cgroups.Group | None, who: Identity,
) -> list[str]:  # fmt: skip
    """The whole command line, in the order in which the walls go up: cgroups, namespaces, identity, files, filter, program."""
    arguments = ["/bin/sh", "-c", SHIM, "sandbox", *(group.entrances() if group else ()), "--", *who.words, bwrap_path(policy)]
    arguments += ["--die-with-parent", "--new-session"]
    arguments += ["--unshare-all", "--unshare-user", "--disable-userns", "--hostname", "sandbox"]
    arguments += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"]
    arguments += ["--clearenv"]
    for name, value in environment(policy, group).items():
        arguments += ["--setenv", name, value]
    arguments += _tree(policy, extra, files)
    arguments += ["--chdir", "/tmp", "--json-status-fd", str(status), "--seccomp", str(seccomp)]
    return [*arguments, "--", *argv]


def environment(policy: Policy, group: cgroups.Group | None) -> dict[str, str]:
    """Everything that the program finds in its environment."""
    limits = rlimits(policy.limits, memory=group is None)
    return {**policy.environment, "CRUSADES_CHANNEL_FD": str(CHANNEL_FD), "CRUSADES_LIMITS": json.dumps(limits)}


def rlimits(limits: Limits, *, memory: bool) -> dict[str, int]:
    """Resource (without RLIMIT_) → limit, set inside before anything hostile is loaded. `memory`: no cgroup bounds it."""
    values = {
        "CORE": 0,  # a core file would hold whatever was in shared buffers
        "NOFILE": limits.max_open_files,
        "FSIZE": limits.file_bytes,
        "CPU": limits.cpu_seconds,
        "MEMLOCK": limits.locked_bytes,
        "NPROC": limits.max_processes,  # counted per user namespace; does not bind uid 0 of the host
        "MSGQUEUE": 0,
        "SIGPENDING": 1024,  # queued signals and timers: counted per user of the host too, who is the validator's unless root starts us
    }
    return values | ({"DATA": limits.memory_bytes} if memory else {})


def enforcement(limits: Limits, group: cgroups.Group | None) -> dict[str, str]:
    """What bounds what: shown by `doctor`, and part of every report."""
    size = f"{limits.memory_bytes / (1 << 30):.2f} GiB"  # the settings' own, or what the machine has room for
    report = {"memory": "rlimit, per process", "processes": "rlimit", "open files": "rlimit", "file size": "rlimit", "cpu time": "rlimit", "tmp": "tmpfs size"}
    report |= group.enforces() if group else {}
    return report | {"memory": f"{size}, {report['memory']}"}


def bwrap_path(policy: Policy) -> str:
    """Where bubblewrap is. Raises SandboxFault with the command that installs it."""
    wanted = os.environ.get("CRUSADES_BWRAP") or policy.bwrap
    found = shutil.which(wanted)
    if found is None:
        raise SandboxFault(f"bubblewrap is not installed (looked for {wanted!r}): apt install bubblewrap")
    return found


def _tree(policy: Policy, extra: Sequence[Mount], files: Mapping[str, int]) -> list[str]:
    """bubblewrap's file operations, in order. Whatever need not be written is read-only at the end, `/`, /dev and /proc included."""
    arguments = ["--size", str(1 << 20), "--tmpfs", "/dev", "--proc", "/proc", *(_steering() if policy.gpu else ())]
    for mount in (*policy.mounts, *extra):
        arguments += _operation(mount, files)
    # cuInit writes below its own /proc/self (error 304 otherwise): with a card only what steers the machine is read-only there
    return [*arguments, *(() if policy.gpu else ("--remount-ro", "/proc")), "--remount-ro", "/dev", "--remount-ro", "/"]


def _steering() -> list[str]:
    present = [path for path in PROC_STEERING if os.path.exists(path)]
    return [word for path in present for word in ("--ro-bind", path, path)]


def _operation(mount: Mount, files: Mapping[str, int]) -> list[str]:
    match mount.kind:
        case "link":
            return ["--symlink", mount.host, mount.inside]
        case "text":
            return ["--perms", "0444", "--file", str(files[mount.inside]), mount.inside]
        case "tmpfs":
            return ["--perms", "1777", "--size", str(mount.size), "--tmpfs", mount.inside]
        case "device":
            return ["--dev-bind-try" if mount.optional else "--dev-bind", mount.host, mount.inside]
        case "hide":
            if os.path.isdir(mount.inside):
                return ["--size", "4096", "--tmpfs", mount.inside, "--remount-ro", mount.inside]
            return ["--ro-bind", "/dev/null", mount.inside] if os.path.exists(mount.inside) else []
        case "ro":
            return ["--ro-bind-try" if mount.optional else "--ro-bind", mount.host, mount.inside]


class _Descriptors:
    """Descriptors that exist for the length of one spawn."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._passed: list[int] = []
        self._mine: dict[int, contextlib.ExitStack] = {}

    def own(self, descriptor: int, *, passed: bool = True) -> int:
        """Renumber to where the shell does not interfere, pass to the child under that number, close when done."""
        try:
            moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
        finally:
            os.close(descriptor)
        self._stack.callback(os.close, moved)
        if passed:
            self._passed.append(moved)
        return moved

    def pipe(self, *, passed: bool) -> tuple[int, int]:
        """Our end, which `release` lets live, and the child's."""
        ours, theirs = os.pipe()
        guard = contextlib.ExitStack()
        guard.callback(os.close, ours)
        self._mine[ours] = self._stack.enter_context(guard)
        os.set_blocking(ours, False)
        return ours, self.own(theirs, passed=passed)

    def text(self, content: str) -> int:
        """A file with `content`, for bubblewrap to copy."""
        descriptor = os.memfd_create("text", os.MFD_CLOEXEC)
        os.write(descriptor, content.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return self.own(descriptor)

    def passed(self) -> tuple[int, ...]:
        return tuple(self._passed)

    def release(self, *ours: int) -> None:
        """These outlive the spawn."""
        for descriptor in ours:
            self._mine[descriptor].pop_all()


@contextlib.contextmanager
def _descriptors() -> Iterator[_Descriptors]:
    with contextlib.ExitStack() as stack:
        yield _Descriptors(stack)


def _discard(group: cgroups.Group | None, who: Identity) -> None:
    who.release()
    if group is not None:
        group.remove()


def _meet(
    process: subprocess.Popen[bytes], output: int, status: int, group: cgroups.Group | None, who: Identity, limits: Limits, enforced: dict[str, str]
) -> Box:
    """Wait until bubblewrap has named the namespace's init, and hold that by a pidfd: from here on nothing can get lost."""
    first, rest = _first_line(status)
    try:
        pid = int(json.loads(first)["child-pid"])
        init = _hold(pid, process)
    except (ValueError, KeyError):
        process.kill()
        process.wait()
        said = read_now(output).decode("utf-8", "replace").strip()
        os.close(output)
        os.close(status)
        _discard(group, who)
        raise SandboxFault(f"the sandbox did not start: {said or 'bubblewrap said nothing'}; `crusades doctor` names what is missing") from None
    return Box(process, init, pid, output, status, group, who, limits, enforced, reported=rest)


def _hold(init: int, process: subprocess.Popen[bytes]) -> int:
    """A pidfd of the namespace's init. When all is over already, of bubblewrap itself, whom nobody but us can reap: it tells the same end."""
    try:
        return os.pidfd_open(init)
    except ProcessLookupError:
        return os.pidfd_open(process.pid)


def _first_line(descriptor: int) -> tuple[bytes, bytes]:
    """bubblewrap's first report, or what came of it until the end or the deadline, and what came after it: a program may have
    ended before we looked. A full line is far below a pipe's atomic size."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    end = time.monotonic() + START_PATIENCE
    got = b""
    while b"\n" not in got and (left := end - time.monotonic()) > 0:
        if poller.poll(left * 1000):
            chunk = read_now(descriptor)
            if not chunk:
                break
            got += chunk
    first, _, rest = got.partition(b"\n")
    return first, rest
