"""The validator's task tree. Read `serve` first: it is the table of contents of the whole daemon.

Three nurseries, one inside the other, end from the inside out:

* *intake*: chain poller, fetchers, checker, scheduler, weight setter, the watch over devices. SIGTERM ends these at once.
* *slots*: one task per device. A running evaluation whose finished runs are kept (its profile has no anchored steps) gets
  `shutdown_grace` to end the run it is in. Any other slot ends at once; its submission goes back in front of the queue.
* *house*: web server, watchdog, housekeeping. They see everybody else out.

Every loop retries named exceptions with named delays; anything else leaves the daemon, and systemd starts it again.
"""

from __future__ import annotations

import gc
import logging
import signal
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from crusades import __version__
from crusades.asyncio_bridge import open_bridge
from crusades.bench.entries import must_be_cached
from crusades.board import Board
from crusades.chain_link import place
from crusades.context import Context
from crusades.devices import DaemonConfig, Parts, watch_devices
from crusades.errors import ChainError, ConfigError
from crusades.housekeeping import keep_house
from crusades.intake import FETCHERS, Fetch, Retries, check_fetched, fetch_revealed
from crusades.judging import recover, schedule, serve_slot
from crusades.logs import redactor
from crusades.metrics import Metrics
from crusades.poller import poll_chain
from crusades.records import Finding
from crusades.rulebook import Rulebook, Rules
from crusades.slots import Seat, SlotState
from crusades.watch import NEEDED, tell_people, tell_viewers, watch
from crusades.watchdog import Health, forget_systemd, leave_within, notify
from crusades.weights import set_weights

__all__ = ["DaemonConfig", "Parts", "Started", "make_context", "run", "serve"]

log = logging.getLogger("crusades.daemon")

FIRST_CHECK_RETRY = 2.0
"""Seconds between attempts to ask a node, whose name does not tell, which chain it serves."""
HUB_PATIENCE = 120.0
"""Seconds that one look of the live pages' hub may take; it looks each second."""
WEB_GRACE = 3.0
"""Seconds that open connections of viewers get at the very end."""
LAST_RESORT = 45.0
"""Seconds after the grace of an evaluation at which a shutdown that hangs ends the process: before systemd's TimeoutStopSec."""
AT_ONCE = 5.0
"""The same after a second signal."""


# ------------------------------------------------------------------------------------------------ the tree


@dataclass(frozen=True)
class Started:
    """What `task_status.started` is given."""

    url: str
    context: Context


async def run(config: DaemonConfig, *, task_status: trio.TaskStatus[Started] = trio.TASK_STATUS_IGNORED) -> None:
    """The validator, until `config.stop` or a signal. Raises ConfigError, StateLocked, StoreError, MustNotRestart (perhaps
    inside an exception group). Started with the web address once viewers can connect; READY comes when work can be done."""
    from crusades.chain import open_chain
    from crusades.store import open_store

    settings, reins = config.hparams, Reins()
    async with trio.open_nursery() as everything:
        await everything.start(listen_to_signals, reins, config, everything.cancel_scope)
        loaded = trio.Event()
        everything.start_soon(load_early, loaded)
        async with (
            open_bridge() as bridge,
            open_store(config.state_dir, bridge, settings.store) as store,
            open_chain(settings.chain, config.network, config.netuid, bridge, wallet=config.wallet) as chain,
        ):
            reins.context = ctx = make_context(config, store, chain, is_dev=await is_dev(config, chain))
            must_be_cached(ctx.hparams.profile(ctx.profile_name), ctx.profile_name, config.cache_dir)
            await loaded.wait()
            await serve(ctx, config, task_status=task_status)
        everything.cancel_scope.cancel()


