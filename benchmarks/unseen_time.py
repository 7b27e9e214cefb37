"""What the shortcuts that come nearest to being unseen save in time: `python benchmarks/unseen_time.py [--profile P] [--device D] [--runs N]`.

Counting products says how much work a shortcut leaves out, not what leaving it out costs. So this judges, on one slot and by the
audit alone, `examples/fast.py` before and after the same file with `unseen/head_rows.py.txt` in place of its head (one row of 32, 16, 8
and 4), and times the other one by itself: the attention output's weight gradient from a sixteenth of its inputs' directions, per
run, with what the basis of the directions takes told apart. Prints one JSON object. Needs a card.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trio
from verdicts import judge

from crusades import hparams
from crusades.bench.local import BenchConfig
from crusades.bench.referee.models import read_config
from crusades.hparams import Profile

FAST = Path(__file__).parent.parent / "examples" / "fast.py"
HEAD = Path(__file__).parent / "unseen" / "head_rows.py.txt"
PARTS = (32, 16, 8, 4)
DIRECTIONS = 16
REPEATS = 50


def files(folder: Path) -> list[Path]:
    """fast.py, its cheating kin, and fast.py once more, so that a card that slows down is noticed."""
    honest, head = FAST.read_text(), HEAD.read_text()
    assert "\nPARTS = 16\n" in head
    texts = {"fast.py": honest} | {f"head_1_of_{n}.py": f"{honest}\n\n" + head.replace("\nPARTS = 16\n", f"\nPARTS = {n}\n") for n in PARTS} | {"fast_again.py": honest}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]


def milliseconds(work: Callable[[], Any]) -> float:
    """The median of `REPEATS` calls on the card."""
    for _ in range(3):
        work()
    found = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return statistics.median(found)


def directions(profile: Profile) -> dict[str, float]:
    """Milliseconds per run of the attention output's weight gradients: the true product, the same from few directions, and a basis of
    those (Cholesky's of a random sketch, which a cheat could make beside the forward pass)."""
    config = read_config(profile.model.config)
    tokens, width, times = profile.batch_size * (profile.sequence_length - 1), int(config["hidden_size"]), int(config["num_hidden_layers"]) * profile.steps
    x, dy = (torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rank = width // DIRECTIONS
    sketch = torch.randn(rank, tokens, device="cuda", dtype=torch.bfloat16)

    def basis() -> torch.Tensor:
        some = (sketch @ x).float()
        root = torch.linalg.cholesky_ex(some @ some.t() + 1e-3 * torch.eye(rank, device="cuda"))[0]
        return torch.linalg.solve_triangular(root, some, upper=False).to(x.dtype)

    along = basis()
    true, few, made = milliseconds(lambda: dy.t() @ x), milliseconds(lambda: (dy.t() @ (x @ along.t())) @ along), milliseconds(basis)
    return {"true_ms": times * true, "few_ms": times * few, "basis_ms": times * made, "saved_ms": times * (true - few), "saved_ms_with_basis": times * (true - few - made)}


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    parameters = hparams.load()
    with tempfile.TemporaryDirectory() as folder:
        paths = files(Path(folder))
        config = BenchConfig(path=paths[0], hparams=parameters, profile_name=given.profile, device=given.device, runs=given.runs, sandboxed=not given.unsafe_no_sandbox)
        found = await judge(config, paths)
    timed = [line["run_s"] for name, line in found["files"].items() if name.startswith("fast") and line["run_s"]]
    if not timed:
        return {"profile": given.profile, "head_rows": found["files"], "error": "fast.py itself has no scored run to compare with"}
    alone = directions(parameters.profile(given.profile))  # only now: a process of ours on the card would void every run
    honest = statistics.mean(timed)
    for line in found["files"].values():
        line["saved_percent"] = 100 * (1 - line["run_s"] / honest) if line["run_s"] else None
    return {"profile": given.profile, "card": torch.cuda.get_device_name(), "head_rows": found["files"], "attention_output_directions": alone | shares(alone, honest)}


def shares(milliseconds: dict[str, float], run_s: float) -> dict[str, float]:
    """The same as percents of a run of `run_s`."""
    return {name.replace("_ms", "_percent"): value / run_s / 10 for name, value in milliseconds.items()}


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="qwen2.5-3b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--unsafe-no-sandbox", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no card here: what it times is a card's work")
    print(json.dumps(trio.run(measure, given), indent=1))


if __name__ == "__main__":
    main()
