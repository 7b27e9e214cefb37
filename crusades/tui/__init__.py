"""The dashboard in a terminal: a textual client of the web server, in a process of its own (asyncio; never the daemon's trio).

How it hangs together: `feed` keeps a websocket to `/api/v1/live` and turns frames into messages; `picture` is what is
known of the validator, and the only state; each widget draws one part of it and holds no copy. Everything a stranger
wrote (names, URLs, reasons, code) goes through `plain` before it reaches the terminal.

Imports records and errors alone, so that it can be shipped without the daemon.
"""

from __future__ import annotations


def run(url: str) -> int:
    """Show the validator at `url` until the user quits. Exit code 0."""
    from crusades.tui.app import make_app

    return make_app(url).run() or 0
