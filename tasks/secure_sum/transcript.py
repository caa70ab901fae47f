"""The public rules of the key ceremony, used alike by its parties, by the coordinator and by the auditor.

Every check names the party at fault; where a wrong share cannot be attributed, the active set is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from schemas.canonical import derive_digest, digest_of, sha256_hex
from schemas.errors import PeerError
from schemas.messages import KeyCommit, KeyOpen, NonceCommit, NonceOpen, SelfTest, TranscriptSignature
from schemas.plan import Agreement
from schemas.wire import Header, Kind, pack_residues, read_blob, residue_width, unpack_residues, write_blob
from tasks.hpke import seal
from tasks.secure_sum import ckks
from tasks.secure_sum.epoch import holder_points
from tasks.secure_sum.modular import UInt64
from tasks.secure_sum.parameters import SumParameters, derive_parameters, derive_sid, self_test_sets
from tasks.secure_sum.partial import combine_partials

PHASES = ("nonce-commit", "nonce-open", "key-commit", "key-open", "self-test")
CeremonyMessage = NonceCommit | NonceOpen | KeyCommit | KeyOpen | SelfTest | TranscriptSignature
T = TypeVar("T", NonceCommit, NonceOpen, KeyCommit, KeyOpen, SelfTest, TranscriptSignature)


def commit_nonce(sid: str, sender: str, nonce: str) -> str:
    """Returns the commitment to a seed nonce."""
    return derive_digest("nonce-commitment", bytes.fromhex(sid), sender, bytes.fromhex(nonce))


def commit_key(sid: str, sender: str, blinding: str, public_share: str) -> str:
    """Returns the commitment to a public share b_i by its blob's digest."""
    return derive_digest(
        "key-commitment", bytes.fromhex(sid), sender, bytes.fromhex(blinding), bytes.fromhex(public_share)
    )


def verify_phase(plan: Agreement, sid: str, messages: Mapping[str, T]) -> dict[str, T]:
    """Returns one phase in name order after checking that it has exactly one message per key holder, for this sid.

    Raises:
        PeerError: `ceremony-incomplete` or `ceremony-mismatch`.
    """
    expected = [site.name for site in plan.key_holders]
    missing = [name for name in expected if name not in messages]
    if missing or len(messages) != len(expected):
        raise PeerError("ceremony-incomplete", ",".join(missing) or "coordinator", "a ceremony message is missing.")
    for name in expected:
        if messages[name].sender != name or messages[name].sid != sid:
            raise PeerError("ceremony-mismatch", name, "a ceremony message states another sender or session.")
    return {name: messages[name] for name in expected}


def verify_nonce_commits(plan: Agreement, commits: Mapping[str, NonceCommit]) -> None:
    """Refuses epoch keys that cannot be used, that two holders share or that equal a long-lived key.

    Raises:
        PeerError: `ceremony-keys`, naming the (later) holder.
    """
    taken = {site.identity_key for site in plan.sites} | {site.hpke_key for site in plan.sites}
    taken.add(plan.coordinator.identity_key)
    for name, message in commits.items():
        for key in (message.epoch_signing_key, message.epoch_hpke_key):
            if key in taken:
                raise PeerError("ceremony-keys", name, "an epoch key is not fresh.", "Generate fresh epoch keys.")
            taken.add(key)
        try:
            seal(message.epoch_hpke_key, b"", b"")
        except ValueError:
            raise PeerError("ceremony-keys", name, "its epoch HPKE key is malformed.") from None


def derive_seed(sid: str, commits: Mapping[str, NonceCommit], opens: Mapping[str, NonceOpen]) -> str:
    """Verifies every nonce against its commitment and returns the seed of the common polynomial.

    Raises:
        PeerError: `ceremony-commitment`.
    """
    for name, message in opens.items():
        if commit_nonce(sid, name, message.nonce) != commits[name].commitment:
            raise PeerError("ceremony-commitment", name, "the opened nonce is not the committed one.")
    return derive_digest("seed", bytes.fromhex(sid), *(part for n in sorted(opens) for part in (n, opens[n].nonce)))


