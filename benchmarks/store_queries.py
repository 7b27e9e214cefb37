"""How fast is the store with 10,000 submissions? Start ≤ 3 s, each query ≤ 20 ms (docs/design.md, budgets).

    python benchmarks/store_queries.py [--submissions 10000] [--json]

Half are scored with six audited runs each, as long as real ones; the rest is spread over the other states. Times are
what a caller on the trio side waits, median and worst of 30, after one warm-up; the file is in the page cache, as it is in
a running validator.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from crusades import hparams
from crusades.asyncio_bridge import open_bridge
from crusades.faults import fault
from crusades.records import Audit, Commitment, Neuron, Outcome, Payload, Reason, Run, Source, Stage, Statistic, Status, Verdict, rejected
from crusades.scoring import standings
from crusades.store import open_store
from crusades.store_tools import run_export, run_verify

HOTKEYS = 256
START_BUDGET, QUERY_BUDGET = 3.0, 0.020
REPEATS = 30


def commitment(number):
    digest = f"{number:064x}"
    url = f"https://files.example/{number}/train.py"
    return Commitment(netuid=1, hotkey=f"5{number % HOTKEYS:047d}", uid=number % HOTKEYS, commit_block=100 + number, reveal_block=130 + number, state=Status.REVEALED,
                      payload=Payload(sha256=digest, url=url), raw=f"c1:{digest}:{url}", provisional=False)


def run(index, mfu):
    judged = tuple(Statistic(name=f"statistic_{n}", value=0.01 * n + mfu / 1e4, limit=0.5, where=f"step {n % 5 + 1}, layers {n} to {n + 8}") for n in range(30))
    return Run(index=index, scored=index > 0, seconds=1.5, claimed_seconds=1.49, read_seconds=0.004, mfu=mfu, tokens_per_second=27_000.0, final_loss=2.8,
               step_seconds=(0.3,) * 5, audit=Audit(worst="statistic_29", words="the gradient of step 5", statistics=judged), telemetry={"sm_clock": 1980.0, "power": 690.0})


async def fill(store, number):
    """By the store's own transaction, many in one, so that filling takes a minute rather than ten."""
    rows = [commitment(n) for n in range(number)]
    for start in range(0, number, 500):
        await store.record_commitments(rows[start:start + 500], 10**6, 10**6)

    async def work(tx, part):
        for row in part:
            await judge(tx, row)

    for start in range(0, number, 500):
        part = rows[start:start + 500]
        await store._write(partial(work, part=part))


async def judge(tx, commitment):
    import zlib

    from crusades.store_tx import pack

    number, id_ = commitment.commit_block, commitment.submission_id
    ends = (Status.SCORED, Status.REJECTED, Status.SCORED, Status.QUEUED if number > 9_000 else Status.SCORED, Status.REJECTED, Status.FAULTED if number % 5 else Status.SCORED)
    end = ends[number % len(ends)]
    source = Source(sha256=f"{number:064x}", content=b"def inner_steps():\n    pass\n" * 200, url=commitment.payload.url, fetched_at=1.0)
    await tx.all("INSERT OR IGNORE INTO files VALUES (?, ?)", source.sha256, zlib.compress(source.content))
    await tx.all("INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?)", id_, source.sha256, source.url, source.fetched_at)
    steps = [Status.FETCHED, Status.CHECKED, Status.QUEUED]
    if end is not Status.QUEUED:
        steps += [Status.RUNNING, end]
    runs = tuple(run(index, 40 + number % 997 / 500) for index in range(6))
    why = Reason(code=fault("audit").code, stage=Stage.AUDIT, message="half of the work of step 5 was left out", measured=0.9, limit=0.5)
    verdict = rejected(why, runs=runs[:2]) if end is Status.REJECTED else Verdict(verdict=Outcome.ACCEPTED, score_mfu=runs[0].mfu, runs=runs, device="a card")
    for status in steps:
        reason = why if status is Status.REJECTED else Reason(code=fault("referee").code, stage=Stage.RUN, message="it died") if status is Status.FAULTED else None
        score = {"score_mfu": verdict.score_mfu} if status is Status.SCORED else {}
        await tx.move(await tx.row(id_), status, block=number, reason=reason, columns=score)
    if end in (Status.SCORED, Status.REJECTED):
        await tx.all("INSERT INTO verdicts VALUES (?, ?, ?)", id_, 1.0, pack(verdict))