async def serve(ctx: Context, config: DaemonConfig, *, task_status: trio.TaskStatus[Started] = trio.TASK_STATUS_IGNORED) -> None:
    """Everything that runs, and in which order it ends."""
    fetch, scan, retries = _fetch(config.parts), config.parts.scan or _scan, Retries()
    found, new_slots = trio.open_memory_channel[tuple[Seat, object]](0)
    for name in NEEDED:  # or the first of them to be ready would speak for all
        ctx.ready(name, "starting")
    for age in ("chain_head_age_seconds", "backup_age_seconds"):  # what never happens is late from here on
        ctx.metrics.happened(age)

    async with trio.open_nursery() as house:
        url = await house.start(config.parts.serve_web or serve_web, ctx, config)
        log.info("web server at %s", url)
        house.start_soon(watch, ctx)
        house.start_soon(tell_people, ctx)
        house.start_soon(keep_house, ctx)
        house.start_soon(tell_viewers, ctx)
        await recover(ctx)
        task_status.started(Started(url, ctx))

        async with trio.open_nursery() as slots:
            async with trio.open_nursery() as intake:
                intake.start_soon(poll_chain, ctx)
                for number in range(FETCHERS):
                    intake.start_soon(fetch_revealed, ctx, fetch, retries, f"fetcher {number + 1}")
                intake.start_soon(check_fetched, ctx, scan)
                intake.start_soon(schedule, ctx)
                intake.start_soon(set_weights, ctx)
                intake.start_soon(watch_devices, ctx, config, found)
                intake.start_soon(stop_intake, config.stop, ctx, intake.cancel_scope)
                async for seat, slot_config in new_slots:
                    slots.start_soon(serve_slot, ctx, seat, slot_config)
            _end_slots(ctx, slots.cancel_scope)

        log.info("slots have ended; the web server goes last")
        ctx.web_stop.set()
        house.cancel_scope.deadline = trio.current_time() + WEB_GRACE + 1.0
        await ctx.web_stopped.wait()
        house.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------------ stages of the shutdown


async def stop_intake(stop: trio.Event, ctx: Context, intake: trio.CancelScope) -> None:
    """Stage one: nothing new is begun."""
    await stop.wait()
    log.info("stopping: an evaluation whose runs are kept gets %g s to end the one under way", ctx.hparams.daemon.shutdown_grace)
    notify("STOPPING=1", ctx.systemd)
    ctx.stopping.set()
    ctx.bells.health.ring()
    intake.cancel()


def _end_slots(ctx: Context, slots: trio.CancelScope) -> None:
    """Stage two: who evaluates what goes on after the restart gets the grace; everybody else ends now."""
    slots.deadline = trio.current_time() + ctx.hparams.daemon.shutdown_grace
    for seat in list(ctx.seats.values()):
        if seat.state is not SlotState.RUNNING or not seat.keeps_runs:
            seat.scope.cancel()


@dataclass
class Reins:
    """What a signal acts on; there is none while store and chain are still being opened."""

    context: Context | None = None


