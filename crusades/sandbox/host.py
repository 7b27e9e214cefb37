"""Where this machine keeps what the inside needs: the interpreter, the compiler, the GPU driver. Read-only questions."""

from __future__ import annotations

import functools
import glob
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from crusades.errors import ConfigError, SandboxFault
from crusades.sandbox.policy import GPU_HIDDEN, Mount

TOOLS: dict[str, str] = {
    "gcc": "Triton builds its launcher with it",
    "g++": "torch.compile's C++ on CPU",
    "cc": "the names build scripts try first",
    "c++": "the same",
    "as": "gcc runs it",
    "ld": "gcc runs it",
    "openssl": "torch.compile hashes its precompiled header with it",
    "ldconfig": "Triton and ctypes ask it where libraries are",
}
"""The only programs inside beside the interpreter."""
RESERVE = 3 << 30
"""Bytes of the machine that are kept for the system, the daemon and the referee; half of it on a machine where this is more."""
MOST_CLOSED = 600
"""Files and folders that are hidden one by one, at most: so many take half a second."""
OF_NO_USE = ("crash_notes", "crash_notes_size")
"""Where a crashed kernel's registers would be kept, twice per core: an address that nobody without rights can use."""
SEARCH = "/usr/bin:/usr/sbin:/bin:/sbin"


def is_root() -> bool:
    """Whether the sandbox's nobody would be root of the host."""
    return os.geteuid() == 0


