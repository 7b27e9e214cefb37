"""How anything untrusted is run here. This package knows nothing of training: it runs a program it does not trust.

Theory of operation
===================

Processes. Four stand between the daemon and hostile code:

    daemon (trio thread)
    └── monitor          a shell's three lines, for root `nsenter`, then `bwrap`: same process, host PID namespace
        └── init         pid 1 of the new PID namespace, `bwrap` again: reaps orphans, nothing else
            └── program  pid 2: our guard (`inside/limits.py`) first, then whatever it loads
                └── …    compilers, workers, whatever the program starts

The shell moves itself into the cgroups, puts the channel on descriptor 3 and becomes `bwrap`, by way of `nsenter` where
bubblewrap is to be another user; so nothing that hostile
code can reach was ever outside the cgroups, and no Python runs between fork and exec (the daemon has threads).

Pipes. `channel` is a socket of the caller's, descriptor 3 inside, and the only door. Standard input is /dev/null.
Standard output and error are one pipe that we drain at a bounded rate into a bounded tail: a flood blocks the flooder.
`bwrap` reports the host pid of *init*, and the program's exit code, on a status pipe that never reaches the inside. A
program that was never started leaves no exit code there: that is how our failures (`SandboxFault`) are told from the
program's own (`ExitStatus`).

Who kills whom. Killing *init* kills its namespace: the kernel does not let it end before every other process in it has
ended, so when our pidfd of *init* says "ended" nothing of the sandbox is left and what it held, GPU memory included, is
free. `Box.kill` returns then, never sooner. If the daemon dies, `--die-with-parent` kills the monitor and *init*. That
signal follows the *thread* that spawned, so `spawn` is called on a thread that lives as long as the daemon, never
through a worker thread.

Walls. Each is a value in `policy.py` with its reason, and each is tested by running into it (`inside/probes.py`, run by
`crusades doctor` and before a validator starts):

1. namespaces: user, mount, pid, network, IPC, UTS, cgroup; no nested user namespaces (`--disable-userns`)
2. identity: uid and gid 65534, no capabilities, no_new_privs, a session of its own; on the host a user of its own, if
   root starts it (`identity.py`)
3. files: a tree built from nothing, read-only but for size-limited /tmp and /dev/shm; no home, no state, no wallet
4. devices: null, zero, full, random, urandom, and the slot's own GPU nodes
5. environment: built from nothing
6. descriptors: 0, 1, 2 and the channel
7. system calls: an allow-list (`seccomp.py`), installed last
8. resources: cgroups where we may make them (`cgroups.py`), rlimits beside and otherwise; `Box.limits` says which
9. Landlock where the kernel has it: a second opinion about files, sockets and signals (`inside/limits.py`)

Started as root, the sandbox is one of fourteen users of the host that own nothing (`identity.py`): root's files are
closed to it even where a mount shows them, and the kernel's accounts per user are not the validator's. Where that cannot
be had (a slot with a card; an environment that others may not read) the program's uid 65534 is uid 0 of the host, kept in
by namespaces and mounts alone, and `Box.limits` says why. A pids and a memory cgroup are mandatory for root either way.

What is not covered: bugs of the kernel in the calls that are allowed, the GPU driver's ioctl surface above all; timing
and power side channels; the import hook in `inside/hook.py`, which is a guard rail for rules and not a wall. The page
`docs/security.md` says what that means for an operator.
"""
