"""The application on a real port: hypercorn's trio worker, a browser's handshake, shutdown, an address that is taken."""

import contextlib
import functools
import os
import socket
from types import SimpleNamespace

import httpx
import msgspec
import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, open_websocket_url
from web_kit import SETTINGS, make

from crusades import web_serve
from crusades.errors import ConfigError
from crusades.web import serve


async def read_to_the_end(live):
    while True:
        await live.get_message()


async def test_pages_json_and_live_over_one_port(nursery):
    app, store, _ = make()
    base = await nursery.start(functools.partial(serve, app, "127.0.0.1:0"))
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "server" not in page.headers
        assert (await client.get("/api/v1/overview")).json()["netuid"] == 3
    async with open_websocket_url(f"{base.replace('http', 'ws')}/api/v1/live", extra_headers=[(b"sec-websocket-extensions", b"permessage-deflate")]) as live:
        assert not any(name == b"sec-websocket-extensions" for name, _ in live.handshake_headers)
        assert msgspec.json.decode(await live.get_message())["seq"] == store.last_seq
    nursery.cancel_scope.cancel()


async def test_shutdown_lets_clients_go_and_returns(nursery):
    app, _, _ = make()
    stop, stopped = trio.Event(), trio.Event()

    async def run(*, task_status):
        await serve(app, "127.0.0.1:0", shutdown=stop.wait, task_status=task_status)
        stopped.set()

    base = await nursery.start(run)
    async with open_websocket_url(f"{base.replace('http', 'ws')}/api/v1/live") as live:
        await live.get_message()
        stop.set()
        with pytest.raises(ConnectionClosed) as goodbye:
            await read_to_the_end(live)
        assert goodbye.value.reason.code == 1001
    with trio.fail_after(10):
        await stopped.wait()


async def test_an_address_that_is_taken_is_the_operators_error():
    app, _, _ = make()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--web"):
        await serve(app, f"127.0.0.1:{taken.getsockname()[1]}")


@pytest.mark.parametrize("listen", ["nowhere.invalid:0", "127.0.0.1:99999", "127.0.0.1:http"])
async def test_an_address_that_is_none_is_the_operators_error(listen):
    app, _, _ = make()
    with pytest.raises(ConfigError):
        await serve(app, listen)


async def test_the_listening_socket_is_not_inherited(nursery):
    """Whoever is spawned from this process runs foreign code: it must not be able to answer for us."""
    app, _, _ = make()
    before = listening()
    await nursery.start(functools.partial(serve, app, "127.0.0.1:0"))
    (number,) = listening() - before
    assert not os.get_inheritable(number)
    nursery.cancel_scope.cancel()


def listening():
    """Numbers of our file descriptors that are listening sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as copy:
            if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.add(int(name))
    return found


async def test_the_daemon_serves_it_and_stops_it(nursery):
    """The daemon's own task around all this: the address it reports answers, and it ends when the daemon says so."""
    from crusades.daemon import serve_web
    from crusades.watchdog import Health

    _, store, board = make()
    ctx = SimpleNamespace(store=store, board=board, hparams=SETTINGS, metrics=SimpleNamespace(render=lambda: b"crusades_up 1\n"), health=Health(), web_stop=trio.Event(), web_stopped=trio.Event())
    config = SimpleNamespace(listen="127.0.0.1:0")
    base = await nursery.start(serve_web, ctx, config)
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        assert (await client.get("/metrics")).text == "crusades_up 1\n"
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        ctx.health.expect("something", -1.0)  # nobody has told the board of it
        assert (await client.get("/livez")).status_code == 503
    assert "live pages" in ctx.health.ages()
    ctx.web_stop.set()
    with trio.fail_after(10):
        await ctx.web_stopped.wait()
    assert "live pages" not in ctx.health.ages()


async def deaf(base, request):
    """A client with a small buffer that asks and never reads."""
    client = trio.socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = base.removeprefix("http://").partition(":")
    await client.connect((host, int(port)))
    await client.send(request)
    return client


MANY = b"GET /api/v1/submissions?limit=200 HTTP/1.1\r\nhost: x\r\n\r\n" * 1000
LIVE = b"GET /api/v1/live HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"


async def stuck(connections):
    """Until the server waits for such a client to read: it holds the lock of its sends, and nobody moves."""
    with trio.fail_after(20):
        while not any(one.send_lock.locked() for one in connections):  # noqa: ASYNC110 - hypercorn has no event for it
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.fixture
def connections(monkeypatch):
    """The server's connections while it serves."""
    seen, settings = set(), web_serve._settings

    def remembered(*arguments):
        config = settings(*arguments)
        config.connections = seen
        return config

    monkeypatch.setattr(web_serve, "_settings", remembered)
    return seen


async def test_a_client_that_stops_reading_does_not_hold_up_the_shutdown(nursery, connections):
    app, _, _ = make()
    stop, stopped = trio.Event(), trio.Event()

    async def run(*, task_status):
        await serve(app, "127.0.0.1:0", shutdown=stop.wait, grace=0.1, task_status=task_status)
        stopped.set()

    client = await deaf(await nursery.start(run), MANY)
    await stuck(connections)
    stop.set()
    with trio.fail_after(10):
        await stopped.wait()
    client.close()


async def test_a_client_that_stops_reading_does_not_hold_up_a_cancellation(connections):
    """The second signal, and every error in another task of the daemon."""
    app, _, _ = make()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            client = await deaf(await nursery.start(functools.partial(serve, app, "127.0.0.1:0")), MANY)
            await stuck(connections)
            nursery.cancel_scope.cancel()
    client.close()


async def test_a_live_client_that_stops_reading_makes_room_for_another(nursery, monkeypatch):
    monkeypatch.setattr(web_serve, "SEND_DEADLINE", 0.2)
    app, store, _ = make()
    client = await deaf(await nursery.start(functools.partial(serve, app, "127.0.0.1:0")), LIVE)
    with trio.fail_after(20):
        while not app.hub.clients:
            await trio.lowlevel.checkpoint()
        while app.hub.clients:
            store.publish("submission", {"url": "x" * 200_000}, "0" * 16)
            await trio.sleep(0.01)
    client.close()
    nursery.cancel_scope.cancel()


async def test_a_client_that_reads_slowly_gets_everything(nursery, monkeypatch):
    """The deadline is for each chunk and not for the whole."""
    monkeypatch.setattr(web_serve, "CHUNK", 16)
    app, _, _ = make()
    base = await nursery.start(functools.partial(serve, app, "127.0.0.1:0"))
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        assert len((await client.get("/api/v1/submissions?limit=200")).json()["items"]) > 10
    nursery.cancel_scope.cancel()