def memory_room(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that a contestant may have here at most: a limit above what the machine holds would let the kernel kill whom it likes,
    the referee before the contestant."""
    found = re.search(r"^MemTotal: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    if found is None:
        raise SandboxFault(f"{meminfo} does not say how much memory there is: is /proc mounted?")
    total = 1024 * int(found[1])
    return max(total - RESERVE, total // 2)


def interpreter_mounts() -> tuple[Mount, ...]:
    """The installation of this interpreter and, if another, the environment around it, at their own paths.

    Only these folders are bound: their parents (a home of mode 0700, say) appear as empty read-only folders.
    """
    prefixes = [_real(sys.base_prefix), _real(sys.prefix)]
    if real := _real(sys.executable):  # an interpreter may be linked from outside its prefix
        prefixes.append(str(Path(real).parent.parent))
    wanted: list[str] = []
    for prefix in dict.fromkeys(prefixes):
        if prefix == "/usr":  # a distribution's own Python: only its parts, not all of /usr
            wanted += _distribution_python()
        elif not any(prefix.startswith(f"{other}/") for other in prefixes):
            wanted.append(prefix)
    _refuse_home(wanted)
    mounts = [Mount(path, "the interpreter and its packages", path) for path in dict.fromkeys(wanted)]
    mounts += [Mount(f"{path}/pip.conf", "may hold a password of a package index", kind="hide", optional=True) for path in dict.fromkeys(wanted)]
    if sys.prefix != _real(sys.prefix):
        mounts.append(Mount(sys.prefix, "the name the environment goes by", _real(sys.prefix), "link"))
    return tuple(mounts) + (() if any(_within(sys.executable, m.inside) for m in mounts) else _chain(sys.executable, "the interpreter"))


def _refuse_home(folders: list[str]) -> None:
    """An environment that was made *in* the home folder would carry wallets and keys into the sandbox."""
    home = _real(os.path.expanduser("~"))
    for folder in folders:
        if home != "/" and _within(home, folder):
            raise SandboxFault(f"the Python environment {folder} contains the home folder {home}, and a sandbox would see both: make one in a folder of its own")


def must_not_show(mounts: Sequence[Mount], private: Mapping[str, Path]) -> None:
    """ConfigError when one of `private` (what it is → where) lies in a folder that `mounts` show to every submission."""
    for what, place in private.items():
        real = _real(str(place.expanduser()))
        for mount in mounts:
            if mount.kind == "ro" and _within(real, _real(mount.host)):
                raise ConfigError(f"{what}, {real}, lies in {mount.host}, which every submission can read: put it elsewhere")


def _distribution_python() -> list[str]:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    places = [f"/usr/bin/python{version}", f"/usr/local/lib/python{version}", "/usr/share/python3"]
    return [place for place in places if Path(place).exists()] + ([] if sysconfig.get_path("stdlib").startswith("/usr/lib") else [sysconfig.get_path("stdlib")])


def tool_mounts() -> tuple[Mount, ...]:
    """The compiler's programs one by one, each with the links that lead to it; what is not installed is left out."""
    found: dict[str, Mount] = {}
    for name, why in TOOLS.items():
        path = shutil.which(name, path=SEARCH)
        for mount in _chain(path, why) if path else ():
            found.setdefault(mount.inside, mount)
    return tuple(found.values())


def _chain(path: str, why: str) -> tuple[Mount, ...]:
    """A file and the symbolic links on the way to it, resolved one at a time: `cc` → `/etc/alternatives/cc` → `gcc-12` → …"""
    mounts: list[Mount] = []
    here = _merged(path)
    for _ in range(16):
        if not os.path.islink(here):
            return (*mounts, Mount(here, why, _program(here)))
        target = os.readlink(here)
        mounts.append(Mount(here, why, target, "link"))
        here = _merged(os.path.normpath(os.path.join(os.path.dirname(here), target)))
    return ()


def _program(path: str) -> str:
    """What to run at `path`: where that is a shell script around a program of its name with `.real` (ldconfig on Ubuntu), the
    program, for there is no shell inside."""
    with open(path, "rb") as file:
        wrapped = file.read(2) == b"#!"
    return f"{path}.real" if wrapped and os.access(f"{path}.real", os.X_OK) else path


def _merged(path: str) -> str:
    """The path with the links of its *folder* resolved (merged /usr), the last part left as it is."""
    return str(Path(path).parent.resolve() / Path(path).name)


def driver_mounts() -> tuple[Mount, ...]:
    """Driver and toolkit folders outside /usr/lib, where containers put them."""
    places = sorted({*glob.glob("/usr/local/nvidia"), *glob.glob("/usr/local/cuda*"), *glob.glob("/opt/nvidia")})
    return tuple(
        Mount(p, "link to a toolkit", os.readlink(p), "link") if os.path.islink(p) else Mount(p, "GPU driver and toolkit libraries", p) for p in places
    )


@functools.cache
def closed_mounts(places: tuple[str, ...] = ("/sys", "/proc/sys")) -> tuple[Mount, ...]:
    """What only its owner may read below `places`, hidden: for root's sandbox on a slot with a card, which owns it in the kernel's eyes
    (`identity`). CUDA works for users who are not root, so it needs nothing of this. Looked for once per process.

    Raises SandboxFault where there is so much of it that a sandbox would take seconds to build.
    """
    besides = frozenset({"/proc/sys/net", *(mount.inside for mount in GPU_HIDDEN)})  # the former is the network namespace's own
    found = [path for place in places for path in _closed(place, besides)[0]]
    if len(found) > MOST_CLOSED:
        raise SandboxFault(f"root's sandbox cannot have a card here: {len(found)} files of {' and '.join(places)} would have to be hidden from it. "
                           "Run the validator as a user of its own: crusades install-service makes one")  # fmt: skip
    return tuple(Mount(path, "only root may read it, and on this slot the inside is root of the host", kind="hide", optional=True) for path in found)


def _closed(folder: str, besides: frozenset[str]) -> tuple[list[str], bool]:
    """What to hide of a folder (itself, when nothing in it is open), and whether anything in it is open."""
    found: list[str] = []
    something_open = False
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return [], False
    for entry in entries:
        if entry.is_symlink() or entry.path in besides or entry.name in OF_NO_USE:
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if entry.is_dir(follow_symlinks=False) and mode & 0o004:
            inner, inner_open = _closed(entry.path, besides)
            found += inner
            something_open |= inner_open
        elif mode & 0o004:
            something_open = True
        elif mode & 0o400:
            found.append(entry.path)
    return (found if something_open or not found else [folder]), something_open


def library_path() -> dict[str, str]:
    """LD_LIBRARY_PATH, cut down to the folders of the driver: the only variable that a container's driver may need."""
    parts = [p for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p.startswith(("/usr/local/nvidia", "/usr/local/cuda", "/usr/lib"))]
    return {"LD_LIBRARY_PATH": ":".join(parts)} if parts else {}


def outer_environment() -> dict[str, str]:
    """What the shell and bubblewrap themselves see: no secret of the daemon's, and the libraries of a bubblewrap that was brought along."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ} | {"PATH": "/usr/bin:/bin"}


def _real(path: str) -> str:
    return os.path.realpath(path)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
