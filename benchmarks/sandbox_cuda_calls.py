"""Which of a few system calls does CUDA's start need? `python benchmarks/sandbox_cuda_calls.py [CALL …]`, on a machine with a card.

For every set of the calls given, a fresh process refuses them (EPERM) and starts CUDA by the driver's API alone; a line a
set. With a new driver, `sandbox_cuda.py` says which refused calls to ask about. Without arguments: the calls of sockets.
"""

import ctypes
import errno
import itertools
import subprocess
import sys

SOCKETS = ("socket", "connect", "chown", "bind", "listen")


def start(refused: list[str]) -> None:
    """In a process of its own: refuse, start CUDA, say how it ended."""
    import pyseccomp as lib

    program = lib.SyscallFilter(lib.ALLOW)
    for name in refused:
        program.add_rule(lib.ERRNO(errno.EPERM), name)
    program.load()
    cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
    code = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device)
    print("starts" if code == 0 else f"error {code}")


def main() -> None:
    calls = tuple(sys.argv[1:]) or SOCKETS
    for count in range(len(calls) + 1):
        for refused in itertools.combinations(calls, count):
            ran = subprocess.run([sys.executable, __file__, "--start", *refused], capture_output=True, text=True)
            print(f"{ran.stdout.strip() or ran.stderr.strip().splitlines()[-1]:12} without {', '.join(refused) or 'refusing any'}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        start(sys.argv[2:])
    else:
        main()
