"""One process at a time: the exclusive lock on a state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from crusades.errors import StateLocked, StoreError
from crusades.store_schema import LOCK


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the exclusive lock on a state directory, as long as the block and this process live."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"the state directory {state_dir} cannot be used ({error.strerror}): check its owner and its mount") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StateLocked(f"the state directory {state_dir} is in use by process {holder}: stop it, or choose another --state-dir") from error
        os.truncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
