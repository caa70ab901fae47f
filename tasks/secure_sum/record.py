"""Checks on contributions, on the record that a coordinator proposes, and on the certificate of its signatures.

Invariant: what a key holder signs, it recomputed: it re-adds all key ciphertexts, opens every Shamir share addressed to
it, and finds its own contribution unaltered. No share leaves before Q holders signed the same record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from schemas.canonical import sha256_hex
from schemas.envelope import envelope_digest, open_envelope
from schemas.errors import PeerError
from schemas.messages import Contribution, Record, RecordSignature, ShareRequest
from schemas.wire import Header, Kind, hash_blob, read_blob, residue_width, unpack_residues, write_blob
from tasks.hpke import unseal
from tasks.secure_sum import ckks
from tasks.secure_sum.bulk import bulk_size
from tasks.secure_sum.ceremony import SEALED_OVERHEAD
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.contribute import shamir_info, shamir_plain_bytes
from tasks.secure_sum.epoch import EpochSecrets
from tasks.secure_sum.modular import UInt64
from tasks.secure_sum.transcript import pack_rows, packed_size, unpack_rows


@dataclass(frozen=True)
class KeySum:
    """The sum of the key ciphertexts: its blob, and D, the blob's digest."""

    blob: bytes
    digest: str


class _AddedInputs(NamedTuple):
    """Everything that a key sum depends on: the round, and the digest of each summand."""

    study: str
    instruction: str
    sid_star: str
    round: int
    attempt: int
    summands: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, context: RoundContext, contributions: Mapping[str, Contribution]) -> _AddedInputs:
        summands = tuple((sender, contributions[sender].key_ciphertext) for sender in sorted(contributions))
        i = context.instruction
        return cls(context.plan.study, context.instruction_digest, i.sid_star, i.round, i.attempt, summands)


# The sum that this process computed last. A holder adds the same ciphertexts when it certifies and when it shares; the
# digests of the blobs it is given are taken again each time, so that it never speaks of bytes it was not given.
_ADDED: dict[_AddedInputs, KeySum] = {}


def verify_contribution(context: RoundContext, envelope: bytes, sender: str) -> Contribution:
    """Opens a contribution and refuses one that does not answer exactly this instruction.

    Raises:
        PeerError: a broken envelope, or `contribution-mismatch`, naming the sender.
    """
    if sender not in context.instruction.participants:
        raise PeerError("contribution-mismatch", sender, "it is not a participant of this instruction.")
    key = context.plan.site(sender).identity_key
    message = open_envelope(Contribution, envelope, context.plan.study, key, sender)
    i = context.instruction
    expected = (i.sid_star, i.round, i.attempt, context.instruction_digest, sender, bulk_size(context, sender))
    got = (message.sid_star, message.round, message.attempt, message.instruction, message.sender, message.bulk_bytes)
    if got != expected or [holder for holder, _ in message.shamir] != list(context.points):
        raise PeerError("contribution-mismatch", sender, "its contribution does not answer this instruction.")
    return message


def verify_key_ciphertext(context: RoundContext, contribution: Contribution, blob: bytes) -> None:
    """Verifies the key-ciphertext blob that a contribution names.

    Raises:
        PeerError: `contribution-digest` or a wire error, naming the sender.
    """
    _read_key(context, contribution, blob)


def verify_shamir_blob(context: RoundContext, contribution: Contribution, holder: str, blob: bytes) -> bytes:
    """Verifies form, digest and signature of a sealed Shamir share and returns the sealed bytes.

    Raises:
        PeerError: `contribution-digest` or a wire error, naming the sender.
    """
    sender = contribution.sender
    if sha256_hex(blob) != dict(contribution.shamir)[holder]:
        raise PeerError("contribution-digest", sender, "a sealed share is not the one that its contribution names.")
    header, size = _sealed_form(context, sender, holder)
    return bytes(read_blob(blob, header, size, context.plan.site(sender).identity_key, sender))


