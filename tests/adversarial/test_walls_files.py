"""Files, descriptors, devices: nothing of the host is reached, nothing outside the scratch folders is changed."""

import os
import socket

import pytest
import trio
from sandbox_kit import CGROUPS, MIB, needs_sandbox, run, start

pytestmark = [pytest.mark.kernel, needs_sandbox]


@pytest.fixture
def secret(tmp_path):
    """A file that only the user who runs the validator (root, perhaps) may read."""
    path = tmp_path / "wallet" / "hotkey"
    path.parent.mkdir(mode=0o700)
    path.write_text("0x5eed")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "way",
    ["{path}", "/proc/1/root{path}", "/proc/self/root{path}", "/proc/self/cwd/../..{path}", "/oldroot{path}", "/newroot{path}", "/inside/guard/../../..{path}",
     "/proc/1/cwd{path}", "/proc/thread-self/root{path}"],
)  # fmt: skip
async def test_a_file_of_the_host_cannot_be_opened(secret, way):
    ran = await run(f"say(tried(open, {way.format(path=secret)!r}))")
    assert ran.said in ("ENOENT", "EACCES", "ENOTDIR")


async def test_a_symlink_to_a_file_of_the_host_leads_nowhere(secret):
    ran = await run(f"os.symlink({str(secret)!r}, '/tmp/link'); say(tried(open, '/tmp/link'))")
    assert ran.said == "ENOENT"


async def test_a_hard_link_cannot_take_a_runtime_file_along():
    assert (await run("say(tried(os.link, sys.executable, '/tmp/python'))")).said in ("EXDEV", "EPERM", "EACCES")


async def test_a_symlink_in_a_mounted_folder_is_resolved_inside(tmp_path, secret):
    folder = tmp_path / "submission"
    folder.mkdir()
    (folder / "train.py").symlink_to(secret)
    ran = await run("say(tried(open, '/submission/train.py'))", mounts={folder: "/submission"})
    assert ran.said == "ENOENT"


async def test_a_mounted_folder_is_filled_from_outside_and_cannot_be_written(tmp_path):
    folder = tmp_path / "submission"
    folder.mkdir()
    ours, theirs = socket.socketpair()
    source = """
        c = socket.socket(fileno=3); c.recv(1)
        say([open('/submission/train.py').read(), tried(open, '/submission/train.py', 'w'), tried(os.unlink, '/submission/train.py'), tried(os.mkdir, '/submission/x')])
    """
    with ours:
        box = start(source, theirs, mounts={folder: "/submission"})
        theirs.close()
        (folder / "train.py").write_text("pass")
        ours.sendall(b"x")
        await box.wait()
        assert '["pass", "EROFS", "EROFS", "EROFS"]' in box.output_tail()
    assert (folder / "train.py").read_text() == "pass"


async def test_root_owned_files_that_exist_inside_show_nothing_of_the_host():
    ran = await run("say([open('/etc/passwd').read(), sorted(os.listdir('/etc')), os.path.exists('/etc/shadow'), os.path.exists('/home')])")
    passwd, etc, shadow, home = ran.said
    assert passwd.count("\n") == 1
    assert set(etc) <= {"alternatives", "group", "ld.so.cache", "nsswitch.conf", "passwd"}
    assert not shadow
    assert not home


@pytest.mark.parametrize("path", ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/self/mem", "/proc/self/oom_score_adj",
                                  "/proc/1/mem", "/proc/self/uid_map", "/proc/self/attr/current"])  # fmt: skip
async def test_nothing_in_proc_can_be_written(path):
    assert (await run(f"say(tried(os.open, {path!r}, os.O_WRONLY))")).said in ("EROFS", "EACCES", "EPERM", "ENOENT")


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/keys", "/proc/kpagecount", "/proc/timer_list"])
async def test_what_proc_knows_of_the_whole_machine_is_hidden(path):
    ran = await run(f"""
        try: say(open({path!r}, 'rb').read(64).hex())
        except OSError: say('')
    """)
    assert ran.said == ""


