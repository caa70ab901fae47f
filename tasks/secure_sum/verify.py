"""Recomputing one published round from public bytes alone, for the auditor and for any site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.canonical import sha256_hex
from schemas.envelope import envelope_digest, open_envelope
from schemas.errors import PeerError
from schemas.messages import DecryptionShare, Opening, Record, ShareRequest
from tasks.secure_sum.bulk import add_bulk
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.modular import Int64
from tasks.secure_sum.opening import open_sum, result_digest
from tasks.secure_sum.record import verify_certificate, verify_record_public


@dataclass(frozen=True)
class PublishedRound:
    """Everything public of one opened round, as bytes.

    Attributes:
        record, request, opening: Envelopes of the coordinator.
        contributions, key_blobs, bulk: By contributor of the record: envelope, key.bin, bulk.bin (path or bytes).
        certificate: RecordSignature envelope by holder.
        share_messages, shares: By holder of the active set: DecryptionShare envelope, share blob.
        bulk_sum: The published sum blob, or None if only its digest is to be checked.
    """

    record: bytes
    request: bytes
    opening: bytes
    contributions: Mapping[str, bytes]
    key_blobs: Mapping[str, bytes]
    bulk: Mapping[str, Path | bytes]
    certificate: Mapping[str, bytes]
    share_messages: Mapping[str, bytes]
    shares: Mapping[str, bytes]
    bulk_sum: Path | bytes


def verify_round(context: RoundContext, published: PublishedRound) -> Int64:
    """Recomputes a round: record, certificate, key sum, bulk sum, shares and opening; returns the opened integers.

    Raises:
        PeerError: the first rule that is broken, naming who broke it.
    """
    plan, peer = context.plan, context.coordinator
    key = plan.coordinator.identity_key
    record = open_envelope(Record, published.record, plan.study, key, peer)
    request = open_envelope(ShareRequest, published.request, plan.study, key, peer)
    opening = open_envelope(Opening, published.opening, plan.study, key, peer)
    record_digest, request_digest = envelope_digest(published.record), envelope_digest(published.request)
    contributions, key_sum = verify_record_public(context, record, published.contributions, published.key_blobs)
    verify_certificate(context, record_digest, request, published.certificate)
    bulk = {sender: (contributions[sender], published.bulk[sender]) for sender in contributions}
    _verify_statement(context, opening, record_digest, request_digest)
    if not add_bulk(context, bulk, None) == opening.bulk_sum == _digest_of(published.bulk_sum):
        raise PeerError("opening-bulk", peer, "the published bulk sum is not the sum of the bulk contributions.")
    _verify_share_messages(context, opening, published)
    values = open_sum(context, record, record_digest, request, key_sum.blob, published.bulk_sum, published.shares)
    if result_digest(values) != opening.result:
        raise PeerError("opening-result", peer, "the published result is not what the shares open.")
    return values


def _verify_statement(context: RoundContext, opening: Opening, record_digest: str, request_digest: str) -> None:
    i = context.instruction
    stated = (opening.sid_star, opening.round, opening.attempt, opening.record, opening.request)
    if stated != (i.sid_star, i.round, i.attempt, record_digest, request_digest):
        raise PeerError("opening-mismatch", context.coordinator, "the opening is about another record or request.")


def _verify_share_messages(context: RoundContext, opening: Opening, published: PublishedRound) -> None:
    i = context.instruction
    if [name for name, _ in opening.shares] != sorted(published.share_messages):
        raise PeerError("opening-shares", context.coordinator, "the opening names other shares than were published.")
    for holder, digest in opening.shares:
        data = published.share_messages[holder]
        if envelope_digest(data) != digest or holder not in context.points:
            raise PeerError("opening-shares", context.coordinator, f"the share message of {holder} differs.")
        message = open_envelope(DecryptionShare, data, context.plan.study, context.public.signing_keys[holder], holder)
        stated = (message.sid_star, message.round, message.holder, message.record, message.request, message.share)
        share = sha256_hex(published.shares.get(holder, b""))
        if stated != (i.sid_star, i.round, holder, opening.record, opening.request, share):
            raise PeerError("opening-shares", holder, "its share message is about another share.")


def _digest_of(source: Path | bytes) -> str:
    return sha256_hex(source if isinstance(source, bytes) else source.read_bytes())
