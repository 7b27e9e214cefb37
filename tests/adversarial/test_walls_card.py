"""A slot with a card, walls and all, on a machine without: there /sys is mounted, /proc can be written, and root stays root of the host."""

import pytest
from msgspec.structs import replace
from sandbox_kit import card_policy, needs_sandbox, run

from crusades.errors import SandboxFault
from crusades.sandbox import doctor, host

pytestmark = [pytest.mark.kernel, needs_sandbox]
BARE = "import os\nassert os.getpid() == 2\n"
"""Without the guard, and so without Landlock, which an older kernel does not have."""


async def test_every_mandatory_wall_stands():
    assert [f"{c.name}: {c.message}" for c in await doctor._probe(card_policy()) if c.mandatory and not c.ok] == []


async def test_the_card_is_there_and_no_other():
    ran = await run("say(sorted(n for n in os.listdir('/dev') if 'nvidia' in n))", using=card_policy())
    assert ran.said == ["nvidia-uvm", "nvidia0", "nvidiactl"]


async def test_what_cuda_writes_of_its_own_process_can_be_written():
    ran = await run("say(tried(os.open, '/proc/self/task/2/comm', os.O_WRONLY))", using=card_policy())
    assert ran.said == "done"


@pytest.mark.parametrize("path", ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/driver/rtc"])
async def test_what_steers_the_machine_cannot(path):
    ran = await run(f"say(tried(os.open, {path!r}, os.O_WRONLY))", using=card_policy())
    assert ran.said in ("EROFS", "EACCES", "ENOENT")


async def test_without_landlock_init_cannot_be_written():
    """Whoever writes into bubblewrap's init reports any exit code."""
    ran = await run("try: os.open('/proc/1/mem', os.O_RDWR); print('1')\nexcept OSError: print('0')", using=card_policy(), prelude=BARE)
    assert ran.said == 0


async def test_without_landlock_files_of_the_machine_cannot_be_changed():
    program = """
places = ["/proc/sys/kernel/hostname", "/sys/module/printk/parameters/time", "/sys/devices/system/cpu/online", "/proc/driver/nvidia/params"]
opened = []
for place in places:
    try:
        os.close(os.open(place, os.O_WRONLY)); opened.append(place)
    except OSError:
        pass
print(len(opened))
"""
    ran = await run(program, using=card_policy(), prelude=BARE)
    assert ran.said == 0


async def test_a_file_whose_reading_makes_a_device_cannot_be_opened():
    """Opened only: it is reading that makes one."""
    ran = await run("say(tried(os.open, '/sys/class/zram-control/hot_add', os.O_RDONLY))", using=card_policy())
    assert ran.said in ("ENOENT", "EACCES")


def test_a_folder_in_which_nothing_is_open_is_hidden_whole(tmp_path):
    for name, mode in (("open/a", 0o444), ("open/b", 0o400), ("closed/c", 0o400), ("closed/d", 0o600), ("only-written/e", 0o200)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    hidden = {mount.inside for mount in host.closed_mounts((str(tmp_path),))}
    assert hidden == {str(tmp_path / "open/b"), str(tmp_path / "closed")}


def test_more_than_can_be_hidden_refuses_the_card_to_root(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "MOST_CLOSED", 0)
    (tmp_path / "a").touch(0o400)
    (tmp_path / "b").touch(0o444)
    with pytest.raises(SandboxFault, match="install-service"):
        host.closed_mounts((str(tmp_path),))


async def test_init_in_reach_is_noticed():
    policy = card_policy()
    open_init = replace(policy, mounts=tuple(mount for mount in policy.mounts if mount.inside != "/proc/1"))
    assert not next(check for check in await doctor._probe(open_init) if check.name == "init").ok


async def test_another_card_is_noticed():
    policy = card_policy()
    card = next(mount for mount in policy.mounts if mount.inside == "/dev/nvidia0")
    expected = doctor._expected(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "_expected", lambda _: expected)
        other = replace(policy, mounts=tuple(replace(m, inside="/dev/nvidia1") if m == card else m for m in policy.mounts))
        checks = await doctor._probe(other)
    assert not next(check for check in checks if check.name == "devices").ok


async def test_the_socket_that_cuda_makes_can_be_made_and_nobody_gets_in():
    ran = await run("""
        a, b = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) for _ in range(2))
        made = [tried(a.bind, "\\0cuda-uvmfd-1-2"), tried(a.listen, 128)]
        say([made, tried(b.connect, "\\0cuda-uvmfd-1-2"), tried(a.accept)])
    """, using=card_policy())  # fmt: skip
    assert ran.said == [["done", "done"], "EPERM", "EPERM"]


@pytest.mark.parametrize("arguments", [
    "socket.AF_UNIX, socket.SOCK_STREAM", "socket.AF_UNIX, socket.SOCK_DGRAM", "socket.AF_UNIX, socket.SOCK_SEQPACKET, 1",
    "socket.AF_INET, socket.SOCK_STREAM", "socket.AF_INET6, socket.SOCK_SEQPACKET", "socket.AF_NETLINK, socket.SOCK_RAW", "40, socket.SOCK_SEQPACKET"])  # fmt: skip
async def test_no_other_socket_can_be_made_with_a_card(arguments):
    ran = await run(f"say(tried(socket.socket, {arguments}))", using=card_policy())
    assert ran.said == "EPERM"


async def test_what_cuda_rewrites_below_proc_self_can_be_rewritten():
    """It truncates: Landlock counts that as a right of its own."""
    ran = await run("""
        open("/proc/self/comm", "w").write("renamed")
        say(open("/proc/self/comm").read().strip())
    """, using=card_policy())  # fmt: skip
    assert ran.said == "renamed"
