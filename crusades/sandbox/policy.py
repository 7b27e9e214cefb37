"""The sandbox's policy as data: every mount, device, variable and limit with its reason. Defaults are the safe side.

Nothing here touches the machine but `contestant_policy`, which asks `host` where this interpreter, compiler and driver lie.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from crusades import hparams

CHANNEL_FD = 3
"""Where the channel is inside."""
NOBODY = 65534
"""uid and gid inside: owns nothing, is in no group."""


class Mount(msgspec.Struct, frozen=True):
    """One thing in the inside's file tree. `optional` mounts are left out where the host lacks them."""

    inside: str
    why: str
    host: str = ""
    """Path on the host for `ro` and `device`, target of a `link`, text of a `text`; unused for `tmpfs` and `hide`."""
    kind: Literal["ro", "device", "tmpfs", "link", "text", "hide"] = "ro"
    size: int = 0
    """Bytes; only for `tmpfs`, where it is mandatory."""
    optional: bool = False


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox may use in all. The attack that each number stops is beside it."""

    memory_bytes: int = 16 << 30
    """Filling the host's memory. cgroup: everything resident, tmpfs included; rlimit: private writable memory, per process."""
    max_processes: int = 512
    """Fork bombs. Threads count: torch and a compile pool need about 100 on a 64-core host."""
    max_open_files: int = 1024
    """Filling the kernel's file table, per process."""
    file_bytes: int = 4 << 30
    """One file's size; tmpfs bounds the sum."""
    cpu_seconds: int = 24 * 3600
    """Backstop per process, should every deadline of ours fail."""
    cpu_weight: int = 100
    """Share of a contended core, in percent of one normal thread's: five hundred hostile threads cannot starve the daemon, and an
    idle machine is used in full. A plain weight would be divided by the number of cores, and a busy daemon thread would stall the
    contestant's thread beside it in the middle of a timed run."""
    locked_bytes: int = 64 << 20
    """mlock: unevictable memory. CUDA's own pinning goes through its driver, not through this."""
    output_bytes: int = 64 << 10
    """How much of stdout and stderr is kept: the last of it."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One complete description of a sandbox. `launch.command` turns it into arguments and nothing else decides anything."""

    mounts: tuple[Mount, ...]
    environment: dict[str, str]
    limits: Limits = Limits()
    gpu: bool = False
    """The inside gets GPU nodes, and the filter lets the driver's ioctls pass."""
    hostile_calls: Literal["kill", "errno"] = "kill"
    """What becomes of calls that no honest program makes: the process dies (the default), or sees EPERM."""
    unknown_calls: Literal["errno", "log"] = "errno"
    """`log` lets every call pass and writes those that are not allowed to the kernel log: for finding out what a new driver needs, never in service."""
    extra_calls: tuple[str, ...] = ()
    """Calls allowed on top, for the same purpose."""
    bwrap: str = "bwrap"
    """Path or name of bubblewrap; CRUSADES_BWRAP overrides it."""
    require_cgroup: bool = False
    """Refuse to start without memory and pids cgroups: set when we are root, whom RLIMIT_NPROC does not bind."""


SYSTEM_MOUNTS: tuple[Mount, ...] = (
    Mount("/usr/lib", "shared libraries; gcc's own programs, start files and headers", "/usr/lib"),
    Mount("/usr/lib64", "the dynamic loader, on some distributions", "/usr/lib64", optional=True),
    Mount("/usr/libexec/gcc", "gcc's own programs, on newer distributions", "/usr/libexec/gcc", optional=True),
    Mount("/usr/include", "headers: torch.compile's C++ and Triton's launcher", "/usr/include", optional=True),
    Mount("/lib", "merged /usr", "usr/lib", "link"),
    Mount("/lib64", "merged /usr; the loader's path in every executable", "usr/lib64", "link"),
    Mount("/bin", "merged /usr", "usr/bin", "link"),
    Mount("/sbin", "merged /usr; Triton runs /sbin/ldconfig to find libcuda", "usr/sbin", "link"),
    Mount("/etc/ld.so.cache", "the loader's index; ldconfig -p prints it", "/etc/ld.so.cache", optional=True),
    Mount("/etc/passwd", "getpass and expanduser; one made-up line, none of the host's", "nobody:x:65534:65534:nobody:/tmp:/usr/sbin/nologin\n", "text"),
    Mount("/etc/group", "the same", "nogroup:x:65534:\n", "text"),
    Mount("/etc/nsswitch.conf", "keeps glibc from asking the network for names", "passwd: files\ngroup: files\nhosts: files\n", "text"),
    Mount("/sys/devices/system/cpu", "OpenMP and torch count cores and caches here", "/sys/devices/system/cpu", optional=True),
    Mount("/sys/devices/system/node", "NUMA layout", "/sys/devices/system/node", optional=True),
)
"""What any program of ours needs. There is no shell, no package manager, no home, no /var, no /run."""

DEVICE_MOUNTS: tuple[Mount, ...] = (
    Mount("/dev/null", "everything expects it", "/dev/null", "device"),
    Mount("/dev/zero", "some allocators map it", "/dev/zero", "device"),
    Mount("/dev/full", "harmless sibling of zero", "/dev/full", "device"),
    Mount("/dev/random", "seeds", "/dev/random", "device"),
    Mount("/dev/urandom", "seeds", "/dev/urandom", "device"),
    Mount("/dev/fd", "own descriptors by name, which build scripts expect", "/proc/self/fd", "link"),
    Mount("/dev/stdin", "the same", "/proc/self/fd/0", "link"),
    Mount("/dev/stdout", "the same", "/proc/self/fd/1", "link"),
    Mount("/dev/stderr", "the same", "/proc/self/fd/2", "link"),
)
"""No tty, no pts, no ptmx: terminal tricks have nothing to act on."""

