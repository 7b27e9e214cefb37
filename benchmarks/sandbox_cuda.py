"""Does CUDA work behind the final walls? Run it on a machine with a card; it takes at most two minutes.

    CRUSADES_BWRAP=/path/to/bwrap python benchmarks/sandbox_cuda.py [--index 0] [--budget 115] [--out result.json]

Inside the full sandbox (final filter, --disable-userns, cgroups where they can be made): CUDA's start with the slot's card alone
in sight, a cudaIpc buffer of this process, pinned memory, autograd, CUDA graphs, a Triton kernel, torch.compile, compile with
CUDA graphs; whether the card's memory is free when `kill` returns; and the doctor's probes on a GPU slot.

A second run, in which every call passes, names each call that the filter refused, stage by stage (`sandbox_listen.py`): when
the first run failed, those of the failing stage are opened and closed again one at a time, until those are left that it needs.
When it fails even so, another wall is in the way, and they are taken away one at a time. Two narrower policies that might become the default are tried with the
time that is left. Prints a line a stage; `--out` takes the whole record as JSON; exit code 0 when every stage passed.
"""

import argparse
import contextlib
import ctypes
import json
import socket
import sys
import time
from pathlib import Path

import trio
from msgspec.structs import replace

from crusades import hparams
from crusades.errors import SandboxFault
from crusades.sandbox import cgroups, doctor, launch, seccomp
from crusades.sandbox.policy import GPU_HIDDEN, HIDDEN, Mount, Policy, contestant_policy

HERE = Path(__file__).resolve().parent
GUARD = Path(launch.__file__).parent / "inside"
STAGES = ("limits", "import", "cuda_init", "matmul", "ipc", "pinned", "streams_events", "backward", "graph", "ldconfig", "triton", "compile", "compile_graphs", "hold")
SHORT = ("limits", "import", "cuda_init", "matmul", "ipc", "pinned", "triton")
MIB = 1 << 20
PATIENCE = 75.0
"""Seconds for one sandbox: a stage that hangs must leave time to find out why."""
ONE_MORE = 12.0
"""Seconds that a short attempt takes: torch's import and CUDA's start."""


class Buffer:
    """A megabyte of this process on card `index`, by cudaMalloc, with its IPC handle."""

    def __init__(self, index: int) -> None:
        import torch

        self.torch = torch
        torch.cuda.set_device(index)
        torch.cuda.init()
        torch.empty(1, device="cuda")
        path = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libcudart" in line)
        self._runtime, self._pointer = ctypes.CDLL(path), ctypes.c_void_p()
        assert self._runtime.cudaMalloc(ctypes.byref(self._pointer), ctypes.c_size_t(2 * MIB)) == 0
        handle = ctypes.create_string_buffer(64)
        assert self._runtime.cudaIpcGetMemHandle(handle, self._pointer) == 0
        self.handle = handle.raw.hex()

    def fill(self, value: int) -> None:
        assert self._runtime.cudaMemset(self._pointer, value, ctypes.c_size_t(MIB)) == 0
        self.torch.cuda.synchronize()

    def first(self) -> int:
        byte = ctypes.c_ubyte()
        assert self._runtime.cudaMemcpy(ctypes.byref(byte), self._pointer, ctypes.c_size_t(1), 2) == 0
        return byte.value

    def free_bytes(self) -> int:
        return self.torch.cuda.mem_get_info()[0]


