"""One figure per line of the judge's budget: `python benchmarks/evaluations.py [FILE] [--profile P] [--device D] [--times N] [--record FILE] [--unsafe-no-sandbox]`.

Evaluates the same file N times on one slot, pre-warmed as the validator does, as N submissions that wait in one queue, and
prints one JSON object: seconds from order to verdict, the referee's clock over the contestant's own (the referee's reads in
neither), reads as a share of a run and in milliseconds (each run's mean; of all runs the median and the worst), seconds per exam,
the spread of the score, how many evaluations were so uneven that they were made once more, and where the referee's time went:
`orders_s` by kind of order, `around_run_s` what a run takes beside its own time (restoring the weights, the first read, the
result, the audit), `beyond_own_percent` all time of the judge's own on the device (exams, loading, around runs, reads and copies
in them, anchored steps, cleaning up) over all time of the submissions' own (their warm-ups and timed runs), and the same for a
queue of eight, which shares the exams that were prepared; `wall_beyond_own_percent` is all that passed from the first sandbox's
start to the last verdict, whatever the device did, over the submissions' own; `telemetry_median` what the card was like in scored runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from crusades import hparams
from crusades.bench.evaluate import Job, Slot, open_slot
from crusades.bench.local import BenchConfig, bench_slot, read_submission
from crusades.records import Run, Verdict
from crusades.report import closeness


def watch_orders() -> dict[str, list[float]]:
    """Kind of order → seconds of each that any slot gives to its referee from now on."""
    seconds: dict[str, list[float]] = {}
    real = Slot._ask

    async def ask(slot, order, *arguments, **more):
        began = time.monotonic()
        try:
            return await real(slot, order, *arguments, **more)
        finally:
            seconds.setdefault(type(order).__name__, []).append(time.monotonic() - began)

    Slot._ask = ask
    return seconds


def judges_share(orders: dict[str, list[float]], verdicts: list[Verdict]) -> dict[str, Any]:
    """What the judge's own work takes beside the submissions'. A sandbox starts without the device."""
    runs = [r for v in verdicts for r in v.runs]
    own = sum(r.seconds + r.excess_seconds for r in runs)
    around = [order - r.seconds - r.excess_seconds - r.read_seconds - r.copy_seconds for order, r in zip(orders.get("DoRun", []), runs, strict=True)]
    judge = sum(sum(orders.get(kind, [])) for kind in ("PrepareExams", "LoadSubmission", "DoRun", "CompareAnchors", "Release")) - own
    exams, count = sum(orders.get("PrepareExams", [])), len(verdicts)
    eight = (exams + 8 * (judge - exams) / count) / (8 * own / count) if own else None
    return {
        "orders_s": {kind: {"count": len(each), "total": sum(each), "median": statistics.median(each)} for kind, each in orders.items()},
        "around_run_s_median": statistics.median(around) if around else None, "around_run_s_worst": max(around, default=None),
        "own_s": own, "beyond_own_s": judge, "beyond_own_percent": 100 * judge / own if own else None,
        "beyond_own_percent_of_eight": 100 * eight if eight else None,
    }  # fmt: skip


RECORDED = ("index", "scored", "seconds", "credited_seconds", "claimed_seconds", "read_seconds", "copy_seconds", "excess_seconds", "step_seconds", "final_loss",
            "peak_memory_bytes", "telemetry", "void")  # fmt: skip
"""What a record has of every run."""


def own_seconds(run: Run, steps: int) -> float:
    """The run's time by the contestant's clock, without what it waited for the referee's reads and copies. It stops before the last read."""
    return run.claimed_seconds - run.read_seconds * (steps - 1) / steps - run.copy_seconds


