"""Does CUDA work behind the final walls? Run it on a machine with a card; it takes about a minute.

    CRUSADES_BWRAP=/path/to/bwrap python benchmarks/sandbox_cuda.py [--index 0] [--budget 115] [--out result.json]

Inside the full sandbox (final filter, --disable-userns, cgroups where they can be made): CUDA's start, a cudaIpc buffer of
this process, pinned memory, autograd, CUDA graphs, a Triton kernel, torch.compile, compile with CUDA graphs; whether the
card's memory is free when `kill` returns; and two narrower policies that might become the default. When a stage fails, the
blame is looked for: first by letting everything pass and reading the kernel's log, then by opening half of the refused
groups at a time. One JSON object on standard output; exit code 0 when every stage of the final policy passed.
"""

import argparse
import contextlib
import ctypes
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import trio
from msgspec.structs import replace

from crusades import hparams
from crusades.errors import SandboxFault
from crusades.sandbox import cgroups, launch, seccomp
from crusades.sandbox.policy import GPU_HIDDEN, Mount, Policy, contestant_policy

HERE = Path(__file__).resolve().parent
GUARD = Path(launch.__file__).parent / "inside"
STAGES = ("limits", "import", "cuda_init", "matmul", "ipc", "pinned", "streams_events", "backward", "graph", "triton", "compile", "compile_graphs", "hold")
SHORT = ("limits", "import", "cuda_init", "matmul", "ipc", "pinned", "triton")
MIB = 1 << 20
ARGUMENT_CALLS = ("ioctl", "prctl", "socketpair", "personality", "clone")
"""Judged by an argument; opened whole when looking for the blame."""


