"""Inside: run into every wall and say what happened. Run as `python -I probes.py EXPECTED`; answers with one JSON list on the channel.

EXPECTED is a JSON object of what only the host knows: `namespaces` (name → the host's own), `sizes` (scratch folder → bytes),
`card` (its nodes). What it does not name is held to be down.

Each probe tries something that hostile code would try, in a form that has no effect should it get through: a bad
descriptor, a null pointer, a descriptor that is closed at once. Calls that the filter answers with death are made in a
child. Nothing here knows how the walls are made.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import resource
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import limits  # neighbours in this folder, which an isolated interpreter does not look into
from probes_calls import hostile_calls, nested_namespaces

CHANNEL = 3
_HOST_FILES = ("/etc/shadow", "/etc/ssh", "/etc/ssl/private", "/root/.ssh", "/root/.bittensor", "/home", "/var/lib", "/var/run", "/run", "/proc/1/root/etc/shadow",
               "/proc/self/root/etc/shadow", "/boot", "/mnt", "/srv", "/etc/hostname", "/etc/resolv.conf", "/proc/kcore", "/proc/keys")  # fmt: skip
_OWN_PROCESSES = re.compile(r"/proc/(\d+|self|thread-self|sys/net)$")
"""Ours to read: processes of this sandbox, and settings of its own network namespace."""
_OF_NO_USE = ("crash_notes", "crash_notes_size")
"""An address per core of where a crashed kernel would keep its registers."""
_EXPECTED_DEVICES = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm"}


expected: dict[str, Any] = {}
"""What the host told us to find."""


class Result(NamedTuple):
    """What one probe found."""

    wall: str
    held: bool
    found: str


def _refused(call: Callable[[], object]) -> tuple[bool, str]:
    """Whether a call ends in an OSError, and which."""
    try:
        value = call()
    except OSError as error:
        return True, errno.errorcode.get(error.errno or 0, str(error))
    return False, f"succeeded: {value!r}"[:200]


def _all_refused(calls: dict[str, Callable[[], object]]) -> tuple[bool, str]:
    got = {name: _refused(call) for name, call in calls.items()}
    through = [f"{name} {found}" for name, (held, found) in got.items() if not held]
    return not through, "; ".join(through) or ", ".join(sorted({found for _, found in got.values()}))


def identity() -> tuple[bool, str]:
    """uid and gid are nobody's, there are no further groups."""
    ids = (*os.getresuid(), *os.getresgid())
    return set(ids) == {65534} and set(os.getgroups()) <= {65534}, f"uids and gids {sorted(set(ids))}"


def user_namespace() -> tuple[bool, str]:
    """A user namespace of our own with exactly one uid in it."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        rows = [line.split() for line in lines]
    return len(rows) == 1 and rows[0][0] == "65534" and rows[0][2] == "1", f"map {rows}"


def pid_namespace() -> tuple[bool, str]:
    """Only processes of this sandbox are visible."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return len(pids) <= 5 and os.getpid() < 50, f"{len(pids)} processes visible, we are {os.getpid()}"


def network() -> tuple[bool, str]:
    """No interface but a loopback, no route, and no socket to be had."""
    with open("/proc/self/net/dev", encoding="ascii") as lines:
        interfaces = [line.split(":")[0].strip() for line in lines if ":" in line]
    families = (("inet", socket.AF_INET), ("inet6", socket.AF_INET6), ("unix", socket.AF_UNIX), ("netlink", socket.AF_NETLINK), ("packet", socket.AF_PACKET), ("vsock", 40))
    held, found = _all_refused({name: functools.partial(_make_socket, family) for name, family in families})
    return held and interfaces == ["lo"], f"interfaces {interfaces}; sockets: {found}"


def _make_socket(family: int) -> None:
    socket.socket(family, socket.SOCK_STREAM).close()


def host_name() -> tuple[bool, str]:
    """The host's name is not ours to know (a sign that the UTS namespace is private)."""
    return os.uname().nodename == "sandbox", f"host name {os.uname().nodename!r}"


