"""`crusades bench`: one evaluation on this machine, by the validator's own judge (design.md §7.2)."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import trio

from crusades.bench.evaluate import Job, open_slot
from crusades.bench.slot import SlotConfig
from crusades.errors import UsageError
from crusades.hparams import HParams
from crusades.records import Source, Verdict, rejected


@dataclass(frozen=True)
class BenchConfig:
    """One evaluation on this machine: the validator's own judge (design.md §7.2)."""

    path: Path
    hparams: HParams
    profile_name: str
    device: str = "auto"
    """"auto", "cpu" or "cuda:N"."""
    runs: int | None = None
    skip_rules: bool = False
    sandboxed: bool = True
    cache_dir: Path | None = None
    on_progress: Callable[[str], None] = field(default=lambda words: None)


def read_submission(path: Path, max_bytes: int) -> Source:
    """A train.py of this machine as a Source. Raises UsageError for a file that no host could serve as a submission."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > max_bytes:
        raise UsageError(f"{path} has {len(content)} bytes; the rules allow {max_bytes}")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error
    return Source(sha256=hashlib.sha256(content).hexdigest(), content=content, url=path.resolve().as_uri(), fetched_at=time.time())


def parse_device(text: str) -> tuple[str, int]:
    """"cuda:1" → ("cuda", 1); "cpu" and "cuda" are number 0. Raises UsageError."""
    device, _, index = text.partition(":")
    if device not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageError(f"--device is auto, cpu or cuda:N, not {text!r}")
    return device, int(index or 0)


def bench_slot(config: BenchConfig, workdir: Path) -> SlotConfig:
    """The slot that the flags ask for. Raises UsageError for a device that cannot be."""
    wanted = config.hparams.profile(config.profile_name).device if config.device == "auto" else config.device
    device, index = parse_device(wanted)
    hparams = config.hparams
    if config.runs is not None:
        profile = msgspec.structs.replace(hparams.profile(config.profile_name), runs=config.runs)
        hparams = msgspec.structs.replace(hparams, profiles={**hparams.profiles, config.profile_name: profile})
    return SlotConfig(name=wanted, device=device, index=index, profile_name=config.profile_name, hparams=hparams, workdir=workdir,
                      sandboxed=config.sandboxed, cache_dir=config.cache_dir)  # fmt: skip


async def run_bench(config: BenchConfig) -> Verdict:
    """Judge a file of this machine: static rules first (unless skipped), then the same slot as the validator's."""
    source = read_submission(config.path, config.hparams.fetch.max_bytes)
    if not config.skip_rules:
        from crusades.rules import first_reason
        from crusades.rules_apart import scan_apart

        findings = await trio.to_thread.run_sync(partial(scan_apart, max_bytes=config.hparams.fetch.max_bytes), source.content)
        if findings:
            return rejected(first_reason(findings), profile=config.profile_name, rules_version=config.hparams.rules_version(config.profile_name),
                            environment={"source_sha256": source.sha256})  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="crusades-bench-") as folder:
        config.on_progress("loading the model")
        async with open_slot(bench_slot(config, Path(folder) / "slot")) as slot:
            job = Job("bench", source, commit_block=0, block=0, skip_rules=config.skip_rules, on_progress=config.on_progress)
            return _with_notes(await slot.evaluate(job), config)


def _with_notes(verdict: Verdict, config: BenchConfig) -> Verdict:
    """Whoever reads "accepted" must know when nothing could have been rejected."""
    if config.hparams.profile(config.profile_name).limits:
        return verdict
    note = f"profile {config.profile_name} has no limits: the audit was measured and judged nothing; `crusades calibrate --profile {config.profile_name} --write` makes them"
    return msgspec.structs.replace(verdict, notes=(*verdict.notes, note))