def verify_key_opens(plan: Agreement, commits: Mapping[str, KeyCommit], opens: Mapping[str, KeyOpen]) -> None:
    """Verifies every public share's digest against its commitment and the list of sealed sharings.

    Raises:
        PeerError: `ceremony-commitment` (a rogue key chosen after seeing the others') or `ceremony-sealed`.
    """
    names = [site.name for site in plan.key_holders]
    for name, message in opens.items():
        if commit_key(message.sid, name, message.blinding, message.public_share) != commits[name].commitment:
            raise PeerError("ceremony-commitment", name, "the opened public share is not the committed one.")
        if [recipient for recipient, _ in message.sealed] != [other for other in names if other != name]:
            raise PeerError("ceremony-sealed", name, "expected one sealed sharing for every other key holder.")


def ceremony_header(plan: Agreement, sid: str, kind: Kind, sender: str, recipient: str = "", number: int = 0) -> Header:
    """Returns the header of a ceremony blob."""
    p = derive_parameters(plan)
    counts = {
        Kind.PUBLIC_SHARE: (len(ckks.ring_primes(p)), p.ring_degree),
        Kind.SEALED_KEY: (len(p.data_primes), p.ring_degree),
        Kind.SELF_TEST: (len(p.data_primes), p.bulk_degree),
    }[kind]
    return Header(kind, sid, 0, number, plan.study, sender, recipient, counts)


def pack_rows(rows: UInt64, primes: Sequence[int]) -> bytes:
    """Packs (k, m) residues row by row, each at its prime's width."""
    return b"".join(pack_residues(row, residue_width(p)) for row, p in zip(rows, primes, strict=True))


def packed_size(primes: Sequence[int], count: int) -> int:
    """Returns the bytes of `pack_rows` for rows of `count` residues."""
    return sum(residue_width(p) for p in primes) * count


def unpack_rows(data: bytes | memoryview, primes: Sequence[int], count: int, peer: str) -> UInt64:
    """Unpacks `pack_rows` into (k, count) residues.

    Raises:
        PeerError: `wire-length` or `wire-residue`.
    """
    if len(data) != packed_size(primes, count):
        raise PeerError("wire-length", peer, "packed residues do not have their exact length.")
    rows, offset = [], 0
    for prime in primes:
        size = residue_width(prime) * count
        rows.append(unpack_residues(data[offset : offset + size], prime, peer))
        offset += size
    return np.stack(rows)


def write_public_share(plan: Agreement, sid: str, sender: str, share: UInt64, key: object) -> bytes:
    """Writes b_i, (4, N) residues, as a signed blob."""
    primes = ckks.ring_primes(derive_parameters(plan))
    header = ceremony_header(plan, sid, Kind.PUBLIC_SHARE, sender)
    return write_blob(header, pack_rows(share, primes), key)  # type: ignore[arg-type]


def sum_public_key(
    plan: Agreement, sid: str, seed: str, opens: Mapping[str, KeyOpen], blobs: Mapping[str, bytes]
) -> UInt64:
    """Verifies every public-share blob and returns (2, 4, N): b = sum of b_i, and the recomputed a.

    Raises:
        PeerError: `ceremony-digest` or a wire error, naming the holder.
    """
    p = derive_parameters(plan)
    primes = ckks.ring_primes(p)
    moduli = np.array(primes, dtype=np.uint64)[:, None]
    total = np.zeros((len(primes), p.ring_degree), dtype=np.uint64)
    for name, message in opens.items():
        blob = require_blob(blobs, name, message.public_share)
        header = ceremony_header(plan, sid, Kind.PUBLIC_SHARE, name)
        size = packed_size(primes, p.ring_degree)
        body = read_blob(blob, header, size, plan.site(name).identity_key, name)
        total += unpack_rows(body, primes, p.ring_degree, name)
        total = np.minimum(total, total - moduli)
    return np.stack([total, ckks.expand_common(p, sid, seed)])


