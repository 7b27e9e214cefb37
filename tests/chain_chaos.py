"""A chain under random faults: what was committed and asked for must be what is read and set, whatever happens on the way.

One run: three miners commit through the real submit code, a reader follows the heads and keeps what finalised blocks say,
a keeper sets one weight vector, and meanwhile the node drops, closes, goes mute, answers late, refuses, talks nonsense,
vanishes and reorganises at random. Then the faults end, and the chain's own history is compared with what was read.
Used by a test (a few faults) and by benchmarks/chain_faults.py (five hundred).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from chain_world import NETUID, URL, World, open_world

from crusades import chain as chains
from crusades import hparams
from crusades import submission as s
from crusades.chain_rows import read_live
from crusades.chain_weights import arrived
from crusades.errors import ChainError
from crusades.records import Commitment, Payload, Status
from crusades.submission_follow import follow

SETTINGS = hparams.Chain(call_deadline=1.0, redial_first=0.02, redial_max=0.1, poll_interval=0.05, weights_deadline=3.0)
REVEAL = 3
METHODS = ("*", "chain_*", "state_*", "author_*", "chain_getHead", "state_queryStorageAt", "state_getKeysPaged", "author_submitExtrinsic",
           "state_getRuntimeVersion", "chain_getBlock", "state_call", "account_nextIndex", "chain_subscribeNewHeads")
NONSENSE: tuple[Any, ...] = (7, "x", {"a": 1}, None, [[]], "0x")


@dataclass
class Story:
    """What one run saw."""

    seed: int
    faults: int
    rows: dict[str, Commitment] = field(default_factory=dict)
    """submission id → what the newest finalised block that was read said about it."""
    committed: set[tuple[str, int]] = field(default_factory=set)
    """(hotkey, block) of every commitment in the chain's own finalised history."""
    read_until: int = 0
    weights_equal: bool = False
    seconds: float = 0.0
    struck: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    newest: str = ""

    def note(self, error: Exception) -> None:
        """Count an error by its kind, and keep the newest."""
        self.newest = f"{type(error).__name__}: {error}"
        self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1

    @property
    def counted(self) -> set[tuple[str, int]]:
        """Commitments that the reader holds to be on the chain."""
        return {(r.hotkey, r.commit_block) for r in self.rows.values() if not (r.reason and r.reason.code == 1008)}

    @property
    def lost(self) -> set[tuple[str, int]]:
        """On the chain, and not read."""
        return {(h, b) for h, b in self.committed if b <= self.read_until} - self.counted

    @property
    def invented(self) -> set[tuple[str, int]]:
        """Read, and not on the chain."""
        return self.counted - self.committed


async def tell(folder: Path, *, seed: int, faults: int) -> Story:
    """One run, of about a third of a second per fault. Raises TooSlowError when it hangs."""
    story, dice = Story(seed, faults), random.Random(seed)
    start = time.monotonic()
    with trio.fail_after(60 + faults):
        await _live(folder, story, dice)
    story.seconds = time.monotonic() - start
    return story


async def _live(folder: Path, story: Story, dice: random.Random) -> None:
    async with open_world(folder, SETTINGS, sealing="interval", block_time=0.05, reveal_blocks=REVEAL, tempo=20, weights_rate_limit=5) as w:
        miners = [w.miner, w.wallet("second"), w.wallet("third")]
        await w.blocks(4)  # registrations are written at the head: a reorganisation must not take them back
        asked = {wallet.hotkey.ss58_address: share for wallet, share in zip(miners, (0.5, 0.3, 0.2), strict=True)}
        calm = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, w, story)
            async with trio.open_nursery() as working:
                working.start_soon(_torment, w, dice, story.faults, calm)
                working.start_soon(_keep_weights, w, story, asked, calm)
                for number, wallet in enumerate(miners):
                    working.start_soon(_mine, w, story, wallet, number, calm)
            await _until(story, w.net.chain.head.number)
            nursery.cancel_scope.cancel()
        story.committed = _history(w, [m.hotkey.ss58_address for m in miners])
        held = w.net.weights(NETUID, w.net.uid(NETUID, w.chain.hotkey))
        story.weights_equal = arrived((await w.chain.preflight_weights(asked)).by_uid, held)
        story.struck = w.net.faults.struck


async def _until(story: Story, block: int) -> None:
    with trio.fail_after(20):
        while story.read_until < block:  # noqa: ASYNC110  (the reader tells by a plain number)
            await trio.sleep(0.05)