class Buffer:
    """A megabyte of this process on the card, by cudaMalloc, with its IPC handle."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
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


async def attempt(policy: Policy, stages: tuple[str, ...], buffer: Buffer, patience: float) -> dict:
    """One sandbox through `stages`."""
    buffer.fill(7)
    free = buffer.free_bytes()
    ours, theirs = socket.socketpair()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    start = time.perf_counter()
    rows = {}
    with theirs:
        box = launch.spawn(policy, [sys.executable, "-I", "/inside/bench/sandbox_cuda_inside.py"], channel=theirs, mounts={GUARD: "/inside/guard", HERE: "/inside/bench"})
    result = {"limits": box.limits}
    try:
        with trio.move_on_after(patience) as scope, contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.send_all(json.dumps({"handle": buffer.handle, "stages": stages}).encode())
            heard = b""
            async for chunk in stream:
                heard += chunk
                *lines, heard = heard.split(b"\n")
                for line in lines:
                    row = json.loads(line)
                    rows[row.pop("stage")] = row
                if "end" in rows:
                    break
        if "end" not in rows:
            await box.kill() if scope.cancelled_caught else None
            result["ended"] = "no answer in time" if scope.cancelled_caught else (await box.wait()).text
    except SandboxFault as error:
        result["ended"] = str(error)
    finally:
        killing = time.perf_counter()
        await box.kill()
        result["kill_seconds"] = round(time.perf_counter() - killing, 3)
        result["unfreed_mib_after_kill"] = max(0, (free - buffer.free_bytes()) // MIB)
        await stream.aclose()
    missing = [name for name in stages if not rows.get(name, {}).get("ok")]
    result |= {"ok": not missing, "failed": missing, "stages": rows, "seconds": round(time.perf_counter() - start, 2)}
    if "ipc" in stages and rows.get("ipc", {}).get("ok"):
        result["ipc_written_back"] = buffer.first() == 8
    if missing:
        result["output"] = box.output_tail()[-3000:]
    return result


def narrow_sys(policy: Policy) -> Policy:
    """Only the parts of /sys that name processors, nodes and PCI devices, instead of all of it."""
    hidden = {mount.inside for mount in GPU_HIDDEN}
    kept = tuple(m for m in policy.mounts if m.inside != "/sys" and m.inside not in hidden)
    parts = tuple(Mount(p, "tried", p, optional=True) for p in ("/sys/devices", "/sys/bus/pci", "/sys/module/nvidia", "/sys/module/nvidia_uvm", "/sys/class/drm"))
    return replace(policy, mounts=(*kept, *parts))


def kernel_log() -> list[str]:
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
    return [line for line in said.splitlines() if "type=1326" in line]


def call_name(number: int) -> str:
    import pyseccomp

    try:
        return pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, number).decode()
    except ValueError:
        return str(number)


async def blame_by_log(policy: Policy, stages: tuple[str, ...], buffer: Buffer, patience: float) -> dict:
    """Let everything pass and read which refused calls were made. Empty on kernels without audit."""
    before = set(kernel_log())
    ran = await attempt(replace(policy, unknown_calls="log"), stages, buffer, patience)
    numbers = [int(match[1]) for line in kernel_log() if line not in before and (match := re.search(r" syscall=(\d+)", line))]
    return {"passes_with_everything_open": ran["ok"], "refused_calls_made": sorted({call_name(number) for number in numbers})}


def units() -> list[tuple[str, tuple[str, ...]]]:
    """What can be opened: each refused group, and each call that is judged by an argument."""
    groups = [(f"group {g.name}", g.names()) for g in seccomp.GROUPS if g.verdict != "allow"]
    return groups + [(f"every {name}", (name,)) for name in ARGUMENT_CALLS]


async def blame_by_halves(policy: Policy, stages: tuple[str, ...], buffer: Buffer, deadline: float) -> list[str]:
    """The one unit whose opening makes the stages pass, or the smallest set that was found before the deadline."""
    suspects = units()
    while len(suspects) > 1 and trio.current_time() < deadline:
        for half in (suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]):
            opened = replace(policy, extra_calls=tuple(name for _, names in half for name in names))
            if (await attempt(opened, stages, buffer, max(5.0, deadline - trio.current_time())))["ok"]:
                suspects = half
                break
        else:
            break  # it takes more than one of them
    return [name for name, _ in suspects]


async def measure(index: int, budget: float) -> dict:
    deadline = trio.current_time() + budget
    buffer = Buffer()
    policy = contestant_policy(hparams.Sandbox(), gpu=index)
    found = cgroups.hierarchy()
    report = {"torch": buffer.torch.__version__, "device": buffer.torch.cuda.get_device_name(index), "cgroups": found.version, "cgroups_why": found.why}
    if policy.require_cgroup and not found.complete:
        policy = replace(policy, require_cgroup=False)
        report["note"] = "root without cgroups: a validator would refuse; measured without"

    def left() -> float:
        return max(5.0, deadline - trio.current_time())

    final = report["final"] = await attempt(policy, STAGES, buffer, left())
    if not final["ok"]:
        reached = [name for name in final["stages"] if name != "end"]
        stages = tuple(name for name in STAGES if name in reached or name == final["failed"][0])
        stages = tuple(dict.fromkeys(("limits", "import", "cuda_init", *(s for s in stages if s in final["failed"]))))
        report["blame"] = await blame_by_log(policy, stages, buffer, left())
        if report["blame"]["passes_with_everything_open"] and not report["blame"]["refused_calls_made"] and trio.current_time() < deadline:
            report["blame"]["halves"] = await blame_by_halves(policy, stages, buffer, deadline)
    for name, variant in (("narrow_sys", narrow_sys(policy)), ("errno_instead_of_kill", replace(policy, hostile_calls="errno"))):
        if trio.current_time() + 15 < deadline:
            report[name] = await attempt(variant, SHORT, buffer, left())
    report["seconds"] = round(budget - (deadline - trio.current_time()), 1)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--budget", type=float, default=115.0, help="seconds in all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = trio.run(measure, options.index, options.budget)
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0 if report["final"]["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
