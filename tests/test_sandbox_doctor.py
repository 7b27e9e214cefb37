"""The doctor on this machine, and on one with each wall taken away."""

import json
import os
import sys

import pytest
from msgspec.structs import replace
from sandbox_kit import card_policy, needs_sandbox

from crusades import hparams
from crusades.sandbox import cgroups, doctor, host, launch
from crusades.sandbox.doctor import Check
from crusades.sandbox.identity import Identity
from crusades.sandbox.policy import Mount, contestant_policy

kernel = pytest.mark.kernel


@pytest.fixture
def policy():
    return contestant_policy(hparams.Sandbox())


async def probed(policy, name: str) -> Check:
    return next(check for check in await doctor._probe(policy) if check.name == name)


def without(monkeypatch, *words: str, instead: tuple[str, ...] = ()) -> None:
    """Take a run of words out of bubblewrap's command line."""
    real = launch.command

    def command(*positional, **named):
        line = real(*positional, **named)
        at = next(i for i in range(len(line)) if line[i : i + len(words)] == list(words))
        return [*line[:at], *instead, *line[at + len(words) :]]

    monkeypatch.setattr(launch, "command", command)


@kernel
@needs_sandbox
async def test_every_mandatory_wall_stands_here():
    assert [f"{c.name}: {c.message}" for c in await doctor.examine() if c.mandatory and not c.ok] == []


