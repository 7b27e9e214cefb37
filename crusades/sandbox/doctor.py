"""Does this machine's sandbox hold? Run into every wall for real, and name the command that mends what does not stand.

`crusades doctor` prints everything; a validator asks `check_walls` and refuses to start while a mandatory wall is down.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import trio

from crusades import hparams
from crusades.errors import SandboxFault
from crusades.sandbox import cgroups, host
from crusades.sandbox.advice import advise, fix_of
from crusades.sandbox.box import ExitStatus
from crusades.sandbox.identity import Identity
from crusades.sandbox.launch import spawn
from crusades.sandbox.policy import Limits, Policy, contestant_policy

INSIDE = Path(__file__).parent / "inside"
GUARD = "/inside/guard"
OLDEST_KERNEL = (5, 4)
"""pidfd_open: we hold namespaces by it."""
OLDEST_BWRAP = (0, 8)
"""--disable-userns."""
PATIENCE = 120.0
"""Seconds for one sandbox full of probes; it takes about one."""
ADVISORY = {"landlock", "compiler"}
"""Probes whose failure leaves the other walls standing."""
MIB = 1 << 20


class Check(msgspec.Struct, frozen=True):
    """One wall, or one thing a wall needs."""

    name: str
    ok: bool
    message: str
    """What was found."""
    mandatory: bool = True
    """No submission may run while this is not ok."""
    fix: str = ""
    """The command that mends it; set whenever it is not ok."""

    @property
    def level(self) -> int:
        """0 good, 1 could be better, 2 must be mended."""
        return 0 if self.ok else 2 if self.mandatory else 1


def run_doctor(*, json: bool = False, gpu: int | None = None) -> int:
    """Check everything and print it. Returns the worst level: 0 good, 1 could be better, 2 must be mended."""
    checks = check_walls(gpu=gpu)
    worst = max(check.level for check in checks)
    print(as_json(checks) if json else as_text(checks))
    return worst


def check_walls(*, gpu: int | None = None, cpu: bool = False) -> list[Check]:
    """Every check, in the order in which they should be mended: of card /dev/nvidia`gpu`, of CPU slots with `cpu`, else of every card.

    Takes about two seconds; starts sandboxes. Not from within trio: use `examine`.
    """
    cgroups.enter_leaf()
    wanted = [] if cpu else [gpu] if gpu is not None else cards()
    return trio.run(_examine_all, tuple(wanted))


async def _examine_all(wanted: tuple[int, ...]) -> list[Check]:
    """The first card in full, or a CPU slot; of the others what differs by card."""
    checks = await examine(wanted[0] if wanted else None)
    for gpu in wanted[1:]:
        more = [*device_checks(gpu)]
        try:
            more += await _probe(contestant_policy(hparams.Sandbox(), gpu=gpu))
        except SandboxFault as error:
            more.append(Check("sandbox", False, str(error), fix=advise(str(error))))
        checks += [msgspec.structs.replace(check, name=f"{check.name} (card {gpu})") for check in more]
    return checks


async def examine(gpu: int | None = None) -> list[Check]:
    """`check_walls`, from within trio, with the walls of card /dev/nvidia`gpu` or of a CPU slot."""
    checks = [*host_checks(), *device_checks(gpu)]
    try:
        policy = contestant_policy(hparams.Sandbox(), gpu=gpu)
        checks += await _together(_probe, _memory, _processes, _cpu, _nested, policy=policy)
    except SandboxFault as error:
        checks.append(Check("sandbox", False, str(error), fix=advise(str(error))))
    return checks


def cards() -> list[int]:
    """Numbers of the cards whose nodes exist."""
    return sorted(int(match[1]) for path in Path("/dev").glob("nvidia*") if (match := re.fullmatch(r"nvidia(\d+)", path.name)))


def host_checks() -> Iterator[Check]:
    """What the walls are made of, by asking the host: cheap, and the reason for most failures of the probes below."""
    kernel = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    yield Check("kernel", kernel >= OLDEST_KERNEL, f"Linux {platform.release()}", fix=fix_of("kernel"))
    yield _bubblewrap()
    library = find_spec("pyseccomp") is not None and _library_found()
    yield Check("libseccomp", library, "found" if library else "pyseccomp or libseccomp2 is missing", fix=fix_of("libseccomp"))
    yield _cgroups()
    yield _memory_room()
    yield Check("not root", not host.is_root(), "running as root: a hole in our own programs is root's, and a slot with a card needs the same user" if host.is_root()
                else f"running as uid {os.geteuid()}", mandatory=False, fix=fix_of("not root"))  # fmt: skip
    venv = find_spec("ensurepip") is not None
    yield Check("python venv", venv, "ensurepip is there" if venv else "this Python cannot make virtual environments", mandatory=False, fix=fix_of("python venv"))
    missing = [tool for tool in ("g++", "as", "ld", "openssl") if shutil.which(tool, path=host.SEARCH) is None]
    yield Check("tools", not missing, f"missing: {', '.join(missing)}" if missing else "compiler and openssl found", mandatory=False, fix=fix_of("tools"))


def device_checks(gpu: int | None) -> Iterator[Check]:
    """The card's nodes, when there is a card or a driver."""
    driver = Path("/proc/driver/nvidia/version").exists()
    if gpu is None and not driver:
        return
    wanted = [f"/dev/nvidia{gpu or 0}", "/dev/nvidiactl", "/dev/nvidia-uvm"]
    absent = [path for path in wanted if not Path(path).exists()]
    yield Check("device nodes", not absent, f"missing: {', '.join(absent)}" if absent else ", ".join(wanted), fix=fix_of("device nodes"))
    closed = [path for path in wanted if Path(path).exists() and not os.access(path, os.R_OK | os.W_OK)]
    yield Check("device rights", not closed, f"not ours to open: {', '.join(closed)}" if closed else "may be opened", fix=fix_of("device rights"))


