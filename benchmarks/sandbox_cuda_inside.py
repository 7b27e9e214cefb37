"""The part of `sandbox_cuda.py` that runs inside the sandbox: one JSON line on the channel per stage."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
import traceback

sys.path[:0] = ["/inside/guard", "/inside/bench"]
MIB = 1 << 20
channel = socket.socket(fileno=3)
state = {}


def stage_limits():
    import limits

    if "landlock" in state["skip"]:
        limits._landlock = lambda: "skipped"
    if "rlimits" in state["skip"]:
        limits._lower = lambda name, value: "skipped"
    return limits.apply()


def stage_import():
    import torch

    state["torch"] = torch
    return torch.__version__


def stage_cuda_init():
    torch = state["torch"]
    torch.cuda.init()
    torch.empty(1, device="cuda")
    count, nodes = torch.cuda.device_count(), [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
    assert count == 1, f"{count} cards are visible"
    assert len(nodes) == 1, nodes
    return f"{torch.cuda.get_device_name(0)}, alone, as {nodes[0]}"


def stage_matmul():
    torch = state["torch"]
    a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
    return float((a @ a).float().abs().mean())


def stage_ipc():
    """Open the parent's buffer, see its sevens, leave eights."""
    torch = state["torch"]
    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "libcudart" in line)
    runtime = ctypes.CDLL(path)

    class Handle(ctypes.Structure):
        _fields_ = [("reserved", ctypes.c_char * 64)]

    handle, pointer = Handle(), ctypes.c_void_p()
    ctypes.memmove(ctypes.byref(handle), state["handle"], 64)
    code = runtime.cudaIpcOpenMemHandle(ctypes.byref(pointer), handle, ctypes.c_uint(1))
    assert code == 0, f"cudaIpcOpenMemHandle: {code}"

    class View:
        def __init__(self, address):
            self.__cuda_array_interface__ = {"shape": (MIB,), "typestr": "|u1", "data": (address, False), "version": 3}

    shared = torch.as_tensor(View(pointer.value), device="cuda")
    seen = int(shared[123])
    shared.fill_(8)
    torch.cuda.synchronize()
    assert seen == 7, seen
    return "shared both ways"


def stage_pinned():
    torch = state["torch"]
    host = torch.ones(64 * MIB, pin_memory=True)
    return float(host.to("cuda", non_blocking=True).sum())


def stage_streams_events():
    torch = state["torch"]
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(torch.cuda.Stream()):
        start.record()
        torch.randn(1024, 1024, device="cuda").sum()
        end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def stage_backward():
    """cuBLAS, SDPA, fused AdamW, autograd's threads."""
    torch = state["torch"]
    layer = torch.nn.TransformerEncoderLayer(256, 4, batch_first=True, device="cuda", dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4, fused=True)
    layer(torch.randn(4, 128, 256, device="cuda", dtype=torch.bfloat16)).float().pow(2).mean().backward()
    optimizer.step()
    torch.cuda.synchronize()
    return "ok"


def stage_graph():
    torch = state["torch"]
    a = torch.ones(1024, 1024, device="cuda")
    (a @ a).sum()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        b = a @ a
    graph.replay()
    torch.cuda.synchronize()
    return float(b[0, 0])


def stage_ldconfig():
    """How Triton finds libcuda."""
    said = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = [line.split()[-1] for line in said.splitlines() if "libcuda.so" in line]
    return f"{len(said.splitlines())} libraries, libcuda: {found or 'none'}"


def stage_triton():
    import triton
    import triton.language as tl

    torch = state["torch"]

    @triton.jit
    def add_one(x, n, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)

    x = torch.zeros(1000, device="cuda")
    add_one[(4,)](x, 1000, BLOCK=256)
    assert float(x.sum()) == 1000
    return triton.__version__


def stage_compile():
    torch = state["torch"]
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256)).cuda()
    compiled = torch.compile(model)
    compiled(torch.randn(8, 256, device="cuda")).sum().backward()
    torch.cuda.synchronize()
    return "ok"


def stage_compile_graphs():
    torch = state["torch"]
    compiled = torch.compile(lambda x: (x @ x).relu().sum(), mode="reduce-overhead")
    x = torch.randn(256, 256, device="cuda")
    for _ in range(4):
        value = compiled(x).clone()
    torch.cuda.synchronize()
    return float(value)


def stage_hold():
    """Four gibibytes that must be free again as soon as `kill` returns."""
    torch = state["torch"]
    state["held"] = torch.ones(1 << 30, device="cuda")
    torch.cuda.synchronize()
    return "4 GiB"


def read_line():
    heard = b""
    while not heard.endswith(b"\n"):
        heard += channel.recv(65536)
    return heard


def main():
    order = json.loads(read_line())
    state["handle"] = bytes.fromhex(order["handle"])
    state["skip"] = order.get("skip", [])
    if order.get("allowed"):
        from sandbox_listen import listen

        listen(order["allowed"], channel)
    for name in order["stages"]:
        start = time.perf_counter()
        row = {"stage": name, "ok": True}
        try:
            row["value"] = str(globals()[f"stage_{name}"]())
        except BaseException as error:
            row |= {"ok": False, "value": f"{type(error).__name__}: {error}"[:600], "trace": traceback.format_exc()[-1500:]}
        row["seconds"] = round(time.perf_counter() - start, 3)
        channel.sendall(json.dumps(row).encode() + b"\n")
        if not row["ok"] and name in ("import", "cuda_init"):
            break
    channel.sendall(b'{"stage": "end", "ok": true}\n')
    channel.recv(1)  # hold what we hold until we are killed
    os._exit(0)


if __name__ == "__main__":
    main()