def summary(config: BenchConfig, orders: dict[str, list[float]], verdicts: list[Verdict], measured: dict[str, Any]) -> dict[str, object]:
    """Everything that can be said of the evaluations so far."""
    runs = [r for v in verdicts for r in v.runs if r.scored]
    steps = config.hparams.profile(config.profile_name).steps
    scores = [v.score_mfu for v in verdicts if v.score_mfu is not None]
    overhead = [100 * (r.seconds / own - 1) for r in runs if (own := own_seconds(r, steps)) > 0]
    return {
        "file": config.path.name, "profile": config.profile_name, "device": verdicts[0].device, "evaluations": len(verdicts), "accepted": len(scores),
        "second_rounds": sum(v.rounds > 1 for v in verdicts), **measured,
        "run_s_median": statistics.median(r.seconds for r in runs) if runs else None,
        "clock_overhead_percent_median": statistics.median(overhead) if overhead else None, "clock_overhead_percent_worst": max(overhead, default=None),
        "read_percent_median": statistics.median(100 * r.read_seconds / r.seconds for r in runs) if runs else None,
        "read_ms_median": statistics.median(1e3 * r.read_seconds / steps for r in runs) if runs else None,
        "read_ms_worst": max((1e3 * r.read_seconds / steps for r in runs), default=None),
        "excess_s_worst": max((r.excess_seconds for r in runs), default=None),
        **(share := judges_share(orders, verdicts)), "wall_beyond_own_percent": 100 * (measured["wall_s"] / share["own_s"] - 1), "score_mfu": scores,
        "score_cv_percent": 100 * statistics.stdev(scores) / statistics.mean(scores) if len(scores) > 1 else None,
        "nearest_limit": [nearest_limit(v) for v in verdicts],
        "telemetry_median": {name: statistics.median(r.telemetry[name] for r in runs if name in r.telemetry) for name in sorted({name for r in runs for name in r.telemetry})},
        "runs": [[{name: getattr(r, name) for name in RECORDED} for r in v.runs] for v in verdicts],
    }  # fmt: skip


def nearest_limit(verdict: Verdict) -> str:
    """The statistic of all runs that came nearest to its limit, the arithmetic ones aside, and how near."""
    judged = [s for r in verdict.runs for s in r.audit.statistics if s.limit is not None and not s.name.startswith("optimizer_")]
    near = max(judged, key=closeness, default=None)
    return "" if near is None else f"{near.name} {near.where}: {closeness(near):.0%}"


async def measure(config: BenchConfig, times: int, record: Path | None) -> dict[str, object]:
    source = read_submission(config.path, config.hparams.fetch.max_bytes)
    verdicts, seconds, gaps = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        async with open_slot(dataclasses.replace(bench_slot(config, Path(folder) / "slot"), keeps_warm=True)) as slot:
            up, orders = time.monotonic() - started, watch_orders()
            for number in range(times):
                began = time.monotonic()
                await slot.warm(exams=number == 0)  # as the daemon, with the rest of the queue waiting
                warmed = time.monotonic()
                verdict = await slot.evaluate(Job(f"evaluation-{number}", source, commit_block=0, block=0, skip_rules=config.skip_rules))
                seconds.append(time.monotonic() - warmed)
                gaps.append(warmed - began)
                verdicts.append(verdict)
                print(f"{number + 1}/{times}: {verdict.verdict} {verdict.score_mfu} in {seconds[-1]:.1f} s; {verdict.message}", file=sys.stderr)
                exams = [spent / count for count, spent in slot.exam_seconds]
                found = summary(config, orders, verdicts, {"slot_up_s": up, "warm_s": gaps, "order_to_verdict_s": seconds, "exam_s": exams, "wall_s": sum(gaps) + sum(seconds)})
                if record:
                    record.write_text(json.dumps(found, indent=1))  # noqa: ASYNC240 - a few kilobytes between two evaluations
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path, nargs="?", default=Path("examples/baseline.py"))
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--record", type=Path, help="a file that has everything so far after every evaluation: a killed benchmark loses nothing")
    parser.add_argument("--unsafe-no-sandbox", action="store_true")
    given = parser.parse_args()
    if given.times < 1:
        parser.error("--times: at least one evaluation is needed")
    config = BenchConfig(path=given.path, hparams=hparams.load(), profile_name=given.profile, device=given.device, runs=given.runs, sandboxed=not given.unsafe_no_sandbox)
    print(json.dumps(trio.run(measure, config, given.times, given.record), indent=1))


if __name__ == "__main__":
    main()
