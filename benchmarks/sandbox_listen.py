"""Inside a sandbox whose filter lets everything pass: name every call that the real filter would have refused.

The real filter's rules are installed once more with "ask the supervisor" instead of a refusal (`SECCOMP_RET_USER_NOTIF`,
Linux 5.5). The supervisor, a child that was forked before, writes each new call down on the channel and lets it go on. So one
run finds all of them, also those that a library swallows, without ptrace and without the kernel's log.
"""

import fcntl
import json
import os
import signal
import socket
import struct

RECEIVE, SEND = 0xC0502100, 0xC0182101
"""SECCOMP_IOCTL_NOTIF_RECV and _SEND."""
GO_ON = 1
TELLING = {"ioctl": 1, "socket": 0, "socketpair": 0, "prctl": 0, "clone": 0, "personality": 0}
"""Calls whose argument (by position) says which of their many meanings was meant."""


def listen(allowed, channel):
    """Install the rules `[name, [[argument, mask, value], …]]`; from here on every other call of this process and its children is told."""
    import pyseccomp as lib

    watched = {lib.resolve_syscall(lib.Arch.NATIVE, name): position for name, position in TELLING.items()}
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        _supervise(there, channel, watched)
    there.close()
    rules = lib.SyscallFilter(lib.NOTIFY)
    for name, conditions in allowed:
        try:
            number = lib.resolve_syscall(lib.Arch.NATIVE, name)
            if number >= 0:
                rules.add_rule_exactly(lib.ALLOW, number, *(lib.Arg(index, lib.MASKED_EQ, mask, value) for index, mask, value in conditions))
        except (ValueError, OSError):
            continue  # not of this architecture, or said twice
    rules.load()
    socket.send_fds(here, [b"x"], [lib._libseccomp.seccomp_notify_fd(rules._filter)])
    assert here.recv(1) == b"y"


def _supervise(there, channel, watched):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, (notices, *_), _, _ = socket.recv_fds(there, 1, 1)
    there.sendall(b"y")
    known = set()
    while True:
        notice = bytearray(80)
        try:
            fcntl.ioctl(notices, RECEIVE, notice)
        except InterruptedError:
            continue
        except OSError:  # the caller died meanwhile
            if os.getppid() == 1:
                os._exit(0)
            continue
        ident, _, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", notice)
        call = (number, arguments[watched[number]] & 0xFFFFFFFF if number in watched else None)
        if call not in known:
            known.add(call)
            channel.sendall(json.dumps({"refused": call}).encode() + b"\n")
        try:
            fcntl.ioctl(notices, SEND, bytearray(struct.pack("=QqiI", ident, 0, 0, GO_ON)))
        except OSError:
            continue  # the caller died while it waited

