"""`crusades`: the miner's tools, and everything of the operator's that is not the daemon. One function per subcommand.

Imports that take time stay inside the functions, so that `crusades check` answers at once. Our own errors become one
line and an exit code; Ctrl-C is 130 and silent.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from crusades.cli_flags import parser
from crusades.errors import ConfigError, CrusadesError, DeviceFault, EnvironmentFault, RefereeFault, SandboxFault, UsageError
from crusades.places import shipped

if TYPE_CHECKING:
    from crusades.hparams import HParams
    from crusades.records import Verdict

Arguments = argparse.Namespace
EXAMPLES = shipped("examples").resolve()

# ------------------------------------------------------------------------------------------------ helpers


def say(text: str) -> None:
    """Progress goes to stderr, so that stdout holds the result alone."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; records, enums and tuples as they are stored."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def read_hparams(arguments: Arguments) -> HParams:
    """The file that was asked for, or the default one."""
    from crusades import hparams

    return hparams.load(Path(arguments.hparams) if arguments.hparams else None)


def example(name: str) -> bytes:
    """A file of examples/. Raises ConfigError outside of a checkout."""
    try:
        return (EXAMPLES / name).read_bytes()
    except OSError as error:
        raise ConfigError(f"the examples are missing ({error}); run `crusades` from a checkout, installed with `make setup`") from error


# ------------------------------------------------------------------------------------------------ commands for miners


def init(arguments: Arguments) -> int:
    """Write a commented train.py to start from."""
    target = Path(arguments.path)
    target = target / "train.py" if target.is_dir() else target
    if target.exists():
        raise UsageError(f"{target} exists already; give another path")
    try:
        target.write_bytes(example("fast.py" if arguments.fast else "baseline.py"))
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    if arguments.json:
        print_json({"written": str(target)})
    else:
        print(f"wrote {target}\nnext:  crusades check {target}   then   crusades bench {target}")
    return 0


def check(arguments: Arguments) -> int:
    """Print what the static rules say."""
    from crusades import check as checker

    return checker.run([arguments.train_py], arguments.json)


def bench(arguments: Arguments) -> int:
    """Judge a file as a validator would, on this machine."""
    import trio

    from crusades import faults
    from crusades.records import Outcome, Reason, Stage, rejected
    from crusades.report import verdict_text

    try:
        verdict = trio.run(_bench, arguments)
    except (SandboxFault, RefereeFault, DeviceFault) as error:
        name = {SandboxFault: "sandbox", EnvironmentFault: "environment", RefereeFault: "referee"}.get(type(error), "device")
        row = faults.fault(name)
        verdict = rejected(Reason(code=row.code, stage=Stage.LOAD, message=str(error), hint=row.advice))
    if arguments.json:
        print_json(verdict)
    else:
        print(verdict_text(verdict))
    return {Outcome.ACCEPTED: 0, Outcome.REJECTED: 1, Outcome.FAULT: 3}[verdict.verdict]


async def _bench(arguments: Arguments) -> Verdict:
    import tempfile

    from crusades import fetch
    from crusades.bench.local import BenchConfig, run_bench
    from crusades.records import Reason, rejected

    hparams = read_hparams(arguments)
    profile, device = choose_profile(hparams, arguments.profile, arguments.device)
    with tempfile.TemporaryDirectory(prefix="crusades-") as folder:
        path = Path(arguments.train_py)
        if "://" in arguments.train_py:
            got = await fetch.preview(arguments.train_py, msgspec.structs.replace(hparams.fetch, allow_loopback=True))
            if isinstance(got, Reason):
                return rejected(got, profile=profile)
            path = Path(folder) / "train.py"
            path.write_bytes(got.content)
        config = BenchConfig(
            path=path, hparams=hparams, profile_name=profile, device=device, runs=arguments.runs, skip_rules=arguments.skip_rules,
            sandboxed=not arguments.unsafe_no_sandbox, on_progress=(lambda words: None) if arguments.json else (lambda words: say(f"… {words}")),
        )  # fmt: skip
        return await run_bench(config)


def choose_profile(hparams: HParams, profile: str | None, device: str) -> tuple[str, str]:
    """Profile and device, where only one or none was given: the tiny one on a CPU, else the competition's.

    Raises ConfigError where the profile is made for a card and none answers: on a CPU it would take all of the host's memory, so
    that has to be said (`--device cpu`).
    """
    from crusades import nvml

    asked, wants_cpu = device, profile is not None and hparams.profile(profile).device == "cpu"
    if asked == "auto":
        device = "cuda:0" if not wants_cpu and nvml.devices() else "cpu"
    name = profile or (hparams.competition.dev_profile if device == "cpu" else hparams.competition.profile)
    if asked == "auto" and device == "cpu" and hparams.profile(name).device != "cpu":
        raise ConfigError(f"profile {name} is made for a card, and none answers here: run this where one is (`crusades doctor` says what is missing), "
                          f"or take a profile for a CPU ({_cpu_profiles(hparams)}), or say --device cpu if this machine has the memory and you the time")  # fmt: skip
    return name, device


def _cpu_profiles(hparams: HParams) -> str:
    return ", ".join(f"--profile {name}" for name, profile in hparams.profiles.items() if profile.device == "cpu") or "hparams.toml has none"


def submit(arguments: Arguments) -> int:
    """Pre-flight, commit, and optionally follow to the verdict."""
    from crusades.cli_submit import submit as run

    return run(arguments, read_hparams(arguments), say, print_json)


def status(arguments: Arguments) -> int:
    """Where submissions are, and why."""
    from crusades.status import run_status

    return run_status(arguments.url, arguments.hotkey, json=arguments.json)


# ------------------------------------------------------------------------------------------------ commands for everybody


