"""A key holder's decryption share of a certified record, for one active set.

Invariant: a share depends only on the record and the set, so a re-send is the same bytes; it is made after the
certificate was checked, and a holder that lacks one share of the record answers nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from schemas.canonical import encode_parts
from schemas.errors import PeerError
from schemas.messages import Contribution, Record, ShareRequest
from schemas.wire import Kind, pack_residues, residue_width, write_blob
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.epoch import EpochSecrets
from tasks.secure_sum.modular import UInt64, prime_field
from tasks.secure_sum.opening import share_header
from tasks.secure_sum.partial import derive_partial
from tasks.secure_sum.record import (
    open_contributions,
    open_shamir_share,
    read_key_sum,
    verify_certificate,
    verify_epoch,
    verify_record_form,
    verify_request,
)
from tasks.secure_sum.transcript import pack_rows


def make_share(
    secrets: EpochSecrets,
    context: RoundContext,
    record: Record,
    record_digest: str,
    request: ShareRequest,
    certificate: Mapping[str, bytes],
    key_sum: bytes,
    envelopes: Mapping[str, bytes],
    shamir_blobs: Mapping[str, bytes],
) -> bytes:
    """Makes the share blob for the request's active set.

    Args:
        secrets: The holder's.
        context: The round.
        record, record_digest: The record this holder verified (`verify_record`) and the digest of its envelope.
        request: The coordinator's request; its set must contain this holder.
        certificate: RecordSignature envelope by holder.
        key_sum: The key-sum blob that `verify_record` returned.
        envelopes: Contribution envelope by sender of the record.
        shamir_blobs: What each sender of the record sealed for this holder.

    Raises:
        PeerError: no certificate, a wrong request, or `shamir-share` naming a sender whose share is missing.
    """
    verify_epoch(secrets, context)
    verify_record_form(context, record)
    active = verify_request(context, record_digest, request)
    if secrets.name not in active:
        raise PeerError("share-request", context.coordinator, "the active set does not contain this holder.")
    verify_certificate(context, record_digest, request, certificate)
    ciphertext = read_key_sum(context, record, key_sum)
    part = _derive_key_part(secrets, context, active, record_digest, ciphertext[1])
    shamir = _add_shamir(secrets, context, open_contributions(context, record, envelopes), shamir_blobs)
    p = context.parameters
    body = pack_rows(part, p.data_primes) + pack_residues(shamir, residue_width(p.bulk_modulus))
    header = share_header(context, record_digest, list(active), secrets.name)
    return write_blob(header, body, secrets.signing_key)


def share_label(context: RoundContext, record_digest: str) -> bytes:
    """Returns the PRF label of masks and smudging: session, round and record; the set is added by the PRF."""
    i = context.instruction
    return encode_parts(Kind.SHARE.name, bytes.fromhex(i.sid_star), i.round, bytes.fromhex(record_digest))


def _derive_key_part(
    secrets: EpochSecrets, context: RoundContext, active: Mapping[str, int], record_digest: str, ciphertext: UInt64
) -> UInt64:
    from tasks.secure_sum.ckks_seal import seal_half

    half = seal_half(context.parameters, context.public)
    label = share_label(context, record_digest)
    return derive_partial(context.parameters, secrets.keys, secrets.name, active, ciphertext, label, half.inverse)


def _add_shamir(
    secrets: EpochSecrets,
    context: RoundContext,
    contributions: Mapping[str, Contribution],
    blobs: Mapping[str, bytes],
) -> UInt64:
    field = prime_field(context.parameters.bulk_modulus)
    total = np.zeros(context.parameters.bulk_degree, dtype=np.int64)
    for sender in contributions:
        # Summing what arrived instead would open a sum over fewer keys, and so a key by subtraction.
        if sender not in blobs:
            raise PeerError("shamir-share", sender, "the share that it sealed for this holder is missing.")
        share = open_shamir_share(secrets, context, contributions[sender], blobs[sender])
        total = field.reduce(total + share.view(np.int64))
    return field.canonical(total)
