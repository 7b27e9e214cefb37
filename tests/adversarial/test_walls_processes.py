"""Processes, signals, memory, bombs: the host and its other processes notice nothing, and the end is the end."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import trio
from msgspec.structs import replace
from sandbox_kit import CGROUPS, family, needs_sandbox, policy, run, start

pytestmark = [pytest.mark.kernel, needs_sandbox]


@pytest.fixture
def bystander():
    """A process of ours, outside, of the same host uid when we are root."""
    process = subprocess.Popen([sys.executable, "-I", "-c", "import signal; signal.pause()"], env={"MARKER": "bystander"})
    yield process
    process.kill()
    process.wait()


async def test_processes_outside_cannot_be_seen(bystander):
    assert (await run("say([p for p in os.listdir('/proc') if p.isdigit()])")).said == ["1", "2"], "init and ourselves"


async def test_processes_outside_cannot_be_signalled(bystander):
    ran = await run(f"say([tried(os.kill, {bystander.pid}, 9), tried(os.kill, {os.getpid()}, 9), tried(os.kill, os.getppid() or 99999, 0)])")
    assert ran.said[:2] == ["ESRCH", "ESRCH"]
    assert bystander.poll() is None


async def test_a_signal_to_everyone_reaches_the_sender_alone(bystander):
    ran = await run("tried(os.kill, -1, signal.SIGKILL); say('here')")
    assert bystander.poll() is None
    assert ran.status.code == 0


async def test_a_signal_to_the_own_group_stays_inside(bystander):
    ran = await run("os.kill(0, signal.SIGTERM)")
    assert ran.status.signal in (signal.SIGTERM, signal.SIGKILL)
    assert bystander.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_init_does_not_mind_signals(number):
    ours, theirs = socket.socketpair()
    with ours:
        box = start(f"tried(os.kill, 1, {int(number)}); socket.socket(fileno=3).sendall(b'x'); signal.pause()", theirs)
        theirs.close()
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(ours)
        assert box.alive()
        with trio.fail_after(10):
            await box.kill()


async def test_a_stopped_sandbox_can_be_killed():
    ours, theirs = socket.socketpair()
    with ours:
        box = start("socket.socket(fileno=3).sendall(b'x'); os.kill(os.getpid(), signal.SIGSTOP)", theirs)
        theirs.close()
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(ours)
            await box.kill()
        assert not box.alive()


async def test_ignoring_every_signal_does_not_help():
    ours, theirs = socket.socketpair()
    source = """
        for n in range(1, 65):
            try: signal.signal(n, signal.SIG_IGN)
            except (OSError, ValueError): pass
        socket.socket(fileno=3).sendall(b'x')
        while True: pass
    """
    with ours:
        box = start(source, theirs)
        theirs.close()
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(ours)
            await box.kill()
        assert not box.alive()


async def test_a_fork_bomb_ends_at_the_limit_and_is_killed_whole():
    ours, theirs = socket.socketpair()
    source = """
        c = socket.socket(fileno=3)
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                try: c.send(b'x', socket.MSG_DONTWAIT)
                except OSError: pass
    """
    with ours:
        box = start(source, theirs)
        theirs.close()
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(ours)
            count = len(family(box))
            await box.kill()
        assert 0 < count <= 64
        assert family(box) == []


async def test_a_thread_bomb_ends_at_the_limit():
    ran = await run("""
        import threading
        stop = threading.Event(); n = 0
        try:
            for n in range(500): threading.Thread(target=stop.wait, daemon=True).start()
        except RuntimeError:
            say(n)
        sys.stdout.flush(); os._exit(0)
    """)
    assert ran.said < 64


async def test_a_descriptor_bomb_ends_at_the_limit():
    ran = await run("""
        n = 0
        try:
            for n in range(100_000): os.dup(1)
        except OSError as error:
            say([n, errno.errorcode[error.errno]])
    """)
    assert ran.said[0] < 256
    assert ran.said[1] == "EMFILE"


by_cgroup = pytest.mark.skipif(not CGROUPS, reason="memory that belongs to no process is bounded by cgroups alone")


@pytest.mark.parametrize("bomb", ["bytearray(b'x') * (1 << 30)", "[bytearray(os.urandom(1 << 20)) for _ in range(1024)]",
                                  pytest.param("shared()", marks=by_cgroup), pytest.param("in_tmp()", marks=by_cgroup)])  # fmt: skip
async def test_a_memory_bomb_is_the_bombers_end(bomb, bystander):
    ran = await run(f"""
        def shared():
            for _ in range(64):
                fd = os.memfd_create('x')
                for _ in range(16): os.write(fd, bytes(1 << 20))
        def in_tmp():
            held = bytearray(180 << 20)
            for n in range(len(held) >> 12): held[n << 12] = 1
            with open('/tmp/x', 'wb') as f:
                for _ in range(31): f.write(bytes(1 << 20))
        {bomb}
        say('took it')
    """)
    assert "took it" not in ran.output
    assert ran.status.oom_killed or "MemoryError" in ran.output
    assert bystander.poll() is None


@pytest.mark.parametrize("name", ["NOFILE", "FSIZE", "CORE", "NPROC", "CPU", "MEMLOCK"])
async def test_a_limit_cannot_be_raised_again(name):
    ran = await run(f"""
        import resource
        kind = resource.RLIMIT_{name}; soft, hard = resource.getrlimit(kind)
        try: resource.setrlimit(kind, (hard + 1, hard + 1)); say('raised')
        except ValueError: say('refused')
    """)
    assert ran.said == "refused"


async def test_a_loop_ends_at_the_cpu_limit_and_the_reason_is_named():
    brief = replace(policy(), limits=replace(policy().limits, cpu_seconds=1))
    ran = await run("while True: pass", using=brief)
    assert (ran.status.signal, ran.status.text) == (signal.SIGXCPU, "killed by SIGXCPU (CPU time limit)")


async def test_a_loop_that_ignores_the_cpu_limit_ends_a_little_later():
    brief = replace(policy(), limits=replace(policy().limits, cpu_seconds=1))
    ran = await run("signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", using=brief, deadline=120)
    assert ran.status.signal == signal.SIGKILL


async def test_queued_signals_have_their_limit():
    """They are counted per user of the host, whose timers the validator's are too."""
    ran = await run("""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN]); value = ctypes.c_void_p()
        say(next(n for n in range(100_000) if libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), value) < 0))
    """)
    assert 0 < ran.said <= 1024


