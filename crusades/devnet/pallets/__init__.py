"""The pallets: what calls do to storage, one module per concern, all over one `Env`.

Rules and their order follow the sources of subtensor (pallets/subtensor, pallets/commitments, spec 425 to 461). Left out is
what no validator and no miner of a compute subnet meets: pools and prices, root, children, proxies, EVM, crowdloans. Stake is
a number per hotkey, and consensus is the plain stake-weighted mean.
"""

from crusades.devnet.pallets import balances, commitments, registration, serving, weights
from crusades.devnet.pallets.env import CALLS, Call, Env

__all__ = ["CALLS", "Call", "Env", "balances", "commitments", "registration", "serving", "weights"]