async def attempt(policy: Policy, stages: tuple[str, ...], buffer: Buffer, patience: float, *, allowed: list | None = None, skip: tuple[str, ...] = ()) -> dict:
    """One sandbox through `stages`. With `allowed`, the refused calls of each stage are listed."""
    buffer.fill(7)
    free, start = buffer.free_bytes(), time.perf_counter()
    heard: dict = {"stages": {}, "pending": []}
    ours, theirs = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    try:
        with theirs:
            box = launch.spawn(policy, [sys.executable, "-I", "/inside/bench/sandbox_cuda_inside.py"], channel=theirs, mounts={GUARD: "/inside/guard", HERE: "/inside/bench"})
    except SandboxFault as error:
        await stream.aclose()
        return {"ok": False, "failed": list(stages), "stages": {}, "ended": str(error), "seconds": 0.0}
    result: dict = {"limits": box.limits}
    try:
        order = {"handle": buffer.handle, "stages": stages, "allowed": allowed, "skip": skip}
        with trio.move_on_after(patience) as scope, contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(json.dumps(order).encode() + b"\n")
            await _listen(stream, heard)
        if "end" not in heard["stages"]:
            if scope.cancelled_caught:
                await box.kill()
            result["ended"] = "no answer in time" if scope.cancelled_caught else (await box.wait()).text
    except SandboxFault as error:
        result["ended"] = str(error)
    finally:
        killing = time.perf_counter()
        await box.kill()
        result["kill_seconds"] = round(time.perf_counter() - killing, 3)
        result["unfreed_mib_after_kill"] = max(0, (free - buffer.free_bytes()) // MIB)
        await stream.aclose()
    rows = heard["stages"]
    if heard["pending"]:
        rows.setdefault("(unfinished)", {"ok": False})["refused"] = heard["pending"]
    missing = [name for name in stages if not rows.get(name, {}).get("ok")]
    result |= {"ok": not missing, "failed": missing, "stages": rows, "seconds": round(time.perf_counter() - start, 2)}
    if rows.get("ipc", {}).get("ok"):
        result["ipc_written_back"] = buffer.first() == 8
        result["ok"] &= result["ipc_written_back"]
    if missing:
        result["output"] = box.output_tail()[-3000:]
    return result


async def _listen(stream: trio.SocketStream, heard: dict) -> None:
    """Rows of stages into `heard`, each with the refused calls that were told before it."""
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split(b"\n")
        for row in map(json.loads, lines):
            if "refused" in row:
                heard["pending"].append(call_words(*row["refused"]))
                continue
            name = row.pop("stage")
            heard["stages"][name] = row | ({"refused": heard["pending"]} if heard["pending"] else {})
            heard["pending"] = []
        if "end" in heard["stages"]:
            return


def call_words(number: int, argument: int | None) -> str:
    """A call for people: its name, and the argument that tells which of its meanings was meant."""
    import pyseccomp

    try:
        name = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, number)
        name = name.decode() if isinstance(name, bytes) else name
    except ValueError:
        name = f"call {number}"
    return name if argument is None else f"{name}({argument:#x})"


class _Recorder:
    """What `seccomp` tells libseccomp, as data: name → conditions on arguments."""

    ALLOW, MASKED_EQ, Arch = "allow", "==", type("Arch", (), {"NATIVE": 0})

    def __init__(self) -> None:
        self.rules: list = []

    def resolve_syscall(self, arch: int, name: str) -> str:
        return name

    def Arg(self, index: int, operator: str, mask: int, value: int) -> list:
        return [index, mask, value]


def allowances(policy: Policy) -> list:
    """Every rule of the filter that lets something pass."""
    recorder, rules = _Recorder(), []

    class Compiled:
        def add_rule_exactly(self, verdict: str, name: str, *conditions: list) -> None:
            rules.append([name, list(conditions)])

    names = [name for group in seccomp.GROUPS if group.verdict == "allow" for name in group.names()]
    names += seccomp.GPU_CALLS if policy.gpu else ()
    rules += [[name, []] for name in (*names, *policy.extra_calls)]
    real, seccomp._rule = seccomp._rule, lambda lib, compiled, verdict, name, *conditions: compiled.add_rule_exactly(verdict, name, *conditions)
    try:
        seccomp._argument_rules(recorder, Compiled(), policy.gpu, policy.extra_calls)
    finally:
        seccomp._rule = real
    return rules


