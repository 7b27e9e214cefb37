"""Which system calls the inside may make, compiled to a BPF program for `bwrap --seccomp`.

An allow-list: a call that stands nowhere answers ENOSYS, as an older kernel would, and libraries use an older way.
Every group carries its reason. `hostile` calls kill the process (or answer EPERM, as the policy says): no honest
program makes them, so the first one is the last. Found by running: CPython, NumPy, torch with its threads, transformers,
torch.compile with gcc; CUDA's needs are marked.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any, Literal

import msgspec

from crusades.errors import SandboxFault
from crusades.sandbox.policy import Policy


class Group(msgspec.Struct, frozen=True):
    """Calls with one verdict and one reason."""

    name: str
    verdict: Literal["allow", "eperm", "enosys", "hostile"]
    why: str
    calls: str
    """Names, separated by blanks. Names that this architecture or libseccomp does not know are skipped."""

    def names(self) -> tuple[str, ...]:
        """The calls, one by one."""
        return tuple(self.calls.split())


GROUPS: tuple[Group, ...] = (
    Group("files", "allow", "reading the runtime, writing caches in /tmp; what can be reached is the mounts' business",
          "open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek "
          "stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir "
          "mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat truncate ftruncate fallocate "
          "chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat umask flock fsync fdatasync fadvise64 readahead sync_file_range "
          "dup dup2 dup3 fcntl pipe pipe2 sendfile copy_file_range getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr"),
    Group("memory", "allow", "allocators, shared buffers, code that is made at run time (torch.compile, Triton)",
          "brk munmap mremap mprotect madvise msync mincore mlock mlock2 munlock membarrier pkey_mprotect pkey_alloc pkey_free"),
    Group("numa", "allow", "OpenMP and CUDA place memory near a core; own pages only",
          "mbind get_mempolicy set_mempolicy set_mempolicy_home_node"),
    Group("processes", "allow", "threads, compilers, worker pools; namespaced, counted, and killed with the namespace",
          "fork vfork execve exit exit_group wait4 waitid kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal "
          "getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address set_robust_list get_robust_list rseq arch_prctl futex futex_waitv"),
    Group("identity", "allow", "asking who we are; changing it is refused",
          "getuid geteuid getgid getegid getresuid getresgid getgroups capget"),
    Group("signals", "allow", "handlers of the interpreter; the PID namespace bounds whom they reach",
          "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack signalfd signalfd4 pause restart_syscall alarm "
          "setitimer getitimer"),
    Group("time", "allow", "reading clocks and sleeping; our clock is outside, so theirs needs no guard",
          "time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep times timer_create timer_settime timer_gettime timer_getoverrun timer_delete "
          "timerfd_create timerfd_settime timerfd_gettime"),
    Group("waiting", "allow", "event loops and wake-ups",
          "poll ppoll select pselect6 eventfd eventfd2"),
    Group("watch-lists", "eperm", "the kernel counts watches per user, and the validator's own loop would find none left; Python's selectors and libcuda poll",
          "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2"),
    Group("scheduling", "allow", "thread pools pin themselves and yield",
          "sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu getpriority"),
    Group("questions", "allow", "sizes and limits; a limit can only be lowered",
          "uname sysinfo getrusage getrlimit setrlimit prlimit64 getrandom"),
    Group("channel", "allow", "frames and descriptors over the sockets that exist; new ones only as pairs (below)",
          "sendto recvfrom sendmsg recvmsg recvmmsg sendmmsg shutdown getsockname getpeername getsockopt"),
    Group("self-restriction", "allow", "the guard's Landlock rules; they can only take away",
          "landlock_create_ruleset landlock_add_rule landlock_restrict_self"),
    Group("newer-clone", "enosys", "its flags lie in memory where a filter cannot see them; glibc falls back to clone", "clone3"),
    Group("network", "eperm", "no host to reach and nothing to listen for: sockets are doors into the kernel (netfilter, vsock, netlink)",
          "socket connect bind listen accept accept4"),
    Group("io_uring", "eperm", "does other calls behind the filter's back, and a long record of kernel bugs",
          "io_uring_setup io_uring_enter io_uring_register io_setup io_submit io_cancel io_destroy io_getevents io_pgetevents"),
    Group("performance", "eperm", "counters are a side channel; large attack surface. PyTorch's profiler asks and takes no for an answer",
          "perf_event_open lookup_dcookie"),
    Group("identity-changes", "eperm", "nothing to become",
          "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset chown fchown lchown fchownat"),
    Group("priorities", "eperm", "taking CPU from the daemon", "setpriority sched_setscheduler sched_setparam sched_setattr ioprio_set"),
    Group("ipc-objects", "eperm", "System V and POSIX queues outlive processes and have had bugs; nothing here needs them",
          "shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify "
          "mq_getsetattr"),
    Group("page-games", "eperm", "moving pages between pipes, files and nodes (the dirty-pipe family); secret memory hides from dumps",
          "splice tee vmsplice move_pages migrate_pages remap_file_pages memfd_secret mlockall munlockall"),
    Group("handles", "eperm", "opening files by inode number goes around mounts", "name_to_handle_at open_by_handle_at"),
    Group("watching", "eperm", "watching files; of no use here", "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch"),
    Group("nodes", "eperm", "making device nodes and extended attributes",
          "mknod mknodat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"),
    Group("execution-domain", "eperm", "old ABIs and switching address randomisation off", "execveat modify_ldt"),
    Group("filters", "eperm", "a filter of its own could hide what a program does (SIGSYS traps around our writes)", "seccomp"),
    Group("other-memory", "hostile", "reading or steering another process: the harness's keys, a compiler, the referee if a wall fell",
          "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd"),
    Group("mounts", "hostile", "rearranging the file tree",
          "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr swapon swapoff quotactl quotactl_fd"),
    Group("namespaces", "hostile", "nested namespaces give back capabilities over fresh kernel objects", "unshare setns"),
    Group("kernel-programs", "hostile", "code in the kernel", "bpf init_module finit_module delete_module create_module kexec_load kexec_file_load"),
    Group("keys", "hostile", "key rings are shared across namespaces", "keyctl add_key request_key"),
    Group("page-faults", "hostile", "stops the kernel in the middle of a copy: the usual lever of exploits", "userfaultfd"),
    Group("machine", "hostile", "the machine itself",
          "reboot iopl ioperm settimeofday clock_settime clock_adjtime adjtimex stime acct syslog vhangup sethostname setdomainname uselib sysfs ustat "
          "nfsservctl fanotify_init fanotify_mark"),
)  # fmt: skip
"""The whole list. A call may stand in one group only (a test looks)."""

CLONE_NEW = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET."""
AF_UNIX, SOL_SOCKET = 1, 1
PRCTL_OPTIONS: dict[int, str] = {
    1: "PDEATHSIG: die with the parent", 2: "asks for it", 3: "asks whether dumpable", 15: "thread name", 16: "asks for it", 21: "asks for the filter",
    23: "asks for a capability", 29: "timer slack", 30: "asks for it", 38: "no_new_privs", 39: "asks for it", 41: "huge pages off", 42: "asks for it",
    0x53564D41: "names for anonymous memory",
}  # fmt: skip
"""prctl, by option: no dumpable switch, no subreaper, no ptracer, no filter, no memory-map surgery."""
IOCTLS: dict[int, str] = {
    0x5401: "TCGETS: isatty", 0x802C542A: "TCGETS2: isatty on newer C libraries", 0x5413: "TIOCGWINSZ: width for progress bars", 0x541B: "FIONREAD", 0x5421: "FIONBIO", 0x5450: "FIONCLEX",
    0x5451: "FIOCLEX",
}  # fmt: skip
"""ioctl, by request, on any descriptor."""
SOCKET_OPTIONS: dict[int, str] = {
    2: "REUSEADDR: of no effect on a pair, and set by habit", 7: "SNDBUF", 8: "RCVBUF", 9: "KEEPALIVE: the same habit", 13: "LINGER",
    16: "PASSCRED: who is at the other end", 20: "RCVTIMEO", 21: "SNDTIMEO", 66: "RCVTIMEO of newer C libraries", 67: "SNDTIMEO of newer C libraries",
}  # fmt: skip
"""setsockopt on SOL_SOCKET, by option: no filter (ATTACH_FILTER and ATTACH_BPF are programs in the kernel), no other level."""
MEMFD_FLAGS = 0x1 | 0x2 | 0x8 | 0x10
"""CLOEXEC, ALLOW_SEALING, NOEXEC_SEAL, EXEC: no HUGETLB, whose pages are the host's and in no memory limit."""
MAP_HUGETLB = 0x40000
"""The same pages by mmap."""
GPU_IOCTLS: tuple[tuple[int, int, str], ...] = (
    (0xFF00, 0x4600, "type 'F': the NVIDIA control and card nodes"),
    (0xFFFFFF00, 0x0000, "nvidia-uvm's small numbers"),
    (0xFFFFFFFF, 0x30000001, "nvidia-uvm initialise"),
    (0xFFFFFFFF, 0x30000002, "nvidia-uvm de-initialise"),
)
"""(mask, value, reason) on a slot with a card. The driver behind them is the largest surface that this filter leaves open."""
GPU_SOCKET = (AF_UNIX, 0x80005, 0)
"""The one socket on a slot with a card: (family, SOCK_SEQPACKET | SOCK_CLOEXEC, protocol). cuInit makes two, fails to connect one
to a multi-process service, binds the other to an abstract name and listens; without it ends with error 304."""
GPU_CALLS: dict[str, str] = {
    "bind": "cuInit: @cuda-uvmfd-…, a name in the sandbox's own network namespace",
    "listen": "cuInit, on the same; nobody ever gets in, for connect and accept stay refused",
}
"""Refused elsewhere, allowed on a slot with a card."""
LOW32 = 0xFFFFFFFF
"""The kernel reads 32 bits of these arguments; the filter must not look at more."""


