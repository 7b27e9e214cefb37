"""`crusades doctor`, the command, on machines that really lack something: each names the wall and the command that mends it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_kit import GUARD, needs_sandbox

from crusades import hparams, validator
from crusades.errors import ConfigError
from crusades.sandbox import doctor, seccomp
from crusades.sandbox.policy import contestant_policy

pytestmark = [pytest.mark.kernel, needs_sandbox]
ROOT = Path(__file__).parent.parent
DOCTOR = [sys.executable, "-m", "crusades.cli", "doctor"]


def diagnose(*before: str, path: str = "", **environment: str) -> tuple[int, dict[str, dict]]:
    """Exit code, and what is not ok, of the command, started by the words of `before`."""
    search = os.pathsep.join([*([path] if path else []), str(ROOT)])
    done = subprocess.run([*before, *DOCTOR, "--json"], env=os.environ | {"PYTHONPATH": search} | environment, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["level"] == done.returncode
    rows = [row for row in said["checks"] if not row["ok"]]
    assert all(row["fix"] for row in rows)
    return done.returncode, {row["name"]: row for row in rows}


def inside(script: str) -> tuple[str, ...]:
    """Words that run the command in a user and mount namespace of its own, after `script`."""
    return ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{script}; exec "$@"', "sh")


def test_a_good_machine_has_no_mandatory_wall_down():
    level, wrong = diagnose()
    assert level < 2, wrong


def test_without_bubblewrap():
    level, wrong = diagnose(PATH="/nowhere")
    assert level == 2
    assert "apt install bubblewrap" in wrong["bubblewrap"]["fix"]
    assert "apt install bubblewrap" in wrong["sandbox"]["fix"]


def test_with_a_bubblewrap_that_does_not_know_our_options(tmp_path):
    old = tmp_path / "bwrap"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.4.1 && exit\necho "bwrap: Unknown option --disable-userns" >&2\nexit 1\n')
    old.chmod(0o755)
    level, wrong = diagnose(CRUSADES_BWRAP=str(old))
    assert level == 2
    assert "0.8 or later" in wrong["bubblewrap"]["fix"]
    assert "0.8 or later" in wrong["sandbox"]["fix"]


@pytest.mark.parametrize("kind", ["user", "net", "pid"])
def test_with_namespaces_switched_off(kind):
    level, wrong = diagnose(*inside(f"echo 0 > /proc/sys/user/max_{kind}_namespaces"))
    assert level == 2
    assert f"sysctl -w user.max_{kind}_namespaces=" in wrong["sandbox"]["fix"]


def test_with_an_old_kernel():
    level, wrong = diagnose("setarch", "--uname-2.6")
    assert level == 2
    assert "newer kernel" in wrong["kernel"]["fix"]


def test_without_libseccomp(tmp_path):
    (tmp_path / "pyseccomp.py").write_text("raise RuntimeError('Unable to find libseccomp')\n")
    level, wrong = diagnose(path=str(tmp_path))
    assert level == 2
    assert "apt install libseccomp2" in wrong["libseccomp"]["fix"]
    assert "apt install libseccomp2" in wrong["sandbox"]["fix"]


def test_as_root_without_control_groups():
    """In a user namespace of its own everybody is root, and there a memory and a pids cgroup are mandatory."""
    level, wrong = diagnose(*inside("mount -t tmpfs none /sys/fs/cgroup"))
    assert level == 2
    assert "Delegate=" in wrong["cgroups"]["fix"]
    assert "Delegate=" in wrong["sandbox"]["fix"]


async def test_without_landlock_the_other_walls_stand(monkeypatch):
    """An older kernel answers its calls as our filter does here."""
    monkeypatch.setattr(seccomp, "GROUPS", tuple(group for group in seccomp.GROUPS if group.name != "self-restriction"))
    seccomp._program.cache_clear()
    try:
        checks = await doctor._probe(contestant_policy(hparams.Sandbox()))
    finally:
        seccomp._program.cache_clear()
    assert [(check.name, check.level) for check in checks if not check.ok] == [("landlock", 1)]
    assert "lsm=landlock" in next(check.fix for check in checks if check.name == "landlock")


def test_the_validator_does_not_start_and_says_what_mends_it(monkeypatch):
    monkeypatch.setenv("CRUSADES_BWRAP", "/no/such/bwrap")
    with pytest.raises(ConfigError, match="apt install bubblewrap"):
        validator.must_have_walls()


TELLING = {"identity", "user namespace", "pid namespace", "network", "uts namespace", "host files", "read-only tree", "devices", "environment", "descriptors",
           "nested namespaces", "system calls", "landlock", "ipc namespace", "cgroup namespace", "scratch"}  # fmt: skip
"""Not `compiler`, which a whole machine has too, nor `capabilities` and `session`: its user may have none either."""


def test_outside_of_a_sandbox_every_probe_finds_its_wall_down(tmp_path):
    """A probe that holds everywhere tests nothing. They are harmless where they get through, so they may run here."""
    told = json.loads(doctor._expected(contestant_policy(hparams.Sandbox())))
    code = f"import sys, json; sys.path.insert(0, {str(GUARD)!r}); import probes; probes.expected.update({told!r}); print(json.dumps(probes.run()))"
    with (tmp_path / "open").open("w") as extra:
        done = subprocess.run([sys.executable, "-I", "-c", code], env={"PATH": os.environ["PATH"], "HF_TOKEN": "x"}, pass_fds=[extra.fileno()], capture_output=True,
                              text=True, timeout=120, check=True)  # fmt: skip
    held = {wall for wall, stands, _ in json.loads(done.stdout) if stands}
    assert held & TELLING == set()
