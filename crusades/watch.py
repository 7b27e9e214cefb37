"""The watch: once in a few seconds, is everybody making progress, and who must be told? Feeds systemd, the board and the metrics.

READY=1 goes out when chain, registration, weights and devices are good; slots may still be warming. WATCHDOG=1 goes out only
while nobody is late, so a daemon that hangs in one corner is restarted though its event loop turns.
"""

from __future__ import annotations

import logging
import shutil

import httpx
import trio

from crusades.alerts import CHAIN_BEHIND, Facts, Telling, alerts
from crusades.context import Context
from crusades.fetch import tls_context
from crusades.logs import redactor
from crusades.watchdog import STALL, Stalls, heartbeat, notify, status_line, tell, watchdog_interval

log = logging.getLogger("crusades.watch")

LOOK = 5.0
"""Seconds between looks, unless the unit's watchdog wants more."""
ALERT_LOOK = 60.0
"""Seconds between heartbeats and looks for alerts."""
IDLE_LOOK = 60.0
"""Seconds after which a task that has nothing to do shows that it lives."""
PATIENCE = 60.0
"""Seconds that one look of a task of this module may take."""
NEEDED = ("chain", "registration", "weights", "devices")
"""What must be ready before systemd is told READY; the slots behind `devices` may warm up afterwards."""
NAMED_STALLS = 20
"""After so many stalls a process stops naming each in the log; the metric goes on counting."""


async def watch(ctx: Context) -> None:
    """For as long as the daemon lives, its last seconds included."""
    interval = min(LOOK, watchdog_interval(ctx.systemd) or LOOK)
    stalls = _watch_loop(ctx)
    ctx.health.expect("watch", PATIENCE)
    ctx.read_at = ctx.now()  # a node that never answers is late from here on
    told_ready, said = False, ""
    try:
        while True:
            ctx.health.progress("watch")
            seen = ctx.bells.health.count
            late = ctx.health.late()
            await _show(ctx, late, stalls)
            if not told_ready and is_up(ctx):
                told_ready = True
                log.info("ready")
                notify("READY=1", ctx.systemd)
            if not late:
                notify("WATCHDOG=1", ctx.systemd)
            line = status_line(ctx.board, _weights_words(ctx), ctx.counts)
            if ctx.stopping.is_set():
                line = f"stopping · {line}"
            if line != said:
                said = line
                notify(f"STATUS={redactor.clean(line)}", ctx.systemd)
            # At once when somebody became ready, or the daemon begins to stop: systemd waits for both.
            await ctx.bells.health.wait(seen, min(1.0, interval) if ctx.stopping.is_set() else interval)
    finally:
        trio.lowlevel.remove_instrument(stalls)


async def tell_viewers(ctx: Context) -> None:
    """Slots and blocks as events, for whoever watches live; what nobody changed is not told again."""
    ctx.health.expect("slot events", PATIENCE + IDLE_LOOK)
    told: dict[str, object] = {}
    while True:
        ctx.health.progress("slot events")
        seen = ctx.bells.shown.count
        if ctx.board.block is not None and told.get("block") != ctx.board.block:
            told["block"] = ctx.board.block
            await ctx.store.emit("block", {"block": ctx.board.block, "finalized_block": ctx.board.finalized_block})
        for name, view in list(ctx.board.slots.items()):
            if told.get(name) != view:
                told[name] = view
                await ctx.store.emit("slot", view, view.submission_id)
        await ctx.bells.shown.wait(seen, IDLE_LOOK)


def is_up(ctx: Context) -> bool:
    """Whether the daemon can do its work, but for slots that still warm up."""
    return all(ctx.board.ready.get(name) == "ready" for name in NEEDED) and bool(ctx.board.slots)


def _unread_seconds(ctx: Context) -> float:
    return 0.0 if ctx.read_at is None else ctx.now() - ctx.read_at


def _weights_words(ctx: Context) -> str:
    age = ctx.board.weights_age_tempos
    words = "weights never set" if age is None else f"weights {age:.1f} tempos old"
    return f"{words}, held: {ctx.board.weights_held}" if ctx.board.weights_held else words


