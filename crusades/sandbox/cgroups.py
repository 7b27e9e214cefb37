"""Memory, process and CPU limits by control group: version 2 where a subtree is delegated to us, version 1, or none.

A sandbox gets a group of its own per hierarchy, below the group that this process is in. The monitor enters it before it
starts anything (see `launch`). A crash needs no cleaning by hand: the next process sweeps up.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Literal

import msgspec

from crusades.errors import SandboxFault
from crusades.sandbox.policy import Limits

PREFIX = "crusades-box-"
NEEDED = ("memory", "pids")
LEAF = "daemon"
"""The group that this process moves into, below a group that is delegated to it."""
AT_LIMIT = 0.98
"""Share of its limit from which on a group counts as having reached it."""
_CPU_SHARES_OF_100 = 1024
_serial = itertools.count()


class Hierarchy(msgspec.Struct, frozen=True):
    """Where groups can be made, per controller. Without `memory` and `pids` it is no use and `version` is "none"."""

    version: Literal["v2", "v1", "none"]
    bases: dict[str, Path] = {}
    """Controller → folder in which we may make groups."""
    why: str = ""
    """For version "none": what is missing, in words."""

    @property
    def complete(self) -> bool:
        """Memory and processes can both be bounded."""
        return all(name in self.bases for name in NEEDED)


class Group(msgspec.Struct, frozen=True):
    """One sandbox's groups: one folder on version 2, one per controller on version 1."""

    version: Literal["v2", "v1"]
    folders: dict[str, Path]

    def entrances(self) -> list[str]:
        """Files into which a process writes 0 to enter."""
        return [str(path / "cgroup.procs") for path in dict.fromkeys(self.folders.values())]

    def enforces(self) -> dict[str, str]:
        """What is bounded here, for the report."""
        names = {"memory": "memory", "pids": "processes", "cpu": "cpu weight"}
        return {names[controller]: f"cgroup {self.version}" for controller in self.folders}

    def oom_kills(self) -> int:
        """How many processes the kernel has killed in this group for want of memory."""
        folder = self.folders.get("memory")
        if folder is None:
            return 0
        text = _read(folder / ("memory.events" if self.version == "v2" else "memory.oom_control"))
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def at_its_limit(self, memory_bytes: int) -> bool:
        """Whether its own limit of `memory_bytes` was ever in the way: without that the kernel has killed for somebody else's.

        By the kernel's counters, which version 1 does not always keep, or by the most that was used.
        """
        folder = self.folders.get("memory")
        if folder is None:
            return False
        if self.version == "v2":
            counts = [line.split()[1] for line in _read(folder / "memory.events").splitlines() if line.startswith("oom ")]
        else:
            counts = [_read(folder / name).strip() for name in ("memory.failcnt", "memory.memsw.failcnt")]
        return any(count.isdigit() and int(count) for count in counts) or self.peak_bytes() > AT_LIMIT * memory_bytes

    def peak_bytes(self) -> int:
        """Most memory ever used, 0 where the kernel does not say."""
        folder = self.folders.get("memory")
        text = "" if folder is None else _read(folder / ("memory.peak" if self.version == "v2" else "memory.max_usage_in_bytes"))
        return int(text) if text.strip().isdigit() else 0

    def members(self) -> list[int]:
        """Host pids that are still inside."""
        return sorted({int(pid) for entrance in self.entrances() for pid in _read(Path(entrance)).split()})

    def remove(self) -> bool:
        """Delete the groups. False while something is still inside. Idempotent."""
        gone = True
        for folder in dict.fromkeys(self.folders.values()):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone


def detect(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Hierarchy:
    """Find out, by making and removing a group, where this process may bound a child. Never raises."""
    own = _membership(membership)
    version1 = _detect_v1(root, own)
    if version1.complete:
        return version1
    for base in (root, root / "unified"):
        if "" in own and (base / "cgroup.controllers").exists():
            version2 = _detect_v2(base, own[""])
            if version2.complete:
                return version2
            return Hierarchy("none", {}, version1.why or version2.why)
    return Hierarchy("none", {}, version1.why or "no cgroup file system is mounted at /sys/fs/cgroup")


@functools.cache
def hierarchy() -> Hierarchy:
    """`detect`, once per process; what a dead process of ours left there is swept up at the same time."""
    found = detect()
    sweep(found)
    return found


def create(found: Hierarchy, limits: Limits) -> Group | None:
    """A new group with `limits`, or None where there is no usable hierarchy. Raises SandboxFault when the kernel refuses a value."""
    if found.version == "none" or not found.complete:
        return None
    name = f"{PREFIX}{os.getpid()}-{next(_serial)}-{time.monotonic_ns() & 0xFFFFFF:x}"
    group = Group(found.version, {controller: base / name for controller, base in found.bases.items()})
    try:
        for folder in dict.fromkeys(group.folders.values()):
            folder.mkdir()
        (_limit_v2 if found.version == "v2" else _limit_v1)(group, limits)
    except OSError as error:
        group.remove()
        raise SandboxFault(f"cannot set up a cgroup: {error}") from error
    return group


def sweep(found: Hierarchy) -> int:
    """Kill and remove what processes of ours that no longer live have left: a daemon that dies while bubblewrap is still setting
    a sandbox up is not noticed by it. Returns how many groups went."""
    removed = 0
    for base in dict.fromkeys(found.bases.values()):
        for folder in base.glob(f"{PREFIX}*"):
            owner = folder.name.removeprefix(PREFIX).split("-")[0]
            if not owner.isdigit() or Path("/proc", owner).exists():
                continue
            removed += _clear(folder)
    return removed


def _clear(folder: Path) -> bool:
    """Kill everyone in a group, again and again until it lets itself be removed, for a second at most."""
    for _ in range(100):
        for pid in _read(folder / "cgroup.procs").split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False


def _limit_v2(group: Group, limits: Limits) -> None:
    folder = group.folders["memory"]
    _write(folder / "memory.max", limits.memory_bytes)
    _write(folder / "pids.max", limits.max_processes)
    _write_if_there(folder / "memory.swap.max", 0)  # swap would let it exceed, and stall the host
    _write_if_there(folder / "memory.oom.group", 1)  # half a contestant is of no use
    _write_if_there(folder / "cpu.weight", min(10_000, max(1, limits.cpu_weight * _cores())))


def _limit_v1(group: Group, limits: Limits) -> None:
    _write(group.folders["memory"] / "memory.limit_in_bytes", limits.memory_bytes)
    _write_if_there(group.folders["memory"] / "memory.memsw.limit_in_bytes", limits.memory_bytes)
    _write(group.folders["pids"] / "pids.max", limits.max_processes)
    if "cpu" in group.folders:
        _write_if_there(group.folders["cpu"] / "cpu.shares", min(262_144, max(2, limits.cpu_weight * _cores() * _CPU_SHARES_OF_100 // 100)))


def _cores() -> int:
    """A group's weight is spread over the cores it runs on, so a weight per core has to be multiplied."""
    return len(os.sched_getaffinity(0))


def _detect_v1(root: Path, own: dict[str, str]) -> Hierarchy:
    bases: dict[str, Path] = {}
    why = ""
    for controller in (*NEEDED, "cpu"):
        path = next((p for name, p in own.items() if controller in name.split(",")), None)
        mount = next((m for m in (root / controller, root / f"{controller},cpuacct") if m.is_dir()), None)
        if path is None or mount is None:
            continue
        base = mount / path.lstrip("/")
        base = base if base.is_dir() else mount  # a container may see its own group as the root
        if problem := _cannot_make(base):
            why = why or problem
        else:
            bases[controller] = base
    return Hierarchy("v1", bases, why)


def _detect_v2(root: Path, path: str) -> Hierarchy:
    """Our own group; its parent when we sit in the leaf that `enter_leaf` made; or, for root on a machine that it rules, the top.

    A group that holds processes cannot hand controllers down; the machine's topmost group is exempt from that.
    """
    own = root / path.lstrip("/")
    own = own if own.is_dir() else root
    bases = [own, *([own.parent] if own.name == LEAF and own != root else []), root]
    why = ""
    for base in dict.fromkeys(bases):
        found = _hand_down(base)
        if isinstance(found, Hierarchy):
            return found
        why = why or found
    return Hierarchy("none", {}, why)


def _hand_down(base: Path) -> Hierarchy | str:
    """Enable the controllers for groups below `base`; or why that does not work."""
    enabled = set(_read(base / "cgroup.subtree_control").split())
    missing = [name for name in (*NEEDED, "cpu") if name in _read(base / "cgroup.controllers").split() and name not in enabled]
    try:
        if missing:
            _write(base / "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
    except OSError as error:
        if not set(NEEDED) <= enabled:
            return f"the controllers {', '.join(missing)} of {base} cannot be handed down: {error.strerror}"
        missing = []
    enabled |= set(missing)
    if not set(NEEDED) <= enabled:
        return f"{base} has no {' and '.join(name for name in NEEDED if name not in enabled)} controller"
    return _cannot_make(base) or Hierarchy("v2", {name: base for name in (*NEEDED, "cpu") if name in enabled})


def enter_leaf(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> bool:
    """Version 2 only: move this process into a leaf of its own group, so that the group may hand controllers down.

    A group with processes of its own cannot (the kernel's "no internal processes" rule). Done only when the group is a
    container's, or holds nobody but this process and its children (systemd `Delegate=yes`); a login session is left alone.
    Call it once, early. Returns whether version 2 groups can be made now.
    """
    own = _membership(membership)
    base = root / own.get("", "/").lstrip("/")
    if "" not in own or not (base / "cgroup.controllers").exists():
        return False
    contained = own[""] == "/" and (base / "cgroup.type").exists()  # only the machine's own top lacks that file
    pids = _read(base / "cgroup.procs").split()
    if base.name != LEAF and pids and (contained or all(_is_ours(int(pid)) for pid in pids)):
        with contextlib.suppress(OSError):
            (base / LEAF).mkdir(exist_ok=True)
            for pid in pids:
                _write(base / LEAF / "cgroup.procs", pid)
    hierarchy.cache_clear()
    return detect(root, membership).version == "v2"


def _is_ours(pid: int) -> bool:
    """This process or one below it."""
    for _ in range(64):
        if pid == os.getpid():
            return True
        stat = _read(Path(f"/proc/{pid}/stat"))
        pid = int(stat.rpartition(")")[2].split()[1]) if stat else 0
        if pid <= 1:
            return False
    return False


def _membership(path: Path) -> dict[str, str]:
    """Controllers (comma-separated; "" for version 2) → group, of this process."""
    rows = (line.split(":", 2) for line in _read(path).splitlines())
    return {row[1]: row[2] for row in rows if len(row) == 3}


def _cannot_make(base: Path) -> str:
    """Why no group can be made in `base`, or nothing."""
    probe = base / f"{PREFIX}probe-{os.getpid()}"
    try:
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        return f"no group can be made in {base}: {error.strerror}"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, value: int | str) -> None:
    path.write_text(str(value))


def _write_if_there(path: Path, value: int) -> None:
    """For values that some kernels lack or refuse: each only sharpens what another value already bounds."""
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_text(str(value))
