"""`crusades calibrate`: measure both populations on this device, write limits, the table and what is caught.

Resumes: every result is one line of `results.jsonl`, appended when it is measured; a line that is there is not measured
again. Each exam has a seed derived from its number, so that a resumed run goes on with the same exams.
"""

from __future__ import annotations

import dataclasses
import gc
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

from crusades.bench.inside.model import build
from crusades.bench.referee import limits as bounds
from crusades.bench.referee.calibration_report import report
from crusades.bench.referee.data import Corpus, open_corpus
from crusades.bench.referee.exam import Exam, prepare_exam
from crusades.bench.referee.lab import Lab, State, copies_for
from crusades.bench.referee.layout import Layout, layer_of, layout_of
from crusades.bench.referee.limits import Result
from crusades.bench.referee.models import Reference, load_reference, read_config
from crusades.bench.referee.recipe import SIZES, Inapplicable, Recipe, Variant
from crusades.bench.referee.statistic import PREFIX
from crusades.bench.referee.variants import everything
from crusades.bench.referee.variants_attacks import set_sequence_length
from crusades.errors import ConfigError
from crusades.hparams import Profile

WIDEST = 3
"""Honest variants on an exam that only tells how far apart exams are."""


@dataclass(frozen=True)
class CalibrateConfig:
    """What `crusades calibrate` is asked to do."""

    profile_name: str
    profile: Profile
    device: str
    out: Path
    """Folder of results.jsonl, limits.toml and report.md."""
    exams: int = 3
    """Honest variants run on every exam, shortcuts on the first, the smallest of each kind on the second too."""
    spread: int = 0
    """So many exams more, each with the `WIDEST` honest variants alone: how honest noise differs from exam to exam."""
    sizes: tuple[float, ...] = SIZES
    """Which sizes the graded shortcuts come in; fewer take less time, and the report lists what was not measured."""
    each: int = 0
    """At most so many shortcuts of each dimension, the small ones first; 0 = all."""
    only: tuple[str, ...] = ()
    """Only variants with one of these in their names, honest ones on the exams of `spread`, too; empty = all. What the folder has
    is not measured again: take another, and join the files."""
    submissions: tuple[Path, ...] = ()
    """Honest train.py files of ours that join the honest population."""
    cache_dir: Path | None = None
    seconds: float = 0.0
    """Stop after about this many seconds, but not before one variant has been measured, to be resumed; 0 = to the end."""
    on_progress: Callable[[str], None] = print


def calibrate(config: CalibrateConfig) -> bool:
    """Measure what is missing, then write limits and report. True when everything that was asked for has been measured.

    Raises ConfigError when the folder holds results of another profile, device or kind of audit."""
    config.out.mkdir(parents=True, exist_ok=True)
    log = config.out / "results.jsonl"
    header = header_of(config)
    done = open_results(log, header)
    _note_header(log, header)
    started = time.monotonic()
    reference = load_reference(config.profile.model, config.device, config.cache_dir, config.profile_name)
    shape = shape_of(reference.layout, reference.config)
    _note_shape(log, shape)
    corpus = open_corpus(config.profile, reference.vocabulary, config.cache_dir, config.profile_name)
    every = population(config, shape, config.sizes)
    variants = [v for v in every if not config.only or any(part in v.name for part in config.only)]
    if not variants:
        raise ConfigError(f"no variant has {' or '.join(map(repr, config.only))} in its name; names are for example {', '.join(repr(v.name) for v in every[:3])} (report.md lists all)")
    copies = copies_for(reference, config.profile.steps) if config.profile.audit.anchored_runs else {}
    complete, initial, before = True, None, len(done)
    rounds = [(compiled, number) for compiled in (False, True) for number in range(config.exams + config.spread)]
    for compiled, number in rounds:
        wanted = _missing(variants, number, done, config.each) if number < config.exams or config.only else _widest(variants, number, done)
        missing = [v for v in wanted if bool(v.recipe.compile) == compiled]
        if not missing:
            continue
        if _late(config, started, len(done) - before):
            complete = False
            break
        exam, initial = exam_of(reference, corpus, config.profile, number, initial)
        config.on_progress(f"exam {number}: {exam.seconds:.1f} s; {len(missing)} variants to measure")
        states = _shared_start(reference, config, exam, initial, missing) if not copies else {}
        for variant in missing:
            if _late(config, started, len(done) - before):
                complete = False
                break
            lab = Lab(reference, config.profile, exam, initial, keep_previous=variant.keep_previous, copies=copies, states=states)
            result = _measure(lab, variant, number)
            done.append(result)
            with log.open("ab") as file:
                file.write(msgspec.json.encode(result) + b"\n")
            config.on_progress(f"  {variant.population:8s} {variant.name}: {result.error or f'{result.seconds:.2f} s'}")
    if any(r.population == "honest" and not r.error for r in done):
        write_report(config, done, population(config, shape, SIZES), header)
    return complete


