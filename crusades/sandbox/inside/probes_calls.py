"""The probes of the system-call filter: raw calls, each in a child, since the answer may be death. See `probes`."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {
    "x86_64": {"ptrace": 101, "process_vm_readv": 310, "bpf": 321, "keyctl": 250, "mount": 165, "unshare": 272, "setns": 308, "userfaultfd": 323,
               "perf_event_open": 298, "io_uring_setup": 425, "open_by_handle_at": 304, "init_module": 175, "clone3": 435, "seccomp": 317, "clone": 56},
    "aarch64": {"ptrace": 117, "process_vm_readv": 270, "bpf": 280, "keyctl": 219, "mount": 40, "unshare": 97, "setns": 268, "userfaultfd": 282,
                "perf_event_open": 241, "io_uring_setup": 425, "open_by_handle_at": 265, "init_module": 105, "clone3": 435, "seccomp": 277, "clone": 220},
}  # fmt: skip
SYSCALLS: dict[str, int] = _NUMBERS.get(platform.machine(), {})
_CLONE_NEWUSER = 0x10000000


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
