"""Where the time of a submission goes: `python benchmarks/profile_submission.py train.py [--profile P] [--kernels N]`.

No sandbox, no audit: inner_steps runs here, in plain memory, on random batches; then once more under torch.profiler.
For those who write submissions; the figure it prints is not a score.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from plain import Plain

from crusades.bench import mfu


def once(plain: Plain, seed: int) -> float:
    """Seconds of one call of inner_steps."""
    marks: list[float] = []
    result = plain.run(seed, lambda: marks.append(time.perf_counter()))
    print(f"run {seed}: {marks[-1] - marks[0]:.4f} s, loss {result.final_loss:.4f}", flush=True)
    return marks[-1] - marks[0]


def kernels(plain: Plain, count: int) -> None:
    """The `count` kernels that take longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as trace:
        once(plain, 9)
    for row in sorted(trace.key_averages(), key=lambda e: -e.self_device_time_total)[:count]:
        print(f"{row.self_device_time_total / 1e3:9.2f} ms {row.count:6d}  {row.key[:110]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--profile", default="qwen2.5-3b")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kernels", type=int, default=30)
    given = parser.parse_args()
    plain = Plain(given.path, given.profile, given.device)
    once(plain, 0)
    seconds = statistics.median(once(plain, 1 + i) for i in range(given.runs))
    tokens = plain.profile.steps * plain.profile.batch_size * plain.profile.sequence_length
    peak = mfu.table_peak(torch.cuda.get_device_name()) if given.device == "cuda" else None
    flops = mfu.flops_per_token(plain.reference.layout.parameters)
    found = {"file": given.path.name, "seconds": seconds, "mfu": mfu.mfu_percent(flops, tokens, seconds, peak) if peak else None}
    if given.device == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(found), flush=True)
    if given.kernels:
        kernels(plain, given.kernels)


if __name__ == "__main__":
    main()