def narrow_sys(policy: Policy) -> Policy:
    """Only the parts of /sys that name processors, nodes and PCI devices, instead of all of it."""
    hidden = {mount.inside for mount in GPU_HIDDEN}
    kept = tuple(m for m in policy.mounts if m.inside != "/sys" and m.inside not in hidden)
    parts = tuple(Mount(p, "tried", p, optional=True) for p in ("/sys/devices", "/sys/bus/pci", "/sys/module/nvidia", "/sys/module/nvidia_uvm", "/sys/class/drm"))
    return replace(policy, mounts=(*kept, *parts))


def without_hidden(policy: Policy, hidden: tuple[Mount, ...]) -> Policy:
    places = {mount.inside for mount in hidden}
    return replace(policy, mounts=tuple(m for m in policy.mounts if m.kind != "hide" or m.inside not in places))


def with_more_nodes(policy: Policy) -> Policy:
    """Every node of the driver but the other cards."""
    taken = {mount.inside for mount in policy.mounts}
    more = sorted(str(p) for p in Path("/dev").glob("nvidia*") if not p.name[6:].isdigit() and not p.is_dir() and str(p) not in taken)
    more += sorted(str(p) for p in Path("/dev/nvidia-caps").glob("*"))
    return replace(policy, mounts=(*policy.mounts, *(Mount(path, "tried", path, "device") for path in more)))


@contextlib.contextmanager
def words_taken(*words: str):
    """bubblewrap's command line without a run of words."""
    real = launch.command

    def command(*positional, **named):
        line = real(*positional, **named)
        at = next((i for i in range(len(line)) if line[i : i + len(words)] == list(words)), None)
        return line if at is None or not words else [*line[:at], *line[at + len(words) :]]

    launch.command = command
    try:
        yield
    finally:
        launch.command = real


def walls(policy: Policy) -> list[tuple[str, Policy, tuple[str, ...], tuple[str, ...]]]:
    """Beside the filter: (wall, policy without it, words to take from bubblewrap, inside limits to skip)."""
    roomy = replace(policy.limits, memory_bytes=64 << 30, max_processes=8192, max_open_files=65536, file_bytes=64 << 30, locked_bytes=1 << 40)
    return [
        ("hidden parts of /sys", without_hidden(policy, GPU_HIDDEN), (), ()),
        ("hidden parts of /proc", without_hidden(policy, HIDDEN), (), ()),
        ("Landlock", policy, (), ("landlock",)),
        ("limits", replace(policy, limits=roomy), (), ("rlimits",)),
        ("the driver's other nodes", with_more_nodes(policy), (), ()),
        ("read-only /", policy, ("--remount-ro", "/"), ()),
        ("read-only /dev", policy, ("--remount-ro", "/dev"), ()),
        ("--disable-userns", policy, ("--disable-userns",), ()),
        ("--cap-drop ALL", policy, ("--cap-drop", "ALL"), ()),
        ("--new-session", policy, ("--new-session",), ()),
    ]


async def blame(policy: Policy, stages: tuple[str, ...], listened: dict, buffer: Buffer, deadline: float) -> dict:
    """Which calls must be allowed, or which wall taken away, for `stages` to pass."""
    tried: dict[str, bool] = {}

    def left() -> float:
        return min(PATIENCE, deadline - trio.current_time())

    refused = [call for name, row in listened["stages"].items() if name in (*stages, "(unfinished)") for call in row.get("refused", ())]
    if listened["ok"]:  # the filter it is: all of these are opened, then closed again one at a time
        needed = list(dict.fromkeys(refused))
        for call in tuple(needed):
            if left() < ONE_MORE:
                return {"culprit": f"some of {', '.join(needed)}: no time to find out which", "tried": tried}
            fewer = tuple(other for other in needed if other != call)
            opened = replace(policy, extra_calls=(*policy.extra_calls, *(other.partition("(")[0] for other in fewer)))
            tried[f"all but {call}"] = passed = (await attempt(opened, stages, buffer, left()))["ok"]
            needed = list(fewer) if passed else needed
        return {"culprit": ", ".join(needed), "tried": tried}
    for name, opened, words, skip in walls(replace(policy, unknown_calls="log")):
        if left() < ONE_MORE:
            break
        with words_taken(*words):
            tried[name] = (await attempt(opened, stages, buffer, left(), skip=skip))["ok"]
        if tried[name]:
            return {"culprit": name, "tried": tried}
    return {"culprit": "no single wall of those tried, or none of ours", "tried": tried}