async def listen_to_signals(
    reins: Reins, config: DaemonConfig, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """SIGTERM and SIGINT stop in stages, a second one (or one during the start) at once; SIGHUP reloads what is safe to reload.

    A shutdown that hangs all the same, in a thread or in a library, ends after a bound: the store is safe against that.
    """
    if not config.handle_signals:
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                if reins.context:
                    reload_settings(reins.context, config)
            elif reins.context is None or config.stop.is_set():
                log.warning("%s: stopping at once", signal.Signals(number).name)
                leave_within(AT_ONCE)
                config.stop.set()
                everything.cancel()
            else:
                log.info("%s", signal.Signals(number).name)
                leave_within(reins.context.hparams.daemon.shutdown_grace + LAST_RESORT)
                config.stop.set()


RELOADED = ("daemon", "store")
"""Sections that may change under a running daemon; all others are rules, or bound at the start."""


def reload_settings(ctx: Context, config: DaemonConfig) -> None:
    """Take over the safe sections of a changed `hparams.toml`; name the others. A broken file changes nothing."""
    import msgspec

    from crusades import hparams

    try:
        fresh = hparams.load(config.hparams_path)
    except ConfigError as error:
        log.error("SIGHUP: nothing reloaded: %s", error)
        return
    # As it was loaded, and not as a dev chain bends it.
    before = msgspec.structs.replace(config.hparams, **{name: getattr(ctx.hparams, name) for name in RELOADED})
    changed = [name for name in fresh.__struct_fields__ if getattr(fresh, name) != getattr(before, name)]
    taken = {name: getattr(fresh, name) for name in changed if name in RELOADED}
    for secret in (fresh.daemon.webhook_url, fresh.daemon.heartbeat_url):
        redactor.add(secret)
    ctx.hparams = msgspec.structs.replace(ctx.hparams, **taken)
    ctx.store.settings = fresh.store
    log.info("SIGHUP: reloaded %s", ", ".join(taken) or "nothing")
    if left := [name for name in changed if name not in RELOADED]:
        log.warning("SIGHUP: %s changed too and need a restart", ", ".join(left))


# ------------------------------------------------------------------------------------------------ the web


async def serve_web(ctx: Context, config: DaemonConfig, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
    """Viewers. Ends when `ctx.web_stop` is set and the open connections had their grace."""
    from crusades.web import create_app, serve

    app = create_app(ctx.store, ctx.board, ctx.hparams, rules_version=ctx.board.rules_version, metrics=ctx.metrics.render, late=ctx.health.late)
    ctx.health.expect("live pages", HUB_PATIENCE)
    app.hub.on_look = partial(ctx.health.progress, "live pages")
    try:
        await serve(app, config.listen or ctx.hparams.web.listen, shutdown=ctx.web_stop.wait, grace=WEB_GRACE, task_status=task_status)
    finally:
        ctx.health.retire("live pages")
        ctx.web_stopped.set()


# ------------------------------------------------------------------------------------------------ putting it together


async def is_dev(config: DaemonConfig, chain: Any) -> bool:
    """Whether this is a development chain. For an address the node has to say it, so the start waits for the node."""
    if not config.network.startswith(("ws://", "wss://")):
        return config.network == "dev"
    while True:
        try:
            return bool((await chain.check()).is_dev)
        except ChainError as error:
            log.warning("waiting for the node at %s: %s", place(config.network), error)
            notify(f"STATUS=PROBLEM waiting for the node: {redactor.clean(str(error))}")
            await trio.sleep(FIRST_CHECK_RETRY)


def make_context(config: DaemonConfig, store: Any, chain: Any, *, is_dev: bool) -> Context:
    """Board, health, metrics and settings of one daemon. On a dev chain the dev profile judges and loopback may be fetched."""
    import msgspec

    settings = config.hparams
    profile_name = settings.competition.dev_profile if is_dev else settings.competition.profile
    if is_dev:
        settings = msgspec.structs.replace(settings, fetch=msgspec.structs.replace(settings.fetch, allow_loopback=True))
    profile = settings.profile(profile_name)
    board = Board(network=place(config.network), netuid=config.netuid, hotkey=config.wallet.hotkey.ss58_address, profile=profile_name,
                  model=profile.model.config or profile.model.hub or profile.model.path or profile.model.package, rules_version=settings.rules_version(profile_name),
                  notice="This is a development network, no real chain: nothing on it has any value." if is_dev else "")
    log.info("crusades-validator %s on %s, subnet %s, profile %s, rules %s", __version__, board.network, config.netuid, profile_name, board.rules_version)
    return Context(hparams=settings, profile_name=profile_name, netuid=config.netuid, hotkey=board.hotkey, state_dir=config.state_dir, store=store, chain=chain,
                   board=board, health=Health(), metrics=Metrics(), open_slot=config.parts.open_slot or _judge,
                   rulebook=Rulebook(Rules(board.rules_version, profile_name, settings)),
                   fingerprint=config.parts.fingerprint or _fingerprint, control=config.parts.control,
                   accept_empty_state=config.accept_empty_state, accept_foreign_weights=config.accept_foreign_weights, systemd=forget_systemd())


async def load_early(loaded: trio.Event) -> None:
    """`_load_early` beside the first words with the chain. A start that fails or is stopped does not wait for it."""
    await trio.to_thread.run_sync(_load_early, abandon_on_cancel=True)
    loaded.set()


def _load_early() -> None:
    """What takes its time at the first use, before anybody measures the event loop: imports and the certificates of TLS.

    The hundred thousand objects of the imports live as long as we do; frozen, they are not walked through again by each full
    collection, which would hold the event loop for 60 ms.
    """
    import crusades.bench.evaluate
    import crusades.rules_apart
    import crusades.scoring
    import crusades.web  # noqa: F401
    from crusades.fetch import tls_context

    tls_context()
    gc.collect()
    gc.freeze()


def _judge(config: Any) -> Any:
    from crusades.bench.evaluate import open_slot

    return open_slot(config)


def _fetch(parts: Parts) -> Fetch:
    from crusades.fetch import fetch

    return parts.fetch or fetch


def _scan(content: bytes) -> list[Finding]:
    """In a process of its own: the text is hostile. Its size was judged when it was fetched, by the rules of its block."""
    from crusades.rules_apart import scan_apart

    return scan_apart(content, max_bytes=len(content))


def _fingerprint(content: bytes) -> str:
    from crusades.rules_apart import fingerprint_apart

    return fingerprint_apart(content, max_bytes=len(content))
