"""What a key ceremony leaves behind: the public epoch, which anybody derives, and each holder's secrets.

Invariant: secrets live in one folder that no backup holds; they are written once, by their own strict encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.canonical import Digest, Name, Strict, canonical_bytes, parse_canonical
from schemas.errors import EvidenceError, OperationError
from schemas.plan import Agreement
from tasks.hpke import HpkeKey, load_hpke_key
from tasks.secure_sum.modular import UInt64
from tasks.secure_sum.parameters import DATA_PRIMES, RING_DEGREE
from tasks.secure_sum.partial import ShareKeys


@dataclass(frozen=True)
class EpochPublic:
    """Public result of a verified ceremony.

    Attributes:
        study, epoch, sid, transcript, sid_star: What it belongs to.
        public_key: (2, 4, N) residues (b, a) of the collective key, in SEAL's transformed order.
        signing_keys: Epoch Ed25519 key of each holder, hex.
        hpke_keys: Epoch HPKE key of each holder, hex.
    """

    study: str
    epoch: int
    sid: str
    transcript: str
    sid_star: str
    public_key: UInt64 = field(repr=False, compare=False)
    signing_keys: Mapping[str, str] = field(repr=False)
    hpke_keys: Mapping[str, str] = field(repr=False)


def holder_points(plan: Agreement) -> dict[str, int]:
    """Returns the sharing point of every key holder: its 1-based position in name order."""
    return {site.name: index for index, site in enumerate(plan.key_holders, 1)}


class _StoredSecrets(Strict):
    format: Literal["consilium/epoch-secrets/1"]
    name: Name
    epoch: int
    sid_star: Digest
    transcript: Digest
    sigma: str
    sent: tuple[tuple[Name, str], ...]
    received: tuple[tuple[Name, str], ...]
    noise: str
    signing: str
    hpke: str


@dataclass(frozen=True)
class EpochSecrets:
    """One holder's secrets of one epoch; `repr` shows none of them."""

    name: str
    epoch: int
    sid_star: str
    transcript: str
    keys: ShareKeys = field(repr=False)
    signing_key: Ed25519PrivateKey = field(repr=False)
    hpke_key: HpkeKey = field(repr=False)

    def to_bytes(self) -> bytes:
        """Returns the canonical encoding, secret."""
        return canonical_bytes(
            _StoredSecrets(
                format="consilium/epoch-secrets/1",
                name=self.name,
                epoch=self.epoch,
                sid_star=self.sid_star,
                transcript=self.transcript,
                sigma=self.keys.sigma.astype("<u8").tobytes().hex(),
                sent=tuple((name, key.hex()) for name, key in sorted(self.keys.sent.items())),
                received=tuple((name, key.hex()) for name, key in sorted(self.keys.received.items())),
                noise=self.keys.noise.hex(),
                signing=self.signing_key.private_bytes_raw().hex(),
                hpke=self.hpke_key.to_bytes().hex(),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> EpochSecrets:
        """Rebuilds secrets from `to_bytes`.

        Raises:
            OperationError: `epoch-secrets-unreadable`; the message quotes nothing of the bytes.
        """
        try:
            stored = parse_canonical(_StoredSecrets, data, "the epoch secrets")
            sigma = np.frombuffer(bytes.fromhex(stored.sigma), dtype="<u8").reshape(len(DATA_PRIMES), RING_DEGREE)
            return cls(
                name=stored.name,
                epoch=stored.epoch,
                sid_star=stored.sid_star,
                transcript=stored.transcript,
                keys=ShareKeys(
                    sigma=sigma.astype(np.uint64),
                    sent={name: bytes.fromhex(key) for name, key in stored.sent},
                    received={name: bytes.fromhex(key) for name, key in stored.received},
                    noise=bytes.fromhex(stored.noise),
                ),
                signing_key=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(stored.signing)),
                hpke_key=load_hpke_key(bytes.fromhex(stored.hpke)),
            )
        except (EvidenceError, ValueError):
            raise OperationError(
                "epoch-secrets-unreadable",
                "Expected the secrets of one epoch.",
                "A new ceremony replaces them; rounds of the old epoch can no longer be opened by this site.",
            ) from None