def exam_of(reference: Reference, corpus: Corpus, profile: Profile, number: int, into: torch.Tensor | None = None) -> tuple[Exam, torch.Tensor]:
    """Exam `number` of every calibration, and its initial weights (in `into`, if given)."""
    initial = reference.redraw(1000 + number, into)
    return prepare_exam(reference, corpus, profile, initial, hashlib.sha256(f"calibrate {number}".encode()).digest()[:16]), initial


def rewrite(config: CalibrateConfig) -> None:
    """Limits and report from the results that are there, by today's rules. Measures nothing: any machine can do it.

    Raises ConfigError when there are none, or they are of another workload than the profile's.
    """
    log = config.out / "results.jsonl"
    header = next(iter(read_headers(log)), {})
    here = header_of(dataclasses.replace(config, device="cpu"))  # what was measured elsewhere needs no card here
    done = open_results(log, here | {place: header.get(place) for place in PLACE}) if header else []
    if not any(r.population == "honest" and not r.error for r in done):
        raise ConfigError(f"{log} has no results to take limits from: run the same command without --from-results")
    shape = next(iter(read_shapes(log)), None)
    if config.profile.model.config:  # else the architecture lies with the weights, which need not be at hand
        architecture = read_config(config.profile.model.config)
        model = build(architecture, str(architecture["model_type"]), config.profile.model.dtype, config.profile.model.attention)
        shape = shape_of(layout_of(model, getattr(torch, config.profile.model.dtype)), architecture)
    wanted = population(config, shape, SIZES) if shape else []
    write_report(config, done, wanted, header)


def _late(config: CalibrateConfig, started: float, measured: int) -> bool:
    """Never before something was measured: where loading and an exam alone take longer, a loop of calls would stand still."""
    return bool(config.seconds) and measured > 0 and time.monotonic() - started > config.seconds


class Shape(msgspec.Struct, frozen=True):
    """What of an architecture the population depends on."""

    layers: int
    heads: int
    matrices: int


def shape_of(layout: Layout, architecture: dict[str, Any]) -> Shape:
    """Of a model that is at hand."""
    layers = int(architecture.get("num_hidden_layers") or architecture.get("n_layer") or 0)
    matrices = sum(len(s.shape) == 2 and 0 <= layer_of(s.name, layers) < layers for s in layout.specs)
    return Shape(layers, int(architecture.get("num_attention_heads") or 0), matrices)


def population(config: CalibrateConfig, shape: Shape, sizes: tuple[float, ...]) -> list[Variant]:
    """Every variant of this profile, the graded ones in `sizes`."""
    profile = config.profile
    set_sequence_length(profile.sequence_length - 1)
    variants = everything(profile.steps, shape.layers, profile.batch_size, cuda=config.device == "cuda", low_precision=profile.model.dtype == "bfloat16",
                          heads=shape.heads, matrices=shape.matrices, sizes=sizes)  # fmt: skip
    return variants + [Variant(f"submission {path.name}", "honest", Recipe(submission=str(path))) for path in config.submissions]


def _missing(variants: list[Variant], number: int, done: list[Result], each: int) -> list[Variant]:
    """What exam `number` still lacks: honest work first, then one shortcut of each dimension in turn, small ones first; so that
    a calibration that is stopped early knows something of everything. The second exam has the smallest shortcut of each dimension
    and choice, to see limits on another exam than the one that drew them. What is compiled takes minutes and has a round of its own."""
    have, turns, placed = {r.variant for r in done if r.exam == number}, dict[tuple[str, str], int](), list[tuple[int, Variant]]()
    for v in sorted(variants, key=lambda v: v.work):
        turn = 0
        if v.population != "honest":
            kind = (v.dimension, v.choice if number else "")
            turn = turns[kind] = turns.get(kind, 0) + 1
        most = {0: each or turn, 1: 1}.get(number, 0)
        if v.name not in have and turn <= most:
            placed.append((turn, v))
    return [v for _, v in sorted(placed, key=lambda pair: pair[0])]


