"""Where the validator is: what people type, and what the clients need."""

from __future__ import annotations

from urllib.parse import urlsplit

from crusades.errors import UsageError


def base_url(text: str) -> str:
    """`HOST:PORT`, `http://…` or `https://…` as a base URL without a slash at the end. UsageError for anything else."""
    full = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(full)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username:
        raise UsageError(f"--url {text!r} is no address of a validator: give HOST:PORT or http(s)://HOST:PORT")
    return full.rstrip("/")


def live_url(base: str, since: int | None) -> str:
    """The websocket's address; `since` takes up after an event."""
    scheme, rest = base.split("://", 1)
    return f"{'wss' if scheme == 'https' else 'ws'}://{rest}/api/v1/live" + ("" if since is None else f"?since={since}")
