"""One figure per line of the judge's budget: `python benchmarks/evaluations.py [FILE] [--profile P] [--device D] [--times N] [--unsafe-no-sandbox]`.

Evaluates the same file N times on one slot, pre-warmed as the validator does, and prints one JSON object: seconds from
order to verdict, the referee's clock over the contestant's own (its reads counted back in), reads as a share of a run,
seconds per exam, and the spread of the score.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import trio

from crusades import hparams
from crusades.bench.evaluate import Job, open_slot
from crusades.bench.local import BenchConfig, bench_slot, read_submission


async def measure(config: BenchConfig, times: int) -> dict[str, object]:
    source = read_submission(config.path, config.hparams.fetch.max_bytes)
    verdicts, seconds, gaps = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        async with open_slot(bench_slot(config, Path(folder) / "slot")) as slot:
            up = time.monotonic() - started
            for number in range(times):
                began = time.monotonic()
                await slot.warm()
                warmed = time.monotonic()
                verdict = await slot.evaluate(Job(f"evaluation-{number}", source, commit_block=0, block=0, skip_rules=config.skip_rules))
                seconds.append(time.monotonic() - warmed)
                gaps.append(warmed - began)
                verdicts.append(verdict)
                print(f"{number + 1}/{times}: {verdict.verdict} {verdict.score_mfu} in {seconds[-1]:.1f} s; {verdict.message}", file=sys.stderr)
            exams = [spent / count for count, spent in slot.exam_seconds]
    runs = [r for v in verdicts for r in v.runs if r.scored]
    scores = [v.score_mfu for v in verdicts if v.score_mfu is not None]
    overhead = [100 * ((r.seconds + r.read_seconds + r.copy_seconds) / r.claimed_seconds - 1) for r in runs if r.claimed_seconds]
    return {
        "file": config.path.name, "profile": config.profile_name, "device": verdicts[0].device, "evaluations": times, "accepted": len(scores),
        "slot_up_s": up, "warm_s": gaps, "order_to_verdict_s": seconds, "run_s_median": statistics.median(r.seconds for r in runs) if runs else None,
        "clock_overhead_percent_median": statistics.median(overhead) if overhead else None, "clock_overhead_percent_worst": max(overhead, default=None),
        "read_percent_median": statistics.median(100 * r.read_seconds / r.seconds for r in runs) if runs else None,
        "exam_s": exams, "score_mfu": scores,
        "score_cv_percent": 100 * statistics.stdev(scores) / statistics.mean(scores) if len(scores) > 1 else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path, nargs="?", default=Path("examples/baseline.py"))
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--unsafe-no-sandbox", action="store_true")
    given = parser.parse_args()
    config = BenchConfig(path=given.path, hparams=hparams.load(), profile_name=given.profile, device=given.device, runs=given.runs, sandboxed=not given.unsafe_no_sandbox)
    print(json.dumps(trio.run(measure, config, given.times), indent=1))


if __name__ == "__main__":
    main()
