"""Where the time of a submission goes: `python benchmarks/profile_submission.py train.py [--profile P] [--kernels N]`.

No sandbox, no audit: inner_steps runs here, in plain memory, on random batches; then once more under torch.profiler.
For those who write submissions; the figure it prints is not a score.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from crusades import hparams
from crusades.bench import mfu
from crusades.bench.inside.model import make_optimizer
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.exam import optimizer_settings
from crusades.bench.referee.models import load_reference


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--profile", default="qwen2.5-3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kernels", type=int, default=30)
    arguments = parser.parse_args()
    profile = hparams.load().profile(arguments.profile)
    reference = load_reference(profile.model, arguments.device, None)
    corpus = open_corpus(profile.data, reference.vocabulary, None)
    spec = importlib.util.spec_from_file_location("train", arguments.path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    peak = mfu.table_peak(torch.cuda.get_device_name()) if arguments.device == "cuda" else 1.0
    synchronize = torch.cuda.synchronize if arguments.device == "cuda" else (lambda: None)

    def once(seed: int) -> float:
        reference.restore()
        optimizer = make_optimizer(list(reference.model.parameters()), optimizer_settings(profile))
        first, second = (reference.layout.views(m) for m in (reference.memory.exp_avg, reference.memory.exp_avg_sq))
        for name, parameter in reference.model.named_parameters():
            optimizer.state[parameter] = {"step": torch.zeros((), device=arguments.device), "exp_avg": first[name], "exp_avg_sq": second[name]}
        rows = corpus.draw(bytes([seed]), profile.steps * profile.batch_size, profile.sequence_length)
        batches = [torch.from_numpy(b) for b in rows.reshape(profile.steps, profile.batch_size, profile.sequence_length)]

        def drip():
            for batch in batches:
                synchronize()
                yield batch

        synchronize()
        started = time.perf_counter()
        result = module.inner_steps(reference.model, drip(), optimizer, profile.steps, torch.device(arguments.device))
        synchronize()
        seconds = time.perf_counter() - started
        print(f"run {seed}: {seconds:.4f} s, loss {result.final_loss:.4f}", flush=True)
        del result
        return seconds

    once(0)
    seconds = [once(1 + i) for i in range(arguments.runs)]
    tokens = profile.steps * profile.batch_size * profile.sequence_length
    flops = mfu.flops_per_token(reference.layout.parameters)
    found = {"file": arguments.path.name, "seconds": statistics.median(seconds), "mfu": mfu.mfu_percent(flops, tokens, statistics.median(seconds), peak)}
    if arguments.device == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(found), flush=True)
    if arguments.kernels:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as trace:
            once(9)
        for row in sorted(trace.key_averages(), key=lambda e: -e.self_device_time_total)[: arguments.kernels]:
            print(f"{row.self_device_time_total / 1e3:9.2f} ms {row.count:6d}  {row.key[:110]}")


if __name__ == "__main__":
    main()
