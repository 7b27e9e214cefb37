"""A local stand-in for a subtensor node, for the demo and for tests. It is no real chain.

It speaks JSON-RPC over a websocket with the metadata of a real node, so the unmodified bittensor SDK talks to it, and what
signs, seals, commits and sets weights in the demo is the code that does so on a real network. It checks signatures, nonces
and eras, keeps blocks with finality, storage with its past, events and epochs, and obeys the rules that a validator and a
miner meet: commitments and their quota, weights plain and sealed, rate limits, permits, registration.

Two things differ, because nobody can know a future signature of the randomness beacon without a network, and clients must
know of them (they can tell by the genesis hash, `is_dev_genesis`):

- Commitments are sealed to a past round (`drand.SEAL_ROUND`) and opened `reveal_blocks` after the commit, whatever the round.
- Weights, which the SDK seals to rounds of the wall clock, are opened with the plaintext that the client tells by the call
  `crusades_oracle` (`oracle`); or by decryption, when they were sealed to a past round.

    state, registry, metadata    storage with history, over the SDK's own codec
    extrinsic, pool, blocks      what comes in, waits, and is written down
    pallets/, runtime            what calls do, and what every block does
    chain                        all of that under one lock, without I/O
    apis, rpc                    what clients may ask
    server, net, control         websocket and clock in a thread; the handle; a socket to steer by
    faults, journal, calls       misbehaviour on demand; state on disk; the log of calls

Left out: pools, prices and staking, root, children, proxies, EVM, the MEV shield (so registration goes by
`submit_call(burned_register)` or the helpers, not by the SDK's intent, which insists on the shield), and Yuma consensus.
docs/devnet.md has the flags, the commands of the control socket, and the faults.

Run it with `python -m crusades.devnet`, or in process with `open_devnet` (trio) or `run_devnet`.
"""

from crusades.devnet.config import DEFAULT_PORT, DEV_GENESIS_PREFIX, OWNER, OWNER_HOTKEY, DevnetConfig, SubnetConfig, is_dev_genesis
from crusades.devnet.net import Devnet, open_devnet, run_devnet

__all__ = [
    "DEFAULT_PORT",
    "DEV_GENESIS_PREFIX",
    "OWNER",
    "OWNER_HOTKEY",
    "Devnet",
    "DevnetConfig",
    "SubnetConfig",
    "is_dev_genesis",
    "open_devnet",
    "run_devnet",
]
