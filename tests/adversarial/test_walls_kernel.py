"""System calls: each probe is harmless should it get through, and the errno tells which layer answered (x86-64 numbers)."""

import platform

import pytest
from msgspec.structs import replace
from sandbox_kit import needs_sandbox, policy, run

from crusades.sandbox.seccomp import GROUPS

pytestmark = [pytest.mark.kernel, needs_sandbox, pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")]

KILLED = {
    "ptrace": "101, 17, 0, 0, 0", "process_vm_readv": "310, 1, 0, 0, 0, 0, 0", "process_vm_writev": "311, 1, 0, 0, 0, 0, 0",
    "kcmp": "312, 1, 1, 0, 0, 0", "pidfd_getfd": "438, -1, 0, 0", "process_madvise": "440, -1, 0, 0, 0, 0", "mount": "165, 0, 0, 0, 0, 0", "umount2": "166, 0, 0",
    "pivot_root": "155, 0, 0", "chroot": "161, 0", "open_tree": "428, -1, 0, 0", "move_mount": "429, -1, 0, -1, 0, 0", "fsopen": "430, 0, 0",
    "mount_setattr": "442, -1, 0, 0, 0, 0", "unshare": "272, 0x10000000", "unshare nothing": "272, 0", "setns": "308, -1, 0", "bpf": "321, 0, 0, 0",
    "init_module": "175, 0, 0, 0", "finit_module": "313, -1, 0, 0", "kexec_load": "246, 0, 0, 0, 0", "keyctl": "250, 0, -3, 0", "add_key": "248, 0, 0, 0, 0, 0",
    "request_key": "249, 0, 0, 0, 0", "userfaultfd": "323, -1", "reboot": "169, 0, 0, 0, 0", "iopl": "172, 0", "ioperm": "173, 0, 0, 0",
    "settimeofday": "164, 0, 0", "clock_settime": "227, 99, 0", "syslog": "103, 10, 0, 0", "acct": "163, 0", "swapon": "167, 0, 0", "sethostname": "170, 0, 0",
    "fanotify_init": "300, 0, 0", "quotactl": "179, 0, 0, 0, 0",
}  # fmt: skip
REFUSED = {
    "io_uring_setup": "425, 1, 0", "io_uring_enter": "426, -1, 0, 0, 0, 0, 0", "io_setup": "206, 0, 0", "perf_event_open": "298, 0, 0, -1, -1, 0",
    "open_by_handle_at": "304, -1, 0, 0", "name_to_handle_at": "303, -1, 0, 0, 0, 0", "seccomp": "317, 1, 0, 0", "setuid": "105, 0", "setgid": "106, 0",
    "setresuid": "117, 0, 0, 0", "setgroups": "116, 0, 0", "capset": "126, 0, 0", "chown": "92, 0, 0, 0", "shmget": "29, 0, 4096, 0o1600",
    "msgget": "68, 0, 0o1600", "semget": "64, 0, 1, 0o1600", "mq_open": "240, 0, 0, 0, 0", "splice": "275, -1, 0, -1, 0, 0, 0", "tee": "276, -1, -1, 0, 0",
    "vmsplice": "278, -1, 0, 0, 0", "memfd_secret": "447, 0", "move_pages": "279, 0, 0, 0, 0, 0, 0", "inotify_init1": "294, 0", "setxattr": "188, 0, 0, 0, 0, 0",
    "epoll_create1": "291, 0", "epoll_ctl": "233, -1, 1, 0, 0", "epoll_wait": "232, -1, 0, 1, 0", "execveat": "322, -1, 0, 0, 0, 0", "modify_ldt": "154, 0, 0, 0", "remap_file_pages": "216, 0, 0, 0, 0, 0",
}  # fmt: skip
BY_ARGUMENT = {
    "clone3": "435, 0, 0", "clone into a user namespace": "56, 0x10000011, 0, 0, 0, 0", "clone into a network namespace": "56, 0x40000011, 0, 0, 0, 0",
    "personality without address randomisation": "135, 0x0040000", "prctl: not dumpable": "157, 4, 0, 0, 0, 0", "prctl: subreaper": "157, 36, 1, 0, 0, 0",
    "prctl: filter": "157, 22, 2, 0, 0, 0", "prctl: memory map": "157, 35, 0, 0, 0, 0", "ioctl: type into a terminal": "16, 1, 0x5412, 0",
    "ioctl: the same behind high bits": "16, 1, ctypes.c_ulong(0x100005412), 0", "ioctl: new namespace descriptor": "16, 1, 0xb701, 0",
    "ioctl: NVIDIA control, without a card": "16, 1, 0xc04846d2, 0", "socketpair of another family": "53, 16, 3, 0, 0",
    "setsockopt: a program in the kernel": "54, 3, 1, 26, 0, 0", "setsockopt: an eBPF program": "54, 3, 1, 50, 0, 0", "setsockopt: another level": "54, 3, 6, 1, 0, 0",
    "setsockopt: the same behind high bits": "54, 3, ctypes.c_ulong(0x100000001), 26, 0, 0", "memfd_create: huge pages": "319, b'x', 4",
    "memfd_create: huge pages of 1 GiB": "319, b'x', ctypes.c_ulong(30 << 26 | 4)", "mmap: huge pages": "9, 0, 2 << 20, 3, 0x40022, -1, 0",
    "a call that no kernel has": "100000, 0",
}  # fmt: skip


async def ask(tries: dict[str, str], how: str) -> dict[str, str]:
    """All in one sandbox; each still is asserted on its own below."""
    return (await run("say({" + ", ".join(f"{name!r}: {how.format(arguments)}" for name, arguments in tries.items()) + "})", deadline=60)).said


async def test_calls_that_no_honest_program_makes_are_fatal():
    got = await ask(KILLED, "fate(lambda: libc.syscall({}))")
    assert got == dict.fromkeys(KILLED, "SIGSYS")


async def test_calls_that_libraries_may_try_are_refused_before_the_kernel_looks():
    got = await ask(REFUSED, "syscall({})")
    assert got == dict.fromkeys(REFUSED, "EPERM")


async def test_dangerous_arguments_of_allowed_calls_are_unknown_here():
    got = await ask(BY_ARGUMENT, "syscall({})")
    assert got == dict.fromkeys(BY_ARGUMENT, "ENOSYS")


async def test_what_programs_set_on_sockets_and_memory_files_can_be_set():
    ran = await run("""
        a, b = socket.socketpair()
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16); a.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); a.settimeout(1)
        say([os.memfd_create('x') > 0, os.memfd_create('x', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) > 0])
    """)
    assert ran.said == [True, True]


async def test_event_loops_go_without_epoll():
    """Its watches are counted per user: a submission that takes them all would leave the validator's loop none."""
    ran = await run("""
        import asyncio, selectors
        async def both(): return await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2))
        say([selectors.DefaultSelector.__name__, asyncio.run(both())])
    """)
    assert ran.said == ["PollSelector", [1, 2]]


async def test_the_32_bit_entry_is_fatal():
    """int 0x80 has other numbers: 26 is ptrace there. Code is written into memory and called."""
    ran = await run("""
        import mmap
        def act():
            code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            code.write(bytes.fromhex('b814000000' 'cd80' 'c3'))     # mov eax, 20 (getpid); int 0x80; ret
            ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        say(fate(act))
    """)
    assert ran.said in ("SIGSYS", "SIGSEGV")  # SIGSEGV: a kernel without 32-bit support


async def test_the_x32_numbers_are_fatal():
    assert (await run("say(fate(lambda: libc.syscall(0x40000000 + 39)))")).said == "SIGSYS"


async def test_a_user_namespace_is_refused_by_the_namespace_too():
    """The second wall behind the filter: --disable-userns. ENOSPC is the kernel's answer to 'no more user namespaces'."""
    opened = replace(policy(), extra_calls=("unshare",))
    assert (await run("say(syscall(272, 0x10000000))", using=opened)).said == "ENOSPC"


@pytest.mark.parametrize("flag", [0x00020000, 0x40000000, 0x08000000, 0x20000000, 0x04000000, 0x02000000])
async def test_other_namespaces_need_a_capability_that_is_not_there(flag):
    opened = replace(policy(), extra_calls=("unshare",))
    assert (await run(f"say(syscall(272, {flag}))", using=opened)).said == "EPERM"


async def test_mounting_needs_a_capability_that_is_not_there():
    opened = replace(policy(), extra_calls=("mount", "umount2", "chroot"))
    ran = await run("say([syscall(165, b'none', b'/tmp', b'tmpfs', 0, 0), syscall(161, b'/tmp'), syscall(166, b'/proc', 2)])", using=opened)
    assert ran.said == ["EPERM", "EPERM", "EPERM"]


async def test_every_call_stands_in_one_group():
    names = [name for group in GROUPS for name in group.names()]
    assert len(names) == len(set(names))


async def test_every_group_has_a_reason():
    assert [group.name for group in GROUPS if len(group.why) < 15] == []
