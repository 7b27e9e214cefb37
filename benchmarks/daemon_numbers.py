"""How soon is `crusades-validator` ready, how large is it, and does anything hold its event loop? (docs/design.md, budgets)

    python benchmarks/daemon_numbers.py [--submissions 0] [--evaluations 0] [--json FILE]

The program itself, as an operator starts it, on a dev chain of this machine, with systemd's notify socket played by this
process: seconds until READY=1 (and how many of them it computed), resident memory then and at the end, and the stalls that its own instrumentation counts
(`crusades_event_loop_stalls_total`, those in which the thread itself computed so long apart from those in which it waited, for
the disk or because the machine was busy with others). `--submissions` starts it on a store with that many; `--evaluations` lets it judge that many
copies of the baseline on `tiny`, with referee and sandbox, before the end.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import httpx  # noqa: E402 - after the path is set
import trio  # noqa: E402
from kill_lab import ROOT, SOME, ended, open_lab  # noqa: E402

READY_BUDGET, RESIDENT_BUDGET = 3.0, 200.0


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_torch(pid):
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


async def fill_store(folder, number):
    """A validator that has seen much: `store_queries` writes it, and the chain that it belongs to is noted at the start."""
    from store_queries import fill

    from crusades import hparams
    from crusades.asyncio_bridge import open_bridge
    from crusades.store import open_store

    async with open_bridge() as bridge, open_store(folder, bridge, hparams.Store()) as store:
        await fill(store, number)


async def measure(lab, arguments):
    log = lab.folder / "validator.log"
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, log.open("wb") as file:
        await listener.bind(str(lab.folder / "notify"))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(lab.folder / "notify"), "WATCHDOG_USEC": "60000000"}
        began = time.perf_counter()
        process = subprocess.Popen(  # noqa: ASYNC220 - what it starts lives as long as we do
            [sys.executable, "-m", "crusades.validator", "--network", lab.net.url, "--netuid", "1", "--wallet.name", "validator",
                                    "--wallet.path", str(lab.folder / "wallets"), "--state-dir", str(lab.state_dir), "--web", "127.0.0.1:0",
                                    "--accept-empty-state"], stdout=file, stderr=file, env=environment)  # fmt: skip
        try:
            return await watch(lab, process, listener, began, log, arguments)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                await ended(process)


async def watch(lab, process, listener, began, log, arguments):
    told = {}
    with trio.fail_after(120):
        while "READY=1" not in (await listener.recv(4096)).decode():
            assert process.poll() is None, log.read_text()[-3000:]
    told["ready_seconds"] = round(time.perf_counter() - began, 2)
    told["cpu_seconds_at_ready"] = cpu_seconds(process.pid)
    told["resident_mb_at_ready"] = round(resident(process.pid), 1)
    url = re.search(r"web server at (http://\S+)", log.read_text()).group(1)
    async with trio.open_nursery() as nursery, httpx.AsyncClient(timeout=60) as client:
        nursery.start_soon(drain, listener)
        told["readyz_at_ready"] = (await client.get(f"{url}/readyz?verbose")).json()
        for number in range(arguments.evaluations):
            body = (ROOT / "examples" / "baseline.py").read_bytes() + f"\nNUMBER = {number}\n".encode()
            await lab.submit_file(number, body, SOME)
        peak = 0.0
        with trio.fail_after(300 + 120 * arguments.evaluations):
            while not lab.expected.keys() <= {id_ for (id_,) in lab.rows("SELECT id FROM submissions WHERE status = 'scored'")}:
                peak = max(peak, resident(process.pid))
                for page in ("overview", "leaderboard", "submissions"):  # as a dashboard would
                    await client.get(f"{url}/api/v1/{page}")
                await trio.sleep(1.0)
        await trio.sleep(5.0)  # the watch has looked once more
        text = (await client.get(f"{url}/metrics")).text
        told["resident_mb"] = round(max(peak, resident(process.pid)), 1)
        told["torch_in_daemon"] = has_torch(process.pid)
        told["evaluations"] = int(value(text, r'crusades_evaluations_total\{outcome="accepted"\}') or 0)
        told["stalls"] = {how: int(value(text, rf'crusades_event_loop_stalls_total\{{how="{how}"\}}') or 0) for how in ("computing", "waiting")}
        nursery.cancel_scope.cancel()
    told["named_stalls"] = re.findall(r"watch: (.* held the event loop .*)", log.read_text())
    told["within_budget"] = told["ready_seconds"] <= READY_BUDGET and told["resident_mb"] <= RESIDENT_BUDGET and not told["torch_in_daemon"] and not told["stalls"]["computing"]
    return told


async def drain(listener):
    while True:
        await listener.recv(4096)


def value(text, pattern):
    found = re.search(rf"^{pattern} (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) if found else None


async def main(arguments):
    with tempfile.TemporaryDirectory(prefix="crusades-numbers-") as folder:
        async with open_lab(Path(folder), block_time=1.0) as lab:
            if arguments.submissions:
                await fill_store(lab.state_dir, arguments.submissions)
            told = {"submissions": arguments.submissions, "load": os.getloadavg()[0], **await measure(lab, arguments)}
    print(json.dumps(told, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(told) + "\n")  # noqa: ASYNC240 - everything is over


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=0)
    parser.add_argument("--json")
    trio.run(main, parser.parse_args())
