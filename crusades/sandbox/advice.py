"""What mends a wall: a command per check, and a reading of bubblewrap's error messages. Pure but for the files it is shown."""

from __future__ import annotations

import re
from pathlib import Path

APPARMOR_PROFILE = """printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile bwrap /usr/bin/bwrap flags=(unconfined) {\\n  userns,\\n}\\n' | sudo tee /etc/apparmor.d/bwrap
sudo apparmor_parser -r /etc/apparmor.d/bwrap"""
"""Ubuntu 24.04 lets only profiled programs make user namespaces; this names bubblewrap as one."""

FIXES: dict[str, str] = {
    "kernel": "boot a newer kernel, 5.13 or later for every wall: sudo apt install linux-generic",
    "bubblewrap": "sudo apt install bubblewrap",
    "bubblewrap version": "sudo apt install bubblewrap   # 0.8 or later: Debian 12, Ubuntu 24.04; or set CRUSADES_BWRAP to the path of a newer one",
    "libseccomp": "sudo apt install libseccomp2 && python -m pip install pyseccomp",
    "cgroups": "under systemd: crusades install-service (its unit says Delegate=cpu memory pids)\n"
               "by hand: systemd-run --user --scope -p Delegate=yes crusades-validator …\n"
               "in a container: start it with --cgroupns=private and a writable /sys/fs/cgroup",
    "not root": "run as a user of its own: crusades install-service makes one",
    "host user": "run as a user of its own: crusades install-service makes one; or let other users read the environment: chmod -R go+rX FOLDER",
    "root's files": "run as a user of its own: crusades install-service makes one",
    "cpu limit": "crusades doctor --json   # and look into the output above: the inside did not lower its own limits",
    "python venv": "sudo apt install python3-venv",
    "tools": "sudo apt install g++ binutils openssl   # without them torch.compile fails on CPU and Triton on GPU",
    "compiler": "sudo apt install g++ binutils openssl   # without them torch.compile fails on CPU and Triton on GPU",
    "landlock": "boot a kernel from 5.13 on with Landlock in its list of security modules: add lsm=landlock,… to the kernel command line",
    "device nodes": "sudo nvidia-modprobe -u -c=0   # makes them; in a container: start it with --gpus all",
    "device rights": "sudo usermod -aG video,render $USER   # then log in again",
    "memory": "add memory, or lower sandbox.memory_bytes in hparams.toml as all validators of the subnet do",
    "memory limit": "give it control groups (see cgroups above); rlimits alone bound each process, not their sum",
    "process limit": "give it control groups (see cgroups above), or do not run as root, whom rlimits do not bind",
    "probes": "crusades doctor --json   # and look into the output above: a probe died",
}  # fmt: skip
_UNEXPECTED = "this should not happen: please report it with the output of `crusades doctor --json` (docs/security.md says how)"


def fix_of(name: str) -> str:
    """The command for a failed check; walls that stand or fall with bubblewrap itself have none but a report."""
    return FIXES.get(name, _UNEXPECTED)


def advise(said: str, sys_root: Path = Path("/proc/sys")) -> str:
    """The command that mends a sandbox that did not start, from what bubblewrap said and what the kernel's switches say."""
    if "not installed" in said:
        return FIXES["bubblewrap"]
    if "cgroup" in said:
        return FIXES["cgroups"]
    if "libseccomp" in said or "filter cannot be compiled" in said:
        return FIXES["libseccomp"]
    if "Unknown option" in said or "unrecognized option" in said:
        return FIXES["bubblewrap version"]
    if "nvidia" in said:
        return FIXES["device nodes"]
    # From here on the message alone does not tell: what the kernel's switches say comes before a guess.
    if _switch(sys_root / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return APPARMOR_PROFILE
    if _switch(sys_root / "kernel/unprivileged_userns_clone") == "0":
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1   # and into /etc/sysctl.d to last"
    for switch in sorted((sys_root / "user").glob("max_*_namespaces")):
        if _switch(switch) == "0":
            return f"sudo sysctl -w user.{switch.name}=15000   # and into /etc/sysctl.d to last"
    if "namespace" in said or "Operation not permitted" in said or re.search(r"\bproc\b", said):
        return "inside a container: start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    return _UNEXPECTED


def _switch(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