async def test_a_core_file_is_not_written():
    ran = await run("say([fate(os.abort), [n for n in os.listdir('/tmp') if 'core' in n]])")
    assert ran.said == ["SIGABRT", []]


async def test_locking_memory_has_its_limit():
    assert (await run("import mmap; m = mmap.mmap(-1, 128 << 20); a = ctypes.addressof(ctypes.c_char.from_buffer(m)); "
                      "say([libc.mlock(ctypes.c_void_p(a), ctypes.c_size_t(128 << 20)), errno.errorcode[ctypes.get_errno()]])")).said == [-1, "ENOMEM"]  # fmt: skip


async def test_priority_cannot_be_taken_from_others():
    assert (await run("say([tried(os.setpriority, os.PRIO_PROCESS, 0, -20), tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))])")).said == ["EPERM", "EPERM"]


async def test_not_dying_with_the_parent_does_not_help():
    """PR_SET_PDEATHSIG is undone by the program; killing goes by the namespace all the same."""
    ours, theirs = socket.socketpair()
    with ours:
        box = start("libc.prctl(1, 0, 0, 0, 0); os.setsid() if os.getpid() != os.getsid(0) else 0; socket.socket(fileno=3).sendall(b'x'); signal.pause()", theirs)
        theirs.close()
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(ours)
            await box.kill()
        assert family(box) == []


async def test_the_daemons_death_is_the_sandboxs_death(tmp_path):
    """A killed daemon runs no clean-up: the kernel must do it."""
    helper = tmp_path / "daemon.py"
    helper.write_text(
        "import os, signal, socket, sys, trio\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from sandbox_kit import start\n"
        "async def main():\n"
        "    ours, theirs = socket.socketpair()\n"
        "    box = start('socket.socket(fileno=3).sendall(b\"x\"); signal.pause()', theirs)\n"
        "    await trio.lowlevel.wait_readable(ours)\n"
        "    print(box.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main)\n"
    )
    done = await trio.run_process([sys.executable, str(helper)], capture_stdout=True, capture_stderr=True, check=False)
    pid = int(done.stdout)
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(end)
    os.close(end)


async def test_hostile_calls_are_fatal_or_refused_as_the_policy_says():
    ran = await run("say(fate(lambda: libc.syscall(101, 17, 0, 0, 0)))")
    lenient = await run("say(syscall(101, 17, 0, 0, 0))", using=replace(policy(), hostile_calls="errno"))
    assert (ran.said, lenient.said) == ("SIGSYS", "EPERM")
