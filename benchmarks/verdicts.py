"""What the judge says of each of several files, by the audit alone: `python benchmarks/verdicts.py FILE... [--profile P] [--device D]
[--runs N] [--unsafe-no-sandbox]`.

One slot, one set of exams, a sandbox for each file, as for submissions that wait in a queue; the rules are not asked. Prints one JSON
object: per file the verdict, what was nearest to its limit or beyond it, and the seconds of its warm-up and of its runs, over
those of the first file, so that it shows what a cheat would have saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio

from crusades import hparams
from crusades.bench.evaluate import Job, open_slot
from crusades.bench.local import BenchConfig, bench_slot, read_submission
from crusades.records import Verdict
from crusades.report import closeness


def told(verdict: Verdict) -> dict[str, Any]:
    """One line of the result."""
    judged = [s for run in verdict.runs for s in run.audit.statistics if s.limit is not None]
    near = max(judged, key=closeness, default=None)
    return {
        "verdict": str(verdict.verdict), "code": verdict.code, "message": verdict.message,
        "furthest": "" if near is None else f"{near.name} {near.where}: {closeness(near):.2f} of its limit",
        "first_run_s": verdict.runs[0].seconds if verdict.runs else None,
        "run_s": statistics.median(scored) if (scored := [r.seconds for r in verdict.runs if r.scored]) else None,
    }  # fmt: skip


async def judge(config: BenchConfig, files: list[Path]) -> dict[str, Any]:
    """Verdicts by file."""
    found: dict[str, Any] = {}
    sources = [read_submission(path, config.hparams.fetch.max_bytes) for path in files]
    with tempfile.TemporaryDirectory() as folder:
        async with open_slot(dataclasses.replace(bench_slot(config, Path(folder) / "slot"), keeps_warm=True)) as slot:
            for number, (path, source) in enumerate(zip(files, sources, strict=True)):
                await slot.warm(exams=not number)
                line = told(await slot.evaluate(Job(f"file-{number}", source, commit_block=0, block=0, skip_rules=True)))
                first = next(iter(found.values()), line)
                if line["first_run_s"] and first["first_run_s"]:
                    line["first_run_over_the_first_files"] = line["first_run_s"] / first["first_run_s"]
                found[path.name] = line
                print(f"{path.name}: {line}", file=sys.stderr)
    return {"profile": config.profile_name, "device": config.device, "files": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--unsafe-no-sandbox", action="store_true")
    given = parser.parse_args()
    if missing := [str(path) for path in given.files if not path.is_file()]:
        parser.error(f"there is no file {', '.join(missing)}")
    config = BenchConfig(path=given.files[0], hparams=hparams.load(), profile_name=given.profile, device=given.device, runs=given.runs, sandboxed=not given.unsafe_no_sandbox)
    print(json.dumps(trio.run(judge, config, given.files), indent=1))


if __name__ == "__main__":
    main()
