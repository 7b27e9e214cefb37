"""Entry point inside the sandbox: `python -I /inside/harness/main.py`. The channel is the descriptor that the launcher named."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path


def main() -> None:
    """Limits first, torch second, then serve. The submission is loaded much later, by the referee's order."""
    gc.disable()  # importing makes 590,000 objects and next to no garbage: looking for it takes a tenth of the start and more; on again in `Contestant.build`
    here = Path(__file__).resolve().parent
    guard = here.parent / "guard"
    if not guard.is_dir():  # outside of a sandbox (`bench --unsafe-no-sandbox`) the package's own folders serve
        guard = here.parents[1] / "sandbox" / "inside"
    sys.path[:0] = [str(here), str(guard)]
    import limits

    report = limits.apply()

    import harness
    import hook
    import torch
    import wire

    channel = wire.Channel(int(os.environ.get("CRUSADES_CHANNEL_FD", "3")))
    import transformers

    versions = {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "transformers": transformers.__version__,
    }
    channel.send("hello", versions=versions, limits={str(k): str(v) for k, v in report.items()})
    try:
        harness.serve(channel, hook)
    except wire.ChannelClosed:
        return


if __name__ == "__main__":
    main()
