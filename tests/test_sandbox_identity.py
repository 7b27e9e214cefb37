"""Who the inside is on the host: a user of its own when root starts it, whom root's files and accounts are closed to."""

import os
import socket
from types import SimpleNamespace

import pytest
import trio
from sandbox_kit import needs_sandbox, run, start

from crusades.bench import contestant
from crusades.sandbox import host, identity

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a sandbox another user")


def host_uid(box) -> int:
    with open(f"/proc/{box.pid}/status") as lines:
        return int(next(line for line in lines if line.startswith("Uid:")).split()[1])


@pytest.fixture
def closed(tmp_path):
    """A folder that only its owner may enter, with something open in it and something else."""
    folder = tmp_path / "home"
    (folder / "open").mkdir(parents=True)
    (folder / "open" / "file").write_text("seen")
    (folder / "key").write_text("secret")
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != parent.parent and parent.name.startswith(("pytest", "popen")):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    folder.chmod(0o700)
    return folder


def test_the_outermost_closed_folder_is_named_with_what_is_wanted_of_it(closed):
    assert identity.barred([str(closed / "open"), "/usr"]) == ((str(closed), (str(closed / "open"),)),)


def test_what_is_closed_itself_cannot_be_shown(closed):
    with pytest.raises(PermissionError, match="chmod -R go"):
        identity.barred([str(closed / "open"), str(closed)])


def test_whoever_is_not_root_stays_who_they_are(monkeypatch):
    monkeypatch.setattr(host, "is_root", lambda: False)
    assert not identity.take(["/usr"], gpu=False, bwrap="/usr/bin/bwrap").separate


@needs_root
@needs_sandbox
async def test_two_sandboxes_of_root_are_two_users_of_the_host():
    pairs = [socket.socketpair() for _ in range(2)]
    boxes = [start("signal.pause()", theirs) for _, theirs in pairs]
    uids = {host_uid(box) for box in boxes}
    for box, (ours, theirs) in zip(boxes, pairs, strict=True):
        await box.kill()
        ours.close()
        theirs.close()
    assert len(uids) == 2
    assert uids <= set(identity.UIDS)


@needs_root
@needs_sandbox
async def test_a_uid_is_free_again_when_its_sandbox_has_ended():
    before = +identity._living
    await run("pass")
    assert +identity._living == before


@needs_root
@needs_sandbox
async def test_what_only_root_may_read_is_closed_though_it_is_mounted(tmp_path, closed):
    (tmp_path / "given").mkdir()
    for mode in (0o400, 0o444):
        (tmp_path / "given" / f"{mode:o}").touch()
        (tmp_path / "given" / f"{mode:o}").chmod(mode)
    ran = await run("say([tried(open, '/given/400'), tried(open, '/given/444')])", mounts={tmp_path / "given": "/given"})
    assert ran.said == ["EACCES", "done"]


@needs_root
@needs_sandbox
async def test_a_folder_below_a_closed_one_is_shown_and_nothing_else_of_it(closed):
    identity._entrance.cache_clear()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        box = start("socket.socket(fileno=3).sendall(b'x'); signal.pause()", theirs, mounts={closed / "open": "/given"})
        await trio.lowlevel.wait_readable(ours)
        seen = os.listdir(f"/proc/{box.pid}/root/given")
        uid = host_uid(box)
        covered = os.listdir(f"/proc/{box._process.pid}/root{closed}")
        await box.kill()
    assert uid in identity.UIDS
    assert seen == ["file"]
    assert covered == ["open"]
    assert sorted(os.listdir(closed)) == ["key", "open"], "the host's own tree is as it was"


@needs_root
@needs_sandbox
async def test_where_no_other_user_can_be_had_it_runs_all_the_same_and_says_why(monkeypatch):
    identity._entrance.cache_clear()
    monkeypatch.setattr(identity, "_TRIAL", ("--no-such-option",))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        box = start("signal.pause()", theirs)
        uid, said = host_uid(box), box.limits["user"]
        await box.kill()
    identity._entrance.cache_clear()
    assert uid == 0
    assert "cannot run it (bwrap: Unknown option --no-such-option)" in said


@needs_root
def test_a_card_keeps_the_user_because_the_driver_shares_memory_within_one_only():
    assert not identity.take(["/usr"], gpu=True, bwrap="/usr/bin/bwrap").separate


@needs_root
def test_ever_new_closed_folders_use_up_no_descriptors(monkeypatch, closed):
    monkeypatch.setattr(identity, "MOST_NAMESPACES", 0)
    identity._entrance.cache_clear()
    assert "too many different closed folders" in identity.take([str(closed / "open")], gpu=False, bwrap="/usr/bin/bwrap").why
    identity._entrance.cache_clear()


@needs_root
def test_the_folder_of_a_submission_can_be_entered_by_others_and_a_dead_process_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setattr(contestant.tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{contestant.OPEN_PREFIX}{2**22 + 1}-x"  # above every possible pid
    alive = tmp_path / f"{contestant.OPEN_PREFIX}{os.getpid()}-x"
    for folder in (left, alive):
        folder.mkdir()
    closed = tmp_path / "state"
    closed.mkdir(mode=0o700)
    with contestant._directory(SimpleNamespace(sandboxed=True, workdir=closed)) as made:
        assert os.path.dirname(made) == str(tmp_path)
    assert (left.exists(), alive.exists()) == (False, True)
