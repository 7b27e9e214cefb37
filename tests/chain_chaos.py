"""A validator and miners under random faults: what was committed is in the store, what scoring asks for is on chain, whatever
happens on the way.

One run: three miners commit through the real submit code; a whole daemon (tests/chain_house.py: poller, real store, intake,
scoring, weights) serves them; and meanwhile the node drops, closes, goes mute, answers late, refuses, talks nonsense,
vanishes and reorganises, and the daemon is restarted, at random. Then the faults end, and the chain's own history is
compared with the store's file. Used by a test (a few faults) and by benchmarks/chain_faults.py (five hundred).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from chain_house import ChainHouse, until
from chain_world import NETUID, World, open_world

from crusades import chain as chains
from crusades import hparams
from crusades import submission as s
from crusades.chain_rows import read_live
from crusades.chain_weights import arrived
from crusades.errors import ChainError
from crusades.records import Status, Submission
from crusades.submission_follow import follow

SETTINGS = hparams.Chain(call_deadline=1.0, redial_first=0.02, redial_max=0.1, poll_interval=0.05, weights_deadline=3.0)
REVEAL = 3
WITHDRAWN, OVERWRITTEN = 1008, 1003
METHODS = ("*", "chain_*", "state_*", "author_*", "chain_getHead", "state_queryStorageAt", "state_getKeysPaged", "author_submitExtrinsic",
           "state_getRuntimeVersion", "chain_getBlock", "state_call", "account_nextIndex", "chain_subscribeNewHeads")
NONSENSE: tuple[Any, ...] = (7, "x", {"a": 1}, None, [[]], "0x")


@dataclass
class Story:
    """What one run saw."""

    seed: int
    faults: int
    rows: tuple[Submission, ...] = ()
    """All submissions in the store at the end."""
    cursor: int = -1
    final: int = 0
    """The store's cursor, and the chain's finalised block before it was read."""
    sent: dict[tuple[str, int], str] = field(default_factory=dict)
    """(hotkey, commit block) → SHA-256, as the miners' tickets say."""
    committed: set[tuple[str, int]] = field(default_factory=set)
    """(hotkey, block) of every commitment in the chain's own finalised history."""
    weights_equal: bool = False
    restarts: int = 0
    seconds: float = 0.0
    struck: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def note(self, error: Exception) -> None:
        """Count an error by its kind."""
        self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1

    @property
    def counted(self) -> dict[tuple[str, int], Submission]:
        """Submissions that the store holds to be on the chain."""
        return {(r.hotkey, r.commit_block): r for r in self.rows if not (r.reason and r.reason.code == WITHDRAWN)}


async def tell(folder: Path, *, seed: int, faults: int) -> Story:
    """One run, of about a third of a second per fault. Raises TooSlowError when it hangs."""
    story, dice = Story(seed, faults), random.Random(seed)
    start = time.monotonic()
    with trio.fail_after(90 + faults):
        await _live(folder, story, dice)
    story.seconds = time.monotonic() - start
    return story


async def _live(folder: Path, story: Story, dice: random.Random) -> None:
    async with open_world(folder, SETTINGS, sealing="interval", block_time=0.05, reveal_blocks=REVEAL, tempo=20, weights_rate_limit=5) as w:
        house, miners = ChainHouse(w), [w.miner, w.wallet("second"), w.wallet("third")]
        await w.blocks(4)  # registrations are written at the head: a reorganisation must not take them back
        calm, over, again = trio.Event(), trio.Event(), [trio.Event()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_validate, house, story, over, again)
            async with trio.open_nursery() as working:
                working.start_soon(_torment, w, dice, story.faults, calm, again)
                for number, wallet in enumerate(miners):
                    working.start_soon(_mine, house, story, wallet, number, calm)
            await _settled(house, story)
            over.set()
            again[0].set()
        story.committed = _history(w, [m.hotkey.ss58_address for m in miners])
        story.struck = w.net.faults.struck


async def _validate(house: ChainHouse, story: Story, over: trio.Event, again: list[trio.Event]) -> None:
    """The daemon, started anew whenever the bell rings."""
    while not over.is_set():
        async with house.running():
            await again[0].wait()
            again[0] = trio.Event()
        story.restarts += 1


