"""The randomness beacon's past: three genuine quicknet signatures, with which seals to those rounds open offline.

Nobody can know a future signature, so on the dev chain clients seal to `SEAL_ROUND` and the chain opens the seal
`reveal_blocks` after the commit, whatever the round. What is opened is opened by really decrypting.
"""

from __future__ import annotations

import struct

import bittensor_core as core  # type: ignore[import-untyped]  # a compiled module without stubs

from crusades.devnet.scale import compact

SIGNATURES = {
    1: "b55e7cb2d5c613ee0b2e28d6750aabbb78c39dcc96bd9d38c2c2e12198df95571de8e8e402a0cc48871c7089a2b3af4b",
    123: "b75c69d0b72a5d906e854e808ba7e2accb1542ac355ae486d591aa9d43765482e26cd02df835d3546d23c4b13e0dfc92",
    1000: "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39",
}
"""Round → signature, hex. All three are checked by a test that decrypts with them."""

SEAL_ROUND = 1000
"""The round that dev clients seal to."""

_TRAILER = b"AES_GCM_"


class OpenFailed(Exception):
    """A ciphertext cannot be opened; `kind` is the variant of pallet-commitments' RevealFailure."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def seal(plaintext: bytes, reveal_round: int = SEAL_ROUND) -> bytes:
    """The inner ciphertext, as a TimelockEncrypted field holds it."""
    envelope, _ = core.encrypt_at_round(plaintext, reveal_round)
    return bytes(core.inner_ciphertext(bytes(envelope)))


def unseal(ciphertext: bytes, reveal_round: int) -> bytes:
    """The plaintext of an inner ciphertext (or of a whole envelope) sealed to a round of `SIGNATURES`.

    Raises OpenFailed when the bytes are no ciphertext, belong to another round, or hold nothing; KeyError for a round
    that is not carried.
    """
    signature = SIGNATURES[reveal_round]
    envelope = ciphertext
    if ciphertext[-16:-8] != _TRAILER:
        envelope = compact(len(ciphertext)) + ciphertext + struct.pack("<Q", reveal_round)
    try:
        plaintext = bytes(core.decrypt_with_signature(envelope, signature))
    except ValueError as error:
        raise OpenFailed("CiphertextDeserialize" if "deserializing" in str(error) else "Decrypt", str(error)) from error
    if not plaintext:
        raise OpenFailed("EmptyPlaintext", "the ciphertext holds no bytes")
    return plaintext