def open_shamir_share(secrets: EpochSecrets, context: RoundContext, contribution: Contribution, blob: bytes) -> UInt64:
    """Opens the Shamir share addressed to this holder: 2048 residues modulo q.

    Raises:
        PeerError: `shamir-share`, `contribution-digest` or a wire error, naming the sender.
    """
    sender = contribution.sender
    sealed = verify_shamir_blob(context, contribution, secrets.name, blob)
    plain = unseal(secrets.hpke_key, shamir_info(context, sender, secrets.name), sealed)
    if plain is None or len(plain) != shamir_plain_bytes(context):
        raise PeerError("shamir-share", sender, "the share that it sealed for this holder does not open.")
    return unpack_residues(plain, context.parameters.bulk_modulus, sender)


def find_shamir_faults(
    secrets: EpochSecrets,
    context: RoundContext,
    contributions: Mapping[str, Contribution],
    blobs: Mapping[str, bytes],
) -> tuple[str, ...]:
    """Returns the senders whose sealed share is missing, does not open or does not parse, in name order."""
    faulty = []
    for sender in sorted(contributions):
        try:
            open_shamir_share(secrets, context, contributions[sender], blobs.get(sender, b""))
        except PeerError:
            faulty.append(sender)
    return tuple(faulty)


def add_key_ciphertexts(
    context: RoundContext, contributions: Mapping[str, Contribution], blobs: Mapping[str, bytes]
) -> KeySum:
    """Adds the verified key ciphertexts; the result depends only on the set of contributions.

    Args:
        context: The round.
        contributions: Exactly the senders to add.
        blobs: Key-ciphertext blob by sender; may be a lazy mapping, one blob is held at a time.

    Raises:
        PeerError: `duplicate-key-ciphertext`, `contribution-digest` or a wire error.
    """
    inputs = _AddedInputs.of(context, contributions)
    known = _ADDED.get(inputs)
    if known is not None and all(sha256_hex(blobs.get(sender, b"")) == digest for sender, digest in inputs.summands):
        return known
    p = context.parameters
    total = np.zeros((2, len(p.data_primes), p.ring_degree), dtype=np.uint64)
    seen: dict[bytes, list[str]] = {}
    for sender in sorted(contributions):
        body, ciphertext = _read_key(context, contributions[sender], blobs.get(sender, b""))
        # Independent ciphertexts do not begin alike: only those that do are compared whole.
        alike = seen.setdefault(bytes(body[:64]), [])
        for other in alike:
            if _read_key(context, contributions[other], blobs.get(other, b""))[0] == body:
                raise PeerError("duplicate-key-ciphertext", f"{other},{sender}", "two key ciphertexts are the same.")
        alike.append(sender)
        total = ckks.add(p, total, ciphertext)
    header = context.header(Kind.KEY_SUM, "", total.shape)
    blob = write_blob(header, b"".join(pack_rows(part, p.data_primes) for part in total), None)
    added = KeySum(blob, sha256_hex(blob))
    _ADDED.clear()
    _ADDED[inputs] = added
    return added


def read_key_sum(context: RoundContext, record: Record, blob: bytes) -> UInt64:
    """Returns (c_0, c_1) of the key sum that a record names by digest.

    Raises:
        PeerError: `key-sum` or a wire error, naming the coordinator.
    """
    if sha256_hex(blob) != record.key_sum:
        raise PeerError("key-sum", context.coordinator, "the key sum is not the one that the record names.")
    header = _key_sum_header(context)
    return _unpack_key(context, read_blob(blob, header, _key_bytes(context), None, context.coordinator))


def verify_record_form(context: RoundContext, record: Record) -> None:
    """Checks a record by itself: it belongs to this instruction and accounts for every participant once.

    Raises:
        PeerError: `record-mismatch`, `record-participants` or `below-k-min`, naming the coordinator.
    """
    i, peer = context.instruction, context.coordinator
    expected = (i.sid_star, i.epoch, i.round, i.attempt, context.instruction_digest)
    if (record.sid_star, record.epoch, record.round, record.attempt, record.instruction) != expected:
        raise PeerError("record-mismatch", peer, "the record does not belong to this instruction.")
    summed = [name for name, _ in record.contributions]
    dropped = [name for name, _ in record.dropped]
    ordered = summed == sorted(set(summed)) and dropped == sorted(set(dropped))
    if not ordered or sorted(summed + dropped) != list(i.participants):
        raise PeerError("record-participants", peer, "the record does not list every participant exactly once.")
    if len(summed) < context.plan.threshold.k_min:
        raise PeerError("below-k-min", peer, "the record sums fewer contributions than k_min.")


