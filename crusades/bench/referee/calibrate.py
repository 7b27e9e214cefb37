"""`crusades calibrate`: measure both populations on this device, write limits, the table and what is caught.

Resumes: every result is one line of `results.jsonl`, appended when it is measured; a line that is there is not measured
again. Each exam has a seed derived from its number, so that a resumed run goes on with the same exams.
"""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from crusades.bench.referee import limits as bounds
from crusades.bench.referee.data import open_corpus
from crusades.bench.referee.exam import prepare_exam
from crusades.bench.referee.lab import Lab, Recipe, copies_for
from crusades.bench.referee.limits import Result
from crusades.bench.referee.models import load_reference
from crusades.bench.referee.variants import Variant, everything, set_sequence_length
from crusades.errors import ConfigError
from crusades.hparams import Profile


@dataclass(frozen=True)
class CalibrateConfig:
    """What `crusades calibrate` is asked to do."""

    profile_name: str
    profile: Profile
    device: str
    out: Path
    """Folder of results.jsonl, limits.toml and report.md."""
    exams: int = 3
    """Honest variants run on every exam, shortcuts on the first."""
    submissions: tuple[Path, ...] = ()
    """Honest train.py files of ours that join the honest population."""
    cache_dir: Path | None = None
    seconds: float = 0.0
    """Stop after about this many seconds, to be resumed; 0 = to the end."""
    on_progress: Callable[[str], None] = print


def calibrate(config: CalibrateConfig) -> bool:
    """Measure what is missing, then write limits and report. True when every variant has been measured."""
    config.out.mkdir(parents=True, exist_ok=True)
    log = config.out / "results.jsonl"
    done = read_results(log)
    started = time.monotonic()
    reference = load_reference(config.profile.model, config.device, config.cache_dir)
    corpus = open_corpus(config.profile.data, reference.vocabulary, config.cache_dir)
    set_sequence_length(config.profile.sequence_length - 1)
    variants = everything(config.profile.steps, reference.layers, config.profile.batch_size, cuda=config.device == "cuda",
                          low_precision=config.profile.model.dtype == "bfloat16")  # fmt: skip
    variants += [Variant(f"submission {path.name}", "honest", Recipe(submission=str(path))) for path in config.submissions]
    complete, copies = True, copies_for(reference, config.profile.steps) if config.profile.audit.anchored_runs else {}
    for number in range(config.exams):
        wanted = [v for v in variants if number == 0 or v.population == "honest"]
        wanted.sort(key=lambda v: bool(v.recipe.compile))  # compilation takes minutes: what is quick is measured first
        missing = [v for v in wanted if (v.name, number) not in {(r.variant, r.exam) for r in done}]
        if not missing:
            continue
        initial = reference.redraw(1000 + number)
        exam = prepare_exam(reference, corpus, config.profile, initial, hashlib.sha256(f"calibrate {number}".encode()).digest()[:16])
        config.on_progress(f"exam {number}: {exam.seconds:.1f} s; {len(missing)} variants to measure")
        for variant in missing:
            if config.seconds and time.monotonic() - started > config.seconds:
                complete = False
                break
            result = _measure(Lab(reference, config.profile, exam, initial, keep_previous=variant.keep_previous, copies=copies), variant, number)
            done.append(result)
            with log.open("ab") as file:
                file.write(msgspec.json.encode(result) + b"\n")
            config.on_progress(f"  {variant.population:8s} {variant.name}: {result.error or f'{result.seconds:.2f} s'}")
    write_report(config, done)
    return complete


def read_results(log: Path) -> list[Result]:
    """Every complete line; a line that a crash cut short is measured again."""
    found = []
    for line in log.read_bytes().splitlines() if log.exists() else []:
        try:
            found.append(msgspec.json.decode(line, type=Result))
        except msgspec.DecodeError:
            continue  # the last line of an interrupted run
    return found


