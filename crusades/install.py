"""`crusades install-service`: the hardened systemd unit, filled in for this machine. `--dry-run` shows everything first.

Nothing is overwritten but the unit itself; what a person has to decide (network, subnet, wallet names) goes into one
environment file that is only written when it does not exist.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from crusades.errors import ConfigError
from crusades.places import shipped

UNIT = "crusades-validator.service"
USER = "crusades"
CONFIG = Path("/etc/crusades")
UNITS = Path("/etc/systemd/system")
RUNTIME_WALLETS = "/run/crusades/wallets"
"""Where `crusades.validator` links the credential into the layout that the SDK reads."""

ENVIRONMENT = """\
# What `crusades-validator` is started with. After a change: systemctl restart crusades-validator
# The subnet is never guessed. The wallet is the credential `hotkey` of the unit.
CRUSADES_ARGS=--network finney --netuid REPLACE_ME
"""


@dataclass(frozen=True)
class Step:
    """One thing that will be done, and the words for it."""

    words: str
    command: tuple[str, ...] = ()
    path: Path | None = None
    content: str = ""
    mode: int = 0o644


def template() -> str:
    """The unit as shipped, with its @words@. ConfigError where it is missing."""
    path = shipped("deploy") / UNIT
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"the unit's template is not here ({path}): install the project anew") from error


def render(python: str, *, user: str = USER, config: Path = CONFIG, groups: str = "", docs: Path | None = None) -> str:
    """The unit for this machine. ConfigError when a word is left over or a path holds what systemd would split or expand."""
    words = {"PYTHON": python, "USER": user, "CONFIG": str(config), "HOTKEY": str(config / "hotkey"), "WALLETS": RUNTIME_WALLETS, "GROUPS": groups,
             "DOCS": str(docs or shipped("docs") / "operating.md")}
    for name, value in words.items():
        if not re.fullmatch(r"[\w./ +:-]*", value) or (name != "GROUPS" and " " in value):
            raise ConfigError(f"systemd would misread the path {value!r}: install the project in a folder without special characters")
    text = template()
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    if left := re.findall(r"^[^#]*@[A-Z]+@", text, re.MULTILINE):
        raise ConfigError(f"the unit's template has unknown words: {left}")
    # A directive without a value would reset a list; an empty group list is simply left out.
    return text.replace("SupplementaryGroups=\n", "# (no group owns a card here)\n")


def card_groups(devices: Path = Path("/dev")) -> str:
    """Names of the groups that own NVIDIA devices, where that is not root."""
    import grp

    ids = {path.stat().st_gid for path in devices.glob("nvidia*") if not path.is_dir()}
    return " ".join(sorted(grp.getgrgid(gid).gr_name for gid in ids if gid))


def hidden_by_the_unit(python: str) -> str:
    """The folder of people's homes that the interpreter, or what it links to, lies in; empty when it lies elsewhere."""
    for path in (Path(python).absolute(), Path(python).resolve(), Path(__file__).resolve()):
        if path.parts[1] in ("home", "root"):
            return "/" + path.parts[1]
    return ""


def steps(python: str, *, config: Path = CONFIG, units: Path = UNITS, user_exists: bool = False) -> list[Step]:
    """Everything that will be done, in order."""
    plan = []
    if not user_exists:
        plan.append(Step(f"make the system user {USER}, without a login or a home", ("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER)))
    plan.append(Step(f"make {config} (root only: it holds the hotkey)", ("install", "-d", "-m", "0755", str(config))))
    if not (config / "validator.env").exists():
        plan.append(Step("write the settings a person has to fill in", path=config / "validator.env", content=ENVIRONMENT))
    plan.append(Step(f"write the unit {units / UNIT}", path=units / UNIT, content=render(python, config=config, groups=card_groups())))
    plan.append(Step("let systemd read it", ("systemctl", "daemon-reload")))
    return plan


AFTERWARDS = f"""\
Then:
  1. put the hotkey file (never the coldkey) at {CONFIG}/hotkey:  install -m 0400 ~/.bittensor/wallets/NAME/hotkeys/HOTKEY {CONFIG}/hotkey
  2. set the subnet in {CONFIG}/validator.env, and put hparams.toml beside it if yours differs from the project's
  3. crusades doctor, as the service's user:  sudo -u {USER} {sys.executable} -m crusades.cli doctor
  4. systemctl enable --now crusades-validator && systemctl status crusades-validator"""


def run_install(*, dry_run: bool, python: str = sys.executable, config: Path = CONFIG, units: Path = UNITS) -> int:
    """Do it, or say it. ConfigError without root."""
    import pwd

    plan = steps(python, config=config, units=units, user_exists=any(entry.pw_name == USER for entry in pwd.getpwall()))
    if not dry_run and os.geteuid() != 0:
        raise ConfigError("installing a service needs root: run it with sudo, or look first with --dry-run")
    if hidden := hidden_by_the_unit(python):
        print(f"warning: the unit hides {hidden} from the daemon (ProtectHome): install Python and the project elsewhere, say below /usr/local/lib")
    for step in plan:
        print(f"{'would ' if dry_run else ''}{step.words}")
        if dry_run:
            print("    " + (" ".join(step.command) if step.command else "\n    ".join(step.content.splitlines())))
            continue
        _do(step)
    print(AFTERWARDS)
    return 0


def _do(step: Step) -> None:
    if step.path is not None:
        fresh = step.path.with_suffix(".new")
        fresh.write_text(step.content)
        fresh.chmod(step.mode)
        fresh.replace(step.path)  # whole or not at all: systemd never reads half a unit
        return
    try:
        subprocess.run(step.command, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"{' '.join(step.command)} failed: {error}") from error