async def _show(ctx: Context, late: dict[str, str], stalls: Stalls) -> None:
    metrics = ctx.metrics
    for gauge in (metrics.progress_age, metrics.late):
        gauge.clear()  # or those of whom nothing is expected any more (a lost card) would be late for ever
    for name in [name for name in ctx.board.problems if name.startswith("late ")]:
        ctx.problem(name)
    for name, age in ctx.health.ages().items():
        metrics.progress_age.labels(subsystem=name).set(age)
        metrics.late.labels(subsystem=name).set(name in late)
        ctx.problem(f"late {name}", late.get(name, ""))
    ctx.board.late = late
    ctx.ready("progress", f"late: {', '.join(sorted(late))}" if late else "ready")
    if ctx.chain.down or _unread_seconds(ctx) > CHAIN_BEHIND:  # the poller says "ready" again at its next good read
        ctx.ready("chain", "the node does not answer" if ctx.chain.down else f"no new block could be read for more than {CHAIN_BEHIND:.0f} s")
    ctx.counts = await ctx.store.counts()
    metrics.show_counts(ctx.counts)
    metrics.ready.set(ctx.board.is_ready)
    metrics.problems.set(len(ctx.board.problems))
    metrics.stall_max.set(stalls.take_longest())
    free = shutil.disk_usage(ctx.state_dir).free
    metrics.disk_free.set(free)
    low = free < ctx.hparams.daemon.disk_low_bytes
    ctx.problem("disk", f"{free / 2**30:.1f} GiB free in the state directory" if low else "")
    if ctx.chain.down:
        # The adapter waits out an outage inside, with deadlines of its own: the poller is not hung, it looks and finds nothing.
        ctx.health.progress("chain poller", ctx.chain.down)
    if ctx.chain.problem:
        ctx.problem("chain", ctx.chain.problem)


def _watch_loop(ctx: Context) -> Stalls:
    named = 0

    def on_stall(task: str, took: float, computed: float) -> None:
        nonlocal named
        ctx.metrics.stalls.labels(how="computing" if computed > STALL else "waiting").inc()
        named += 1
        if named <= NAMED_STALLS:
            log.warning("%s held the event loop for %.0f ms, of which it computed %.0f", task, took * 1000, computed * 1000)

    stalls = Stalls(on_stall)
    trio.lowlevel.add_instrument(stalls)
    return stalls


async def tell_people(ctx: Context) -> None:
    """Alerts and heartbeats, apart from the watch: a webhook that does not answer must not starve systemd's watchdog.

    What could not be delivered is tried again at the next look.
    """
    ctx.health.expect("alerts", PATIENCE + ALERT_LOOK)
    logged, posted = Telling(), Telling()
    # With the certificates that were loaded at the start: loading them takes longer than anybody may hold the event loop.
    async with httpx.AsyncClient(verify=tls_context()) as client:
        while True:
            ctx.health.progress("alerts", "looking")
            current = alerts(_facts(ctx, ctx.health.late()))
            for message in logged.due(current, ctx.now()):
                log.warning("alert: %s", message.text)
                logged.told(message, ctx.now())
            if ctx.hparams.daemon.heartbeat_url and not current and is_up(ctx):
                await heartbeat(ctx.hparams.daemon.heartbeat_url, client)
            if ctx.hparams.daemon.webhook_url:
                for message in posted.due(current, ctx.now()):
                    ctx.health.progress("alerts", "telling")
                    if await tell(ctx.hparams.daemon.webhook_url, redactor.clean(f"crusades-validator subnet {ctx.netuid}: {message.text}"), client):
                        posted.told(message, ctx.now())
            await trio.sleep(ALERT_LOOK)


def _facts(ctx: Context, late: dict[str, str]) -> Facts:
    seen = ctx.board
    out = {view.name: view.detail for view in seen.slots.values() if view.state == "out of service"}
    out |= {name: seen.problems.get(f"slot {name}", "") for name in ctx.lost}
    me = next((neuron for neuron in seen.neurons if neuron.hotkey == ctx.hotkey), None)
    return Facts(
        registered=me is not None if seen.neurons else None, permit=me.validator_permit if me else None,
        weights_age_tempos=seen.weights_age_tempos, weights_cause=seen.weights_held, weights_equal=ctx.weights_equal, slots_out=out,
        devices_problem=seen.problems.get("devices", ""),
        disk_free_bytes=shutil.disk_usage(ctx.state_dir).free, disk_low_bytes=ctx.hparams.daemon.disk_low_bytes,
        unread_seconds=_unread_seconds(ctx), chain_problem=seen.problems.get("chain", ""),
        backup_age_seconds=ctx.now() - (ctx.backup_at or seen.started_at), backup_ever=ctx.backup_at is not None,
        backup_interval_seconds=ctx.hparams.store.backup_hours * 3600, late=late)