def _widest(variants: list[Variant], number: int, done: list[Result]) -> list[Variant]:
    """The honest variants that came nearest to their limits on the first exam, unless exam `number` has as many results already."""
    have = {r.variant for r in done if r.exam == number}
    limits = {name: bound for name, bound in bounds.limits_of(done).items() if name not in bounds.EXACT} if len(have) < WIDEST else {}
    near = {r.variant: bounds.nearest(r, limits) for r in done if limits and r.exam == 0 and r.population == "honest" and not r.error}
    fit = [v for v in variants if v.name in near and not v.recipe.compile]
    return [v for v in sorted(fit, key=lambda v: -near[v.name])[:WIDEST] if v.name not in have]


def _shared_start(reference: Reference, config: CalibrateConfig, exam: Exam, initial: torch.Tensor, missing: list[Variant]) -> dict[int, State]:
    """On a CPU, where a step takes seconds: the steps that late shortcuts share with plain training, trained once."""
    last = config.profile.steps - 1
    wanted = tuple(sorted({min(v.recipe.first, last) for v in missing} - {0, 1}))[-2:]  # two, for the memory that each takes
    if config.device == "cuda" or not wanted:
        return {}
    lab = Lab(reference, config.profile, exam, initial, keep_states=wanted)
    lab.measure(Recipe())
    return lab.states


