"""Where the files are that ship beside the package: in a checkout next to it, in an installed wheel inside it (setup.py)."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """`hparams.toml`, `examples`, `deploy` or `docs`, whether it exists or not."""
    inside = PACKAGE / "shipped" / name
    return inside if inside.exists() else PACKAGE.parent / name
