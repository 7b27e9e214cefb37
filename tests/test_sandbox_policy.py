"""The policy as data: safe defaults, reasons everywhere, and the command line that comes of it. No sandbox is started."""

import itertools
import os
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from crusades import hparams
from crusades.errors import ConfigError, SandboxFault
from crusades.sandbox import cgroups, host, launch, seccomp
from crusades.sandbox.advice import FIXES, advise
from crusades.sandbox.identity import Identity
from crusades.sandbox.output import Tail, printable
from crusades.sandbox.policy import ENVIRONMENT, Limits, Mount, Policy, contestant_policy, gpu_mounts


@pytest.fixture
def policy():
    return contestant_policy(hparams.Sandbox())


US = Identity(1000)


def words(policy, argv=("prog",), extra=(), group=None, who=US):
    return launch.command(policy, argv, extra, files={m.inside: 11 for m in policy.mounts if m.kind == "text"}, seccomp=12, status=13, group=group, who=who)


def test_every_mount_has_a_reason(policy):
    assert [mount.inside for mount in (*policy.mounts, *gpu_mounts(0)) if len(mount.why) < 5] == []


def test_every_wall_is_on_the_command_line(policy):
    line = words(policy)
    for flag in ("--die-with-parent", "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--clearenv", "--seccomp", "--json-status-fd"):
        assert flag in line
    for pair in (("--uid", "65534"), ("--gid", "65534"), ("--cap-drop", "ALL"), ("--remount-ro", "/"), ("--remount-ro", "/dev"), ("--remount-ro", "/proc")):
        assert pair in itertools.pairwise(line)


def test_the_filter_comes_last_and_the_program_after_it(policy):
    line = words(policy, ["prog", "--unshare-all"])
    assert line[line.index("--seccomp") + 2 :] == ["--", "prog", "--unshare-all"]


def test_cgroups_come_first(policy):
    group = cgroups.Group("v2", {"memory": cgroups.Path("/g")})
    line = words(policy, group=group)
    assert line[4:6] == ["/g/cgroup.procs", "--"]


def test_another_user_comes_after_the_cgroups_and_before_bubblewrap(policy):
    """Only root may enter a cgroup; nothing of bubblewrap runs as root."""
    line = words(policy, group=cgroups.Group("v2", {"memory": cgroups.Path("/g")}), who=Identity(65520, ("nsenter", "--setuid", "65520", "--")))
    assert line[5:10] == ["--", "nsenter", "--setuid", "65520", "--"]
    assert line[10].endswith("bwrap")


def test_everything_is_bound_read_only_but_devices(policy):
    line = words(policy)
    assert "--bind" not in line
    bound = [line[i + 2] for i, word in enumerate(line) if word.startswith("--dev-bind")]
    assert sorted(bound) == ["/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"]


def test_only_scratch_is_writable_and_it_has_a_size(policy):
    line = words(policy)
    tmpfs = {line[i + 1]: line[i - 1] for i, word in enumerate(line) if word == "--tmpfs"}
    assert {"/tmp", "/dev/shm"} <= set(tmpfs)
    assert all(size.isdigit() for size in tmpfs.values())


@pytest.mark.parametrize("place", ["/home", "/root", "/etc", "/var", "/run", "/", "/usr", "/tmp", "/boot", "/mnt", "/opt", "/srv"])
def test_no_folder_that_holds_other_things_is_bound(policy, place):
    assert place not in [m.host for m in policy.mounts if m.kind in ("ro", "device")]


