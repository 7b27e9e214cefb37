"""The referee's ends of both wires: blocking frames over a socketpair with a deadline, and descriptors passed along."""

from __future__ import annotations

import array
import socket
import time
from typing import TypeVar

import msgspec

from crusades.bench import protocol
from crusades.errors import ProtocolError

T = TypeVar("T")


class WireClosed(Exception):
    """The other side is gone."""


class WireTimeout(Exception):
    """The other side said nothing in time."""


class Wire:
    """Frames over `sock`. The caps are those of whoever is at the other end."""

    def __init__(self, sock: socket.socket, *, header_cap: int, payload_cap: int) -> None:
        self._socket, self._header_cap, self._payload_cap = sock, header_cap, payload_cap

    def send(self, frame: protocol.Frame, payload: bytes = b"", *, timeout: float = 60.0) -> None:
        """One frame. Raises WireClosed, or WireTimeout when the other side does not read."""
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(protocol.encode(frame, payload))
        except TimeoutError as error:
            raise WireTimeout("nobody reads") from error
        except OSError as error:
            raise WireClosed(str(error)) from error

    def send_descriptor(self, fd: int) -> None:
        """A descriptor on one byte of its own, after the frame that announces it."""
        try:
            self._socket.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        except OSError as error:
            raise WireClosed(str(error)) from error

    def receive_descriptor(self) -> int:
        """The descriptor on the next byte. Raises ProtocolError when there is none."""
        _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not fds:
            raise ProtocolError("a descriptor was announced and did not come")
        return fds[0]

    def receive(self, decoder: msgspec.json.Decoder[T], *, timeout: float | None) -> tuple[T, bytes]:
        """Next frame within `timeout` seconds in all. Raises WireClosed, WireTimeout or ProtocolError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        prefix = self._exactly(protocol.PREFIX.size, deadline)
        header, payload = protocol.decode_prefix(prefix, header_cap=self._header_cap, payload_cap=self._payload_cap)
        record = protocol.decode_header(decoder, self._exactly(header, deadline))
        return record, self._exactly(payload, deadline)

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        got = bytearray()
        while len(got) < size:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise WireTimeout("no frame in time")
            self._socket.settimeout(left)
            try:
                chunk = self._socket.recv(min(size - len(got), 1 << 20))
            except TimeoutError as error:
                raise WireTimeout("no frame in time") from error
            except OSError as error:
                raise WireClosed(str(error)) from error
            if not chunk:
                raise WireClosed("end of file")
            got += chunk
        return bytes(got)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
