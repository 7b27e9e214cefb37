"""A daemon with the real store and everything else a stand-in, on the virtual clock: what the daemon's stories start from."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import trio
from fakes import VALIDATOR, FakeChain, FakeJudge, InlineBridge, moving_now

from crusades import hparams
from crusades.daemon import DaemonConfig, Parts, make_context, serve
from crusades.records import Status
from crusades.store import open_store


def settings(**daemon):
    """The shipped settings, in a hurry where the fakes are, and without anchored steps: then finished runs are kept."""
    loaded = hparams.load()
    replace = msgspec.structs.replace
    tiny = loaded.profile("tiny")
    tiny = replace(tiny, audit=replace(tiny.audit, anchored_runs=0))
    loaded = replace(loaded, profiles={**loaded.profiles, "tiny": tiny})
    return replace(loaded, daemon=replace(loaded.daemon, disk_low_bytes=1, **daemon), chain=replace(loaded.chain, weights_interval=10),
                   competition=replace(loaded.competition, profile="tiny"), web=replace(loaded.web, listen="127.0.0.1:0"))  # fmt: skip


async def no_web(ctx, config, *, task_status):
    """Nobody watches; it ends when the real one would."""
    task_status.started("http://nowhere")
    await ctx.web_stop.wait()
    ctx.web_stopped.set()


async def eventually(true, patience=3600.0, step=0.1):
    """Until `true()` holds; on the virtual clock that costs nothing."""
    with trio.fail_after(patience):
        while not true():  # noqa: ASYNC110 - what is waited for is a stand-in's attribute
            await trio.sleep(step)


class Files:
    """The hosts of submissions: url → Source, a Reason, or an exception to raise."""

    def __init__(self):
        self.served = {}
        self.asked = []

    async def fetch(self, payload, _settings):
        self.asked.append((payload.url, trio.current_time()))
        await trio.sleep(0.2)
        answer = self.served[payload.url]
        if isinstance(answer, Exception):
            raise answer
        return answer


class House:
    """One daemon's worth of parts that outlives restarts: chain, files, judge, state directory."""

    def __init__(self, state_dir, **daemon):
        self.state_dir, self.settings = state_dir, settings(**daemon)
        self.chain, self.files, self.judge = FakeChain(), Files(), FakeJudge()
        self.findings = []
        self.context = None
        self.wallet = SimpleNamespace(hotkey=SimpleNamespace(ss58_address=VALIDATOR))
        self.extra = {}
        self.parts = {}

    def config(self, stop):
        parts = {"open_slot": self.judge.opener(), "fetch": self.files.fetch, "scan": lambda content: list(self.findings), "devices": tuple, "serve_web": no_web,
                 "fingerprint": lambda content: content.decode().partition("# same ")[2].partition("\n")[0], **self.parts}  # fmt: skip
        return DaemonConfig(hparams=self.settings, network="dev", netuid=1, state_dir=self.state_dir, wallet=self.wallet, handle_signals=False, stop=stop,
                            parts=Parts(**parts), **self.extra)

    @asynccontextmanager
    async def running(self):
        """The daemon from READY-able to a staged stop; leaving the block early (cancel the scope) is a crash."""
        bridge, stop = InlineBridge(), trio.Event()
        try:
            async with open_store(self.state_dir, bridge, self.settings.store) as store:
                config = self.config(stop)
                self.context = make_context(config, store, self.chain, is_dev=True)
                self.context.now = moving_now()
                async with trio.open_nursery() as nursery:
                    await nursery.start(serve, self.context, config)
                    try:
                        yield self.context
                    finally:
                        stop.set()
        finally:
            bridge.close()

    def serve_file(self, source):
        self.files.served[source.url] = source

    async def until(self, id_, *statuses, patience=3600.0):
        """The submission, once it is in one of these states (or in a final one)."""
        with trio.fail_after(patience):
            while True:
                detail = await self.context.store.submission(id_)
                if detail and detail.submission.status in (statuses or tuple(s for s in Status if s.final)):
                    return detail
                await trio.sleep(0.5)