def ipc_namespace() -> tuple[bool, str]:
    """Shared memory and message queues of the host are not in sight."""
    return _own_namespace("ipc")


def cgroup_namespace() -> tuple[bool, str]:
    """The host's tree of control groups is not in sight."""
    return _own_namespace("cgroup")


def _own_namespace(kind: str) -> tuple[bool, str]:
    ours, theirs = os.readlink(f"/proc/self/ns/{kind}"), expected.get("namespaces", {}).get(kind)
    return theirs is not None and ours != theirs, f"{ours}; the host's is {theirs}"


def capabilities() -> tuple[bool, str]:
    """None in any set, and none to be gained by executing anything."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    return not any(sets.values()) and status["NoNewPrivs"] == "1", f"{sets}, no_new_privs {status['NoNewPrivs']}"


def session() -> tuple[bool, str]:
    """A session of our own, and no terminal to type into: TIOCSTI would put words into the operator's shell."""
    held, found = _refused(lambda: os.open("/dev/tty", os.O_RDWR))
    own = os.getsid(0) > 0  # 0: its leader is outside of this PID namespace
    return held and own, f"{'a session of our own' if own else 'the session of somebody outside'}; terminal: {found}"


def host_files() -> tuple[bool, str]:
    """Files of the host, root's among them, are not there or are hidden."""
    reached = [path for path in _HOST_FILES if _has_content(path)]
    return not reached, f"reached {reached}" if reached else f"{len(_HOST_FILES)} places tried, none reached"


def _has_content(path: str) -> bool:
    try:
        if os.path.isdir(path):
            return any(_has_content(f"{path}/{name}") or os.path.isfile(f"{path}/{name}") for name in os.listdir(path))
        with open(path, "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def roots_files() -> tuple[bool, str]:
    """What the host's root keeps to itself in /sys and /proc is closed. Opened only, never read: reading some of it changes the machine."""
    tried, reached = 0, []
    for top in ("/sys", "/proc"):
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if not _OWN_PROCESSES.fullmatch(f"{folder}/{name}")]
            for path in (f"{folder}/{name}" for name in files if name not in _OF_NO_USE):
                if _owner_reads_alone(path):
                    tried += 1
                    reached += [path] if not _refused(functools.partial(_open_and_close, path))[0] else []
    return not reached, f"reached {reached[:5]}, {len(reached)} in all" if reached else f"{tried} tried, none reached"


def _owner_reads_alone(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o400) and not mode & 0o004


def _open_and_close(path: str, how: int = os.O_RDONLY) -> None:
    os.close(os.open(path, how | os.O_NONBLOCK))


def init_process() -> tuple[bool, str]:
    """bubblewrap's own process, which reports how the program ended, cannot be written."""
    return _refused(lambda: _open_and_close("/proc/1/mem", os.O_RDWR))


