"""The websocket that clients connect to, on an asyncio loop in a thread of its own; and the clock that makes blocks.

A loop of its own, because the devnet must go on answering whatever the loop of the program under test does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.server import Server as WebsocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from crusades.devnet.chain import Chain
from crusades.devnet.faults import Fault
from crusades.devnet.rpc import Reply, Rpc
from crusades.errors import ConfigError

_log = logging.getLogger(__name__)

_MAX_FRAME = 1 << 24
"""Bytes of one request; a batch of storage keys is far smaller."""
_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 10.0

ControlHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Client:
    """One connected client. What is sent goes through a queue, in order."""

    def __init__(self, number: int, socket: ServerConnection, server: Server) -> None:
        self.number = number
        self.socket = socket
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self._server = server

    def send(self, message: dict[str, Any]) -> None:
        """Queue a notification, from any thread; dropped while the node plays mute."""
        if not self._server.mute:
            self._server.call(self.queue.put_nowait, message)

    async def pump(self) -> None:
        """Write what is queued until the connection ends."""
        try:
            while True:
                await self.socket.send(json.dumps(await self.queue.get()))
        except ConnectionClosed:
            return

    def abort(self) -> None:
        """Cut the TCP connection without a word."""
        self.socket.transport.abort()


class Server:
    """Serves one chain. `start` and `stop` are called from the thread that owns it; the rest from any."""

    def __init__(self, chain: Chain, rpc: Rpc, control: ControlHandler | None) -> None:
        self.chain = chain
        self.rpc = rpc
        self.mute = False
        """Answer nothing and push nothing, with connections left open."""
        self.stalled = False
        """Make no blocks by the clock."""
        self.port = chain.config.port
        self.control_port = chain.config.control_port
        self._control = control
        self._clients: set[Client] = set()
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._listener: WebsocketServer | None = None
        self._thread = threading.Thread(target=self._run, name="devnet", daemon=True)

    # ------------------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """Listen and return. Raises ConfigError when the port cannot be had."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        if not self._started.wait(_START_TIMEOUT):
            raise ConfigError(f"devnet did not begin to listen within {_START_TIMEOUT:.0f} s")
        if self._failure is not None:
            host, port = self.chain.config.host, self.chain.config.port
            raise ConfigError(f"devnet cannot listen on {host}:{port}: {self._failure.strerror or self._failure}; is one running already?")

    def stop(self) -> None:
        """Close every connection and end the thread."""
        if self._thread.is_alive():
            self.call(self._end)
            self._thread.join(_STOP_TIMEOUT)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Run on the server's loop, soon; not at all before it has begun or after it has ended."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            _log.debug("devnet's loop has ended, %s is not run", function)

    def wait(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine on the server's loop and block this thread until it is done; not at all before it has begun."""
        if self._loop is None:
            return None

        async def run() -> Any:
            return await make()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_STOP_TIMEOUT)

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    def _end(self) -> None:
        if self._stopping is not None:
            self._stopping.set()

    async def _main(self) -> None:
        self._stopping = asyncio.Event()
        control = None
        try:
            await self.listen()
            if self._control is not None and self.control_port is not None:
                control = await asyncio.start_server(self._control, self.chain.config.host, self.control_port)
                self.control_port = control.sockets[0].getsockname()[1]
        except OSError as error:
            self._failure = error
            await self.vanish()
            return
        finally:
            self._started.set()
        clock = asyncio.create_task(self._tick()) if self.chain.config.sealing == "interval" else None
        await self._stopping.wait()
        if clock is not None:
            clock.cancel()
        if control is not None:
            control.close()
        await self.vanish()

    async def _tick(self) -> None:
        """Make a block every `block_time`, without drift."""
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            due = max(due + self.chain.config.block_time, now())
            await asyncio.sleep(due - now())
            if not self.stalled:
                self._produce(1)

    def _produce(self, count: int) -> None:
        try:
            self.chain.produce(count)
        except Exception:  # one bad block must not stop the clock; the log has the trace
            _log.exception("devnet failed to make a block")

    # ------------------------------------------------------------------------------------------------ listening

    async def listen(self) -> None:
        """Accept connections, on the port of last time if there was one."""
        if self._listener is not None:
            return
        config = self.chain.config
        self._listener = await serve(
            self._serve,
            config.host,
            self.port,
            max_size=_MAX_FRAME,
            compression=None,
            ping_interval=None,
            close_timeout=1,
            origins=[None],  # a web page that a developer has open must not steer the chain
        )
        self.port = next(iter(self._listener.sockets)).getsockname()[1]

    async def vanish(self) -> None:
        """Stop listening and cut every connection, as a node whose machine is gone."""
        listener, self._listener = self._listener, None
        self.cut()
        if listener is not None:
            listener.close(close_connections=False)
            await listener.wait_closed()

    def cut(self) -> None:
        """Abort every connection. On the server's loop only."""
        for client in list(self._clients):
            client.abort()

    async def close_all(self) -> None:
        """Close every connection cleanly (1001), as a node that shuts down."""
        await asyncio.gather(*(client.socket.close(1001, "devnet is going away") for client in list(self._clients)))

    # ------------------------------------------------------------------------------------------------ serving

    async def _serve(self, socket: ServerConnection) -> None:
        client = Client(next(self._numbers), socket, self)
        self._clients.add(client)
        pump = asyncio.create_task(client.pump())
        try:
            async for frame in socket:
                if not self.mute:
                    await self._frame(client, frame)
        except ConnectionClosed:
            return
        finally:
            pump.cancel()
            self._clients.discard(client)
            self.rpc.forget(client)

    async def _frame(self, client: Client, frame: str | bytes) -> None:
        try:
            message = json.loads(frame)
        except ValueError:
            client.queue.put_nowait({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "Parse error"}})
            return
        calls = message if isinstance(message, list) else [message]
        replies = [self.rpc.handle(call, client) for call in calls]
        if self.chain.config.sealing == "instant":
            asyncio.get_running_loop().call_soon(self._seal)
        struck = next((reply.fault for reply in replies if reply.fault is not None), None)
        await self._answer(client, replies, struck, batch=isinstance(message, list))

    def _seal(self) -> None:
        if len(self.chain.pool) and not self.stalled:
            self._produce(1 + self.chain.config.finality_lag)

    async def _answer(self, client: Client, replies: list[Reply], fault: Fault | None, *, batch: bool) -> None:
        match fault.kind if fault is not None else None:
            case "drop":
                client.abort()
                return
            case "close":
                await client.socket.close(1001, "injected fault")
                return
        answers = [reply.answer for reply in replies if reply.answer is not None and not _withheld(reply.fault)]
        if not answers:
            return
        body = answers if batch else answers[0]
        if fault is not None and fault.kind == "slow":
            asyncio.get_running_loop().call_later(fault.seconds, client.queue.put_nowait, body)
        else:
            client.queue.put_nowait(body)


def _withheld(fault: Fault | None) -> bool:
    return fault is not None and fault.kind == "silence"