def compile_filter(policy: Policy) -> int:
    """A memfd that holds the BPF program of `policy`, at offset 0. The caller closes it. Raises SandboxFault."""
    program = _program(policy.gpu, policy.hostile_calls, policy.unknown_calls, policy.extra_calls)
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


@functools.lru_cache(maxsize=8)
def _program(gpu: bool, hostile: str, unknown: str, extra: tuple[str, ...]) -> bytes:
    """Compiled once per policy and process: libseccomp takes some milliseconds."""
    try:
        import pyseccomp as lib  # type: ignore[import-untyped]  # it ships no stubs
    except (ImportError, RuntimeError) as error:
        raise SandboxFault(f"the system-call filter cannot be compiled: {error}; install libseccomp2 (apt install libseccomp2)") from error
    try:
        default = lib.LOG if unknown == "log" else lib.ERRNO(errno.ENOSYS)
        compiled = lib.SyscallFilter(default)
        _shape(lib, compiled)
        verdicts = {"allow": lib.ALLOW, "eperm": lib.ERRNO(errno.EPERM), "enosys": lib.ERRNO(errno.ENOSYS)}
        verdicts["hostile"] = lib.KILL_PROCESS if hostile == "kill" else lib.ERRNO(errno.EPERM)
        for group in GROUPS:
            verdict = verdicts[group.verdict] if unknown == "errno" or group.verdict == "allow" else default
            for name in group.names():
                allowed = name in extra or (gpu and name in GPU_CALLS)
                by_argument = gpu and name == "socket" and not allowed
                if (allowed or verdict != default) and not by_argument:  # libseccomp refuses rules that repeat the default
                    _rule(lib, compiled, lib.ALLOW if allowed else verdict, name)
        _argument_rules(lib, compiled, gpu, extra)
        if gpu and "socket" not in extra and unknown == "errno":
            _other_sockets(lib, compiled, verdicts["eperm"])
        return _export(compiled)
    except OSError as error:
        raise SandboxFault(f"the system-call filter cannot be compiled: {error}") from error