async def test_the_daemons_environment_is_nowhere(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_hidden")
    ran = await run("""
        def text(path):
            try: return open(path).read()
            except OSError: return ""
        say([dict(os.environ), text("/proc/self/environ"), text("/proc/1/environ"), text("/proc/1/cmdline")])
    """)
    assert "hf_hidden" not in str(ran.said)
    assert set(ran.said[0]) & {"SSH_AUTH_SOCK", "HF_TOKEN", "PYTHONPATH"} == set()


async def test_only_the_agreed_descriptors_are_open(tmp_path):
    with (tmp_path / "x").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        ran = await run("say([n for n in range(4, 256) if tried(os.fstat, n) == 'done'])")
    assert ran.said == []


@pytest.mark.parametrize("way", ["fd", "mem", "environ", "maps", "root", "cwd", "task/1/mem"])
async def test_nothing_of_init_is_there(way):
    """bubblewrap's own process. Without Landlock, which would close it a second time."""
    ran = await run(f"print(int(os.path.lexists('/proc/1/{way}')))", prelude="import os\n")
    assert ran.said == 0


async def test_garbage_on_every_descriptor_only_hurts_the_writer():
    ours, theirs = socket.socketpair()
    source = """
        for number in range(256):
            try:
                os.write(number, os.urandom(512))
            except OSError:
                pass
    """
    with ours:
        box = start(source, theirs)
        theirs.close()
        assert (await box.wait()).code == 0
        assert len(ours.recv(65536)) == 512


async def test_closing_everything_is_just_an_end():
    ran = await run("os.closerange(0, 256)")
    assert ran.status.code is not None


@pytest.mark.parametrize("node", ["mem", "kmem", "port", "kmsg", "tty", "ptmx", "console", "fuse", "kvm", "loop-control", "net/tun", "vda", "userfaultfd", "vsock", "cpu/0/msr"])
async def test_no_other_device_is_there(node):
    assert (await run(f"say(tried(os.open, '/dev/{node}', os.O_RDONLY))")).said == "ENOENT"


@pytest.mark.parametrize("make", ["os.mknod('/tmp/n', 0o60666, os.makedev(254, 0))", "os.mknod('/dev/shm/n', 0o20666, os.makedev(1, 1))"])
async def test_no_device_node_can_be_made(make):
    assert (await run(f"say(tried(lambda: {make}))")).said == "EPERM"


@pytest.mark.parametrize("folder", ["/", "/dev", "/usr/lib", "/etc", "/inside/guard", "/sys/devices/system/cpu"])
async def test_a_folder_outside_the_scratch_ones_takes_no_file(folder):
    assert (await run(f"say(tried(open, {folder!r} + '/x', 'w'))")).said in ("EROFS", "EACCES")


@pytest.mark.parametrize("folder", ["sys.prefix", "sys.base_prefix", "os.path.dirname(os.__file__)"])
async def test_the_interpreter_cannot_be_changed(folder):
    assert (await run(f"say([tried(open, {folder} + '/x', 'w'), tried(os.chmod, {folder}, 0o777)])")).said in (["EROFS", "EROFS"], ["EACCES", "EROFS"])


async def test_filling_tmp_stops_at_its_size():
    ran = await run("""
        written = 0
        try:
            with open('/tmp/big', 'wb', buffering=0) as f:
                while written < 1 << 30:
                    written += f.write(bytes(1 << 20))
        except OSError as error:
            say([written, error.errno == errno.ENOSPC or error.errno == errno.EFBIG])
    """)
    assert ran.said[1]
    assert ran.said[0] <= 32 * MIB


@pytest.mark.skipif(not CGROUPS, reason="memory of the kernel's is bounded by cgroups alone")
async def test_many_small_files_do_not_get_past_the_memory_limit():
    ran = await run("""
        import itertools
        try:
            for n in itertools.count():
                open(f'/dev/shm/{n}', 'w').close()
                if n > 2_000_000: break
        except OSError as error:
            say(error.errno == errno.ENOSPC)
    """, deadline=60)  # fmt: skip
    assert ran.status.oom_killed or ran.said is True


async def test_a_setuid_bit_gives_nothing():
    """Executed as the bits would have it, it is still nobody, and the mount ignores them."""
    ran = await run("""
        import shutil, subprocess
        shutil.copy(os.path.realpath(sys.executable), '/tmp/p'); os.chmod('/tmp/p', 0o6755)
        ids = subprocess.run(['/tmp/p', '-I', '-S', '-c', 'import os; print(os.getresuid(), os.getresgid())'], capture_output=True, text=True,
                             env={'PYTHONHOME': sys.base_prefix, 'LD_LIBRARY_PATH': os.path.join(sys.base_prefix, 'lib')})
        say([oct(os.stat('/tmp/p').st_mode)[-4:], ids.stdout.strip() or ids.stderr[-200:], bool(os.statvfs('/tmp').f_flag & os.ST_NOSUID)])
    """)
    assert ran.said == ["6755", "(65534, 65534, 65534) (65534, 65534, 65534)", True]


async def test_nothing_is_left_for_the_next_sandbox():
    await run("open('/tmp/note', 'w').write('hello'); open('/dev/shm/note', 'w').write('hello')")
    ran = await run("say([[n for n in os.listdir(d) if n == 'note'] for d in ('/tmp', '/dev/shm')])")
    assert ran.said == [[], []]


async def test_a_descriptor_sent_out_is_of_no_use_to_the_sender():
    """A receiver that asks for bytes alone gets bytes; the kernel closes the descriptor that came with them."""
    ours, theirs = socket.socketpair()
    with ours:
        box = start("c = socket.socket(fileno=3); socket.send_fds(c, [b'x'], [os.open('/tmp', os.O_RDONLY)])", theirs)
        theirs.close()
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(ours)
        before = len(os.listdir("/proc/self/fd"))
        assert ours.recv(16) == b"x"
        assert len(os.listdir("/proc/self/fd")) == before
        await box.kill()
