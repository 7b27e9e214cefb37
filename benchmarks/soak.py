"""Hundreds of submissions through one daemon, with memory and descriptors measured all the way: they must stay flat.

    python benchmarks/soak.py --minutes 30 --submissions 500 [--json out.json]

A dev chain, real store, real downloads, real web server (asked every few seconds, as a dashboard would) and a stand-in
judge. "Flat" is judged after the first fifth: the resident memory of the last fifth may exceed that of the second by 5 %.
Before that, imports, caches and the pages of the database fill up.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent)]

import httpx  # noqa: E402 - after the path is set
import trio  # noqa: E402
from kill_lab import ended, open_lab  # noqa: E402

GROWTH = 1.05


def look(pid):
    """(resident MB, open descriptors, threads) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    number = {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)}
    return number["VmRSS"] / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())), number["Threads"]


async def submit_all(lab, count, seconds):
    for number in range(count):
        await lab.submit(number)
        await trio.sleep(seconds / count * 0.8)


def address(log):
    found = re.search(r"web server at (http://\S+)", log.read_text()) if log.exists() else None
    return found.group(1) if found else None


async def counted_stalls(lab):
    """Steps that held the event loop, as the daemon itself counts them."""
    url = address(lab.folder / "daemon.log")
    if url is None:
        return {}
    async with httpx.AsyncClient(timeout=30) as client:
        text = (await client.get(f"{url}/metrics")).text
        await client.get(f"{url}/api/v1/overview")
        await client.get(f"{url}/api/v1/leaderboard")
    return {how: float(count) for how, count in re.findall(r'^crusades_event_loop_stalls_total\{how="(\w+)"\} ([-+0-9.e]+)$', text, re.MULTILINE)}


async def main(arguments):
    seconds = arguments.minutes * 60
    samples, stalls = [], {}
    with tempfile.TemporaryDirectory(prefix="crusades-soak-") as folder:
        async with open_lab(Path(folder), block_time=0.5) as lab:
            with lab.daemon() as process:
                began = time.monotonic()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(submit_all, lab, arguments.submissions, seconds)
                    while time.monotonic() - began < seconds:
                        await trio.sleep(5)
                        assert process.poll() is None, (lab.folder / "daemon.log").read_text()[-4000:]
                        stalls = await counted_stalls(lab) or stalls
                        samples.append((time.monotonic() - began, *look(process.pid)))
                        if len(samples) % 12 == 1:
                            print("{:6.0f} s  {:.1f} MB  {} descriptors  {} threads".format(*samples[-1]), dict(lab.rows("SELECT status, count(*) FROM submissions GROUP BY status")), flush=True)
                await lab.until_judged(600)
                process.send_signal(15)
                await ended(process)
            lab.check()
            named = re.findall(r"watch: (.* held the event loop .*)", (lab.folder / "daemon.log").read_text())
    told = report(samples, stalls, arguments) | {"named_stalls": named}
    print(json.dumps(told))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(told) + "\n")  # noqa: ASYNC240 - everything is over


def report(samples, stalls, arguments):
    fifth = max(1, len(samples) // 5)
    early, late = samples[fifth:2 * fifth] or samples, samples[-fifth:]
    told = {"minutes": arguments.minutes, "submissions": arguments.submissions}
    for position, name in ((1, "resident_mb"), (2, "descriptors"), (3, "threads")):
        told[name] = {"early": round(statistics.median(s[position] for s in early), 1), "late": round(statistics.median(s[position] for s in late), 1),
                      "peak": round(max(s[position] for s in samples), 1)}
    told["flat"] = all(told[name]["late"] <= told[name]["early"] * GROWTH + 1 for name in ("resident_mb", "descriptors", "threads"))
    told["stalls_over_50_ms"] = stalls
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--submissions", type=int, default=500)
    parser.add_argument("--json")
    trio.run(main, parser.parse_args())
