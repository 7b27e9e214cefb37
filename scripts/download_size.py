"""Say how much pip would download for the given arguments: prints `<bytes> <files> <cpu|cuda|none>`, or nothing if it cannot tell.

    python scripts/download_size.py -c constraints.txt torch==2.13.0

Asks pip what it would install (`--dry-run --report`) and each file's host for its size. The last word tells which build of
torch is among them: the CUDA build drags in gigabytes of NVIDIA libraries.
"""

import json
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PATIENCE = 20.0
"""Seconds for each question about a size."""


def planned(arguments: list[str]) -> list[dict[str, Any]] | None:
    """What pip would install; None when it cannot say."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--disable-pip-version-check", "--report", str(report), *arguments]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        items: list[dict[str, Any]] | None = json.loads(report.read_text())["install"] if done.returncode == 0 else None
        return items


def size(url: str) -> int:
    """Bytes of the file at `url`, which may be a local one; 0 when nobody says, and for a folder."""
    try:
        if url.startswith("file:"):
            path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
            return path.stat().st_size if path.is_file() else 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError):
        return 0


def torch_build(items: list[dict[str, Any]]) -> str:
    """"cpu", "cuda", or "none" when torch is not among them."""
    for item in items:
        if item["metadata"]["name"].lower() == "torch":
            needs = " ".join(item["metadata"].get("requires_dist") or [])
            return "cuda" if "nvidia" in needs and "+cpu" not in item["metadata"]["version"] else "cpu"
    return "none"


def main() -> None:
    items = planned(sys.argv[1:])
    if items is None:
        return
    with ThreadPoolExecutor(8) as pool:
        total = sum(pool.map(size, [item["download_info"]["url"] for item in items]))
    print(total, len(items), torch_build(items))


if __name__ == "__main__":
    main()
