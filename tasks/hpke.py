"""Hybrid HPKE keys (MLKEM768-X25519): generation, raw encodings, sealing with everything bound in `info`.

`Suite.encrypt` takes no associated data, so each caller binds label, ids, sender and recipient in `info`
(`schemas.canonical.encode_parts`): a replayed ciphertext then fails to open under any other context.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

MLKEM_PUBLIC_BYTES = 1184
PUBLIC_BYTES = MLKEM_PUBLIC_BYTES + 32
PRIVATE_BYTES = 64 + 32
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


@dataclass(frozen=True)
class HpkeKey:
    """A hybrid private key; `repr` shows nothing of it."""

    mlkem: MLKEM768PrivateKey
    x25519: X25519PrivateKey

    @property
    def public_hex(self) -> str:
        """Raw public key (ML-KEM then X25519, 1216 bytes) in hex."""
        return (self.mlkem.public_key().public_bytes_raw() + self.x25519.public_key().public_bytes_raw()).hex()

    def to_bytes(self) -> bytes:
        """Returns ML-KEM seed and X25519 scalar, 96 secret bytes."""
        return self.mlkem.private_bytes_raw() + self.x25519.private_bytes_raw()

    def __repr__(self) -> str:
        return "HpkeKey(…)"


def generate_hpke_key() -> HpkeKey:
    """Generates a fresh hybrid key from the operating system's randomness."""
    return HpkeKey(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())


def load_hpke_key(secret: bytes) -> HpkeKey:
    """Rebuilds a key from `HpkeKey.to_bytes`.

    Raises:
        ValueError: wrong length.
    """
    if len(secret) != PRIVATE_BYTES:
        raise ValueError("wrong length of an HPKE private key")
    return HpkeKey(MLKEM768PrivateKey.from_seed_bytes(secret[:64]), X25519PrivateKey.from_private_bytes(secret[64:]))


def seal(recipient_hex: str, info: bytes, plaintext: bytes) -> bytes:
    """Encrypts `plaintext` to the raw public key `recipient_hex`, bound to `info`.

    Raises:
        ValueError: the recipient's key is malformed.
    """
    raw = bytes.fromhex(recipient_hex)
    if len(raw) != PUBLIC_BYTES:
        raise ValueError("wrong length of an HPKE public key")
    key = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(raw[:MLKEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(raw[MLKEM_PUBLIC_BYTES:]),
    )
    return _SUITE.encrypt(plaintext, key, info=info)


def unseal(key: HpkeKey, info: bytes, ciphertext: bytes) -> bytes | None:
    """Opens a sealed message; None if it was not made for this key and `info`."""
    try:
        return _SUITE.decrypt(ciphertext, MLKEM768X25519PrivateKey(key.mlkem, key.x25519), info=info)
    except (InvalidTag, ValueError):
        return None