def test_no_variable_of_ours_passes(policy, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    names = {words(policy)[i + 1] for i, word in enumerate(words(policy)) if word == "--setenv"}
    assert names - {"LD_LIBRARY_PATH"} == {*ENVIRONMENT, "CRUSADES_CHANNEL_FD", "CRUSADES_LIMITS"}


def test_one_card_and_no_other():
    nodes = [m.inside for m in gpu_mounts(3) if m.kind == "device"]
    assert nodes == ["/dev/nvidia3", "/dev/nvidiactl", "/dev/nvidia-uvm"]


def test_with_a_card_the_parts_of_proc_that_steer_the_machine_stay_read_only(policy):
    line = words(replace(policy, gpu=True))
    bound = [line[i + 2] for i, word in enumerate(line) if word == "--ro-bind"]
    assert ("--remount-ro", "/proc") not in itertools.pairwise(line)
    assert {"/proc/sys", "/proc/irq"} <= set(bound)


def test_settings_reach_the_limits():
    policy = contestant_policy(hparams.Sandbox(memory_bytes=5, max_processes=6, tmp_bytes=7, max_open_files=8, output_bytes=9))
    limits = policy.limits
    assert (limits.memory_bytes, limits.max_processes, limits.file_bytes, limits.max_open_files, limits.output_bytes) == (5, 6, 7, 8, 9)


@pytest.mark.parametrize(("total", "room"), [(64, 61), (8, 5), (4, 2)])
def test_a_contestant_never_gets_more_than_the_machine_has_room_for(monkeypatch, tmp_path, total, room):
    (tmp_path / "meminfo").write_text(f"MemFree: 1 kB\nMemTotal:       {total << 20} kB\n")
    assert host.memory_room(tmp_path / "meminfo") == room << 30
    monkeypatch.setattr(host, "memory_room", lambda: room << 30)
    limits = contestant_policy(hparams.Sandbox(memory_bytes=16 << 30)).limits
    assert limits.memory_bytes == min(16, room) << 30
    assert launch.enforcement(limits, None)["memory"].startswith(f"{min(16, room)}.00 GiB")


def test_root_must_have_cgroups(monkeypatch):
    monkeypatch.setattr(host, "is_root", lambda: True)
    assert contestant_policy(hparams.Sandbox()).require_cgroup


def test_memory_is_an_rlimit_only_without_a_cgroup():
    assert "DATA" not in launch.rlimits(Limits(), memory=False)
    assert launch.rlimits(Limits(memory_bytes=5), memory=True)["DATA"] == 5


def test_an_environment_made_in_the_home_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "venv"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    (tmp_path / "venv").mkdir()
    with pytest.raises(SandboxFault, match="contains the home folder"):
        host.interpreter_mounts()


@pytest.mark.parametrize("place", ["/usr/lib/crusades/state", sys.base_prefix + "/state", "/usr/lib"])
def test_what_is_private_may_not_lie_where_submissions_look(place, policy):
    with pytest.raises(ConfigError, match="every submission can read"):
        host.must_not_show(policy.mounts, {"the state directory": Path(place)})


def test_what_is_private_may_lie_elsewhere(policy, tmp_path):
    host.must_not_show(policy.mounts, {"the state directory": tmp_path, "the wallets": Path("/usr/libexec-of-ours")})


def test_a_link_does_not_hide_where_something_lies(policy, tmp_path):
    (tmp_path / "link").symlink_to(sys.base_prefix)
    with pytest.raises(ConfigError, match="--state-dir"):
        host.must_not_show(policy.mounts, {"the state directory (--state-dir)": tmp_path / "link" / "state"})


def test_tools_bring_the_links_that_lead_to_them():
    mounts = {m.inside: m for m in host.tool_mounts()}
    for name in ("/usr/bin/cc", "/usr/bin/as"):
        if not os.path.lexists(name):
            pytest.skip(f"{name} is not installed")
        here, steps = name, 0
        while mounts[here].kind == "link":
            here, steps = os.path.normpath(os.path.join(os.path.dirname(here), mounts[here].host)), steps + 1
        assert mounts[here].kind == "ro"
        assert steps < 8


def test_a_script_around_a_program_is_left_out_of_its_way(tmp_path):
    """There is no shell inside, and on Ubuntu /sbin/ldconfig is a script that runs ldconfig.real."""
    for name, content in (("wrapped", b"#!/bin/sh\n"), ("wrapped.real", b"\x7fELF"), ("script", b"#!/bin/sh\n"), ("program", b"\x7fELF"), ("program.real", b"\x7fELF")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)
    taken = {name: host._chain(str(tmp_path / name), "why")[-1] for name in ("wrapped", "script", "program")}
    assert {name: (Path(mount.inside).name, Path(mount.host).name) for name, mount in taken.items()} == {
        "wrapped": ("wrapped", "wrapped.real"), "script": ("script", "script"), "program": ("program", "program")}  # fmt: skip


def test_a_filter_per_policy_is_compiled_once():
    lean = Policy(mounts=(), environment={})
    first, second = seccomp.compile_filter(lean), seccomp.compile_filter(replace(lean, gpu=True))
    try:
        small, large = (os.read(fd, 1 << 20) for fd in (first, second))
        assert len(small) % 8 == 0
        assert len(small) < len(large) < 32768
        assert seccomp._program.cache_info().currsize >= 2
    finally:
        os.close(first)
        os.close(second)


def test_a_missing_folder_is_left_out_only_if_it_is_optional():
    assert launch._operation(Mount("/x", "why", "/no/such", optional=True), {})[0] == "--ro-bind-try"
    assert launch._operation(Mount("/x", "why", "/no/such"), {})[0] == "--ro-bind"


# --- output


def test_a_tail_keeps_the_end_and_says_what_it_lost():
    tail = Tail(30)
    tail.add(b"abc")
    tail.add(b"d" * 30)
    assert tail.text() == "[3 bytes not kept]\n" + "d" * 11


def test_a_tail_of_escapes_is_no_longer_than_the_tail_of_text():
    tail = Tail(30)
    tail.add(b"\x1b" * 30)
    assert tail.text() == "[cut]\n" + r"\x1b" * 6


def test_text_stays_text():
    assert printable("grüße, 世界 ✓\n\tok\r\n".encode()) == "grüße, 世界 ✓\n\tok\n"


def test_a_cut_character_is_no_error():
    assert printable("é".encode()[1:]) == "\ufffd"


# --- advice


def switches(tmp_path, **files):
    for name, value in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    return tmp_path


def test_ubuntus_restriction_is_mended_by_a_profile(tmp_path):
    said = advise("bwrap: setting up uid map: Permission denied", switches(tmp_path, kernel__apparmor_restrict_unprivileged_userns="1\n"))
    assert "apparmor_parser -r" in said
    assert "userns," in said


def test_namespaces_switched_off_are_switched_on(tmp_path):
    assert "unprivileged_userns_clone=1" in advise("bwrap: No permissions to create new namespace", switches(tmp_path, kernel__unprivileged_userns_clone="0"))
    (tmp_path / "kernel/unprivileged_userns_clone").unlink()
    assert "max_user_namespaces=15000" in advise("bwrap: No permissions", switches(tmp_path, user__max_user_namespaces="0"))


@pytest.mark.parametrize(("said", "fix"), [
    ("bubblewrap is not installed (looked for 'bwrap')", "apt install bubblewrap"),
    ("memory and pids cgroups are mandatory for root, and there are none", "Delegate=yes"),
    ("the system-call filter cannot be compiled", "libseccomp2"),
    ("bwrap: Unknown option --disable-userns", "0.8 or later"),
    ("bwrap: Can't find source path /dev/nvidia0: No such file or directory", "nvidia-modprobe"),
    ("bwrap: Creating new namespace failed: Operation not permitted", "seccomp=unconfined"),
    ("bwrap: Can't mount proc on /newroot/proc", "systempaths=unconfined"),
])  # fmt: skip
def test_bubblewraps_complaints_are_answered(said, fix, tmp_path):
    assert fix in advise(said, tmp_path)


@pytest.mark.parametrize(("said", "fix"), [
    ("bwrap: Can't find source path /dev/nvidia3: No such file or directory", "nvidia-modprobe"), ("bwrap: Unknown option --disable-userns", "0.8 or later"),
])  # fmt: skip
def test_what_the_message_tells_comes_before_the_switches(said, fix, tmp_path):
    assert fix in advise(said, switches(tmp_path, kernel__apparmor_restrict_unprivileged_userns="1\n", user__max_user_namespaces="0"))


def test_a_process_is_not_proc(tmp_path):
    assert "please report" in advise("bwrap: the process went away", tmp_path)


def test_every_known_failure_has_a_command():
    assert [name for name, fix in FIXES.items() if len(fix) < 10] == []
