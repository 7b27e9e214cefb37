"""Where the judge's own time on a card goes: `python benchmarks/judge_parts.py [--profile P] [--device cuda] [--kernels N]`.

No sandbox and no submission: loads the profile's model as the referee does and times each part of its work, one line each, the
first time and warm; then, with `--kernels`, what one reference step spends its time on, by torch's profiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from crusades import hparams
from crusades.bench.referee import audit as audits
from crusades.bench.referee.anchor import Claims, Keeper, Kept
from crusades.bench.referee.anchored import compare, compare_all, out_of_reach
from crusades.bench.referee.columns import ColumnTaps
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.draft import draw_exam
from crusades.bench.referee.exam import Exam, ReferencePass, expected_of, optimizer_settings, prepare_exam, prepare_exams
from crusades.bench.referee.memory import host_buffer
from crusades.bench.referee.models import Reference, load_reference
from crusades.bench.referee.reads import Reader, idle_read
from crusades.bench.referee.room import Room
from crusades.hparams import Profile


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", default="qwen2.5-3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels", type=int, default=0)
    given = parser.parse_args()
    profile = hparams.load().profile(given.profile)
    synchronize = torch.cuda.synchronize if given.device == "cuda" else (lambda: None)

    def timed(name, work, *arguments, repeat=1):
        for _ in range(repeat):
            synchronize()
            started = time.perf_counter()
            result = work(*arguments)
            synchronize()
            print(f"{time.perf_counter() - started:8.4f} s  {name}", flush=True)
        return result

    reference = timed("load the model", load_reference, profile.model, given.device, None)
    corpus = timed("open the corpus", open_corpus, profile, reference.vocabulary, None)
    initial = timed("draw new weights", reference.redraw, 1, repeat=2)
    timed("what is drawn for an exam", draw_exam, reference, corpus, profile, bytes(16), repeat=2)
    exam = timed("exam", prepare_exam, reference, corpus, profile, initial, repeat=3)
    timed("four exams", lambda: list(prepare_exams(reference, corpus, profile, initial, [bytes([n] * 16) for n in range(4)])))
    timed("restore weights and moments", reference.restore, initial, repeat=2)
    pass_ = ReferencePass(reference, profile, exam)

    def step(parts):
        gradient, _ = pass_.gradient(exam.batches[0], parts)
        reference.model.zero_grad(set_to_none=True)
        return gradient

    timed("one reference step's gradient", step, exam.parts[0], repeat=3)
    accumulate, ColumnTaps._accumulate = ColumnTaps._accumulate, lambda *_: None
    timed("the same without columns", step, exam.parts[0], repeat=2)
    ColumnTaps._accumulate = accumulate
    reader, adam = Reader(reference, exam.sample, profile.steps), audits.Adam(**optimizer_settings(profile))
    for row in range(profile.steps + 1):
        reader.read(row)
    print(f"{sorted(reader.read_seconds)[len(reader.read_seconds) // 2]:8.4f} s  a read", flush=True)
    expected = timed("what is expected, to the device", expected_of, exam, given.device)
    timed("audit", audits.audit, reader.result(), expected, adam, profile.audit.group_min, repeat=2)
    anchors(timed, given.device, reference, profile, exam, initial)
    if given.kernels:
        kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if given.device == "cuda" else [])]
        with torch.profiler.profile(activities=kinds) as trace:
            step(exam.parts[0])
        print(trace.key_averages().table(sort_by=f"self_{given.device}_time_total", row_limit=given.kernels, max_name_column_width=70))


def anchors(timed: Callable[..., Any], device: str, reference: Reference, profile: Profile, exam: Exam, initial: torch.Tensor) -> None:
    """What is made ready for runs that are anchored, and what their steps take when the contestant is dead."""
    adam = audits.Adam(**optimizer_settings(profile))
    keeper = timed("buffers of anchors", Keeper, reference, profile)
    timed("measure the pauses", keeper.settle)
    print(f"{keeper.pause:8.4f} s  a pause\n{keeper._rest:8.4f} s  a copy to the host")
    timed("clean the card", Room(device, profile.guaranteed_bytes).settle, repeat=2)
    timed("measure a read", idle_read, reference, exam.sample)
    none = torch.zeros(len(exam.sample), dtype=reference.layout.dtype)
    kept = Kept(1, profile.steps - 1, exam, initial, initial, none, torch.stack([none, none]), Claims(0.0, exam.logits), ())
    torch.cuda.empty_cache() if device == "cuda" else None
    timed("a host buffer for weights", host_buffer, reference.layout.elements, reference.layout.dtype, device, repeat=2)
    held = timed("initial weights at hand", keeper.load, initial, repeat=2)
    timed("restore from there", reference.restore, held, repeat=2)
    timed("whether all weights are in reach", out_of_reach, reference.memory.weights, held, adam, profile.steps - 1, repeat=2)
    timed("one anchored step", compare, kept, held, reference, profile, adam, repeat=2)
    keeper.kept = [kept] * 4
    timed("four anchored steps", compare_all, keeper, reference, profile, adam)


if __name__ == "__main__":
    main()