HIDDEN: tuple[Mount, ...] = tuple(
    Mount(path, why, kind="hide", optional=True)
    for path, why in (
        ("/proc/kcore", "image of the host's memory"),
        ("/proc/keys", "the host user's key ring"),
        ("/proc/latency_stats", "what other processes wait for"),
        ("/proc/timer_list", "other processes' timers"),
        ("/proc/sched_debug", "every process of the host"),
        ("/proc/kallsyms", "where kernel functions lie"),
        ("/proc/kpagecount", "physical memory layout"),
        ("/proc/kpageflags", "physical memory layout"),
        ("/proc/acpi", "hardware switches"),
        ("/proc/scsi", "hardware switches"),
        ("/proc/asound", "of no use here"),
        ("/proc/kpagecgroup", "physical memory layout"),
        ("/proc/slabinfo", "the kernel's allocator, which exploits groom; open to uid 0 of the host"),
        ("/proc/vmallocinfo", "kernel addresses; the same"),
        ("/proc/pagetypeinfo", "the page allocator; the same"),
        ("/proc/kmsg", "the kernel log"),
        ("/proc/tty/driver", "the machine's serial lines"),
        ("/proc/interrupts", "counts of the host's interrupts: a side channel to keystrokes and traffic"),
        ("/proc/softirqs", "the same"),
        ("/proc/1", "bubblewrap's init: on a slot with a card, where /proc is not read-only, whoever writes its memory forges the exit code"),
    )
)
"""Parts of /proc that the kernel does not separate by namespace. /proc as a whole is read-only besides."""

PROC_STEERING = ("/proc/sys", "/proc/bus", "/proc/driver", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger")
"""What uid 0 of the host may write without capabilities, and so could a sandbox that root started: always read-only."""

GPU_HIDDEN: tuple[Mount, ...] = tuple(
    Mount(path, why, kind="hide", optional=True)
    for path, why in (
        ("/sys/firmware", "firmware tables and variables"),
        ("/sys/fs", "cgroup, bpf and file-system trees of the host"),
        ("/sys/kernel", "debugfs and tracefs, which uid 0 of the host may read without capabilities"),
        ("/sys/hypervisor", "of no use here"),
        ("/sys/devices/virtual/powercap", "energy counters are a side channel"),
    )
)

ENVIRONMENT: dict[str, str] = {
    "PATH": "/usr/bin",
    "HOME": "/tmp",
    "USER": "nobody",  # torch names its cache after it
    "LOGNAME": "nobody",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "CXX": "g++",
    "CC": "gcc",
    "HF_HUB_OFFLINE": "1",  # no network: fail at once instead of retrying
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HOME": "/tmp/hf",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "CUDA_CACHE_PATH": "/tmp/nv",
    "TOKENIZERS_PARALLELISM": "false",  # its warning about forks is noise
    "GOMP_SPINCOUNT": "3000",  # rounds that a thread spins at a barrier before it sleeps; the default runs a CPU 15 times slower as soon as anything else wants a core
}
"""All of it. Nothing of the daemon's environment passes."""


def scratch_mounts(tmp_bytes: int) -> tuple[Mount, ...]:
    """The only places that can be written."""
    return (
        Mount("/tmp", "compiler caches and temporary files", kind="tmpfs", size=tmp_bytes),
        Mount("/dev/shm", "torch's shared tensors; POSIX semaphores of worker pools", kind="tmpfs", size=min(tmp_bytes, 1 << 30)),
    )


def gpu_mounts(minor: int) -> tuple[Mount, ...]:
    """The nodes of the card whose node has this number (NVML's index is another). Any other card's node is absent, and a device node cannot be made inside."""
    return (
        Mount(f"/dev/nvidia{minor}", "the slot's card", f"/dev/nvidia{minor}", "device"),
        Mount("/dev/nvidiactl", "the driver's control node; every CUDA program opens it", "/dev/nvidiactl", "device"),
        Mount("/dev/nvidia-uvm", "unified memory; cuInit fails without it", "/dev/nvidia-uvm", "device"),
        Mount("/sys", "cuInit finds the card on the PCI bus here (error 304 without)", "/sys"),
        *GPU_HIDDEN,
    )


def contestant_policy(settings: hparams.Sandbox, *, gpu: int | None = None) -> Policy:
    """The policy of a contestant on this machine: on a CPU slot, or on card /dev/nvidia`gpu`. Raises SandboxFault when no interpreter can be found."""
    from crusades.sandbox import host  # here, not above: this module stays importable as pure data

    system = tuple(m for m in SYSTEM_MOUNTS if gpu is None or not m.inside.startswith("/sys/"))
    card = () if gpu is None else (*gpu_mounts(gpu), *host.driver_mounts(), *(host.closed_mounts() if host.is_root() else ()))
    return Policy(
        # scratch first: an interpreter may live below /tmp, and what is mounted later lies on top
        mounts=(*scratch_mounts(settings.tmp_bytes), *host.interpreter_mounts(), *system, *host.tool_mounts(), *card, *DEVICE_MOUNTS, *HIDDEN),
        environment=ENVIRONMENT | host.library_path(),
        limits=Limits(
            memory_bytes=min(settings.memory_bytes, host.memory_room()), max_processes=settings.max_processes, max_open_files=settings.max_open_files,
            file_bytes=settings.tmp_bytes, output_bytes=settings.output_bytes,
        ),
        gpu=gpu is not None,
        require_cgroup=host.is_root(),
    )  # fmt: skip
