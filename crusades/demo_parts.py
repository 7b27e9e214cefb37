"""What `crusades demo` is made of: example files, a host that serves them, settings for a fast chain, a validator process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import trio

from crusades.errors import ConfigError, CrusadesError
from crusades.hparams import HParams

STOP_PATIENCE = 30.0
"""Seconds that the validator gets to stop in stages after SIGTERM."""


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of examples/manifest.toml."""

    name: str
    file: str
    expected: str
    """"accepted" or "rejected"."""
    about: str
    rules: tuple[str, ...] = ()
    """The rules or statistics that a rejection may name; empty = any."""
    demo: bool = True


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    example: tuple[Example, ...]


def read_manifest(folder: Path) -> tuple[Example, ...]:
    """Every example of the folder. Raises ConfigError."""
    path = folder / "manifest.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), _Manifest).example
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the examples cannot be read ({path}: {error}); run `crusades demo` from a checkout, installed with `make setup`") from error


# ------------------------------------------------------------------------------------------------ settings


def to_toml(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """A nested mapping of strings, numbers, booleans and lists of them as TOML. JSON's scalars and arrays are TOML's."""
    plain = {k: v for k, v in value.items() if not isinstance(v, dict)}
    lines = [f"{_key(k)} = {json.dumps(v)}" for k, v in plain.items()]
    if path and (plain or not value):
        lines.insert(0, f"[{'.'.join(map(_key, path))}]")
    return "\n".join(lines + [to_toml(v, (*path, k)) for k, v in value.items() if isinstance(v, dict)]) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def fast_settings(hparams: HParams, profile: str) -> HParams:
    """The same rules and limits, on a chain that is in a hurry: blocks of half a second, weights soon after a change."""
    replace = msgspec.structs.replace
    chain = replace(hparams.chain, poll_interval=0.5, reveal_blocks=4, block_time=BLOCK_TIME, weights_interval=10, min_commit_interval=0, fee_rao=0)
    return replace(hparams, chain=chain, competition=replace(hparams.competition, profile=profile, dev_profile=profile))


BLOCK_TIME = 0.5
"""Seconds per block of the demo's chain."""


# ------------------------------------------------------------------------------------------------ the file host


@contextlib.contextmanager
def file_host(files: Mapping[str, bytes]) -> Iterator[str]:
    """A web server on loopback that serves `files` by path, for as long as the block lasts; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path.lstrip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            return

    class Host(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):  # a reader who left is no news
                super().handle_error(request, client_address)

    server = Host(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="file-host", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# ------------------------------------------------------------------------------------------------ the validator process


def free_address(wanted: str) -> str:
    """`wanted` (HOST:PORT, IPv6 in brackets) if its port is not 0, else HOST with a port that is free now. Raises ConfigError."""
    host, _, port = wanted.rpartition(":")
    if not re.fullmatch(r"\[[^][]+\]|[^][:/]+", host) or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--web takes HOST:PORT, an IPv6 address in brackets, not {wanted!r}")
    if int(port):
        return wanted
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
            return f"{host}:{probe.getsockname()[1]}"
    except OSError as error:
        raise ConfigError(f"--web {wanted}: nothing can listen there ({error.strerror}); name an address of this machine, as 127.0.0.1:0") from error


_WITH_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; it survives exec
if os.getppid() != int(sys.argv[1]):
    sys.exit("the demo is gone already")
os.execv(sys.executable, [sys.executable, "-m", "crusades.validator", *sys.argv[2:]])
"""


class ValidatorProcess:
    """A real `crusades-validator`, in a session of its own: Ctrl-C reaches us alone, and we stop it in order.

    Whatever ends us, SIGKILL included, ends it too: the kernel sends it SIGTERM when the thread that starts it is gone. So
    make it on a thread that lives as long as the demo.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WITH_US, str(os.getpid()), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    def must_run(self) -> None:
        """Raises CrusadesError with the last of its log when it has ended."""
        code = self._process.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-15:]
            raise CrusadesError(f"the validator ended with exit code {code}; the last of {self.log}:\n    " + "\n    ".join(tail))

    async def stop(self) -> int:
        """SIGTERM, patience, then SIGKILL. Returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            pidfd = os.pidfd_open(self._process.pid)
            try:
                with trio.move_on_after(STOP_PATIENCE):
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        if self._process.poll() is None:
            self._process.kill()
        return self._process.wait()
