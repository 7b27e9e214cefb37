"""The referee's process: one order from the daemon at a time, one report back. `python -m crusades.bench.referee.process --fd N`.

It exits within a second of the daemon's death: a thread waits for the hang-up of the control socket, since an exam or a
warm-up can take minutes. It leaves the network before torch starts a thread.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import select
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET, PR_SET_DUMPABLE = 0x10000000, 0x40000000, 4


def leave_network() -> str:
    """Enter an empty network namespace, and be closed to debuggers of the same user. Says what happened: where user
    namespaces are off, an ordinary user stays in the daemon's network and simply never dials. To be called while there is
    one thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNET) == 0:
        found = "own empty namespace"
    elif libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        found = "own empty namespace, in a user namespace"
        _stay_the_same_user(uid, gid)
    else:
        found = f"shared with the daemon, unused (errno {ctypes.get_errno()})"
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # last: afterwards /proc/self is root's, and the maps could not be written
    return found


def _stay_the_same_user(uid: int, gid: int) -> None:
    """Without a map everybody is nobody in there, and a library that asks for its home or its user would not find it."""
    for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
        Path("/proc/self", name).write_text(text)


def exit_on_hangup(fd: int) -> None:
    """End this process as soon as the daemon's end of `fd` is gone, whatever the main thread is doing."""

    def wait() -> None:
        poll = select.poll()
        poll.register(fd, select.POLLRDHUP)
        poll.poll()
        os._exit(0)

    threading.Thread(target=wait, name="hang-up", daemon=True).start()


def main() -> None:
    """Serve until the control socket ends."""
    gc.disable()  # until the model is built: imports make 590,000 objects and next to no garbage
    parser = argparse.ArgumentParser(prog="referee")
    parser.add_argument("--fd", type=int, required=True)
    fd = parser.parse_args().fd
    network = leave_network()
    exit_on_hangup(fd)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from crusades.bench import protocol as p
    from crusades.bench.referee.wire import Wire, WireClosed
    from crusades.errors import ConfigError

    wire = Wire(socket.socket(fileno=fd), header_cap=p.TRUSTED_HEADER_CAP, payload_cap=p.TRUSTED_PAYLOAD_CAP)
    from crusades.bench.referee.desk import Desk

    desk = Desk(wire, network)
    while True:
        try:
            order, _ = wire.receive(p.orders, timeout=None)
            report = desk.handle(order)
            if not gc.isenabled():
                gc.freeze()
                gc.enable()
            wire.send(report)
        except WireClosed:
            return
        except Exception as error:
            traceback.print_exc()
            words = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"  # the first says by itself what to do
            wire.send(p.RefereeError(message=words, code=desk.code_of(error)))
            time.sleep(0)  # the frame is in the socket's buffer; the daemon reads it even after we are gone
            sys.exit(1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    main()
