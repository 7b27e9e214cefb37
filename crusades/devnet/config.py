"""Settings of a dev chain, and what tells clients that it is one."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs
import msgspec
from msgspec import Meta

from crusades.devnet.scale import account
from crusades.errors import ConfigError

DEV_GENESIS_PREFIX = "0x" + b"crusades-devnet\0".hex()
"""Every dev genesis hash starts with these 16 bytes; the other 16 name the metadata it was started with."""

CHAIN_NAME = "Crusades Devnet (not a real chain)"
"""What `system_chain` answers."""

NODE_NAME = "crusades-devnet"
"""What `system_name` answers."""

NOTICE = "This is a development stand-in on this machine. It is no real chain; nothing on it has any value."

DEFAULT_PORT = 9944

RAO = 1_000_000_000
"""Rao per TAO."""

OWNER = str(core.Keypair.create_from_uri("//Alice").ss58_address)
"""The well-known development key //Alice: owns the subnets and is endowed at genesis."""

OWNER_HOTKEY = str(core.Keypair.create_from_uri("//Alice//hotkey").ss58_address)
"""Hotkey of the subnet owner, uid 0 of every subnet."""

Whole = Annotated[int, Meta(ge=0)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
Positive = Annotated[float, Meta(gt=0.0)]


def is_dev_genesis(genesis_hash: str) -> bool:
    """True for the genesis hash of a devnet, whatever its settings; no real chain can have it."""
    return genesis_hash.lower().startswith(DEV_GENESIS_PREFIX)


class SubnetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One subnet as it is at genesis. Spans in blocks; a real chain's defaults differ where the comment gives them."""

    netuid: Annotated[int, Meta(ge=1, lt=4096)] = 1
    tempo: U16 = 20
    """Blocks per epoch (360)."""
    commit_reveal: bool = False
    """Weights are sealed and opened an epoch later (on)."""
    reveal_period: Annotated[int, Meta(ge=1, le=100)] = 1
    """Epochs between a sealed commit of weights and its opening."""
    weights_rate_limit: Whole = 0
    """Blocks between two weight settings of a hotkey, its registration included (100)."""
    min_allowed_weights: U16 = 1
    max_weights_limit: U16 = 0xFFFF
    weights_version: Whole = 0
    immunity_period: U16 = 4096
    max_uids: Annotated[int, Meta(ge=1, le=256)] = 256
    max_validators: Annotated[int, Meta(ge=1)] = 64
    """Permits handed out at each epoch, by stake."""
    burn: Whole = RAO // 10
    """Price of a registration in rao."""
    registration_allowed: bool = True
    owner: str = OWNER
    """SS58 of the owner's coldkey."""
    owner_hotkey: str = OWNER_HOTKEY
    """Registered as uid 0 when the subnet is made."""


class DevnetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a devnet is started with."""

    host: str = "127.0.0.1"
    """A loopback address; anything else is refused."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """0 = any free port."""
    control_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """Port of the control socket (JSON lines); None = none, 0 = any free port."""
    block_time: Positive = 0.5
    """Seconds per block. Clients read it as Aura's slot duration."""
    sealing: Literal["interval", "instant", "manual"] = "interval"
    """When blocks are made: every `block_time`; as soon as an extrinsic arrives (with the blocks that finalise it);
    or only when asked."""
    finality_lag: Whole = 2
    """Blocks between the head and the finalised block."""
    reveal_blocks: Annotated[int, Meta(ge=1)] = 4
    """Blocks between a sealed commitment and its opening, whatever round it was sealed to."""
    keep_blocks: Annotated[int, Meta(ge=1)] | None = None
    """State older than this many blocks is discarded, as a lite node does; None = keep all."""
    stake_threshold: Whole = 0
    """Stake in rao below which weights are refused."""
    pool_checks: bool = True
    """Refuse at the pool what is sure to fail (rate limit, stake, registration), as the chain does since its guards; off, the
    same errors come as failed extrinsics."""
    subnets: tuple[SubnetConfig, ...] = (SubnetConfig(),)
    endowed: dict[str, int] = {}
    """SS58 → rao at genesis, besides the owner's million TAO."""
    state: Path | None = None
    """Journal that the chain is kept in and comes back from; None = memory only."""
    log: Path | None = None
    """One JSON line per call is appended here."""

    def checked(self) -> DevnetConfig:
        """Itself. Raises ConfigError when it would listen beyond loopback, is out of bounds, or contradicts itself."""
        try:
            msgspec.convert(msgspec.to_builtins(self, enc_hook=str), DevnetConfig, dec_hook=lambda kind, value: kind(value))
        except msgspec.ValidationError as error:
            raise ConfigError(f"devnet cannot be started so: {error}") from error
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ConfigError(f"devnet listens on loopback only, and {self.host!r} is no loopback address; use 127.0.0.1 or ::1")
        netuids = [subnet.netuid for subnet in self.subnets]
        if len(set(netuids)) != len(netuids):
            raise ConfigError(f"a netuid is given twice: {netuids}")
        if self.block_time < 0.01:
            raise ConfigError(f"a block time of {self.block_time} s is too short; the least is 0.01")
        for who in (*self.endowed, *(key for subnet in self.subnets for key in (subnet.owner, subnet.owner_hotkey))):
            check_address(who)
        return self


def check_address(ss58: str) -> str:
    """The address itself. Raises ConfigError when it is none."""
    try:
        account(ss58)
    except ValueError as error:
        raise ConfigError(f"{ss58!r} is no SS58 address") from error
    return ss58