def _bubblewrap() -> Check:
    path = shutil.which(os.environ.get("CRUSADES_BWRAP", "bwrap"))
    if path is None:
        return Check("bubblewrap", False, "not installed", fix=fix_of("bubblewrap"))
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    return Check("bubblewrap", version >= OLDEST_BWRAP, f"{said} at {path}", fix=fix_of("bubblewrap version"))


def _library_found() -> bool:
    try:
        import pyseccomp  # type: ignore[import-untyped]  # noqa: F401 - it ships no stubs; importing it loads the library
    except (ImportError, RuntimeError):
        return False
    return True


def _cgroups() -> Check:
    found = cgroups.hierarchy()
    if found.complete:
        return Check("cgroups", True, f"{found.version}: {', '.join(found.bases)}", mandatory=host.is_root())
    return Check("cgroups", False, f"{found.why}; memory and processes are bounded by rlimits instead", mandatory=host.is_root(), fix=fix_of("cgroups"))


def _memory_room(wanted: int = hparams.Sandbox().memory_bytes) -> Check:
    room = host.memory_room()
    words = f"room for {room / (1 << 30):.1f} GiB beside ourselves; a submission is promised {wanted / (1 << 30):.1f} GiB"
    return Check("memory", room >= wanted, words if room >= wanted else f"{words}, and gets the smaller", mandatory=False, fix=fix_of("memory"))


async def _together(*questions: Callable[[Policy], Awaitable[list[Check]]], policy: Policy) -> list[Check]:
    """All at once: one of them uses up a second. What cannot even be asked is told once."""
    answers: dict[int, list[Check]] = {}

    async def ask(at: int, question: Callable[[Policy], Awaitable[list[Check]]]) -> None:
        try:
            answers[at] = await question(policy)
        except SandboxFault as error:
            answers[at] = [Check("sandbox", False, str(error), fix=advise(str(error)))]

    async with trio.open_nursery() as nursery:
        for at, question in enumerate(questions):
            nursery.start_soon(ask, at, question)
    return list(dict.fromkeys(check for at in sorted(answers) for check in answers[at]))


def _expected(policy: Policy) -> str:
    """What the probes cannot know."""
    return json.dumps({
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "cgroup")},
        "sizes": {mount.inside: mount.size for mount in policy.mounts if mount.kind == "tmpfs"},
        "card": [mount.inside.removeprefix("/dev/") for mount in policy.mounts if mount.inside.startswith("/dev/nvidia")],
    })  # fmt: skip


async def _probe(policy: Policy) -> list[Check]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            box = spawn(policy, [sys.executable, "-I", f"{GUARD}/probes.py", _expected(policy)], channel=theirs, mounts={INSIDE: GUARD})
        try:
            raw = b""
            with trio.move_on_after(PATIENCE):
                if (await box.wait()).code == 0:
                    raw = ours.recv(1 << 20)
        finally:
            await box.kill()
    if not raw.endswith(b"\n"):
        return [Check("probes", False, f"they did not report: {box.output_tail()[-500:] or 'no output'}", fix=fix_of("probes"))]
    advisory = ADVISORY | ({"root's files"} if host.is_root() and not box.who.separate and not policy.gpu else set())
    rows = [Check(row["wall"], row["held"], row["found"], row["wall"] not in advisory, "" if row["held"] else fix_of(row["wall"])) for row in json.loads(raw)]
    return [_host_user(box.who), *rows]