WORKLOAD = ("model", "data", "audit", "batch_size", "sequence_length", "steps", "learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
"""The settings of a profile that move a statistic."""
PLACE = ("device", "torch")
"""What of a header says where results were measured."""


def header_of(config: CalibrateConfig) -> dict[str, Any]:
    """What all results of one folder have in common: "model.dtype", "steps" and so on → value as JSON has it."""
    header: dict[str, Any] = {"device": device_name(config.device), "torch": str(torch.__version__), "anchored": bool(config.profile.audit.anchored_runs)}
    for name in WORKLOAD:
        value = msgspec.json.decode(msgspec.json.encode(getattr(config.profile, name)))
        header |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    header["audit.reference_steps"] = min(header["audit.reference_steps"], config.profile.steps)
    return {k: v for k, v in header.items() if not k.startswith("audit.anchor")}  # how many there are moves nothing


def device_name(device: str) -> str:
    """The card, or the kind of CPU."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}"


def open_results(log: Path, header: dict[str, Any]) -> list[Result]:
    """The results so far; a new file begins with `header`. Files from before there were headers have none, nor those from
    before there was a setting its value. ConfigError when they are not of the same workload: limits come from one population."""
    done = "use another --out, or remove the folder to start over"
    for other in read_headers(log):
        before = {"audit.reference_steps": other.get("steps"), "audit.fine_cells": other.get("audit.cells"), "model.vocabulary_scale": 1.0, **other}
        if differs := [k for k in header if header[k] != before.get(k, header[k])]:
            told = "; ".join(f"{k} was {before[k]!r}, now {header[k]!r}" for k in differs)
            raise ConfigError(f"{log} holds results of another calibration ({told}); {done}")
    found = read_results(log)
    for result in found:
        if not result.error and header["anchored"] != any(name.startswith(PREFIX) for name in result.statistics):
            kinds = "without anchored steps, and the profile has" if header["anchored"] else "with anchored steps, and the profile has no"
            raise ConfigError(f"{log} holds results {kinds} anchored_runs; {done}")
    if log.exists() and log.stat().st_size:
        _end_last_line(log)
    else:
        log.write_bytes(msgspec.json.encode({"header": header}) + b"\n")
    return found


def _note_header(log: Path, header: dict[str, Any]) -> None:
    """Once more, where the last one is from before some setting: what is measured from here on has its value."""
    if read_headers(log)[-1:] != [header]:
        with log.open("ab") as file:
            file.write(msgspec.json.encode({"header": header}) + b"\n")


def _note_shape(log: Path, shape: Shape) -> None:
    if shape not in read_shapes(log):
        with log.open("ab") as file:
            file.write(msgspec.json.encode(_Shaped(shape)) + b"\n")


def _end_last_line(log: Path) -> None:
    """What a crash cut short must not swallow the next result."""
    with log.open("rb+") as file:
        file.seek(-1, 2)
        if file.read() != b"\n":
            file.write(b"\n")


def read_headers(log: Path) -> list[dict[str, Any]]:
    """What the first line says, and the others that came with files that were joined to it; none where there is no file, or one
    from before there were headers."""
    found = []
    for line in log.read_bytes().splitlines() if log.exists() else []:
        if line.startswith(b'{"header"'):
            try:
                found.append(msgspec.json.decode(line, type=_First).header)
            except msgspec.DecodeError:
                continue  # cut short by a crash
    return found


class _First(msgspec.Struct):
    header: dict[str, Any]


class _Shaped(msgspec.Struct):
    shape: Shape


def read_shapes(log: Path) -> list[Shape]:
    """The architecture, for whoever has not got the weights; none in files from before it was told."""
    lines = log.read_bytes().splitlines() if log.exists() else []
    return [msgspec.json.decode(line, type=_Shaped).shape for line in lines if line.startswith(b'{"shape"') and line.endswith(b"}}")]


def read_results(log: Path) -> list[Result]:
    """Every complete line; a line that a crash cut short is measured again. The last one of a variant and exam that was measured
    counts, so that files may be joined."""
    found = dict[tuple[str, int], Result]()
    for line in log.read_bytes().splitlines() if log.exists() else []:
        try:
            result = msgspec.json.decode(line, type=Result)
        except msgspec.DecodeError:
            continue  # the header, or the last line of an interrupted run
        place = result.variant, result.exam
        if not result.error or place not in found:
            found[place] = result
    return list(found.values())


def _measure(lab: Lab, variant: Variant, number: int) -> Result:
    common: dict[str, Any] = {"variant": variant.name, "population": variant.population, "dimension": variant.dimension, "work": variant.work, "choice": variant.choice, "exam": number}
    try:
        measured, seconds = lab.measure(variant.recipe)
    except (RuntimeError, Inapplicable) as error:  # a back-end this card lacks, too little memory, or nothing for this recipe to do: reported
        told = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    else:
        statistics = {m.name: [float(f"{v:.6g}") if v == v and abs(v) != float("inf") else None for v in m.values] for m in measured}
        return Result(**common | {"work": lab.left_out or variant.work}, seconds=seconds, statistics=statistics)
    lab.reference.model.zero_grad(set_to_none=True)
    gc.collect()  # only now is what the error's frames held nobody's
    if lab.reference.device == "cuda":
        torch.cuda.empty_cache()
    return Result(**common, seconds=0.0, statistics={}, error=told)


def write_report(config: CalibrateConfig, results: list[Result], wanted: list[Variant], header: dict[str, Any]) -> None:
    """limits.json (`write_limits` takes it into hparams.toml), and report.md."""
    limits = bounds.limits_of(results)
    where, count = ", torch ".join(str(header[place]) for place in PLACE if header.get(place)), f"{len(results)} results"
    origin = f"crusades calibrate --profile {config.profile_name}, {where}, {_measured(config.out, count)}, {count}"
    (config.out / "limits.json").write_bytes(msgspec.json.format(msgspec.json.encode({"origin": origin, "limits": limits}), indent=1))
    (config.out / "report.md").write_text(report(origin, results, limits, [v.name for v in wanted]))


def _measured(out: Path, count: str) -> str:
    """The day of the newest results: what is only written anew keeps the day it says."""
    try:
        before = str(msgspec.json.decode((out / "limits.json").read_bytes())["origin"])
    except (OSError, msgspec.DecodeError, KeyError):
        before = ""
    told = re.search(rf", (\d{{4}}-\d\d-\d\d), {count}$", before)
    return told[1] if told else time.strftime("%Y-%m-%d")


def write_limits(hparams: Path, profile_name: str, limits_json: Path) -> None:
    """Put the limits of a finished calibration into `hparams`, in place of the profile's old ones. Raises ConfigError."""
    if not limits_json.is_file():
        raise ConfigError(f"there are no limits to write: {limits_json.parent} has no honest result yet (calibrate without --only first)")
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
