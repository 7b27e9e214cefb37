"""How long the chain takes to arrive: 256 commitments, a reveal until it is a row in the store, a returned node until it is noticed.

    python benchmarks/chain_reads.py [--reveals 20]

Against a devnet on this machine (loopback, blocks of 0.5 s), with the connection's settings of hparams.toml. Budgets: 1 s;
1 block + 2 s; 5 s. The row is looked for in the database of a running daemon (a process of its own, a stand-in judge), from
outside; the time runs from the moment at which the node has the block with the reveal.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import trio  # noqa: E402
from chain_world import NETUID, World, open_world, payload  # noqa: E402
from kill_lab import Lab, ended, open_lab  # noqa: E402

from crusades import chain as chains  # noqa: E402
from crusades import hparams  # noqa: E402

BLOCK = 0.5


async def read_256(world: World) -> None:
    for number in range(254 - 2):
        hotkey = chains.core.Keypair.create_from_uri(f"//m{number}").ss58_address
        world.net.register(NETUID, hotkey)
        world.net.set_reveals(NETUID, hotkey, [(payload("abcdef"[number % 6]), 1)] * 1)
    for wallet in (world.miner, world.validator):
        world.net.set_reveals(NETUID, wallet.hotkey.ss58_address, [(payload("a"), n) for n in range(1, 5)])
    await world.blocks(5)
    times = []
    for _ in range(5):
        async with world.another() as fresh:
            await fresh.head()
            start = time.perf_counter()
            rows = await fresh.commitments()
            times.append(time.perf_counter() - start)
    print(f"{len(rows)} commitments read and decoded: {min(times):.3f} to {max(times):.3f} s (budget 1 s)")


async def reveals_to_rows(lab: Lab, count: int) -> None:
    """One submission after the other, each by another miner."""
    lab.poll_interval, waits, running = hparams.load().chain.poll_interval, [], []
    with lab.daemon() as process:
        await lab.until_up(process)
        await lab.submit(0)
        await lab.until_judged(120)  # it has connected, and everything is warm
        for number in range(1, count + 1):
            known = set(lab.expected)
            await lab.submit(number)
            (id_,) = set(lab.expected) - known
            ((block,),) = await rows(lab, "SELECT commit_block FROM submissions WHERE id = ?", id_)
            while lab.net.chain.head.number < block + lab.net.config.reveal_blocks:  # noqa: ASYNC110  (it appears in another thread)
                await trio.sleep(0.002)
            made = time.perf_counter()
            await rows(lab, "SELECT 1 FROM submissions WHERE id = ? AND status != 'sealed'", id_)
            waits.append(time.perf_counter() - made)
            await rows(lab, "SELECT 1 FROM transitions WHERE submission = ? AND status = 'running'", id_)
            running.append(time.perf_counter() - made)
        process.send_signal(signal.SIGTERM)
        await ended(process)
    for what, times in (("a row in the running daemon's store", sorted(waits)), ("running (free slot)", sorted(running))):
        print(f"revealed on chain until {what}, {count} times: median {times[count // 2]:.3f} s, worst {times[-1]:.3f} s (budget {BLOCK + 2:g} s)", flush=True)


async def rows(lab: Lab, query: str, *args: object) -> list[tuple[int, ...]]:
    """The rows of a query, once there are any."""
    with trio.fail_after(60):
        while not (found := await trio.to_thread.run_sync(lab.rows, query, *args)):  # noqa: ASYNC110  (another process writes them)
            await trio.sleep(0.01)
    return found


async def outage(world: World, seconds: float) -> None:
    await world.chain.head()
    await trio.to_thread.run_sync(world.net.vanish)
    back_at = noticed_at = 0.0

    async def come_back() -> None:
        nonlocal back_at
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(world.net.appear)
        back_at = time.perf_counter()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        async for _ in world.chain.heads():
            noticed_at = time.perf_counter()
            break
    print(f"node gone for {seconds:g} s, noticed {noticed_at - back_at:.3f} s after it was back (budget 5 s)")


async def main(reveals: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_lab(Path(folder), block_time=BLOCK) as lab:
            await reveals_to_rows(lab, reveals)
    with tempfile.TemporaryDirectory() as folder:
        async with open_world(Path(folder), hparams.load().chain, sealing="interval", block_time=BLOCK, reveal_blocks=4) as world:
            await read_256(world)
            for seconds in (1.0, 7.0, 20.0):
                await outage(world, seconds)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reveals", type=int, default=20)
    trio.run(main, parser.parse_args().reveals)
