"""The contestant's end of the channel: the frame format of `crusades.bench.protocol` with the standard library alone."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from typing import Any

_PREFIX = struct.Struct("<II")


class ChannelClosed(Exception):
    """The referee is gone: nothing is left to do."""


class Channel:
    """Blocking frames over one end of a socketpair."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def send(self, tag: str, payload: bytes = b"", **fields: Any) -> None:
        """One frame."""
        header = json.dumps({"t": tag, **fields}).encode()
        self._socket.sendall(_PREFIX.pack(len(header), len(payload)) + header + payload)

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        """Header and payload of the next frame. Raises ChannelClosed at its end."""
        header, payload = _PREFIX.unpack(self._exactly(_PREFIX.size))
        return json.loads(self._exactly(header)), self._exactly(payload)

    def receive_descriptor(self) -> int:
        """The descriptor that follows a frame, on one byte of its own."""
        space = socket.CMSG_SPACE(array.array("i").itemsize)
        _, ancillary, _, _ = self._socket.recvmsg(1, space)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(data[: descriptors.itemsize])
                os.set_inheritable(descriptors[0], False)
                return descriptors[0]
        raise ChannelClosed("no descriptor came")

    def _exactly(self, size: int) -> bytearray:
        got = bytearray(size)
        view, at = memoryview(got), 0
        while at < size:
            count = self._socket.recv_into(view[at:])
            if not count:
                raise ChannelClosed("the referee closed the channel")
            at += count
        return got
