"""Axons."""

from __future__ import annotations

from crusades.devnet.errors import DispatchFailed
from crusades.devnet.extrinsic import Extrinsic
from crusades.devnet.pallets import neurons
from crusades.devnet.pallets.env import Env, call

_FIELDS = ("version", "ip", "port", "ip_type", "protocol", "placeholder1", "placeholder2")


@call("SubtensorModule.serve_axon", pays_fee=False)
def serve_axon(env: Env, extrinsic: Extrinsic) -> None:
    """Announce where a neuron can be reached."""
    args, netuid = extrinsic.args, int(extrinsic.args["netuid"])
    if neurons.uid_of(env, netuid, extrinsic.signer) is None:
        raise DispatchFailed("HotKeyNotRegisteredInNetwork")
    if args["ip_type"] not in (4, 6):
        raise DispatchFailed("InvalidIpType")
    if not args["port"]:
        raise DispatchFailed("InvalidPort")
    env.put("Axons", netuid, extrinsic.signer, value={"block": env.block, **{name: args[name] for name in _FIELDS}})
    env.deposit("SubtensorModule", "AxonServed", [netuid, extrinsic.signer])
