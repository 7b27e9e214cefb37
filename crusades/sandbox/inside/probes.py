"""Inside: run into every wall and say what happened. Run as `python -I probes.py`; answers with one JSON list on the channel.

Each probe tries something that hostile code would try, in a form that has no effect should it get through: a bad
descriptor, a null pointer, a descriptor that is closed at once. Calls that the filter answers with death are made in a
child. Nothing here knows how the walls are made.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

CHANNEL = 3
_libc = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {
    "x86_64": {"ptrace": 101, "process_vm_readv": 310, "bpf": 321, "keyctl": 250, "mount": 165, "unshare": 272, "setns": 308, "userfaultfd": 323,
               "perf_event_open": 298, "io_uring_setup": 425, "open_by_handle_at": 304, "init_module": 175, "clone3": 435, "seccomp": 317, "clone": 56},
    "aarch64": {"ptrace": 117, "process_vm_readv": 270, "bpf": 280, "keyctl": 219, "mount": 40, "unshare": 97, "setns": 268, "userfaultfd": 282,
                "perf_event_open": 241, "io_uring_setup": 425, "open_by_handle_at": 265, "init_module": 105, "clone3": 435, "seccomp": 277, "clone": 220},
}  # fmt: skip
SYSCALLS: dict[str, int] = _NUMBERS.get(platform.machine(), {})
_CLONE_NEWUSER = 0x10000000
_HOST_FILES = ("/etc/shadow", "/etc/ssh", "/etc/ssl/private", "/root/.ssh", "/root/.bittensor", "/home", "/var/lib", "/var/run", "/run", "/proc/1/root/etc/shadow",
               "/proc/self/root/etc/shadow", "/boot", "/mnt", "/srv", "/etc/hostname", "/etc/resolv.conf", "/proc/kcore", "/proc/keys")  # fmt: skip
_EXPECTED_DEVICES = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm"}


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


def _raw(name: str, *arguments: object) -> str:
    """Make a raw call in a child; how it ended: the name of an errno, a signal, or "passed"."""
    child = os.fork()
    if child == 0:
        result = _libc.syscall(SYSCALLS[name], *arguments)
        os._exit(0 if result >= 0 else min(ctypes.get_errno(), 255))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    code = os.WEXITSTATUS(status)
    return errno.errorcode.get(code, str(code)) if code else "passed"


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


def ipc_and_host_name() -> tuple[bool, str]:
    """The host's name is not ours to know (a sign that the UTS namespace is private)."""
    return os.uname().nodename == "sandbox", f"host name {os.uname().nodename!r}"


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
    """/tmp can be written and is a tmpfs with a size."""
    here = os.statvfs("/tmp")
    with open("/tmp/.probe", "wb") as file:
        file.write(b"x")
    os.unlink("/tmp/.probe")
    size = here.f_blocks * here.f_frsize
    return 0 < size < 1 << 40 and here.f_files < 1 << 40, f"/tmp holds {size >> 20} MiB"


def devices() -> tuple[bool, str]:
    """Only the agreed device nodes."""
    extra = {name for name in os.listdir("/dev") if name not in _EXPECTED_DEVICES}
    cards = {name for name in extra if name in ("nvidiactl", "nvidia-uvm") or (name.startswith("nvidia") and name[6:].isdigit())}
    one_card = sum(name[6:].isdigit() for name in cards) <= 1
    made, found = _refused(lambda: os.mknod("/tmp/.probe-node", 0o20600, os.makedev(1, 1)))
    return extra == cards and one_card and made, f"beside the usual: {sorted(extra) or 'none'}; mknod: {found}"


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


def nested_namespaces() -> tuple[bool, str]:
    """No user namespace inside this one: it would give capabilities back."""
    got = {
        "unshare": _raw("unshare", _CLONE_NEWUSER),
        "clone": _raw("clone", _CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0),
        "clone3": _raw("clone3", 0, 0),
        "setns": _raw("setns", -1, 0),
    }
    with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
        allowed = int(file.read())
    return "passed" not in got.values() and got["clone3"] == "ENOSYS", f"{got}, the namespace allows {allowed}"


def hostile_calls() -> tuple[bool, str]:
    """Calls that no honest program makes: death, or EPERM; never an answer of the kernel's own (EFAULT, EBADF, EINVAL …)."""
    got = {
        "ptrace": _raw("ptrace", 17, 0, 0, 0),
        "process_vm_readv": _raw("process_vm_readv", 1, 0, 0, 0, 0, 0),
        "bpf": _raw("bpf", 0, 0, 0),
        "keyctl": _raw("keyctl", 0, -3, 0),
        "mount": _raw("mount", 0, 0, 0, 0, 0),
        "userfaultfd": _raw("userfaultfd", -1),
        "init_module": _raw("init_module", 0, 0, 0),
        "perf_event_open": _raw("perf_event_open", 0, 0, -1, -1, 0),
        "io_uring_setup": _raw("io_uring_setup", 1, 0),
        "open_by_handle_at": _raw("open_by_handle_at", -1, 0, 0),
        "seccomp": _raw("seccomp", 1, 0, 0),
    }
    through = {name: how for name, how in got.items() if how not in ("SIGSYS", "EPERM")}
    return not through, f"reached the kernel: {through}" if through else ", ".join(f"{name} {how}" for name, how in got.items())


def landlock() -> tuple[bool, str]:
    """The second opinion is there (advisory: kernels before 5.13 lack it)."""
    import limits  # a neighbour in this folder, found when run as a script

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
    "uts namespace": ipc_and_host_name,
    "capabilities": capabilities,
    "session": session,
    "host files": host_files,
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
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    with socket.socket(fileno=CHANNEL) as channel:
        channel.sendall(json.dumps([result._asdict() for result in run()]).encode() + b"\n")
