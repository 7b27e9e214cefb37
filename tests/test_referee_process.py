"""The referee's process: what it has left before torch starts, and that it never outlives its daemon."""

import dataclasses
import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import trio
from evaluate_kit import make_job, make_slot

from crusades import hparams
from crusades.bench import protocol as p
from crusades.bench.link import start_referee
from crusades.errors import EnvironmentFault

ROOT = Path(__file__).parent.parent
NOBODY = 65534
LEAVE = """
import ctypes, os, socket, sys
sys.path.insert(0, {root!r})
from crusades.bench.referee.process import leave_network
if {user}:
    os.setgroups([]); os.setgid({user}); os.setuid({user})
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as a program is that an ordinary user started
before = os.geteuid(), os.getegid()
said = leave_network()
print(said, [name for _, name in socket.if_nameindex()], before == (os.geteuid(), os.getegid()), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), sep="|")
"""


def leave_network(user):
    """What a process of this user (0: of ours) says once it has left the network: words, interfaces, same user, open to debuggers."""
    done = subprocess.run([sys.executable, "-c", LEAVE.format(root=str(ROOT), user=user)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("|")


@pytest.mark.kernel
def test_an_ordinary_users_referee_has_a_network_of_its_own_and_stays_its_user():
    said, interfaces, same_user, debuggable = leave_network(0 if os.geteuid() else NOBODY)
    assert said == "own empty namespace, in a user namespace"
    assert interfaces == "['lo']"
    assert (same_user, debuggable) == ("True", "0")


def test_roots_referee_has_a_network_of_its_own():
    if os.geteuid() != 0:
        pytest.skip("not root")
    said, interfaces, same_user, _ = leave_network(0)
    assert (said, interfaces, same_user) == ("own empty namespace", "['lo']", "True")


def unread(sock):
    """Bytes that the other side has not read yet."""
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]


async def busy_with_exams(referee, wanted):
    """Until it has taken an order that `wanted` gives it, which are minutes of exams."""
    with trio.fail_after(120):
        profile = hparams.load().profile("tiny")
        assert isinstance(await referee.ask(p.Configure(profile=profile, profile_name="tiny", device="cpu")), p.Configured)
    await wanted()
    deadline = time.monotonic() + 60
    while not referee._owed or unread(referee._socket):  # its order is still in the socket
        assert time.monotonic() < deadline
        await trio.sleep(0.01)


async def test_a_referee_without_its_cache_says_what_to_run(tmp_path, monkeypatch):
    """In a cold slot, as `crusades bench` and the validator meet it. A text is looked for where they are, not where the referee is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one two")
    data = hparams.Data(source="files", paths=("a.txt",), tokenizer="owner/words")
    slot = make_slot(tmp_path / "slot", data=data)
    slot.config = dataclasses.replace(slot.config, cache_dir=tmp_path / "cache")
    with pytest.raises(EnvironmentFault, match=r"^the cache lacks the tokens of .*; run `crusades setup --profile tiny` to fetch"):
        await slot.start()
    await slot.stop()


async def test_an_evaluation_that_is_cancelled_waits_for_no_order(tmp_path):
    """A shutdown amid minutes of exams takes no minutes."""
    referee = start_referee(tmp_path, None)
    slot = make_slot(tmp_path, referee, runs=10_000)
    try:
        async with trio.open_nursery() as nursery:
            async def evaluate():
                nursery.start_soon(slot.evaluate, make_job())
                await trio.lowlevel.checkpoint()

            await busy_with_exams(referee, evaluate)
            nursery.cancel_scope.cancel()
            cancelled = time.monotonic()
        assert time.monotonic() - cancelled < 10, "it was waited for"
        assert not referee.usable()
    finally:
        await slot.stop()


async def test_a_busy_referee_ends_when_its_daemon_is_gone(tmp_path):
    """It is amid minutes of exams, and nobody is left to tell it anything."""
    referee = start_referee(tmp_path, None)

    async def order():
        await referee._send(p.encode(p.PrepareExams(submission_id="", commit_block=0, wanted=10_000)))
        referee._owed = True

    try:
        await busy_with_exams(referee, order)
        process = os.pidfd_open(referee.pid)
        referee._socket.close()
        # A second by design.md §3; a busy machine must not make the test lie.
        assert select.select([process], [], [], 10)[0], "it works on for nobody"
        os.close(process)
    finally:
        await referee.kill()
