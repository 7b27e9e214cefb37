"""What a daemon is started with, and a seat for every device as devices come and go."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from crusades import nvml
from crusades.context import Context, OpenSlot
from crusades.hparams import HParams
from crusades.intake import Fetch, Scan
from crusades.records import Source
from crusades.slots import Seat

log = logging.getLogger("crusades.devices")

DEVICE_LOOK = 15.0
"""Seconds between two looks at which cards there are."""
SEEN = "slots"
"""Name of the store's fact: slot → Unix time at which its card was last there, to the hour."""
LOST_FOR = 7 * 86_400.0
"""Seconds after which a card that is gone was taken away on purpose."""


# ------------------------------------------------------------------------------------------------ what it is started with


@dataclass(frozen=True)
class Parts:
    """What does the work at the edges; tests and the demo replace what they must, nothing reads the environment for it."""

    open_slot: OpenSlot | None = None
    """None: the judge, `crusades.bench.evaluate.open_slot`."""
    fetch: Fetch | None = None
    scan: Scan | None = None
    fingerprint: Callable[[bytes], str] | None = None
    devices: Callable[[], Sequence[nvml.Device]] = nvml.devices
    control: Source | None = None
    serve_web: Callable[..., Awaitable[None]] | None = None
    """None: `crusades.daemon.serve_web`."""


@dataclass(frozen=True)
class DaemonConfig:
    """Everything an entry point decides."""

    hparams: HParams
    network: str
    netuid: int
    state_dir: Path
    wallet: Any
    listen: str = ""
    """HOST:PORT of the web server; empty takes hparams'."""
    hparams_path: Path | None = None
    """Read again at SIGHUP."""
    accept_empty_state: bool = False
    accept_foreign_weights: bool = False
    sandboxed: bool = True
    cache_dir: Path | None = None
    handle_signals: bool = True
    """False where the caller owns the process (the demo): it sets `stop`."""
    stop: trio.Event = field(default_factory=trio.Event)
    """Set it for a staged shutdown."""
    parts: Parts = field(default_factory=Parts)


# ------------------------------------------------------------------------------------------------ devices


async def watch_devices(ctx: Context, config: DaemonConfig, found: trio.MemorySendChannel[tuple[Seat, object]]) -> None:
    """A seat for every device, as devices come and go."""
    ctx.health.expect("devices", DEVICE_LOOK * 8)
    seen: dict[str, float] = await ctx.store.fact(SEEN) or {}
    while True:
        wanted = await _wanted_slots(ctx, config)
        ctx.health.progress("devices", ", ".join(wanted) or "none")
        ctx.ready("devices", "ready" if wanted else "no card found")
        ctx.problem("devices", "" if wanted else f"profile {ctx.profile_name} needs an NVIDIA card and none answers: see `nvidia-smi`")
        for name in [name for name in ctx.seats if name not in wanted]:
            log.error("device of slot %s is gone", name)
            ctx.seats[name].scope.cancel()
        await _note_lost(ctx, wanted, seen)
        for name, index in wanted.items():
            if name not in ctx.seats:
                ctx.seats[name] = Seat(name)
                ctx.show(ctx.seats[name])
                await found.send((ctx.seats[name], slot_config(config, ctx, name, index)))
        for name, index in wanted.items():
            if name != "cpu" and (sample := await trio.to_thread.run_sync(nvml.glance, index, abandon_on_cancel=True)) is not None:
                ctx.metrics.show_card(name, sample)
        await trio.sleep(DEVICE_LOOK)


async def _note_lost(ctx: Context, wanted: dict[str, int], seen: dict[str, float]) -> None:
    """Which cards were here, in this process or before it, and are not. The others work on, so nobody would miss them."""
    if "cpu" in wanted:  # a profile for the CPU: nobody asks for cards
        return
    now, before = ctx.now(), dict(seen)
    seen.update({name: now for name in wanted if now - seen.get(name, 0.0) > 3600.0})
    for name in [name for name, at in seen.items() if name not in wanted and now - at > LOST_FOR]:
        del seen[name]
    if seen != before:
        await ctx.store.set_fact(SEEN, seen)
    lost = seen.keys() - wanted.keys()
    for name in lost | ctx.lost:
        ctx.lose(name, "its device is gone: see `nvidia-smi`" if name in lost else "")


async def _wanted_slots(ctx: Context, config: DaemonConfig) -> dict[str, int]:
    # Abandoned when we stop: a driver that hangs never answers. Never a quiet fall-back to the CPU: a model made for a card would freeze the machine.
    if ctx.hparams.profile(ctx.profile_name).device == "cpu":
        return {"cpu": 0}
    return {device.slot: device.index for device in await trio.to_thread.run_sync(config.parts.devices, abandon_on_cancel=True)}


def slot_config(config: DaemonConfig, ctx: Context, name: str, index: int) -> object:
    """What the judge is opened with."""
    from crusades.bench.slot import SlotConfig

    async def publish(seeds: tuple[str, ...]) -> None:
        await ctx.store.emit("exams", {"slot": name, "retired_seeds": list(seeds)})

    return SlotConfig(name=name, device=name.partition(":")[0], index=index, profile_name=ctx.profile_name, hparams=ctx.hparams,
                      workdir=config.state_dir / "slots" / name.replace(":", "-"), sandboxed=config.sandboxed, cache_dir=config.cache_dir, keeps_warm=True,
                      on_retired=publish)  # fmt: skip
