"""What clients of a dev chain tell about their own seals: the plaintext of a ciphertext nobody could open offline.

The SDK seals weights to rounds of the wall clock, whose signatures do not exist yet. A client that finds itself on a dev
genesis therefore also calls `crusades_oracle(ciphertext, plaintext)`, both hex, the first being the ciphertext as it is
stored on chain or its SHA-256. The chain uses the plaintext when it opens the seal, and believes it: it cannot be checked.
The first answer for a ciphertext stands. It is kept in storage under a key of our own, so it survives what storage survives.
"""

from __future__ import annotations

import hashlib

from crusades.devnet.state import State

_PREFIX = b":crusades:oracle:"
_DIGEST = 32


def tell(state: State, ciphertext: bytes, plaintext: bytes) -> bool:
    """Remember; False when an answer is there already. Exactly 32 bytes are taken for a digest."""
    digest = ciphertext if len(ciphertext) == _DIGEST else hashlib.sha256(ciphertext).digest()
    key = _PREFIX + digest
    if state.storage.get(key) is not None:
        return False
    state.storage.put(key, plaintext)
    return True


def lookup(state: State, ciphertext: bytes) -> bytes | None:
    """The plaintext that was told for this ciphertext, if any."""
    return state.storage.get(_PREFIX + hashlib.sha256(ciphertext).digest())
