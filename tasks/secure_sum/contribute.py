"""A site's contribution: bulk under a one-time key, one half of the key under CKKS, the other in Shamir shares.

Invariant: one-time key, errors and polynomials are drawn once per attempt from the operating system; what was made is
stored and re-sent as bytes, never made again from a seed, and the same values are never encrypted under another sid*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.canonical import encode_parts, sha256_hex
from schemas.envelope import public_hex
from schemas.errors import PlanError
from schemas.wire import Kind, pack_residues, residue_width, write_blob
from tasks.hpke import seal
from tasks.secure_sum import ckks
from tasks.secure_sum.bulk import bulk_size, encrypt_bulk
from tasks.secure_sum.ceremony import SEALED_OVERHEAD
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.modular import Int64, UInt64, prime_field
from tasks.secure_sum.sampling import Stream, os_stream, sample_binomial
from tasks.secure_sum.shamir import generate_shares
from tasks.secure_sum.transcript import pack_rows


@dataclass(frozen=True)
class ContributionParts:
    """Everything that a site uploads besides the bulk file.

    Attributes:
        key_ciphertext: Blob of the CKKS half.
        shamir: Sealed blob for every key holder (the sender included, if it is one).
        bulk_root, bulk_bytes: Merkle root and size of the bulk file.
    """

    key_ciphertext: bytes
    shamir: dict[str, bytes]
    bulk_root: str
    bulk_bytes: int

    @property
    def key_digest(self) -> str:
        """SHA-256 of the key ciphertext, for the `Contribution` message."""
        return sha256_hex(self.key_ciphertext)

    @property
    def shamir_digests(self) -> tuple[tuple[str, str], ...]:
        """(holder, SHA-256) in name order, for the `Contribution` message."""
        return tuple((holder, sha256_hex(blob)) for holder, blob in sorted(self.shamir.items()))


def contribute(
    context: RoundContext,
    sender: str,
    values: Int64 | Iterable[Int64],
    signing_key: Ed25519PrivateKey,
    bulk_path: Path,
    insecure_randomness: Stream | None = None,
) -> ContributionParts:
    """Encrypts `values` and writes the bulk file.

    Args:
        context: The round; its public epoch was verified with every holder's transcript signature.
        sender: A participant.
        values: `length` int64 values, noise included, unclamped; one array or an iterable of arrays.
        signing_key: The sender's identity key.
        bulk_path: Where the bulk blob goes.
        insecure_randomness: Replaces the operating system's randomness in tests; SEAL keeps its own.

    Raises:
        PlanError: `not-a-participant` or `wrong-identity`.
        OperationError: `bulk-length` or `bulk-write`.
    """
    if sender not in context.instruction.participants:
        raise PlanError("not-a-participant", f"{sender} is not a participant of this instruction.")
    if public_hex(signing_key) != context.plan.site(sender).identity_key:
        raise PlanError("wrong-identity", f"The identity key of {sender} is not the one in the plan.")
    stream = insecure_randomness or os_stream()
    degree = context.parameters.bulk_degree
    first, second = sample_binomial(stream, degree), sample_binomial(stream, degree)
    root = encrypt_bulk(context, sender, first + second, values, signing_key, bulk_path, stream)
    return ContributionParts(
        key_ciphertext=_write_key(context, sender, _encrypt_key(context, first), signing_key),
        shamir=_seal_shares(context, sender, second, signing_key, stream),
        bulk_root=root,
        bulk_bytes=bulk_size(context, sender),
    )


def shamir_info(context: RoundContext, sender: str, recipient: str) -> bytes:
    """Returns what a sealed Shamir share is bound to; without it a replayed share would count as the replayer's."""
    i = context.instruction
    session, instruction = bytes.fromhex(i.sid_star), bytes.fromhex(context.instruction_digest)
    return encode_parts("sealed-shamir", session, i.round, i.attempt, instruction, sender, recipient)


def shamir_plain_bytes(context: RoundContext) -> int:
    """Returns the size of one Shamir share before sealing."""
    return context.parameters.bulk_degree * residue_width(context.parameters.bulk_modulus)


def _encrypt_key(context: RoundContext, key: Int64) -> UInt64:
    from tasks.secure_sum.ckks_seal import seal_half

    zero = seal_half(context.parameters, context.public).encrypt_zero()
    return np.stack([ckks.add(context.parameters, zero[0], ckks.encode_key(context.parameters, key)), zero[1]])


def _write_key(context: RoundContext, sender: str, ciphertext: UInt64, key: Ed25519PrivateKey) -> bytes:
    body = b"".join(pack_rows(part, context.parameters.data_primes) for part in ciphertext)
    return write_blob(context.header(Kind.KEY_CIPHERTEXT, sender, ciphertext.shape), body, key)


def _seal_shares(
    context: RoundContext, sender: str, secret: Int64, key: Ed25519PrivateKey, stream: Stream
) -> dict[str, bytes]:
    p = context.parameters
    field = prime_field(p.bulk_modulus)
    shares = generate_shares(field, secret, p.threshold, p.key_holders, stream)
    sealed = {}
    for holder, share in zip(context.points, shares, strict=True):
        plain = pack_residues(share.view(np.uint64), residue_width(p.bulk_modulus))
        body = seal(context.public.hpke_keys[holder], shamir_info(context, sender, holder), plain)
        header = context.header(Kind.SEALED_SHAMIR, sender, (len(plain) + SEALED_OVERHEAD,), holder)
        sealed[holder] = write_blob(header, body, key)
    return sealed
