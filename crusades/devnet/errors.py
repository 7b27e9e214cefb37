"""What the chain says no with. None of these leaves the devnet: they become JSON-RPC errors or failed extrinsics."""

from __future__ import annotations

from typing import Any


class RpcError(Exception):
    """Answered as a JSON-RPC error, spelt as a substrate node does."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message}: {data}" if data is not None else message)
        self.code = code
        self.message = message
        self.data = data

    def json(self) -> dict[str, Any]:
        """The `error` member."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        return body if self.data is None else {**body, "data": self.data}


class Invalid(RpcError):
    """The pool refuses an extrinsic (InvalidTransaction)."""

    def __init__(self, why: str) -> None:
        super().__init__(1010, "Invalid Transaction", why)

    @classmethod
    def custom(cls, number: int) -> Invalid:
        """InvalidTransaction::Custom, by which the chain's own guards refuse (`CUSTOM_ERRORS`)."""
        return cls(f"Custom error: {number}")


CUSTOM_ERRORS = {
    "NotEnoughStakeToSetWeights": 1,
    "SubnetNotExists": 3,
    "CommittingWeightsTooFast": 6,
    "SettingWeightsTooFast": 6,
    "InvalidRevealRound": 15,
    "HotKeyNotRegisteredInSubNet": 19,
}
"""Module error → number it has when the pool refuses for it (subtensor's CustomTransactionError)."""


class DispatchFailed(Exception):
    """A call fails with a module error: the extrinsic is in the block, has no effect, and says so in its events."""

    def __init__(self, name: str, pallet: str = "SubtensorModule") -> None:
        super().__init__(f"{pallet}.{name}")
        self.pallet = pallet
        self.name = name


def unknown_block(block_hash: str) -> RpcError:
    """No such block here."""
    return RpcError(4003, f"Client error: UnknownBlock: Header was not found in the database: {block_hash}")


def discarded(block_hash: str) -> RpcError:
    """The block is known, its state is not kept any more."""
    return RpcError(4003, f"Client error: UnknownBlock: State already discarded for {block_hash}")
