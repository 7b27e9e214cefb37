"""One real sandbox per test: the channel, shared memory, ends of every kind, what is left behind."""

import array
import mmap
import os
import select
import signal
import socket
import sys

import pytest
import trio
from msgspec.structs import replace
from sandbox_kit import CGROUPS, MIB, SMALL, family, needs_sandbox, policy, run, start

from crusades.errors import SandboxFault
from crusades.sandbox import box as boxes
from crusades.sandbox import identity, launch
from crusades.sandbox.launch import spawn
from crusades.sandbox.policy import Mount

pytestmark = [pytest.mark.kernel, needs_sandbox]


def still_there(pids) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


async def receive(ours: socket.socket, size: int = 65536) -> bytes:
    with trio.fail_after(30):
        await trio.lowlevel.wait_readable(ours)
    return ours.recv(size)


async def test_the_channel_is_descriptor_three_and_carries_both_ways():
    ours, theirs = socket.socketpair()
    with ours:
        box = start("c = socket.socket(fileno=3); c.sendall(c.recv(100)[::-1])", theirs)
        theirs.close()
        ours.sendall(b"there and back")
        assert await receive(ours) == b"kcab dna ereht"
        await box.kill()


async def test_a_memfd_that_is_sent_over_the_channel_is_shared_memory():
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("shared", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 4096)
    source = """
        import array, mmap
        c = socket.socket(fileno=3)
        _, ancillary, _, _ = c.recvmsg(1, socket.CMSG_SPACE(4))
        view = mmap.mmap(array.array("i", ancillary[0][2])[0], 4096)
        c.sendall(view[:5]); view[:5] = b"inner"; c.sendall(b"!")
    """
    with ours, mmap.mmap(memory, 4096) as view:
        view[:5] = b"outer"
        box = start(source, theirs)
        theirs.close()
        ours.sendmsg([b"m"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
        heard = b""
        while b"!" not in heard:
            heard += await receive(ours)
        assert (heard, view[:5]) == (b"outer!", b"inner")
        await box.kill()
    os.close(memory)


async def test_exit_codes_come_back():
    ran = await run("sys.exit(7)")
    assert (ran.status.code, ran.status.signal, ran.status.text) == (7, None, "exit code 7")


async def test_deaths_by_signal_come_back():
    ran = await run("os.kill(os.getpid(), signal.SIGSEGV)", prelude="import os, signal\n")
    assert (ran.status.code, ran.status.signal) == (None, signal.SIGSEGV)


async def test_output_is_kept_from_the_end_and_bounded():
    ran = await run("print('x' * 300_000 + 'end')")
    assert ran.output.rstrip().endswith("xxxend")
    assert len(ran.output) < 66_000


async def test_kill_leaves_nothing_of_a_family_that_detached_itself():
    ours, theirs = socket.socketpair()
    source = """
        c = socket.socket(fileno=3)
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    c.sendall(b"g")
                    signal.pause()
                os._exit(0)
        signal.pause()
    """
    with ours:
        box = start(source, theirs)
        theirs.close()
        heard = b""
        while heard != b"ggg":
            heard += await receive(ours)
        before = family(box)
        await box.kill()
        assert len(before) >= 5
        assert still_there(before) == []


async def test_children_do_not_outlive_the_program():
    ours, theirs = socket.socketpair()
    with ours:
        box = start("os.setsid() if os.fork() else signal.pause()", theirs)
        theirs.close()
        status = await box.wait()
        assert status.code == 0
        assert family(box) == []


async def test_kill_is_idempotent_and_wait_agrees():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        box = start("signal.pause()", theirs)
        await box.kill()
        await box.kill()
        assert (await box.wait()).text == "killed by us"
        assert not box.alive()


async def test_no_descriptor_process_or_cgroup_is_left_after_fifty_sandboxes():
    await run("pass", prelude="")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await run("pass", prelude="")
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 - it does not wait


async def test_a_sandbox_that_cannot_be_built_is_our_fault():
    broken = replace(policy(), mounts=(*policy().mounts, Mount("/nowhere", "does not exist", "/no/such/folder")))
    with pytest.raises(SandboxFault, match="/no/such/folder"):
        await run("pass", using=broken)


async def test_a_program_that_does_not_exist_is_our_fault():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        box = spawn(policy(), ["/no/such/program"], channel=theirs)
        with pytest.raises(SandboxFault, match="/no/such/program"):
            await box.wait()


async def test_a_program_that_ended_before_we_looked_has_its_exit_code(monkeypatch):
    at_once = launch._first_line

    def late(descriptor):
        poller = select.poll()
        poller.register(descriptor, 0)  # the hang-up alone: every end of it inside is closed
        assert poller.poll(30_000)
        return at_once(descriptor)

    monkeypatch.setattr(launch, "_first_line", late)
    ran = await run("say('done'); raise SystemExit(7)")
    assert (ran.status.code, ran.said) == (7, "done")


async def test_a_missing_bubblewrap_names_the_command_that_installs_it():
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(SandboxFault, match="apt install bubblewrap"):
        spawn(replace(policy(), bwrap="no-such-bubblewrap"), [sys.executable], channel=theirs)


async def test_reaching_the_memory_limit_is_told_from_other_deaths():
    ran = await run("""
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(4096)) * 1024)
    """)
    if CGROUPS:
        assert ran.status.oom_killed
        assert "memory limit of 0.19 GiB" in ran.status.text
    else:
        assert "MemoryError" in ran.output
    assert SMALL.memory_bytes == 192 * MIB


async def test_the_kernel_kills_a_sandbox_before_anybody_of_ours_and_the_sandbox_cannot_change_that():
    ran = await run("""
        def calm():
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-1000")
        say([open("/proc/self/oom_score_adj").read().strip(), tried(calm)])
    """)
    assert ran.said[0] == "1000"
    assert ran.said[1] in ("EROFS", "EACCES", "EPERM")


async def test_what_does_not_die_is_told_in_time_and_keeps_its_user(monkeypatch):
    """As a process does that is inside a driver call: the monitor waits for it as long as it lives."""
    monkeypatch.setattr(boxes, "END_PATIENCE", 0.1)
    monkeypatch.setattr(boxes, "PATIENCE_PER_GIB", 0.0)
    monkeypatch.setattr(boxes.Box, "_signal_init", lambda box: None)
    released = []
    monkeypatch.setattr(type(identity.Identity(0)), "release", released.append)
    ours, theirs = socket.socketpair()
    with ours:
        box = start("signal.pause()", theirs)
        theirs.close()
        with trio.fail_after(10), pytest.raises(SandboxFault, match="does not die"):
            await box.kill()
        assert released == []


async def test_the_end_of_the_event_loop_is_the_end_of_the_sandbox():
    ours, theirs = socket.socketpair()
    with ours:
        pids = await trio.to_thread.run_sync(lambda: trio.run(_start_and_forget, theirs))
        assert still_there(pids) == []


async def _start_and_forget(theirs: socket.socket) -> list[int]:
    box = start("signal.pause()", theirs)
    theirs.close()
    return family(box)


@pytest.mark.slow
async def test_an_idle_sandbox_lives_on():
    """Spawned from a worker thread it would die after ten seconds, with that thread. There is no event to wait for: time must pass."""
    ours, theirs = socket.socketpair()
    with ours:
        box = start("c = socket.socket(fileno=3); c.sendall(c.recv(1))", theirs)
        theirs.close()
        await trio.sleep(15)
        ours.sendall(b"x")
        assert await receive(ours) == b"x"
        await box.kill()
