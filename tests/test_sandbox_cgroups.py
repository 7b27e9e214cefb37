"""Where groups can be made, on trees of plain files that look like version 1, version 2, and neither; and a real one where there is one."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from crusades.sandbox import cgroups
from crusades.sandbox.policy import Limits


@pytest.fixture
def membership(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "membership"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cgroup"
    folder.mkdir()
    return folder


def version2(root: Path, group: str, controllers: str = "cpu memory pids", enabled: str = "", procs: str = "") -> Path:
    """A group with what a kernel would show in it, and the controllers of all above it."""
    folder = root / group.strip("/")
    for place in {root, folder.parent, folder}:
        place.mkdir(parents=True, exist_ok=True)
        (place / "cgroup.controllers").write_text(controllers)
        (place / "cgroup.subtree_control").write_text(enabled)
        (place / "cgroup.procs").write_text(procs)
    return folder


def test_version_1_wins_where_it_has_memory_and_pids(root, membership):
    for name in ("memory", "pids", "cpu"):
        (root / name / "a").mkdir(parents=True)
    found = cgroups.detect(root, membership("4:memory:/a\n3:pids:/a\n2:cpu,cpuacct:/a\n0::/\n"))
    assert (found.version, sorted(found.bases)) == ("v1", ["cpu", "memory", "pids"])
    assert found.bases["memory"] == root / "memory/a"


def test_a_container_that_sees_its_own_group_as_the_root(root, membership):
    (root / "memory").mkdir()
    (root / "pids").mkdir()
    found = cgroups.detect(root, membership("4:memory:/docker/x\n3:pids:/docker/x\n"))
    assert found.bases["memory"] == root / "memory"


def test_memory_alone_is_not_enough(root, membership):
    (root / "memory").mkdir()
    assert cgroups.detect(root, membership("4:memory:/\n")).version == "none"


def test_version_2_hands_its_controllers_down(root, membership):
    own = version2(root, "unit.service")
    found = cgroups.detect(root, membership("0::/unit.service\n"))
    assert (found.version, set(found.bases.values())) == ("v2", {own})
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_version_2_from_a_leaf_uses_the_parent(root, membership, monkeypatch):
    leaf = version2(root, "unit.service/daemon", enabled="cpu memory pids")
    (leaf / "cgroup.subtree_control").write_text("")
    (leaf / "cgroup.controllers").write_text("")
    found = cgroups.detect(root, membership("0::/unit.service/daemon\n"))
    assert set(found.bases.values()) == {root / "unit.service"}


def test_without_the_controllers_the_reason_names_them(root, membership):
    version2(root, "user.slice", controllers="hugetlb")
    found = cgroups.detect(root, membership("0::/user.slice\n"))
    assert found.version == "none"
    assert "memory and pids" in found.why


def test_nothing_mounted_is_said(root, membership):
    assert "no cgroup file system" in cgroups.detect(root, membership("")).why


def test_a_group_holds_its_limits(root):
    found = cgroups.Hierarchy("v2", {"memory": root, "pids": root})
    group = cgroups.create(found, Limits(memory_bytes=1000, max_processes=7))
    assert group is not None
    folder = group.folders["memory"]
    assert ((folder / "memory.max").read_text(), (folder / "pids.max").read_text()) == ("1000", "7")
    assert group.entrances() == [str(folder / "cgroup.procs")]
    assert group.enforces() == {"memory": "cgroup v2", "processes": "cgroup v2"}


@pytest.mark.parametrize(("version", "files", "own"), [
    ("v2", {"memory.events": "low 0\noom 0\noom_kill 1\n"}, False),
    ("v2", {"memory.events": "low 0\noom 1\noom_kill 1\n"}, True),
    ("v1", {"memory.failcnt": "0\n", "memory.memsw.failcnt": "0\n"}, False),
    ("v1", {"memory.failcnt": "0\n", "memory.memsw.failcnt": "3\n"}, True),
    ("v1", {"memory.failcnt": "12\n"}, True),
    ("v1", {"memory.failcnt": "0\n", "memory.max_usage_in_bytes": "1000\n"}, True),
    ("v1", {"memory.failcnt": "0\n", "memory.max_usage_in_bytes": "900\n"}, False),
    ("v2", {"memory.events": "oom 0\n", "memory.peak": "1000\n"}, True),
])
def test_a_kill_for_somebody_elses_limit_is_told_from_one_for_its_own(root, version, files, own):
    for name, text in files.items():
        (root / name).write_text(text)
    assert cgroups.Group(version, {"memory": root}).at_its_limit(1000) is own


def test_oom_kills_are_read_in_both_versions(root):
    (root / "memory.events").write_text("low 0\noom 4\noom_kill 2\noom_group_kill 0\n")
    (root / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert cgroups.Group("v2", {"memory": root}).oom_kills() == 2
    assert cgroups.Group("v1", {"memory": root}).oom_kills() == 3


def test_no_hierarchy_no_group():
    assert cgroups.create(cgroups.Hierarchy("none"), Limits()) is None


def refuse_to_hand_down(*groups: Path) -> None:
    """Like the kernel does for a group that holds processes."""
    for group in groups:
        (group / "cgroup.subtree_control").unlink()
        (group / "cgroup.subtree_control").mkdir()


def test_alone_in_a_delegated_group_we_move_into_a_leaf(root, membership):
    own = version2(root, "unit.service", procs=f"{os.getpid()}\n")
    cgroups.enter_leaf(root, membership("0::/unit.service\n"))
    assert (own / "daemon" / "cgroup.procs").read_text() == str(os.getpid())


def test_in_company_we_stay_where_we_are(root, membership):
    own = version2(root, "session.scope", procs=f"{os.getpid()}\n{os.getppid()}\n")
    cgroups.enter_leaf(root, membership("0::/session.scope\n"))
    assert not (own / "daemon").exists()


def test_in_a_container_everyone_moves(root, membership):
    version2(root, "/", procs="1\n7\n")
    (root / "cgroup.type").write_text("domain\n")
    cgroups.enter_leaf(root, membership("0::/\n"))
    assert (root / "daemon" / "cgroup.procs").read_text() == "7"


def test_the_whole_machines_group_is_left_alone(root, membership):
    version2(root, "/", controllers="hugetlb", procs="1\n")
    assert cgroups.enter_leaf(root, membership("0::/\n")) is False
    assert not (root / "daemon").exists()


def test_root_in_a_login_session_uses_the_top_of_the_machine(root, membership):
    own = version2(root, "user.slice/session.scope", procs="1\n")
    (root / "cgroup.controllers").write_text("cpu memory pids")
    (root / "cgroup.subtree_control").write_text("cpu memory pids")
    (root / "cgroup.procs").write_text("")
    refuse_to_hand_down(own)
    assert set(cgroups.detect(root, membership("0::/user.slice/session.scope\n")).bases.values()) == {root}


def test_what_a_dead_daemon_left_is_killed_and_removed():
    """A daemon that dies in the milliseconds in which bubblewrap sets up: `--die-with-parent` comes too late then."""
    found = cgroups.detect()
    if not found.complete:
        pytest.skip(f"no cgroups here: {found.why}")
    process = subprocess.Popen(["sleep", "600"])
    dead = f"{cgroups.PREFIX}{2**22 + 1}-0-0"  # above every possible pid
    try:
        for base in dict.fromkeys(found.bases.values()):
            (base / dead).mkdir()
            (base / dead / "cgroup.procs").write_text(str(process.pid))
        cgroups.sweep(found)
        assert process.wait(timeout=10) == -signal.SIGKILL
        assert not [base for base in found.bases.values() if (base / dead).exists()]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def test_what_a_living_daemon_has_is_left_alone():
    found = cgroups.detect()
    if not found.complete:
        pytest.skip(f"no cgroups here: {found.why}")
    group = cgroups.create(found, Limits())
    assert group is not None
    cgroups.sweep(found)
    assert all(os.path.isdir(folder) for folder in group.folders.values())
    assert group.remove()