def _host_user(who: Identity) -> Check:
    shared = host.is_root() and not who.separate
    return Check("host user", not shared, who.told(), mandatory=False, fix=fix_of("host user"))


async def _run(policy: Policy, source: str) -> tuple[str, ExitStatus | None]:
    """What a program printed last, and how it ended, if it did."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guarded = f"import sys; sys.path.insert(0, {GUARD!r}); import limits; limits.apply()\n{source}"
        box = spawn(policy, [sys.executable, "-I", "-c", guarded], channel=theirs, mounts={INSIDE: GUARD})
        try:
            with trio.fail_after(PATIENCE):
                status = await box.wait()
        except trio.TooSlowError:
            return "no end", None
        finally:
            await box.kill()
    return box.output_tail().strip()[-300:], status


async def _memory(policy: Policy) -> list[Check]:
    small = _with_limits(policy, memory_bytes=96 * MIB)
    said, ended = await _run(small, "try:\n    b = bytearray(256 << 20); b[::4096] = b'x' * len(b[::4096]); print('took it')\nexcept MemoryError:\n    print('refused')")
    held = (ended is not None and ended.oom_killed) or said.endswith("refused")
    return [Check("memory limit", held, "256 MiB did not fit into a limit of 96 MiB" if held else f"256 MiB fit into a limit of 96 MiB: {said}", fix=fix_of("memory limit"))]


async def _processes(policy: Policy) -> list[Check]:
    small = _with_limits(policy, max_processes=24)
    said, _ = await _run(small, "import os, signal, sys\nfor n in range(64):\n    try:\n        pid = os.fork()\n    except OSError:\n        break\n"
                                "    if not pid: signal.pause()\nprint(n, flush=True)")  # fmt: skip
    held = said.isdigit() and int(said) < 24
    return [Check("process limit", held, f"{said} of 64 children under a limit of 24", fix=fix_of("process limit"))]


async def _cpu(policy: Policy) -> list[Check]:
    # A loop with an end, should nothing end it before: three seconds of CPU time.
    said, ended = await _run(_with_limits(policy, cpu_seconds=1), "import time\nwhile time.process_time() < 3: pass\nprint('no limit')")
    held = ended is not None and ended.signal == signal.SIGXCPU
    return [Check("cpu limit", held, "a loop was ended after a second of CPU time" if held else f"a loop went on: {said}", fix=fix_of("cpu limit"))]


async def _nested(policy: Policy) -> list[Check]:
    """Without the filter's help: is the namespace itself closed to nested user namespaces?"""
    opened = msgspec.structs.replace(policy, extra_calls=("unshare",))
    said, _ = await _run(opened, "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
                                 "print('made one' if libc.unshare(0x10000000) == 0 else errno.errorcode[ctypes.get_errno()])")  # fmt: skip
    return [Check("nested user namespaces, without the filter", said == "ENOSPC", said, fix=fix_of("bubblewrap version"))]


def _with_limits(policy: Policy, **changes: int) -> Policy:
    limits: Limits = msgspec.structs.replace(policy.limits, **changes)
    return msgspec.structs.replace(policy, limits=limits)


def as_json(checks: list[Check]) -> str:
    """One object: `level` and `checks`."""
    rows = [{"name": c.name, "ok": c.ok, "level": c.level, "mandatory": c.mandatory, "message": c.message, "fix": c.fix if not c.ok else ""} for c in checks]
    return json.dumps({"level": max(c.level for c in checks), "checks": rows}, indent=2)


def as_text(checks: list[Check]) -> str:
    """One line a check; below each failure the command that mends it."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{('ok  ', 'warn', 'DOWN')[check.level]}  {check.name:{width}}  {check.message}")
        if not check.ok:
            lines += [f"{'':6}{'':{width}}  → {line}" for line in check.fix.splitlines()]
    down, poor = (sum(check.level == level for check in checks) for level in (2, 1))
    verdict = "every wall stands" if not down else f"{down} mandatory {'wall is' if down == 1 else 'walls are'} down: no submission may run here"
    return "\n".join([*lines, f"{verdict}{f'; {poor} could be better' if poor else ''}."])