def demo(arguments: Arguments) -> int:
    """The whole system on this machine."""
    from crusades.demo import DemoConfig, run_demo

    state = Path(arguments.state_dir) if arguments.state_dir else None
    return run_demo(DemoConfig(once=arguments.once, json=arguments.json, profile=arguments.profile, state_dir=state, web=arguments.web))


def tui(arguments: Arguments) -> int:
    """The dashboard in a terminal."""
    from crusades.tui import run

    return run(arguments.url)


def doctor(arguments: Arguments) -> int:
    """What this machine lacks, with the command that fixes it."""
    from crusades.sandbox.doctor import run_doctor

    return run_doctor(json=arguments.json)


def calibrate(arguments: Arguments) -> int:
    """Measure the limits of the audit for a profile on this device, which is held meanwhile as a validator holds it."""
    from crusades.bench.card import Card
    from crusades.bench.local import parse_device
    from crusades.bench.referee.calibrate import CalibrateConfig, rewrite
    from crusades.bench.referee.calibrate import calibrate as measure

    hparams = read_hparams(arguments)
    asked = arguments.device
    if arguments.from_results and arguments.profile and asked == "auto":
        asked = hparams.profile(arguments.profile).device  # nothing is measured: no card is needed for what was measured on one
    profile, device = choose_profile(hparams, arguments.profile, asked)
    kind, index = parse_device(device)
    out, honest = Path(arguments.out or f"calibration-{profile}"), tuple(Path(path) for path in arguments.honest)
    if missing := [path for path in honest if not path.is_file()]:
        raise UsageError(f"--honest {missing[0]}: there is no such file")
    config = CalibrateConfig(profile_name=profile, profile=hparams.profile(profile), device=kind, out=out, exams=arguments.exams, spread=arguments.spread, sizes=_sizes(arguments.sizes), each=arguments.each, only=tuple(arguments.only),
                             submissions=honest, seconds=arguments.seconds, on_progress=say)  # fmt: skip
    if arguments.from_results:
        rewrite(config)
        return _calibrated(arguments, profile, out)
    card = Card(index if kind == "cuda" else None)
    card.open()  # before CUDA is asked: a card that is missing or taken gets a sentence
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(index) if kind == "cuda" else ""}
    try:
        complete = measure(config)
    finally:
        card.close()
    if not complete:
        unwritten = "; no limits were written" if arguments.write else ""
        print(f"incomplete: {arguments.seconds:g} s are over, and not all is measured{unwritten}; the same command goes on from {out}")
        return 1
    return _calibrated(arguments, profile, out)


def _calibrated(arguments: Arguments, profile: str, out: Path) -> int:
    from crusades.bench.referee.calibrate import write_limits
    from crusades.hparams import default_path

    if arguments.write:
        target = Path(arguments.hparams) if arguments.hparams else default_path()
        write_limits(target, profile, out / "limits.json")
        print(f"limits of {profile} are in {target}")
    print(f"report: {out / 'report.md'}")
    return 0


def _sizes(text: str | None) -> tuple[float, ...]:
    from crusades.bench.referee.recipe import SIZES

    if text is None:
        return SIZES
    sizes = tuple(s for s in SIZES if str(s) in {part.strip() for part in text.split(",")})
    if len(sizes) != len(text.split(",")):
        raise UsageError(f"--sizes {text}: choose among {', '.join(map(str, SIZES))}")
    return sizes


def setup(arguments: Arguments) -> int:
    """Fetch and tokenise what a profile needs, once; referee and contestants work offline."""
    from crusades.bench.referee.setup import SetupConfig, run_setup

    hparams = read_hparams(arguments)
    name = arguments.profile or hparams.competition.profile
    done = run_setup(SetupConfig(profile_name=name, profile=hparams.profile(name), verify=arguments.verify, on_progress=say))
    if arguments.json:
        print_json({"profile": name, **done})
    else:
        print("\n".join(f"{what}: {where}" for what, where in done.items()))
    return 0


def install_service(arguments: Arguments) -> int:
    """Write the systemd unit."""
    from crusades.install import run_install

    return run_install(dry_run=arguments.dry_run)


# ------------------------------------------------------------------------------------------------ the entry point

COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "demo": demo, "init": init, "check": check, "bench": bench, "submit": submit, "status": status, "tui": tui, "doctor": doctor,
    "calibrate": calibrate, "setup": setup, "install-service": install_service,
}  # fmt: skip


def _devnet(rest: list[str]) -> int:
    from crusades.devnet.__main__ import main as run

    return run(rest)


def _store(rest: list[str]) -> int:
    from crusades.store_tools import main as run

    return run(rest)


PASSED_ON: dict[str, Callable[[list[str]], int]] = {"devnet": _devnet, "store": _store}
"""Commands whose flags are owned by their module."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. argparse's own exits (`--help`, usage errors) pass through."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        if words and words[0] in PASSED_ON:
            return PASSED_ON[words[0]](words[1:])
        arguments = parser().parse_args(words)
        code = COMMANDS[arguments.command](arguments)
        if sys.stdout is not None:  # `crusades … >&-`
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `crusades … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except CrusadesError as error:
        return _complain(error, as_json)
    except BaseExceptionGroup as group:  # from a nursery
        ours, others = group.split((CrusadesError, KeyboardInterrupt))
        if others or ours is None:
            raise
        return 130 if ours.subgroup(KeyboardInterrupt) else _complain(_first(ours), as_json)


def _first(group: BaseExceptionGroup[Any]) -> CrusadesError:
    error: Any = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, CrusadesError)
    return error


def _complain(error: CrusadesError, as_json: bool) -> int:
    if as_json and sys.stdout is not None:
        print_json({"error": {"type": type(error).__name__, "message": str(error), "exit_code": error.exit_code}})
    else:
        say(f"crusades: {error}")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