def open_contributions(
    context: RoundContext, record: Record, envelopes: Mapping[str, bytes]
) -> dict[str, Contribution]:
    """Returns exactly the contributions of a record, each verified against its digest there.

    Raises:
        PeerError: `record-contribution` naming the coordinator, or as `verify_contribution`.
    """
    opened = {}
    for sender, digest in record.contributions:
        data = envelopes.get(sender, b"")
        if envelope_digest(data) != digest:
            raise PeerError("record-contribution", context.coordinator, f"the contribution of {sender} differs.")
        opened[sender] = verify_contribution(context, data, sender)
    return opened


def verify_record_public(
    context: RoundContext, record: Record, envelopes: Mapping[str, bytes], key_blobs: Mapping[str, bytes]
) -> tuple[dict[str, Contribution], KeySum]:
    """Checks everything about a record that needs no secret, and re-adds the key ciphertexts.

    Args:
        context: The round.
        record: The proposed record.
        envelopes: Contribution envelope by sender.
        key_blobs: Key-ciphertext blob by sender.

    Returns:
        The verified contributions of the record and the key sum.

    Raises:
        PeerError: the first rule that is broken.
    """
    verify_record_form(context, record)
    contributions = open_contributions(context, record, envelopes)
    total = add_key_ciphertexts(context, contributions, key_blobs)
    if total.digest != record.key_sum:
        raise PeerError("key-sum", context.coordinator, "the record names another sum of the key ciphertexts.")
    return contributions, total


def verify_record(
    secrets: EpochSecrets,
    context: RoundContext,
    record: Record,
    envelopes: Mapping[str, bytes],
    key_blobs: Mapping[str, bytes],
    shamir_blobs: Mapping[str, bytes],
    own_contribution: bytes | None,
) -> KeySum:
    """Checks a record as a key holder must before it signs.

    Args:
        secrets: The holder's.
        context: The round, from the holder's own copy of the instruction.
        record: The proposed record.
        envelopes, key_blobs: As `verify_record_public`.
        shamir_blobs: What each sender sealed for this holder.
        own_contribution: The envelope that this holder stored before it uploaded, or None if it did not contribute.

    Returns:
        The key sum, to be kept for the share.

    Raises:
        PeerError: the first rule that is broken; `own-contribution` if this holder's entry is not what it stored.
    """
    verify_epoch(secrets, context)
    listed = dict(record.contributions).get(secrets.name)
    if listed is not None and (own_contribution is None or envelope_digest(own_contribution) != listed):
        raise PeerError("own-contribution", context.coordinator, "the record lists another contribution of this site.")
    contributions, total = verify_record_public(context, record, envelopes, key_blobs)
    faults = find_shamir_faults(secrets, context, contributions, shamir_blobs)
    if faults:
        raise PeerError("shamir-share", ",".join(faults), "a sealed share of the record does not open.")
    return total


def verify_certificate(
    context: RoundContext, record_digest: str, request: ShareRequest, certificate: Mapping[str, bytes]
) -> None:
    """Checks that Q distinct key holders signed this record and that the request names exactly those signatures.

    Args:
        context: The round.
        record_digest: Envelope digest of the record.
        request: The share request.
        certificate: RecordSignature envelope by holder.

    Raises:
        PeerError: `certificate`, naming the coordinator, or the holder whose signature is wrong.
    """
    peer = context.coordinator
    named = [name for name, _ in request.certificate]
    if named != sorted(set(named)) or not set(named) <= set(context.points):
        raise PeerError("certificate", peer, "the certificate must name distinct key holders in name order.")
    if len(named) < context.plan.threshold.certificate_quorum:
        raise PeerError("certificate", peer, "the certificate has fewer signatures than the quorum Q.")
    i = context.instruction
    for holder, digest in request.certificate:
        data = certificate.get(holder, b"")
        if envelope_digest(data) != digest:
            raise PeerError("certificate", peer, f"the signature of {holder} is not the one that the request names.")
        key = context.public.signing_keys[holder]
        message = open_envelope(RecordSignature, data, context.plan.study, key, holder)
        signed = (message.sid_star, message.round, message.holder, message.record)
        if signed != (i.sid_star, i.round, holder, record_digest):
            raise PeerError("certificate", holder, "its signature is for another record.")