async def measure(ask):
    times = []
    await ask()
    for _ in range(REPEATS):
        begun = time.perf_counter()
        await ask()
        times.append(time.perf_counter() - begun)
    return statistics.median(times), max(times)


async def benchmark(number):
    found = {"submissions": number}
    with tempfile.TemporaryDirectory() as folder:
        state, settings = Path(folder), hparams.Store()
        async with open_bridge() as bridge:
            async with open_store(state, bridge, settings) as store:
                begun = time.perf_counter()
                await fill(store, number)
                found["fill_seconds"] = time.perf_counter() - begun
                counts = await store.counts()
            found["bytes"] = (state / "crusades.db").stat().st_size
            begun = time.perf_counter()
            async with open_store(state, bridge, settings) as store:
                found["start_seconds"] = time.perf_counter() - begun
                found["queries"] = {name: await measure(ask) for name, ask in (await questions(store, number)).items()}
                found["writes"] = {name: await measure(ask) for name, ask in writes(store).items()}
                scored = await store.scored()
                neurons = [Neuron(uid=n, hotkey=f"5{n:047d}") for n in range(HOTKEYS)]
                begun = time.perf_counter()
                standings(scored, hparams.Scoring(), neurons, None)
                found["standings_seconds"] = time.perf_counter() - begun
                begun = time.perf_counter()
                await store.backup(state / "copy.db")
                found["backup_seconds"] = time.perf_counter() - begun
        begun = time.perf_counter()
        problems = run_verify(state)
        found |= {"verify_seconds": time.perf_counter() - begun, "problems": problems, "counts": counts}
        begun = time.perf_counter()
        run_export(state, state / "all.jsonl")
        found["export_seconds"] = time.perf_counter() - begun
    return found


async def questions(store, number):
    middle = commitment(number // 2 // 6 * 6 + 2)
    first = await store.submissions(limit=50)
    seq = store.last_seq
    return {
        "submissions, first page": partial(store.submissions, limit=50),
        "submissions, next page": partial(store.submissions, limit=50, cursor=first.next_cursor),
        "submissions, of a hotkey": partial(store.submissions, hotkey=middle.hotkey, limit=50),
        "submissions, rejected": partial(store.submissions, status=Status.REJECTED, limit=50),
        "submissions, by hash": partial(store.submissions, sha256=middle.payload.sha256, limit=50),
        "submission": partial(store.submission, middle.submission_id),
        "runs": partial(store.runs, middle.submission_id),
        "source": partial(store.source, middle.submission_id),
        "in_state(queued)": partial(store.in_state, Status.QUEUED),
        "in_state(revealed)": partial(store.in_state, Status.REVEALED),
        "counts": store.counts,
        "scored": store.scored,
        "events_since, 256": partial(store.events_since, seq - 256, 256),
        "weights": store.weights,
        "cursor": store.cursor,
    }


def writes(store):
    rows = [commitment(n) for n in range(256)]
    block = iter(range(10**6 + 1, 10**7))

    async def read_of_chain():
        at = next(block)
        await store.record_commitments(rows, at, at)

    async def emit():
        await store.emit("block", {"best": 1})

    return {"emit": emit, "record_commitments, 256 rows as known": read_of_chain}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submissions", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = trio.run(benchmark, arguments.submissions)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['submissions']:,} submissions, {found['bytes'] / 1e6:.0f} MB, {found['counts']}")
    print(f"start {found['start_seconds']:.2f} s (budget {START_BUDGET:.0f} s); backup {found['backup_seconds']:.2f} s, verify {found['verify_seconds']:.2f} s, "
          f"export {found['export_seconds']:.2f} s, standings {found['standings_seconds'] * 1e3:.1f} ms")
    for kind in ("queries", "writes"):
        for name, (median, worst) in found[kind].items():
            over = "   over the budget of 20 ms" if kind == "queries" and median > QUERY_BUDGET else ""
            print(f"  {name:42s} {median * 1e3:7.2f} ms   worst {worst * 1e3:7.2f} ms{over}")


if __name__ == "__main__":
    main()