@kernel
@needs_sandbox
@pytest.mark.parametrize(("wall", "words", "instead"), [
    ("network", ("--unshare-all",), ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup")),
    ("pid namespace", ("--unshare-all",), ("--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup")),
    ("uts namespace", ("--hostname", "sandbox"), ()),
    ("capabilities", ("--cap-drop", "ALL"), ("--cap-add", "ALL")),
    ("identity", ("--uid", "65534"), ("--uid", "0")),
    ("session", ("--new-session",), ()),
    ("ipc namespace", ("--unshare-all",), ("--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup")),
    ("cgroup namespace", ("--unshare-all",), ("--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-ipc")),
    ("scratch", ("--size", str(hparams.Sandbox().tmp_bytes)), ()),
    ("scratch", ("--size", str(1 << 30)), ()),
    ("read-only tree", ("--remount-ro", "/"), ()),
    ("read-only tree", ("--remount-ro", "/dev"), ()),
    ("environment", ("--clearenv",), ("--setenv", "WALLET_PASSWORD", "x")),
])  # fmt: skip
async def test_a_wall_taken_away_is_noticed(wall, words, instead, policy, monkeypatch):
    without(monkeypatch, *words, instead=instead)
    check = await probed(policy, wall)
    assert not check.ok, check.message
    assert check.fix


@kernel
@needs_sandbox
async def test_a_user_namespace_taken_away_is_noticed(policy, monkeypatch):
    """Only root can go without one."""
    if os.geteuid() != 0:
        without(monkeypatch, "--disable-userns")
        assert not (await doctor._nested(policy))[0].ok
        return
    monkeypatch.setattr(launch, "take", lambda *_, **__: Identity(0))
    for words in (("--unshare-all",), ("--unshare-user", "--disable-userns"), ("--uid", "65534", "--gid", "65534")):
        without(monkeypatch, *words, instead=("--unshare-pid", "--unshare-net", "--unshare-uts") if words == ("--unshare-all",) else ())
    assert not (await probed(policy, "user namespace")).ok


@kernel
@needs_sandbox
async def test_a_descriptor_too_many_is_noticed(policy, monkeypatch, tmp_path):
    with (tmp_path / "open").open("w") as file:
        real = launch._Descriptors.passed
        monkeypatch.setattr(launch._Descriptors, "passed", lambda self: (*real(self), file.fileno()))
        assert not (await probed(policy, "descriptors")).ok


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files of /sys open for root")
@needs_sandbox
async def test_being_root_of_the_host_is_noticed_and_told(policy, monkeypatch):
    monkeypatch.setattr(launch, "take", lambda *_, **__: Identity(0, why="a reason"))
    checks = {check.name: check for check in await doctor._probe(policy)}
    assert (checks["root's files"].level, checks["host user"].level) == (1, 1)
    assert "a reason" in checks["host user"].message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files of /sys open for root")
@needs_sandbox
async def test_files_of_root_in_reach_are_noticed():
    policy = card_policy()
    hidden = {mount.inside for mount in host.closed_mounts()}
    checks = await doctor._probe(replace(policy, mounts=tuple(mount for mount in policy.mounts if mount.inside not in hidden)))
    assert next(check for check in checks if check.name == "root's files").level == 2


@kernel
@needs_sandbox
@pytest.mark.parametrize(("wall", "calls"), [
    ("system calls", ("bpf",)), ("system calls", ("io_uring_setup",)), ("system calls", ("ptrace",)), ("network", ("socket",)), ("nested namespaces", ("clone3",)),
])  # fmt: skip
async def test_a_hole_in_the_filter_is_noticed(wall, calls, policy):
    assert not (await probed(replace(policy, extra_calls=calls), wall)).ok


@kernel
@needs_sandbox
@pytest.mark.parametrize(("wall", "mount"), [
    ("host files", Mount("/etc/hostname", "a hole", "/etc/passwd")),
    ("devices", Mount("/dev/tty9", "a hole", "/dev/null", "device")),
    ("read-only tree", Mount("/etc", "a hole", kind="tmpfs", size=4096)),
])  # fmt: skip
async def test_a_mount_too_many_is_noticed(wall, mount, policy):
    assert not (await probed(replace(policy, mounts=(*policy.mounts, mount)), wall)).ok


@kernel
@needs_sandbox
async def test_a_compiler_that_is_missing_is_advice_not_a_wall(policy):
    check = await probed(replace(policy, mounts=tuple(m for m in policy.mounts if "g++" not in m.inside)), "compiler")
    assert (check.ok, check.mandatory) == (False, False)
    assert "apt install g++" in check.fix


@kernel
@needs_sandbox
async def test_namespaces_that_nest_are_noticed_behind_the_filter(policy, monkeypatch):
    without(monkeypatch, "--disable-userns")
    assert not (await doctor._nested(policy))[0].ok


@kernel
@needs_sandbox
async def test_limits_that_do_not_bind_are_noticed(policy, monkeypatch):
    monkeypatch.setattr(doctor, "_with_limits", lambda policy, **_: policy)
    for limit in (doctor._memory, doctor._processes, doctor._cpu):
        assert not (await limit(policy))[0].ok


async def test_without_bubblewrap_the_fix_is_to_install_it(monkeypatch):
    monkeypatch.setenv("CRUSADES_BWRAP", "/no/such/bwrap")
    checks = {check.name: check for check in await doctor.examine()}
    assert not checks["bubblewrap"].ok
    assert "apt install bubblewrap" in checks["bubblewrap"].fix
    assert checks["sandbox"].level == 2


async def test_an_old_bubblewrap_is_named(monkeypatch, tmp_path):
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("CRUSADES_BWRAP", str(old))
    check = doctor._bubblewrap()
    assert not check.ok
    assert "0.8 or later" in check.fix


def test_an_old_kernel_is_named(monkeypatch):
    monkeypatch.setattr(doctor.platform, "release", lambda: "4.19.0-27-amd64")
    assert not next(check for check in doctor.host_checks() if check.name == "kernel").ok


def test_missing_cgroups_are_mandatory_for_root_alone(monkeypatch):
    monkeypatch.setattr(cgroups, "hierarchy", lambda: cgroups.Hierarchy("none", {}, "nothing is delegated"))
    levels = []
    for root in (True, False):
        monkeypatch.setattr(doctor.host, "is_root", lambda root=root: root)
        levels.append(doctor._cgroups().level)
    assert levels == [2, 1]


def test_missing_device_nodes_name_the_command_that_makes_them():
    checks = list(doctor.device_checks(gpu=7))
    assert not checks[0].ok
    assert "nvidia-modprobe" in checks[0].fix


def test_every_card_is_looked_at(monkeypatch):
    async def examine(gpu):
        return [Check("probe", True, f"card {gpu}")]

    async def probe(policy):
        node = next(mount.inside for mount in policy.mounts if mount.inside.startswith("/dev/nvidia"))
        return [Check("probe", node != "/dev/nvidia5", node)]

    monkeypatch.setattr(doctor, "cards", lambda: [1, 4, 5])
    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setattr(doctor, "_probe", probe)
    monkeypatch.setattr(doctor, "device_checks", lambda gpu: [])
    assert [(check.name, check.ok) for check in doctor.check_walls()] == [("probe", True), ("probe (card 4)", True), ("probe (card 5)", False)]


def test_slots_of_the_cpu_are_asked_for_no_card(monkeypatch):
    asked = []

    async def examine(gpu):
        asked.append(gpu)
        return []

    monkeypatch.setattr(doctor, "cards", lambda: [0])
    monkeypatch.setattr(doctor, "examine", examine)
    doctor.check_walls(cpu=True)
    assert asked == [None]


ROWS = [Check("a", True, "fine"), Check("b", False, "slow", mandatory=False, fix="do x"), Check("c", False, "down", fix="do y\ndo z")]


def test_the_text_names_every_fix():
    text = doctor.as_text(ROWS)
    assert all(word in text for word in ("do x", "do y", "do z", "1 mandatory wall is down"))


def test_the_json_twin_says_the_same():
    said = json.loads(doctor.as_json(ROWS))
    assert (said["level"], [row["level"] for row in said["checks"]]) == (2, [0, 1, 2])


def test_the_exit_code_is_the_worst_level(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_walls", lambda gpu=None: ROWS[:2])
    assert doctor.run_doctor() == 1
    assert doctor.run_doctor(json=True) == 1
    assert sys.stdout is not None
    capsys.readouterr()
