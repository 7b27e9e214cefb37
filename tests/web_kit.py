"""What the web tests share: an application over the filled fake store, in process, no port."""

from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from fakes_web import RULES_DOCUMENT, filled_board, filled_store, simple_rank

from crusades import hparams
from crusades.web import create_app

SETTINGS = hparams.load(Path(__file__).parent.parent / "hparams.toml")


def make(store=None, board=None, *, metrics=lambda: b"crusades_up 1\n", **web):
    """(app, store, board)"""
    store = filled_store() if store is None else store
    board = filled_board() if board is None else board
    settings = msgspec.structs.replace(SETTINGS, web=msgspec.structs.replace(SETTINGS.web, **web))
    app = create_app(store, board, settings, rules_version="1+0badcafe", metrics=metrics, rank=simple_rank, rules=lambda: RULES_DOCUMENT)
    return app, store, board


@asynccontextmanager
async def live(app, path="/api/v1/live"):
    """A connected websocket client, with the hub running."""
    async with trio.open_nursery() as nursery:
        if not app.hub.running:
            await nursery.start(app.hub.run)
        async with app.test_client().websocket(path) as socket:
            yield socket
        nursery.cancel_scope.cancel()


async def frames_until(socket, wanted):
    """Frames up to and with the first that `wanted` accepts."""
    seen = []
    with trio.fail_after(60):
        while True:
            seen.append(await socket.receive_json())
            if wanted(seen[-1]):
                return seen