async def measure(index: int, budget: float) -> dict:
    deadline = trio.current_time() + budget
    buffer = Buffer(index)
    cgroups.enter_leaf()
    policy = contestant_policy(hparams.Sandbox(), gpu=index)
    found = cgroups.hierarchy()
    report: dict = {"torch": buffer.torch.__version__, "device": buffer.torch.cuda.get_device_name(index), "cgroups": found.version, "cgroups_why": found.why}
    if policy.require_cgroup and not found.complete:
        policy = replace(policy, require_cgroup=False)
        report["note"] = "root without cgroups: a validator would refuse; measured without"

    def left() -> float:
        return min(PATIENCE, deadline - trio.current_time())

    report["doctor"] = [f"{check.name}: {check.message}" for check in await doctor._probe(policy) if not check.ok and (check.mandatory or check.name == "compiler")]
    final = report["final"] = await attempt(policy, STAGES, buffer, left())
    stages = STAGES if final["ok"] else suspects(final)
    if left() > ONE_MORE:
        listened = report["listened"] = await attempt(replace(policy, unknown_calls="log"), stages, buffer, left(), allowed=allowances(policy))
        if not final["ok"]:
            report["blame"] = await blame(policy, stages, listened, buffer, deadline)
    for name, variant in (("narrow_sys", narrow_sys(policy)), ("errno_instead_of_kill", replace(policy, hostile_calls="errno"))):
        if left() > ONE_MORE:
            report[name] = await attempt(variant, SHORT, buffer, left())
    report["seconds"] = round(budget - (deadline - trio.current_time()), 1)
    return report


def suspects(final: dict) -> tuple[str, ...]:
    """What has to be run again to see the first failure: the way to it, and it."""
    return tuple(dict.fromkeys(("limits", "import", "cuda_init", final["failed"][0])))


def as_text(report: dict) -> str:
    """A line a stage."""
    lines = [f"{report['device']}, torch {report['torch']}, cgroups {report['cgroups']}"]
    lines += [f"DOWN  {wall}" for wall in report["doctor"]] or ["ok    the doctor's probes"]
    refused = {name: row.get("refused", ()) for name, row in report.get("listened", {}).get("stages", {}).items()}
    for name in STAGES:
        row = report["final"]["stages"].get(name)
        said = "not reached" if row is None else f"{row['seconds']:7.2f} s  {row['value']}"
        lines.append(f"{'ok  ' if row and row['ok'] else 'FAIL'}  {name:15} {said}" + (f"   refused here: {', '.join(refused[name])}" if refused.get(name) else ""))
    for key in ("ended", "ipc_written_back", "kill_seconds", "unfreed_mib_after_kill"):
        if key in report["final"]:
            lines.append(f"      {key}: {report['final'][key]}")
    if "blame" in report:
        lines.append(f"BLAME {report['blame']['culprit']}; tried: {report['blame']['tried']}")
    lines += [f"{'ok  ' if report[name]['ok'] else 'FAIL'}  {name} {report[name]['failed'] or ''}" for name in ("narrow_sys", "errno_instead_of_kill") if name in report]
    return "\n".join([*lines, f"{report['seconds']} s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--budget", type=float, default=115.0, help="seconds in all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = trio.run(measure, options.index, options.budget)
    print(as_text(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1))
    return 0 if report["final"]["ok"] and not report["doctor"] else 1


if __name__ == "__main__":
    sys.exit(main())