async def _settled(house: ChainHouse, story: Story) -> None:
    """Everything that was committed is final and judged, and the weights are those that scoring asks for; or the time is up,
    and the verdict says what is missing."""
    story.final = house.world.net.chain.head.number

    async def done() -> bool:
        try:
            story.rows = (await house.context.store.submissions(limit=500)).items
            story.cursor = await house.context.store.cursor() or 0
            story.weights_equal = arrived(await house.asked(), (await house.world.chain.read_weights()).by_uid)
        except ChainError as error:
            story.note(error)
            return False
        return story.cursor >= story.final and story.weights_equal and all(row.status.final and not row.provisional for row in story.rows)

    with trio.move_on_after(30):
        await until(done, 60)


async def _torment(w: World, dice: random.Random, faults: int, calm: trio.Event, again: list[trio.Event]) -> None:
    net = w.net
    for _ in range(faults):
        match dice.randrange(15):
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
            case 6:
                again[0].set()
            case _:
                w.fault(dice.choice(["drop", "close", "silence", "slow", "error", "wrong"]), dice.choice(METHODS), skip=dice.randrange(4),
                        carried_out=dice.random() < 0.5, seconds=dice.uniform(0.0, 0.3), result=dice.choice(NONSENSE))
        await trio.sleep(dice.uniform(0.05, 0.4))
    net.faults.clear()
    calm.set()


async def _mine(house: ChainHouse, story: Story, wallet: Any, number: int, calm: trio.Event) -> None:
    """Commit again and again, each time waiting for the reveal, until the weather is calm."""
    tickets = s.Tickets(house.world.folder / f"tickets-{number}")
    async with house.world.another(wallet, call_deadline=1.0, redial_max=0.1, weights_deadline=3.0) as chain:
        round_, last = 0, False
        while not last:
            round_, last = round_ + 1, calm.is_set()  # one more when the weather is calm, so that there is always something
            payload = house.host(f"{number}-{round_}", 30.0 + round_ + number / 10)
            ticket = s.Ticket(network="dev", genesis="", netuid=NETUID, hotkey=wallet.hotkey.ss58_address, reveal_blocks=REVEAL, payload=payload,
                              created_at=float(round_))
            try:
                ticket = await _submit(chain, wallet, ticket, tickets, story)
                with trio.move_on_after(2 if not last else 10):
                    async for step in follow(chain, ticket, tickets, ask=None, poll=0.1):
                        ticket = step.ticket
            except ChainError as error:
                story.note(error)
                await trio.sleep(0.2)
            if ticket.stage == "revealed" and ticket.commit_block is not None:
                story.sent[ticket.hotkey, ticket.commit_block] = payload.sha256


async def _submit(chain: Any, wallet: Any, ticket: s.Ticket, tickets: s.Tickets, story: Story) -> s.Ticket:
    while ticket.commit_block is None:
        try:
            ticket = await s.submit(chain, wallet, ticket, tickets, SETTINGS)
        except chains.Unresolved as error:
            story.note(error)
            ticket = tickets.all()[0]
            await trio.sleep(0.1)
    return ticket


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
    counted, problems = story.counted, []
    if story.cursor < story.final:
        problems.append(f"the cursor stands at {story.cursor}, the chain was final to {story.final}")
    if lost := {(h, b) for h, b in story.committed if b <= story.final} - counted.keys():
        problems.append(f"lost {sorted(lost)}")
    if invented := {(h, b) for h, b in counted if b <= story.final} - story.committed:
        problems.append(f"invented {sorted(invented)}")
    if waiting := [r for r in story.rows if r.provisional or not r.status.final]:
        problems.append(f"{len(waiting)} rows are neither confirmed nor withdrawn, or not judged: {[(r.status, r.provisional) for r in waiting]}")
    if wrong := [r for r in counted.values() if r.status is not Status.SCORED and not (r.reason and r.reason.code == OVERWRITTEN)]:
        problems.append(f"rejected for no fault of theirs: {[(r.id, r.reason.message if r.reason else r.status) for r in wrong]}")
    if swapped := [key for key, sha in story.sent.items() if key in counted and counted[key].sha256 != sha]:
        problems.append(f"another file than was committed: {swapped}")
    if not story.weights_equal:
        problems.append("the weights on chain are not those that scoring asks for")
    if not story.committed:
        problems.append("nothing was ever committed, so nothing was shown")
    if bad := [r for r in counted.values() if r.status is Status.SCORED and not r.commit_block_exact]:
        problems.append(f"{len(bad)} commit blocks are not exact")
    return "; ".join(problems)