async def _torment(w: World, dice: random.Random, faults: int, calm: trio.Event) -> None:
    net = w.net
    for _ in range(faults):
        match dice.randrange(14):
            case 0:
                net.drop_connections()
            case 1:
                await trio.to_thread.run_sync(net.close_connections)
            case 2:
                await trio.to_thread.run_sync(net.vanish)
                await trio.sleep(dice.uniform(0.0, 0.4))
                await trio.to_thread.run_sync(net.appear)
            case 3:
                net.mute()
                await trio.sleep(dice.uniform(0.0, 0.3))
                net.mute(False)
            case 4:
                await trio.to_thread.run_sync(lambda: net.reorganize(1, keep_extrinsics=dice.random() < 0.7))
            case 5:
                w.fault("lose", "author_submitExtrinsic")
            case _:
                w.fault(dice.choice(["drop", "close", "silence", "slow", "error", "wrong"]), dice.choice(METHODS), skip=dice.randrange(4),
                        carried_out=dice.random() < 0.5, seconds=dice.uniform(0.0, 0.3), result=dice.choice(NONSENSE))
        await trio.sleep(dice.uniform(0.05, 0.4))
    net.faults.clear()
    calm.set()


async def _read(w: World, story: Story) -> None:
    async with w.another(call_deadline=1.0, redial_max=0.1) as chain:
        async for head in chain.heads():
            try:
                await chain.commitments(head.best_hash)
                rows = await chain.commitments(head.finalized_hash)
            except ChainError as error:
                story.note(error)
                continue
            story.rows.update((row.submission_id, row) for row in rows if not row.provisional)
            story.read_until = max(story.read_until, head.finalized)


async def _mine(w: World, story: Story, wallet: Any, number: int, calm: trio.Event) -> None:
    """Commit again and again, each time waiting for the reveal, until the weather is calm."""
    tickets = s.Tickets(w.folder / f"tickets-{number}")
    async with w.another(wallet, call_deadline=1.0, redial_max=0.1, weights_deadline=3.0) as chain:
        round_, last = 0, False
        while not last:
            round_, last = round_ + 1, calm.is_set()  # one more when the weather is calm, so that there is always something
            ticket = s.Ticket(network="dev", genesis="", netuid=NETUID, hotkey=wallet.hotkey.ss58_address, reveal_blocks=REVEAL,
                              payload=Payload(sha256=f"{number:02d}{round_:062d}", url=URL), created_at=float(round_))
            try:
                while ticket.commit_block is None:
                    try:
                        ticket = await s.submit(chain, wallet, ticket, tickets, SETTINGS)
                    except chains.Unresolved as error:
                        story.note(error)
                        ticket = tickets.all()[0]
                        await trio.sleep(0.1)
                with trio.move_on_after(2):
                    async for step in follow(chain, ticket, tickets, ask=None, poll=0.1):
                        if step.ticket.over:
                            break
            except ChainError as error:
                story.note(error)
                await trio.sleep(0.2)


async def _keep_weights(w: World, story: Story, asked: dict[str, float], calm: trio.Event) -> None:
    """What a validator does: look, and send when what is held is not what is asked. Until calm and equal."""
    while True:
        try:
            plan = await w.chain.preflight_weights(asked)
            held = await w.chain.read_weights()
            if calm.is_set() and arrived(plan.by_uid, held.by_uid):
                return
            if not plan.refused:
                await w.chain.set_weights(plan)
        except ChainError as error:
            story.note(error)
        await trio.sleep(0.2)


def _history(w: World, hotkeys: list[str]) -> set[tuple[str, int]]:
    """Every commitment of the chain's finalised history, from the node's own storage."""
    found = set()
    with w.net.chain.lock:
        state = w.net.chain.state
        for number in range(1, w.net.chain.ledger.finalized.number + 1):
            for hotkey in hotkeys:
                record = state.get("Commitments", "CommitmentOf", NETUID, hotkey, at=number)
                if record is not None and read_live(record).block == number:
                    found.add((hotkey, number))
    return found


def verdict(story: Story) -> str:
    """Why the run failed; empty when it held."""
    problems = []
    if story.lost:
        problems.append(f"lost {sorted(story.lost)}")
    if story.invented:
        problems.append(f"invented {sorted(story.invented)}")
    if not story.weights_equal:
        problems.append("the weights on chain are not those asked")
    if not story.committed:
        problems.append("nothing was ever committed, so nothing was shown")
    bad = [r for r in story.rows.values() if r.state is Status.REVEALED and not r.commit_block_exact]
    if bad:
        problems.append(f"{len(bad)} commit blocks are not exact")
    return "; ".join(problems)
