"""The web server under load: p99 ≤ 50 ms at 200 requests/s over 16 connections with 10,000 submissions stored and a commit
a second; then 500 live clients at 5 events/s without a missed event (docs/design.md, budgets).

    python benchmarks/web_load.py [--submissions 10000] [--rate 200] [--connections 16] [--clients 500] [--events 5] [--seconds 30] [--json]

The server is a process of its own, with the real store; requests are sent when they are due, whether or not earlier ones
were answered (so waiting counts), over a mix of the documents that the page and miners ask for. Filling the store takes
about a minute; `--state DIR` keeps it for the next time. Client and server share the machine, which is part of the figure.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import msgspec
import trio

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from store_queries import HOTKEYS, commitment, fill  # noqa: E402

from crusades import hparams  # noqa: E402
from crusades.asyncio_bridge import open_bridge  # noqa: E402
from crusades.board import Board  # noqa: E402
from crusades.records import Neuron, SlotView, Status, to_builtins  # noqa: E402
from crusades.store import open_store  # noqa: E402
from crusades.web import create_app, serve  # noqa: E402

P99_BUDGET = 0.050


# -- the server, in its own process ------------------------------------------------------------------------


async def serve_store(state):
    board = Board(network="bench", netuid=1, hotkey="5V", uid=0, profile="tiny", model="tiny", block=20_000, finalized_block=19_998, ready={"store": "ready"},
                  neurons=tuple(Neuron(uid=n, hotkey=f"5{n:047d}") for n in range(HOTKEYS)), slots={"cpu": SlotView(name="cpu", device="cpu", state="idle")})
    async with open_bridge() as bridge, open_store(Path(state), bridge, hparams.Store()) as store, trio.open_nursery() as nursery:
        app = create_app(store, board, hparams.load(), rules_version="1+bench")
        stalls = Stalls()
        trio.lowlevel.add_instrument(stalls)
        print(await nursery.start(partial(serve, app, "127.0.0.1:0")), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            command, *words = line.split()
            if command == "commit":
                await commit(store, board, rate=float(words[0]), number=int(words[1]))
            usage = resource.getrusage(resource.RUSAGE_SELF)
            facts = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "resident_bytes": usage.ru_maxrss * 1024, "longest_step_seconds": stalls.take(), "seq": store.last_seq}
            print(json.dumps(facts), flush=True)
        nursery.cancel_scope.cancel()


class Stalls(trio.abc.Instrument):
    """The longest time that one step of a task computed; CPU time, so that a busy machine does not blur it."""

    def __init__(self):
        self.longest = self.begun = 0.0

    def before_task_step(self, task):
        self.begun = time.thread_time()

    def after_task_step(self, task):
        self.longest = max(self.longest, time.thread_time() - self.begun)

    def take(self):
        longest, self.longest = self.longest, 0.0
        return longest


async def commit(store, board, *, rate, number):
    """`number` waiting submissions change, `rate` a second; every tenth change is a score, which changes the standings."""
    rows = await store.in_state(Status.QUEUED)
    scored = (await store.submissions(status=Status.SCORED, limit=10)).items
    for n in range(number):
        row = scored[n // 10 % len(scored)] if n % 10 == 0 else rows[n % len(rows)]
        board.block += n % 30 == 0
        await store.emit("submission", to_builtins(msgspec.structs.replace(row, updated_at=time.time())), row.id)
        await trio.sleep(1 / rate)


# -- requests ----------------------------------------------------------------------------------------------


def paths(number, rng):
    """What is asked for, weighted like the page and miners do."""
    some = commitment(rng.randrange(number))
    return rng.choices(
        ["overview", "leaderboard?limit=50", "submissions", "history?limit=500", "queue", "slots", "weights", f"submissions?hotkey={some.hotkey}", "submissions?status=rejected&limit=20",
         f"submissions/{some.submission_id}", f"submissions/{some.submission_id}/runs"],
        weights=[20, 12, 15, 6, 6, 6, 6, 10, 4, 10, 5])[0]  # fmt: skip


class Connection:
    """HTTP/1.1 with keep-alive, just enough to count answers cheaply."""

    def __init__(self, stream):
        self.stream, self.buffer = stream, b""

    async def get(self, path):
        await self.stream.send_all(f"GET /api/v1/{path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
        while b"\r\n\r\n" not in self.buffer:
            await self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        length = int(next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")))
        while len(self.buffer) < length:
            await self._more()
        self.buffer = self.buffer[length:]
        return int(head[9:12])

    async def _more(self):
        data = await self.stream.receive_some(1 << 17)
        if not data:
            raise ConnectionError("the server closed a connection")
        self.buffer += data


async def requests(port, number, *, rate, connections, seconds):
    """Latencies from the moment a request was due."""
    rng = random.Random(1)
    total = int(rate * seconds)
    plan = [(n / rate, paths(number, rng)) for n in range(total)]
    latencies, codes = [], {}
    begun = trio.current_time() + 0.5

    async def work(queue):
        connection = Connection(await trio.open_tcp_stream("127.0.0.1", port))
        async for due, path in queue:
            await trio.sleep_until(begun + due)
            code = await connection.get(path)
            codes[code] = codes.get(code, 0) + 1
            latencies.append(trio.current_time() - begun - due)

    send, receive = trio.open_memory_channel(total)
    for one in plan:
        send.send_nowait(one)
    send.close()
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(work, receive)
    latencies.sort()
    return {"requests": total, "codes": codes, "median_seconds": statistics.median(latencies), "p99_seconds": latencies[int(0.99 * total)], "worst_seconds": latencies[-1],
            "rate": total / (trio.current_time() - begun)}  # fmt: skip


# -- live clients ------------------------------------------------------------------------------------------

HANDSHAKE = b"GET /api/v1/live HTTP/1.1\r\nhost: bench\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nsec-websocket-version: 13\r\n\r\n"
_seqs = msgspec.json.Decoder(msgspec.defstruct("Frame", [("type", str), ("seq", int | None, None), ("events", list[msgspec.defstruct("E", [("seq", int), ("at", float)])], [])]))


class LiveClient:
    """Reads frames and counts sequence numbers."""

    def __init__(self):
        self.seq = None
        self.events = self.missed = self.resnapshots = 0
        self.latencies = []

    async def run(self, port, *, task_status):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(HANDSHAKE)
        buffer = bytearray()
        while b"\r\n\r\n" not in buffer:
            buffer += await stream.receive_some(65536)
        assert buffer.startswith(b"HTTP/1.1 101"), bytes(buffer[:200])
        del buffer[: buffer.index(b"\r\n\r\n") + 4]
        while True:
            while (frame := take_frame(buffer)) is not None:
                opcode, payload = frame
                if opcode == 1 and self.take(_seqs.decode(payload)):
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
            data = await stream.receive_some(1 << 17)
            if not data:
                raise ConnectionError("the server closed a websocket")
            buffer += data

    def take(self, frame):
        if frame.type == "snapshot":
            self.seq = frame.seq
            return True
        self.resnapshots += frame.type == "resnapshot"
        now = time.time()
        for event in frame.events:
            self.missed += event.seq != self.seq + 1
            self.seq = event.seq
            self.events += 1
            self.latencies.append(now - event.at)
        return False


def take_frame(buffer):
    """(opcode, payload) of a whole unmasked frame at the start of `buffer`, which loses it; None while it is incomplete."""
    if len(buffer) < 2:
        return None
    size, head = buffer[1] & 0x7F, 2
    if size >= 126:
        head = 4 if size == 126 else 10
        if len(buffer) < head:
            return None
        size = int.from_bytes(buffer[2:head], "big")
    if len(buffer) < head + size:
        return None
    frame = buffer[0] & 0x0F, bytes(buffer[head : head + size])
    del buffer[: head + size]
    return frame


async def live(port, ask, *, clients, events, seconds):
    """Every client must have counted every event."""
    crowd = [LiveClient() for _ in range(clients)]
    number = int(events * seconds)
    async with trio.open_nursery() as nursery:
        begun = time.perf_counter()
        for client in crowd:
            await nursery.start(partial(client.run, port))
        connected = time.perf_counter() - begun
        facts = await ask(f"commit {events} {number}")
        with trio.move_on_after(20):
            while any(client.seq < facts["seq"] for client in crowd):  # noqa: ASYNC110  (500 events to wait for would cost more than looking)
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    latencies = sorted(latency for client in crowd for latency in client.latencies)
    return {"clients": clients, "connect_seconds": connected, "events_sent": number, "received_least": min(c.events for c in crowd), "missed": sum(c.missed for c in crowd),
            "behind": sum(c.seq < facts["seq"] for c in crowd), "resnapshots": sum(c.resnapshots for c in crowd), "median_seconds": statistics.median(latencies),
            "p99_seconds": latencies[int(0.99 * len(latencies))], "worst_seconds": latencies[-1]}  # fmt: skip


# -- both --------------------------------------------------------------------------------------------------


async def benchmark(options, state):
    if not (state / "crusades.db").exists():
        async with open_bridge() as bridge, open_store(state, bridge, hparams.Store()) as store:
            await fill(store, options.submissions)
    process = subprocess.Popen(  # noqa: ASYNC220  (nothing else runs yet)
        [sys.executable, __file__, "--serve", str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        port = int((await trio.to_thread.run_sync(process.stdout.readline)).rsplit(":", 1)[1])

        async def ask(command):
            process.stdin.write(command + "\n")
            process.stdin.flush()
            return json.loads(await trio.to_thread.run_sync(process.stdout.readline))

        cold = Connection(await trio.open_tcp_stream("127.0.0.1", port))
        first = {}
        for path in ("overview", "leaderboard?limit=50", "history?limit=500"):
            begun = time.perf_counter()
            await cold.get(path)
            first[path] = time.perf_counter() - begun
        idle = await ask("facts")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, f"commit 1 {int(options.seconds)}")
            load = await requests(port, options.submissions, rate=options.rate, connections=options.connections, seconds=options.seconds)
        after = await ask("facts")
        crowd = await live(port, ask, clients=options.clients, events=options.events, seconds=options.seconds)
        end = await ask("facts")
        return {"first_answers_seconds": first, "requests": load | {"server_cpu_share": (after["cpu_seconds"] - idle["cpu_seconds"]) / options.seconds, "longest_step_seconds": after["longest_step_seconds"]},
                "live": crowd | {"server_cpu_share": (end["cpu_seconds"] - after["cpu_seconds"]) / options.seconds, "longest_step_seconds": end["longest_step_seconds"]}, "resident_bytes": end["resident_bytes"]}  # fmt: skip
    finally:
        process.stdin.close()
        process.wait(30)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("submissions", 10_000), ("rate", 200.0), ("connections", 16), ("clients", 500), ("events", 5.0), ("seconds", 30.0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve_store, options.serve)
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * options.clients + 200)), hard))
    with tempfile.TemporaryDirectory() as folder:
        found = trio.run(benchmark, options, options.state or Path(folder))
    load, crowd = found["requests"], found["live"]
    good = load["p99_seconds"] <= P99_BUDGET and not crowd["missed"] and not crowd["behind"] and not crowd["resnapshots"] and set(load["codes"]) == {200}
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        first = ", ".join(f"{path} {1e3 * seconds:.0f} ms" for path, seconds in found["first_answers_seconds"].items())
        print(f"first answers: {first}")
        print(f"{load['requests']} requests at {load['rate']:.0f}/s over {options.connections} connections: median {1e3 * load['median_seconds']:.1f} ms, p99 {1e3 * load['p99_seconds']:.1f} ms "
              f"(budget {1e3 * P99_BUDGET:.0f}), worst {1e3 * load['worst_seconds']:.1f} ms; codes {load['codes']}; server {load['server_cpu_share']:.0%} of a core, longest step {1e3 * load['longest_step_seconds']:.0f} ms")
        print(f"{crowd['clients']} live clients, {crowd['events_sent']} events: every client got {crowd['received_least']} or more, {crowd['missed']} missed, {crowd['resnapshots']} resnapshots; "
              f"latency median {1e3 * crowd['median_seconds']:.0f} ms, p99 {1e3 * crowd['p99_seconds']:.0f} ms, worst {1e3 * crowd['worst_seconds']:.0f} ms; server {crowd['server_cpu_share']:.0%} of a core, longest step {1e3 * crowd['longest_step_seconds']:.0f} ms")
        print(f"server resident at most {found['resident_bytes'] / 2**20:.0f} MiB")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