def require_blob(blobs: Mapping[str, bytes], name: str, digest: str) -> bytes:
    """Returns the blob of `name` if it has the digest that its signed message states.

    Raises:
        PeerError: `ceremony-incomplete` or `ceremony-digest`.
    """
    if name not in blobs:
        raise PeerError("ceremony-incomplete", name, "a ceremony blob is missing.")
    if sha256_hex(blobs[name]) != digest:
        raise PeerError("ceremony-digest", name, "a ceremony blob is not the one that its message names.")
    return blobs[name]


def derive_test_seed(phases: Sequence[Mapping[str, CeremonyMessage]]) -> str:
    """Returns the seed of all self-test plaintexts and randomness: a digest of the first four phases."""
    return derive_digest("self-test", *(digest_of(phase[name]) for phase in phases for name in sorted(phase)))


def own_tests(plan: Agreement, name: str) -> list[int]:
    """Returns the numbers (0-based) of the self-tests in whose active set `name` is."""
    position = holder_points(plan)[name] - 1
    sets = self_test_sets(len(plan.key_holders), plan.threshold.t)
    return [number for number, members in enumerate(sets) if position in members]


def self_test_active(plan: Agreement, number: int) -> dict[str, int]:
    """Returns the active set of a self-test: holder to point."""
    members = self_test_sets(len(plan.key_holders), plan.threshold.t)[number]
    return {name: point for name, point in holder_points(plan).items() if point - 1 in members}


def verify_self_tests(
    plan: Agreement,
    sid: str,
    public_key: UInt64,
    test_seed: str,
    tests: Mapping[str, SelfTest],
    blobs: Mapping[str, Sequence[bytes]],
) -> None:
    """Opens every self-test and compares it with its recomputed plaintext.

    Raises:
        PeerError: `self-test` naming an active set, `ceremony-digest` or a wire error naming a holder.
    """
    p = derive_parameters(plan)
    parts: dict[tuple[int, str], UInt64] = {}
    for name, message in tests.items():
        numbers = own_tests(plan, name)
        if not len(message.shares) == len(blobs.get(name, ())) == len(numbers):
            raise PeerError("ceremony-incomplete", name, "expected one self-test share per active set it is in.")
        for number, digest, blob in zip(numbers, message.shares, blobs[name], strict=True):
            parts[number, name] = _read_test_share(plan, p, sid, name, number, require_blob({name: blob}, name, digest))
    for number in range(len(self_test_sets(len(plan.key_holders), plan.threshold.t))):
        active = self_test_active(plan, number)
        body, _ = ckks.self_test_ciphertext(p, public_key, test_seed, number)
        opened = combine_partials(p, body, [parts[number, name] for name in active])
        if opened is None or not np.array_equal(opened, ckks.self_test_message(p, test_seed, number)):
            raise PeerError(
                "self-test",
                ",".join(sorted(active)),
                "the self-test of this active set does not open: one of its members dealt or used a wrong share.",
                "Start a new ceremony without the member at fault.",
            )


def derive_transcript(plan: Agreement, epoch: int, digests: Mapping[tuple[str, str], str]) -> tuple[str, str]:
    """Derives (transcript, sid*) from the envelope digests of all five phases and all key holders.

    Raises:
        PeerError: `ceremony-incomplete`.
    """
    sid = derive_sid(plan, epoch)
    wanted = [(phase, site.name) for phase in PHASES for site in plan.key_holders]
    missing = sorted({name for phase, name in wanted if (phase, name) not in digests})
    if missing or len(digests) != len(wanted):
        raise PeerError("ceremony-incomplete", ",".join(missing) or "coordinator", "a ceremony message is missing.")
    parts = [part for key in wanted for part in (*key, bytes.fromhex(digests[key]))]
    transcript = derive_digest("transcript", bytes.fromhex(sid), *parts)
    return transcript, derive_digest("sid-star", bytes.fromhex(sid), bytes.fromhex(transcript))


def _read_test_share(plan: Agreement, p: SumParameters, sid: str, name: str, number: int, blob: bytes) -> UInt64:
    header = ceremony_header(plan, sid, Kind.SELF_TEST, name, number=number + 1)
    size = packed_size(p.data_primes, p.bulk_degree)
    body = read_blob(blob, header, size, plan.site(name).identity_key, name)
    return unpack_rows(body, p.data_primes, p.bulk_degree, name)
