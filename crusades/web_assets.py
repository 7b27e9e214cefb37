"""The files of the dashboard, read once at start: no path from a request ever reaches the file system."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent / "web_static"

TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Asset(msgspec.Struct, frozen=True):
    """One file as it is served."""

    content: bytes
    content_type: str
    etag: str


def load_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """name → file, for the types that the page uses."""
    assets = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in TYPES:
            content = path.read_bytes()
            assets[path.name] = Asset(content, TYPES[path.suffix], f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"')
    return assets
