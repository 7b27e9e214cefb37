"""Three things that a contestant might turn to account on a card: `python benchmarks/suspicions.py {cool,scrub,copies}`.

* cool: is a run faster after a pause in which the card cools? Five eager steps of the default profile, after pauses of several
  lengths, in this process.
* scrub: does a process find in the card's memory what another has left there? One fills it with a pattern and is killed, the
  next allocates all of it and counts.
* copies: does the referee's copy of all weights take longer when it is kept than when it goes to waste (`anchor.py`)?
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from crusades import hparams
from crusades.bench.referee.anchor import Anchor, Keeper
from crusades.bench.referee.calibrate import exam_of
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.lab import Lab
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.reads import now_ns
from crusades.bench.referee.recipe import Recipe

FILL = """
import os, signal, torch
kept, size = [], 1 << 33
while size >= 1 << 20:
    try:
        kept.append(torch.empty(size, dtype=torch.uint8, device="cuda").fill_(0x5C))
    except torch.OutOfMemoryError:
        size //= 2
torch.cuda.synchronize()
print(sum(map(len, kept)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
LOOK = """
import torch
kept, size = [], 1 << 33
while size >= 1 << 26:
    try:
        kept.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
del kept[-2:]  # room to count in
torch.cuda.empty_cache()
pieces = [piece for part in kept for piece in part.split(1 << 22)]
print(sum(map(len, kept)), sum(int(piece.count_nonzero()) for piece in pieces), sum(int((piece == 0x5C).sum()) for piece in pieces), flush=True)
"""


def scrub() -> None:
    for _ in range(2):
        filled, looked = (subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False).stdout.split() for code in (FILL, LOOK))
        print(f"filled {int(filled[0]) / 1e9:.2f} GB and was killed; the next allocated {int(looked[0]) / 1e9:.2f} GB: {looked[1]} bytes not zero, {looked[2]} of the pattern")


def copies(profile: hparams.Profile) -> None:
    reference = load_reference(profile.model, "cuda", None)
    keeper = Keeper(reference, profile)
    keeper.settle()
    steps, took = range(1, profile.steps), dict[bool, list[float]]({True: [], False: []})
    buffer = torch.empty_like(reference.memory.weights)
    anchors = {kept: Anchor(reference, steps, {1: buffer} if kept else {}) for kept in took}
    for _ in range(60):
        for kept in random.sample((True, False), 2):
            torch.empty(256 << 20, dtype=torch.uint8, device="cuda").zero_()
            torch.cuda.synchronize()
            started = now_ns()
            anchors[kept].copy(1)
            took[kept].append((now_ns() - started) / 1e6)
    for kept, values in took.items():
        deciles = statistics.quantiles(values[5:], n=10)
        print(f"{'kept' if kept else 'not kept':9s} median {statistics.median(values[5:]):.4f} ms, first decile {deciles[0]:.4f}, last {deciles[-1]:.4f} (the pause is {1e3 * keeper.pause:.3f})")
    pairs = [a > b for a in took[True][5:] for b in took[False][5:]]
    print(f"a kept copy is slower than one that is not in {statistics.mean(pairs):.3f} of all pairs (0.5: cannot be told)")


def cool(profile: hparams.Profile) -> None:
    import pynvml

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)
    reference = load_reference(profile.model, "cuda", None)
    exam, initial = exam_of(reference, open_corpus(profile, reference.vocabulary, None), profile, 0)
    lab = Lab(reference, profile, exam, initial)
    baseline = Recipe(submission=str(Path("examples/baseline.py")))
    for pause in (0, 0, 0, 0, 10, 0, 0, 40, 0):
        time.sleep(pause)
        before = pynvml.nvmlDeviceGetTemperature(card, 0)
        _, seconds = lab.measure(baseline)
        clock = pynvml.nvmlDeviceGetClockInfo(card, 1)
        print(f"after {pause:2d} s without work: {seconds:.4f} s, {before} degrees before, {pynvml.nvmlDeviceGetTemperature(card, 0)} after, {clock} MHz", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("cool", "scrub", "copies"))
    given = parser.parse_args()
    profile = hparams.load().profile("qwen2.5-3b")
    {"cool": lambda: cool(profile), "scrub": scrub, "copies": lambda: copies(profile)}[given.what]()


if __name__ == "__main__":
    main()
