"""How long the chain adapter takes: 256 commitments, a reveal until it is a row, a returned node until it is noticed.

    python benchmarks/chain_reads.py

Against a devnet on this machine (loopback, blocks of 0.5 s), with the settings of hparams.toml. Budgets: 1 s; 1 block + 2 s; 5 s.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import trio  # noqa: E402
from chain_world import NETUID, World, open_world, payload  # noqa: E402

from crusades import chain as chains  # noqa: E402
from crusades import hparams  # noqa: E402
from crusades.records import Status  # noqa: E402

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


async def reveal_to_row(world: World) -> None:
    wallet = world.wallet("late")
    done = await world.chain.commit(payload("f"), wallet, 4)
    reveal = done.block + 4
    made_at = None

    async def watch_node() -> None:
        nonlocal made_at
        while world.net.chain.head.number < reveal:  # noqa: ASYNC110  (the block appears in another thread)
            await trio.sleep(0.005)
        made_at = time.perf_counter()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_node)
        async for head in world.chain.heads():
            rows = await world.chain.commitments(head.best_hash)
            if any(r.commit_block == done.block and r.state is Status.REVEALED for r in rows):
                break
    print(f"revealed on chain until it is a row: {time.perf_counter() - (made_at or 0):.3f} s (budget {BLOCK + 2:g} s)")


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


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_world(Path(folder), hparams.load().chain, sealing="interval", block_time=BLOCK, reveal_blocks=4) as world:
            await read_256(world)
            await reveal_to_row(world)
            for seconds in (1.0, 7.0, 20.0):
                await outage(world, seconds)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    trio.run(main)