def read_only() -> tuple[bool, str]:
    """Nothing can be changed but the scratch folders."""
    places: tuple[str, ...] = ("/", "/dev", "/etc", "/usr/lib", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq", "/inside/guard", sys.prefix,
              sys.base_prefix, "/sys/devices/system/cpu")  # fmt: skip
    if not os.path.exists("/dev/nvidiactl"):  # cuInit must write below /proc/self; it reaches this process alone
        places += ("/proc/self/oom_score_adj",)

    def attempt(place: str) -> None:
        if os.path.isdir(place):
            os.close(os.open(f"{place}/.probe", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            os.unlink(f"{place}/.probe")
        else:
            os.close(os.open(place, os.O_WRONLY))

    return _all_refused({place: functools.partial(attempt, place) for place in places})


def scratch() -> tuple[bool, str]:
    """/tmp and /dev/shm can be written, and hold as much as they should."""
    found = {}
    for folder in ("/tmp", "/dev/shm"):
        _open_and_close(f"{folder}/.probe", os.O_WRONLY | os.O_CREAT)
        os.unlink(f"{folder}/.probe")
        here = os.statvfs(folder)
        found[folder] = here.f_blocks * here.f_frsize
    wanted = expected.get("sizes", {})
    held = all(0 <= found[folder] - wanted.get(folder, -1) < resource.getpagesize() for folder in found)
    return held, ", ".join(f"{folder} holds {size >> 20} MiB" for folder, size in found.items())


def devices() -> tuple[bool, str]:
    """Only the agreed device nodes: of cards, the slot's own."""
    extra = {name for name in os.listdir("/dev") if name not in _EXPECTED_DEVICES}
    made, found = _refused(lambda: os.mknod("/tmp/.probe-node", 0o20600, os.makedev(1, 1)))
    return extra == set(expected.get("card", ())) and made, f"beside the usual: {sorted(extra) or 'none'}; mknod: {found}"


def environment() -> tuple[bool, str]:
    """Nothing of the daemon's environment came along."""
    words = ("_TOKEN", "SECRET", "PASSWORD", "_KEY", "SSH_", "WALLET", "CREDENTIALS", "BT_", "SUDO_", "CRUSADES_ARGS")
    suspicious = [name for name in os.environ if any(word in name.upper() for word in words)]
    return not suspicious and os.environ.get("HOME") == "/tmp", f"{len(os.environ)} variables; suspicious: {suspicious or 'none'}"


def descriptors() -> tuple[bool, str]:
    """0, 1, 2 and the channel."""
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    numbers = {int(name) for name in os.listdir(listing)}
    os.close(listing)
    # The listing shows itself, and the copy of it that listdir reads from.
    extra = sorted(number for number in numbers if number > CHANNEL and _is_open(number))
    return not extra, f"open: {sorted(numbers - {listing})}" if not extra else f"unexpected: {extra}"


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def landlock() -> tuple[bool, str]:
    """The second opinion is there (advisory: kernels before 5.13 lack it)."""
    answer = limits.apply().get("landlock", "")
    return answer.startswith("ABI"), answer


def compiler() -> tuple[bool, str]:
    """torch.compile and Triton find a compiler that works."""
    try:
        done = subprocess.run(["g++", "-x", "c++", "-", "-shared", "-fPIC", "-o", "/tmp/probe.so"], input=b"#include <cmath>\nint f() { return 0; }\n", capture_output=True,
                              timeout=60, check=False)  # fmt: skip
        hashed = subprocess.run(["openssl", "sha512"], input=b"", capture_output=True, timeout=60, check=False)
    except OSError as error:
        return False, f"{error.filename or 'g++'}: {error.strerror}"
    failed = done if done.returncode else hashed
    return failed.returncode == 0, failed.stderr.decode("utf-8", "replace")[-300:] or "g++ and openssl work"


PROBES: dict[str, Callable[[], tuple[bool, str]]] = {
    "identity": identity,
    "user namespace": user_namespace,
    "pid namespace": pid_namespace,
    "network": network,
    "uts namespace": host_name,
    "ipc namespace": ipc_namespace,
    "cgroup namespace": cgroup_namespace,
    "capabilities": capabilities,
    "session": session,
    "host files": host_files,
    "root's files": roots_files,
    "init": init_process,
    "read-only tree": read_only,
    "scratch": scratch,
    "devices": devices,
    "environment": environment,
    "descriptors": descriptors,
    "nested namespaces": nested_namespaces,
    "system calls": hostile_calls,
    "landlock": landlock,
    "compiler": compiler,
}
"""In order; `landlock` is late because it applies the inside limits."""


def run() -> list[Result]:
    """Every probe; one that raises has found a wall that does not stand as expected."""
    results = []
    for wall, probe in PROBES.items():
        try:
            held, found = probe()
        except Exception as error:
            held, found = False, f"{type(error).__name__}: {error}"
        results.append(Result(wall, held, found))
    return results


if __name__ == "__main__":
    expected.update(json.loads(sys.argv[1]))
    with socket.socket(fileno=CHANNEL) as channel:
        channel.sendall(json.dumps([result._asdict() for result in run()]).encode() + b"\n")
