"""The whole daemon (poller, intake, scoring, weights; the real store) on a real chain adapter, the SDK and a dev chain.

Only the hosts of files and the judge are stand-ins (`daemon_house`). Time is real, or a `MockClock` where a story flies.
"""

from contextlib import asynccontextmanager

import msgspec
import trio
from daemon_house import House
from fakes import make_source

from crusades.payload import format_payload
from crusades.records import Payload
from crusades.scoring import standings


class ChainHouse(House):
    """A daemon in a `chain_world.World`. `running` may be entered again and again: each is a restart, with a new connection."""

    def __init__(self, world, *, judge_seconds=0.01, **chain):
        super().__init__(world.folder / "state")
        self.world, self.wallet = world, world.validator
        self.judge.seconds = judge_seconds
        self.settings = msgspec.structs.replace(
            self.settings, chain=msgspec.structs.replace(world.chain.settings, **{"weights_interval": 5, **chain}))

    @asynccontextmanager
    async def running(self):
        async with self.world.another(**msgspec.structs.asdict(self.settings.chain)) as self.chain, super().running() as context:
            yield context

    def host(self, name, mfu, receipt=None):
        """Put a program that the judge gives `mfu` on a host; the payload that commits it."""
        source = make_source(f"# mfu {mfu}\n# {name}\n", url=f"https://files.example/{name}.py")
        self.serve_file(source)
        return Payload(sha256=source.sha256, url=source.url, receipt=receipt)

    async def commit(self, wallet, name, mfu, *, reveal=12, receipt=None):
        """Commit such a program; what the chain says."""
        async with self.world.another(wallet) as chain:
            return await chain.commit(format_payload(self.host(name, mfu, receipt)), wallet, reveal)

    async def asked(self):
        """uid → u16 value of the vector that scoring asks for now, over confirmed rows, at the chain's own neurons."""
        scored = [row for row in await self.context.store.scored() if not row.provisional]
        chain = self.world.chain
        found = standings(scored, self.settings.scoring, await chain.neurons(), (await chain.owner()).uid)
        return (await chain.preflight_weights(found.weights)).by_uid


async def until(condition, seconds):
    """Until the async `condition` holds, looking again and again; TooSlowError after so many seconds."""
    with trio.fail_after(seconds):
        while not await condition():  # noqa: ASYNC110  (what is waited for is in a database and on a chain)
            await trio.sleep(0.05)