def verify_request(context: RoundContext, record_digest: str, request: ShareRequest) -> dict[str, int]:
    """Checks a share request by itself and returns its active set: holder to point.

    Raises:
        PeerError: `share-request`, naming the coordinator.
    """
    i, peer = context.instruction, context.coordinator
    if (request.sid_star, request.round, request.record) != (i.sid_star, i.round, record_digest):
        raise PeerError("share-request", peer, "the request is for another record.")
    active = list(request.active_set)
    if active != sorted(set(active)) or not set(active) <= set(context.points):
        raise PeerError("share-request", peer, "the active set must be distinct key holders in name order.")
    if len(active) != context.plan.threshold.t:
        raise PeerError("share-request", peer, "the active set does not have exactly t holders.")
    return {name: context.points[name] for name in active}


def verify_epoch(secrets: EpochSecrets, context: RoundContext) -> None:
    """Refuses secrets of another epoch.

    Raises:
        PeerError: `wrong-epoch`, naming the coordinator.
    """
    if (secrets.sid_star, secrets.epoch) != (context.public.sid_star, context.public.epoch):
        raise PeerError("wrong-epoch", context.coordinator, "this holder's secrets belong to another epoch.")


def key_ciphertext_bytes(context: RoundContext, sender: str) -> int:
    """Returns the exact size of a key-ciphertext blob."""
    return context.header(Kind.KEY_CIPHERTEXT, sender, _key_shape(context)).blob_bytes(_key_bytes(context))


def sealed_shamir_bytes(context: RoundContext, sender: str, holder: str) -> int:
    """Returns the exact size of the blob with a sealed Shamir share."""
    header, size = _sealed_form(context, sender, holder)
    return header.blob_bytes(size)


def key_sum_bytes(context: RoundContext) -> int:
    """Returns the exact size of a key-sum blob."""
    return _key_sum_header(context).blob_bytes(_key_bytes(context))


def _sealed_form(context: RoundContext, sender: str, holder: str) -> tuple[Header, int]:
    size = shamir_plain_bytes(context) + SEALED_OVERHEAD
    return context.header(Kind.SEALED_SHAMIR, sender, (size,), holder), size


def _key_sum_header(context: RoundContext) -> Header:
    return context.header(Kind.KEY_SUM, "", _key_shape(context))


def _key_shape(context: RoundContext) -> tuple[int, int, int]:
    return (2, len(context.parameters.data_primes), context.parameters.ring_degree)


def _key_bytes(context: RoundContext) -> int:
    return 2 * packed_size(context.parameters.data_primes, context.parameters.ring_degree)


def _read_key(context: RoundContext, contribution: Contribution, blob: bytes) -> tuple[memoryview, UInt64]:
    sender = contribution.sender
    check, digest = hash_blob(blob, Kind.KEY_CIPHERTEXT)
    if digest != contribution.key_ciphertext:
        raise PeerError("contribution-digest", sender, "the key ciphertext is not the one that its contribution names.")
    header = context.header(Kind.KEY_CIPHERTEXT, sender, _key_shape(context))
    body = read_blob(blob, header, _key_bytes(context), context.plan.site(sender).identity_key, sender, check)
    return body, _unpack_key(context, body)


def _unpack_key(context: RoundContext, body: memoryview) -> UInt64:
    p = context.parameters
    half = len(body) // 2
    parts = (body[:half], body[half:])
    return np.stack([unpack_rows(part, p.data_primes, p.ring_degree, context.coordinator) for part in parts])


def share_bytes(context: RoundContext) -> int:
    """Returns the size of the body of a decryption share: both halves, whatever the length of the sum."""
    p = context.parameters
    return packed_size(p.data_primes, p.bulk_degree) + p.bulk_degree * residue_width(p.bulk_modulus)
