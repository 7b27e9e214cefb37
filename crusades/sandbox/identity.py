"""Who the inside is in the host's eyes: a user of its own where the validator is root and may choose, else the validator's own user.

A sandbox that root starts as itself is uid 0 of the host: files of mode 0400 open for it wherever a mount shows them, and
the kernel's accounts per user (epoll watches, pipe pages, descriptors in flight) are shared with the validator. So root
starts bubblewrap as one of `UIDS` instead, by `nsenter`. Two things stand in the way, and both are told by `Identity.why`:

* On a slot with a card the driver opens shared GPU memory only for a process of the same user. `policy.root_gpu_mounts`
  hides there what only root may read.
* That user must reach the interpreter, which may lie in a home folder of mode 0700. Such folders are laid bare in a mount
  namespace that is made once: in it an empty folder lies over the home, and nothing is in that but the way to the interpreter.
"""

from __future__ import annotations

import collections
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from crusades.sandbox import host

UIDS = range(65520, 65534)
"""Given to nobody by Debian's and systemd's allocation, and inside what a container usually maps."""
PATIENCE = 20.0
"""Seconds for making a namespace, and for trying it; both take some tens of milliseconds."""
MOST_NAMESPACES = 16
"""Each is a descriptor that stays open: whoever shows ever new folders that are closed goes without."""
_BARE = Path(__file__).parent / "bare.py"
_TRIAL = ("--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534", "--ro-bind", "/", "/", "--")
_living: collections.Counter[int] = collections.Counter()


class Identity(msgspec.Struct, frozen=True):
    """The user that bubblewrap runs as. End it with `release`."""

    uid: int
    words: tuple[str, ...] = ()
    """What comes before bubblewrap on the command line."""
    why: str = ""
    """Why it is not a user of its own; empty when it is."""

    @property
    def separate(self) -> bool:
        """Whether the host knows the inside as somebody else than us."""
        return bool(self.words)

    def told(self) -> str:
        """For reports."""
        return f"uid {self.uid} of the host, the sandbox's own" if self.separate else f"uid {self.uid} of the host, the validator's: {self.why}"

    def release(self) -> None:
        """Nothing of the sandbox is left: its uid may be given to another."""
        if self.separate:
            _living[self.uid] -= 1


def take(paths: Sequence[str], *, gpu: bool, bwrap: str) -> Identity:
    """The user for a sandbox that shows `paths` of the host: the one of `UIDS` with the fewest sandboxes, if that can be had."""
    if not host.is_root():
        return Identity(os.geteuid(), why="only root can give it another")
    if gpu:
        return Identity(0, why="the driver shares GPU memory between processes of one user only")
    try:
        entrance = _entrance(barred((*paths, bwrap)), bwrap)
    except OSError as error:
        return Identity(0, why=str(error))
    if isinstance(entrance, str):
        return Identity(0, why=entrance)
    uid = min(UIDS, key=lambda one: _living[one])
    _living[uid] += 1
    return Identity(uid, ("nsenter", *entrance, "--setgid", str(uid), "--setuid", str(uid), "--"))


def barred(paths: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Folders that only their owner may enter → those of `paths` that lie in them. PermissionError when one of `paths` itself may not be read."""
    found: dict[str, set[str]] = {}
    for path in paths:
        real = Path(os.path.realpath(path))
        if not real.exists():
            continue
        if not _mode(real) & 0o004 or (real.is_dir() and not _mode(real) & 0o001):
            raise PermissionError(f"{real} is closed to every other user: chmod -R go+rX {real}")
        closed = next((parent for parent in reversed(real.parents) if not _mode(parent) & 0o001), None)
        if closed:
            found.setdefault(str(closed), set()).add(str(real))
    return tuple((closed, tuple(sorted(inside))) for closed, inside in sorted(found.items()))


def _mode(path: Path) -> int:
    return path.stat().st_mode


@functools.lru_cache(maxsize=64)
def _entrance(closed: tuple[tuple[str, tuple[str, ...]], ...], bwrap: str) -> tuple[str, ...] | str:
    """nsenter's words for reaching everything, tried once; or why that does not work here."""
    try:
        words = (f"--mount=/proc/{os.getpid()}/fd/{_laid_bare(closed)}",) if closed else ()
        uid = str(UIDS[-1])
        # A module from the environment: a folder that is open may hold files that are not (umask 077 while installing).
        trial = ["nsenter", *words, "--setgid", uid, "--setuid", uid, "--", bwrap, *_TRIAL, sys.executable, "-I", "-c", "import msgspec"]
        done = subprocess.run(trial, env=host.outer_environment(), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return f"a user of its own cannot run it ({_last_line(done.stderr)})"
    return words


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["no reason given"])[-1][:200]


def _laid_bare(closed: tuple[tuple[str, tuple[str, ...]], ...]) -> int:
    """A descriptor of a mount namespace in which the way to the named paths is open. Lives as long as this process."""
    if _entrance.cache_info().currsize >= MOST_NAMESPACES:
        raise PermissionError(f"too many different closed folders ({closed[0][0]} among them)")
    with subprocess.Popen([sys.executable, "-I", str(_BARE), msgspec.json.encode(closed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        ready = maker.stdout.readline() == b"ready\n"
        found = os.open(f"/proc/{maker.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC) if ready else -1
        said = maker.communicate(timeout=PATIENCE)[1].decode("utf-8", "replace")
    if not ready:
        raise PermissionError(f"{', '.join(folder for folder, _ in closed)} cannot be laid bare ({_last_line(said)})")
    return found