def _shape(lib: Any, compiled: Any) -> None:
    compiled.set_attr(lib.Attr.ACT_BADARCH, lib.KILL_PROCESS)  # 32-bit calls have other numbers: a way around every rule
    compiled.set_attr(lib.Attr.CTL_OPTIMIZE, 2)  # a binary tree: about ten comparisons a call instead of two hundred


def _rule(lib: Any, compiled: Any, verdict: int, name: str, *arguments: Any) -> None:
    try:
        number = lib.resolve_syscall(lib.Arch.NATIVE, name)
    except ValueError:
        return  # newer than this libseccomp, or not of this architecture: falls under the default
    if number >= 0:
        compiled.add_rule_exactly(verdict, number, *arguments)


def _argument_rules(lib: Any, compiled: Any, gpu: bool, extra: tuple[str, ...]) -> None:
    """Calls that are judged by an argument. What matches none of the rules falls under the default."""

    def allow(name: str, *conditions: tuple[int, int, int]) -> None:
        """When every (argument, mask, value) holds."""
        if name not in extra:
            _rule(lib, compiled, lib.ALLOW, name, *(lib.Arg(index, lib.MASKED_EQ, mask, value) for index, mask, value in conditions))

    allow("clone", (0, CLONE_NEW, 0))
    allow("socketpair", (0, LOW32, AF_UNIX))  # worker pools; bound to nothing, so nothing can be reached
    allow("personality", (0, LOW32, LOW32))  # asks only
    allow("memfd_create", (1, LOW32 & ~MEMFD_FLAGS, 0))
    allow("mmap", (3, MAP_HUGETLB, 0))
    for option in SOCKET_OPTIONS:
        allow("setsockopt", (1, LOW32, SOL_SOCKET), (2, LOW32, option))
    for option in PRCTL_OPTIONS:
        allow("prctl", (0, LOW32, option))
    for request in IOCTLS:
        allow("ioctl", (1, LOW32, request))
    for mask, value, _ in GPU_IOCTLS if gpu else ():
        allow("ioctl", (1, mask, value))
    if gpu:
        allow("socket", *((index, LOW32, value) for index, value in enumerate(GPU_SOCKET)))
    listed = {name for group in GROUPS for name in group.names()}
    for name in extra:
        if name not in listed:
            _rule(lib, compiled, lib.ALLOW, name)


def _other_sockets(lib: Any, compiled: Any, verdict: int) -> None:
    """Whatever differs from GPU_SOCKET in an argument answers EPERM, as any socket does without a card."""
    for index, value in enumerate(GPU_SOCKET):
        same = [lib.Arg(before, lib.MASKED_EQ, LOW32, GPU_SOCKET[before]) for before in range(index)]
        _rule(lib, compiled, verdict, "socket", *same, lib.Arg(index, lib.NE, value))


def _export(compiled: Any) -> bytes:
    descriptor = os.memfd_create("bpf", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "rb+", buffering=0) as target:
        compiled.export_bpf(target)
        return os.pread(target.fileno(), 1 << 20, 0)
