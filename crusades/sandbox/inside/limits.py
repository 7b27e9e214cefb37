"""Inside, first thing: lower this process's limits, ask Landlock for a second wall, and look whether the first ones stand.

Only what a process can do to itself. Everything here can be done before hostile code is loaded and not be undone after:
hard limits cannot be raised without capabilities, Landlock rules cannot be dropped.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct

LIMITS_VARIABLE = "CRUSADES_LIMITS"
"""JSON object, name of a resource without RLIMIT_ → soft and hard limit."""
CPU_GRACE = 5
"""Seconds between the signal that names the CPU limit and the one that cannot be caught."""
WRITABLE = ("/tmp", "/dev/shm")
_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""Landlock's calls: the same numbers on every architecture."""
_PR_SET_NO_NEW_PRIVS = 38

# Landlock's rights (linux/landlock.h), by the ABI that brought them.
_WRITE_FILE, _EXECUTE = 1 << 1, 1 << 0
_CHANGES_ABI1 = sum(1 << bit for bit in range(4, 13))  # remove_dir, remove_file, make_{char,dir,reg,sock,fifo,block,sym}
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_NET = 0b11  # bind and connect TCP
_SCOPED = 0b11  # abstract sockets, signals


class SandboxIncomplete(Exception):
    """A wall that the launcher promised does not stand: nothing hostile may be loaded here."""


def apply() -> dict[str, str]:
    """Lower the limits, restrict with Landlock, check no_new_privs and capabilities. Returns what each wall is made of.

    Raises SandboxIncomplete when a wall that must stand does not. Outside a sandbox (a miner's `--unsafe-no-sandbox`) it
    changes nothing and says so: the launcher always sets the variable, and hostile code comes later.
    """
    if LIMITS_VARIABLE not in os.environ:
        return {"sandbox": "none"}
    report = {}
    for name, value in json.loads(os.environ[LIMITS_VARIABLE]).items():
        report[f"rlimit {name.lower()}"] = _lower(name, value)
    status = _status()
    for wall, wanted in (("NoNewPrivs", "1"), ("CapEff", "0000000000000000"), ("CapBnd", "0000000000000000"), ("Seccomp", "2")):
        if status.get(wall) != wanted:
            raise SandboxIncomplete(f"{wall} is {status.get(wall)!r} inside, not {wanted!r}")
    report |= {"no_new_privs": "yes", "capabilities": "none", "seccomp": f"{status.get('Seccomp_filters', '1')} filter"}
    report["landlock"] = _landlock()
    return report


def _lower(name: str, value: int) -> str:
    kind = getattr(resource, f"RLIMIT_{name}")
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    # At the hard limit of CPU time comes SIGKILL, which says nothing; SIGXCPU must come before.
    above = value + CPU_GRACE if name == "CPU" and hard == resource.RLIM_INFINITY else value
    resource.setrlimit(kind, (value, above))
    return str(value)


def _status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8") as lines:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _landlock() -> str:
    """Refuse every change to files outside the scratch folders, TCP, and signals and abstract sockets beyond this process's family."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return f"not in this kernel ({os.strerror(ctypes.get_errno())})"
    files = _WRITE_FILE | _CHANGES_ABI1 | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    fields = struct.pack("QQQ", files, _NET if abi >= 4 else 0, _SCOPED if abi >= 6 else 0)
    fields = fields[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = libc.syscall(_CREATE, fields, ctypes.c_size_t(len(fields)), 0)
    if ruleset < 0:
        return f"refused ({os.strerror(ctypes.get_errno())})"
    for path in WRITABLE:
        _allow(libc, ruleset, path, files)
    rewrite = _WRITE_FILE | (_TRUNCATE if abi >= 3 else 0)  # fopen(…, "w") asks for both
    if os.path.exists("/dev/nvidiactl"):  # cuInit rewrites a file below /proc/self; the mounts keep the rest of /proc read-only
        _allow(libc, ruleset, "/proc", rewrite)
    _allow(libc, ruleset, "/dev", rewrite)  # null, and the card's nodes
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    failed = libc.syscall(_RESTRICT, ruleset, 0)
    os.close(ruleset)
    return f"refused ({os.strerror(ctypes.get_errno())})" if failed else f"ABI {abi}"


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    libc.syscall(_ADD, ruleset, 1, struct.pack("=Qi", rights, folder), 0)
    os.close(folder)
