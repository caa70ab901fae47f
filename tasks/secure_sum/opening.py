"""Opening a certified sum from the shares of one complete active set; numpy and cryptography only.

The coordinator, every site and the auditor run the same code on the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from schemas.canonical import derive_digest
from schemas.errors import PeerError
from schemas.messages import Record, ShareRequest
from schemas.wire import NO_REFERENCE, Header, Kind, read_blob, unpack_residues
from tasks.secure_sum.bulk import SumSource, open_bulk
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.modular import Int64, UInt64, prime_field
from tasks.secure_sum.parameters import KEY_BOUND
from tasks.secure_sum.partial import combine_partials
from tasks.secure_sum.record import read_key_sum, share_bytes, verify_record_form, verify_request
from tasks.secure_sum.shamir import combine_shares
from tasks.secure_sum.transcript import packed_size, unpack_rows


def share_header(context: RoundContext, record_digest: str, active: list[str], holder: str) -> Header:
    """Returns the header of a share blob; its reference names record and set, so that a re-send is the same bytes."""
    p, i = context.parameters, context.instruction
    reference = derive_digest("share-reference", bytes.fromhex(record_digest), *active)
    counts = (len(p.data_primes), p.bulk_degree, p.bulk_degree)
    return Header(Kind.SHARE, i.sid_star, i.round, i.attempt, reference, holder, "", counts)


def share_blob_bytes(context: RoundContext, holder: str) -> int:
    """Returns the exact size of the blob with a decryption share, whatever the record and the active set."""
    return share_header(context, NO_REFERENCE, [], holder).blob_bytes(share_bytes(context))


def verify_share(context: RoundContext, record_digest: str, request: ShareRequest, holder: str, blob: bytes) -> None:
    """Verifies form and signature of one share blob; whether it opens shows only with the whole set.

    Raises:
        PeerError: a wire error naming the holder.
    """
    _read_share(context, record_digest, list(request.active_set), holder, blob)


def open_sum(
    context: RoundContext,
    record: Record,
    record_digest: str,
    request: ShareRequest,
    key_sum: bytes,
    bulk_sum: SumSource,
    shares: Mapping[str, bytes],
    bulk_digest: str | None = None,
) -> Int64:
    """Opens the exact integer sum as one int64 array of the instruction's length.

    Args:
        context: The round.
        record, record_digest: The certified record.
        request: The request whose active set answered.
        key_sum: Key-sum blob; its digest is in the record.
        bulk_sum: Bulk-sum blob: a file, a stream or bytes; read slab by slab.
        shares: Share blob of exactly the active set.
        bulk_digest: SHA-256 (hex) of the bulk sum, where it was signed; checked on the way.

    Raises:
        PeerError: `shares-incomplete`, `share-mismatch` naming the active set, `bulk-residual`, `bulk-sum` or a wire
            error.
        OperationError: `bulk-process`.
    """
    opened, done = np.empty(context.instruction.length, dtype=np.int64), 0
    for slab in open_slabs(context, record, record_digest, request, key_sum, bulk_sum, shares, bulk_digest):
        opened[done : done + slab.size] = slab
        done += slab.size
    return opened


def open_slabs(
    context: RoundContext,
    record: Record,
    record_digest: str,
    request: ShareRequest,
    key_sum: bytes,
    bulk_sum: SumSource,
    shares: Mapping[str, bytes],
    bulk_digest: str | None = None,
) -> Iterator[Int64]:
    """Yields what `open_sum` returns, slab by slab, in constant memory; believe nothing before the last slab came."""
    verify_record_form(context, record)
    key = open_key(context, record, record_digest, request, key_sum, shares)
    yield from open_bulk(context, key, bulk_sum, len(record.contributions), bulk_digest)


def open_key(
    context: RoundContext,
    record: Record,
    record_digest: str,
    request: ShareRequest,
    key_sum: bytes,
    shares: Mapping[str, bytes],
) -> Int64:
    """Opens the sum of the one-time keys: 2048 integers.

    Raises:
        PeerError: as `open_sum`.
    """
    active = verify_request(context, record_digest, request)
    if set(shares) != set(active):
        missing = sorted(set(active) - set(shares))
        raise PeerError("shares-incomplete", ",".join(missing) or context.coordinator, "its share is missing.")
    parts = {name: _read_share(context, record_digest, list(active), name, shares[name]) for name in active}
    ciphertext = read_key_sum(context, record, key_sum)
    field = prime_field(context.parameters.bulk_modulus)
    first = combine_partials(context.parameters, ciphertext[0], [part for part, _ in parts.values()])
    second = combine_shares(field, {active[name]: share.view(np.int64) for name, (_, share) in parts.items()})
    bound = KEY_BOUND * len(record.contributions)
    if first is None or int(np.abs(first).max()) > bound or int(np.abs(second).max()) > bound:
        raise PeerError(
            "share-mismatch",
            ",".join(active),
            "the shares of this active set do not open the record: a share or a contribution is wrong.",
            "Ask another active set.",
        )
    return first + second


def _read_share(
    context: RoundContext, record_digest: str, active: list[str], holder: str, blob: bytes
) -> tuple[UInt64, UInt64]:
    p = context.parameters
    header = share_header(context, record_digest, active, holder)
    body = read_blob(blob, header, share_bytes(context), context.public.signing_keys[holder], holder)
    split = packed_size(p.data_primes, p.bulk_degree)
    part = unpack_rows(body[:split], p.data_primes, p.bulk_degree, holder)
    return part, unpack_residues(body[split:], p.bulk_modulus, holder)
