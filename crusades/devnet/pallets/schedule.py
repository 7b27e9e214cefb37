"""When epochs happen: stateful, from the block of the last one, as the chain has it now."""

from __future__ import annotations

from crusades.devnet.pallets.env import Env


def epoch_index(env: Env, netuid: int) -> int:
    """How many epochs the subnet has had."""
    return int(env.get("SubnetEpochIndex", netuid))


def is_due(env: Env, netuid: int) -> bool:
    """Whether an epoch fires in this block: `tempo` blocks after the last, or when its owner has asked for one."""
    tempo = int(env.get("Tempo", netuid))
    if not tempo:
        return False
    pending = int(env.get("PendingEpochAt", netuid))
    if pending and env.block >= pending:
        return True
    return int(env.get("BlocksSinceLastStep", netuid)) > tempo or env.block - int(env.get("LastEpochBlock", netuid)) >= tempo


def next_start(tempo: int, last: int, pending: int) -> int | None:
    """Block at which the next epoch fires, None for a subnet without tempo (runtime API get_next_epoch_start_block)."""
    if not tempo:
        return None
    return min(last + tempo, pending) if pending else last + tempo
