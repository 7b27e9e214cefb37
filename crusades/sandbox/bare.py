"""Run as a script: a mount namespace in which closed folders show nothing but the way to what was named. See `identity`.

Takes one argument, JSON: [[folder, [path in it, …]], …]. Says `ready`, and ends when its standard input does; whoever holds
the namespace by then keeps it.
"""

import ctypes
import json
import os
import sys

_NEWNS = 0x00020000
_BIND, _REC, _SLAVE, _NOSUID, _NODEV = 1 << 12, 1 << 14, 1 << 19, 1 << 1, 1 << 2
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() if data else None), f"mount on {target}")


def lay_bare(folder: str, paths: list[str]) -> None:
    """Cover `folder` with an empty one that holds only `paths`."""
    held = [(path, os.path.isdir(path), os.open(path, os.O_PATH)) for path in paths]
    _mount("bare", folder, "tmpfs", _NOSUID | _NODEV, "mode=0755,size=1m")
    for path, is_folder, descriptor in held:
        os.makedirs(path if is_folder else os.path.dirname(path), mode=0o755, exist_ok=True)
        if not is_folder:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
        _mount(f"/proc/self/fd/{descriptor}", path, None, _BIND | _REC)
        os.close(descriptor)


def main() -> None:
    """Make it, say so, wait."""
    os.umask(0o022)
    _check(_libc.unshare(_NEWNS), "unshare")
    _mount("none", "/", None, _REC | _SLAVE)
    for folder, paths in json.loads(sys.argv[1]):
        lay_bare(folder, paths)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