def _measure(lab: Lab, variant: Variant, number: int) -> Result:
    common: dict[str, Any] = {"variant": variant.name, "population": variant.population, "dimension": variant.dimension, "work": variant.work, "choice": variant.choice, "exam": number}
    try:
        measured, seconds = lab.measure(variant.recipe)
    except (RuntimeError, torch.OutOfMemoryError, NotImplementedError) as error:  # a back-end this card lacks, or too little memory: reported
        lab.reference.model.zero_grad(set_to_none=True)
        if lab.reference.device == "cuda":
            torch.cuda.empty_cache()
        return Result(**common, seconds=0.0, statistics={}, error=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    statistics = {m.name: [float(f"{v:.6g}") if v == v and abs(v) != float("inf") else None for v in m.values] for m in measured}
    return Result(**common, seconds=seconds, statistics=statistics)


def _size(value: float | None) -> float:
    return float("inf") if value is None else abs(value)


def write_report(config: CalibrateConfig, results: list[Result]) -> None:
    """limits.json (`write_limits` takes it into hparams.toml), and report.md."""
    limits = bounds.limits_of(results)
    device = torch.cuda.get_device_name() if config.device == "cuda" else f"CPU {platform.machine()}"
    origin = f"crusades calibrate --profile {config.profile_name}, {device}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {len(results)} results"
    (config.out / "limits.json").write_bytes(msgspec.json.format(msgspec.json.encode({"origin": origin, "limits": limits}), indent=1))
    (config.out / "report.md").write_text(_report(origin, results, limits))


def write_limits(hparams: Path, profile_name: str, limits_json: Path) -> None:
    """Put the limits of a finished calibration into `hparams`, in place of the profile's old ones. Raises ConfigError."""
    made = msgspec.json.decode(limits_json.read_bytes())
    text = hparams.read_text()
    header = next((h for h in (f"[profiles.{profile_name}]", f'[profiles."{profile_name}"]') if h in text), None)
    if header is None:
        raise ConfigError(f"{hparams} has no profile {profile_name}")
    origin = f'limits_origin = "{made["origin"]}"'
    head, _, rest = text.partition(header + "\n")
    rest = re.sub(r'limits_origin = ".*"\n', "", rest, count=1) if re.match(r'(?:(?!\[).*\n)*limits_origin', rest) else rest
    block = "\n".join(f"{name} = {values[0] if len(values) == 1 else values}" for name, values in made["limits"].items())
    section = f"{header[:-1]}.limits]"
    if section in rest:
        rest = re.sub(re.escape(section) + r"\n(?:(?!\[|#).*\n)*", f"{section}\n{block}\n\n", rest, count=1)
    else:
        own = re.match(r"(?:(?!\[(?!profiles\." + re.escape(header[10:-1]) + r"\.)).*\n)*", rest)
        at = own.end() if own else len(rest)
        rest = f"{rest[:at].rstrip()}\n\n{section}\n{block}\n\n{rest[at:]}"
    hparams.write_text(f"{head}{header}\n{origin}\n{rest}")


def _report(origin: str, results: list[Result], limits: dict[str, list[float]]) -> str:
    usable = [r for r in results if not r.error]
    honest = [r for r in usable if r.population == "honest"]
    rejected = [r for r in honest if bounds.caught_by(r, limits)]
    lines = [f"# Calibration\n\n{origin}\n", f"Honest results: {len(honest)}, rejected: {len(rejected)}; the nearest comes to "
             f"{max(bounds.nearest(r, limits) for r in honest):.2f} of a limit.\n", "## What is caught\n",
             "| dimension | choice | caught | smallest caught (work left out) | largest missed (work left out) |", "|---|---|---|---|---|"]  # fmt: skip
    for row in bounds.power(usable, limits):
        small = f"{row['smallest_caught']} ({row['smallest_caught_work']:.2%})" if row["smallest_caught"] else "–"
        large = f"{row['largest_missed']} ({row['largest_missed_work']:.2%})" if row["largest_missed"] else "–"
        lines.append(f"| {row['dimension']} | {row['choice'] or '–'} | {row['caught']} of {row['of']} | {small} | {large} |")
    lines += ["\n## Limits\n", "By step; – where honest work and shortcuts overlap and the step is not judged.\n", "| statistic | worst honest | limits |", "|---|---|---|"]
    for name, values in limits.items():
        worst = [max(_size(r.statistics[name][s]) for r in honest) for s in range(len(honest[0].statistics[name]))]
        told = " ".join("–" if v >= bounds.UNJUDGED else f"{v:.3g}" for v in values)
        lines.append(f"| {name} | {' '.join(f'{w:.3g}' for w in worst)} | {told} |")
    lines += ["\n## Every variant\n", "| variant | population | work left out | nearest limit | rejected by | gradient error, worst step |", "|---|---|---|---|---|---|"]
    for r in usable:
        caught = ", ".join(name for name, _ in bounds.caught_by(r, limits)[:3]) or "–"
        error = max((abs(v) if v is not None else float("inf")) for v in r.statistics["gradient_error"])
        lines.append(f"| {r.variant} (exam {r.exam}) | {r.population} | {r.work:.2%} | {bounds.nearest(r, limits):.3g} | {caught} | {error:.3g} |")
    failed = [r for r in results if r.error]
    if failed:
        lines += ["\n## Not measured\n", *(f"- {r.variant} (exam {r.exam}): {r.error}" for r in failed)]
    return "\n".join(lines) + "\n"
