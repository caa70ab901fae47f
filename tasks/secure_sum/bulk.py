"""The bulk cipher, streamed: c_k = a_k s + e_k + delta m_k mod q per chunk of 2048 coefficients.

Sums of ciphertexts open with sums of one-time keys. A bulk blob is header, packed residues, Merkle root, signature; the
leaves of the root are the header and the chunks. Residues are coefficients (not transforms), so the last chunk is cut
to the length and a short contribution is a short blob. Memory is a few slabs of 64 chunks, whatever the length.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.errors import OperationError, PeerError
from schemas.messages import Contribution
from schemas.wire import (
    CHECK_BYTES,
    Header,
    Kind,
    pack_residues,
    residue_width,
    sign_check,
    unpack_residues,
    verify_check,
    verify_header,
)
from tasks.ledger.merkle import MerkleTree
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.modular import Field, Int64, UInt64, prime_field
from tasks.secure_sum.ntt import ntt_of
from tasks.secure_sum.sampling import Stream, derived_stream, sample_binomial, sample_uniform

SLAB_CHUNKS = 64


def bulk_size(context: RoundContext, sender: str) -> int:
    """Returns the exact size in bytes of the bulk blob of `sender`."""
    header = bulk_header(context, sender)
    return len(header.encode()) + context.instruction.length * _width(context) + header.trailer_bytes


def bulk_header(context: RoundContext, sender: str) -> Header:
    """Returns the header of a site's bulk blob, or of the sum if `sender` is empty."""
    kind = Kind.BULK if sender else Kind.BULK_SUM
    return context.header(kind, sender, (context.instruction.length,))


def encrypt_bulk(
    context: RoundContext,
    sender: str,
    key: Int64,
    values: Int64 | Iterable[Int64],
    signing_key: Ed25519PrivateKey,
    path: Path,
    stream: Stream,
) -> str:
    """Encrypts under a one-time key and writes the bulk blob durably; returns its Merkle root.

    Args:
        context: The round.
        sender: The contributor.
        key: One-time key s, 2048 integers; never used for a second call.
        values: `length` int64 values as one array or as an iterable of arrays of any sizes.
        signing_key: The sender's identity key.
        path: Where the blob goes; replaced as a whole.
        stream: Fresh secret randomness for the errors.

    Raises:
        OperationError: `bulk-length` or `bulk-write`.
    """
    header = bulk_header(context, sender).encode()
    tree = MerkleTree([header])
    transformed = transform_key(context, key)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as out:
            out.write(header)
            for start, slab in slabs_of(values, context.instruction.length, context.parameters.bulk_degree):
                residues = _encrypt_slab(context, transformed, start, slab, stream)
                _write_slab(context, out, tree, residues)
            root = tree.root()
            out.write(bytes.fromhex(root) + sign_check(Kind.BULK, bytes.fromhex(root), signing_key))
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        raise OperationError(
            "bulk-write", f"The bulk file could not be written ({error.strerror}).", "Free disk space and try again."
        ) from None
    return root


def verify_bulk(context: RoundContext, contribution: Contribution, source: Path | bytes) -> None:
    """Streams one bulk blob and verifies header, length, residues, root and signature.

    Raises:
        PeerError: `bulk-root` or a wire error, naming the sender.
    """
    for _ in _read_contribution(context, contribution, source):
        pass


def add_bulk(
    context: RoundContext, parts: Mapping[str, tuple[Contribution, Path | bytes]], out_path: Path | None
) -> str:
    """Adds bulk blobs slab by slab, verifying each again, and returns the SHA-256 (hex) of the sum blob.

    Args:
        context: The round.
        parts: Contribution and bulk source by sender.
        out_path: Where the sum blob goes, replaced as a whole; None only derives its digest (the auditor).

    Raises:
        PeerError: as `verify_bulk`; nothing is left at `out_path` then.
        OperationError: `bulk-write`.
    """
    if not parts:
        raise ValueError("expected at least one contribution")
    field = prime_field(context.parameters.bulk_modulus)
    readers = [_read_contribution(context, *parts[sender]) for sender in sorted(parts)]
    digest = hashlib.sha256()
    scratch = None if out_path is None else out_path.with_name(out_path.name + ".part")
    try:
        with scratch.open("wb") if scratch else io.BytesIO() as out:
            _emit(out if scratch else None, digest, bulk_header(context, "").encode())
            # strict: every reader is driven to its end, where it verifies its root and signature.
            for slabs in zip(*readers, strict=True):
                body = pack_residues(_add_slabs(field, slabs), _width(context))
                _emit(out if scratch else None, digest, body)
            check = digest.digest()
            _emit(out if scratch else None, digest, check)
        if scratch and out_path:
            scratch.replace(out_path)
    except OSError as error:
        raise OperationError(
            "bulk-write", f"The sum could not be written ({error.strerror}).", "Free disk space and try again."
        ) from None
    finally:
        if scratch:
            scratch.unlink(missing_ok=True)
    return digest.hexdigest()


def open_bulk(context: RoundContext, key_sum: Int64, source: Path | bytes, contributors: int) -> Iterator[Int64]:
    """Yields the opened integers slab by slab.

    Args:
        context: The round.
        key_sum: Sum of the one-time keys, 2048 integers.
        source: The bulk-sum blob.
        contributors: |U|, for the tail bound of the error.

    Raises:
        PeerError: `bulk-residual` if the key does not fit the sum, or a wire error naming the coordinator.
    """
    p = context.parameters
    field = prime_field(p.bulk_modulus)
    transformed = transform_key(context, key_sum)
    limit = p.residual_bound(contributors)
    for index, slab in enumerate(_read_sum(context, source)):
        start = index * SLAB_CHUNKS
        noisy = field.reduce(slab.view(np.int64) - _key_stream(context, transformed, start, slab.size))
        opened = (noisy + (p.bulk_delta >> 1)) >> (p.bulk_delta.bit_length() - 1)
        noisy -= opened * p.bulk_delta
        if max(int(noisy.max()), -int(noisy.min())) > limit:
            raise PeerError(
                "bulk-residual",
                context.coordinator,
                "the bulk sum does not open with the summed keys: a contribution, a share or the sum is wrong.",
                "Verify the bulk roots and ask another active set.",
            )
        yield opened


def transform_key(context: RoundContext, key: Int64) -> Int64:
    """Returns a one-time key's transform in natural order, balanced."""
    p = context.parameters
    ntt = ntt_of(p.bulk_degree, p.bulk_modulus)
    return ntt.field.reduce(ntt.to_natural(ntt.forward(ntt.field.reduce(key))))


def slabs_of(values: Int64 | Iterable[Int64], length: int, degree: int) -> Iterator[tuple[int, Int64]]:
    """Cuts values into slabs: (index of the first chunk, int64 array).

    Raises:
        OperationError: `bulk-length` if there are not exactly `length` int64 values.
    """
    step = SLAB_CHUNKS * degree
    pieces = [values] if isinstance(values, np.ndarray) else values
    held = np.empty(0, dtype=np.int64)
    done = 0
    for piece in pieces:
        if piece.dtype != np.int64 or piece.ndim != 1 or done * degree + held.size + piece.size > length:
            raise _wrong_length()
        held = np.concatenate([held, piece]) if held.size else piece
        while held.size >= step:
            yield done, held[:step]
            held, done = held[step:], done + SLAB_CHUNKS
    if held.size:
        yield done, held
    if done * degree + held.size != length:
        raise _wrong_length()


def _wrong_length() -> OperationError:
    return OperationError("bulk-length", "Expected exactly as many int64 coefficients as the instruction says.")


def _encrypt_slab(context: RoundContext, transformed: Int64, start: int, values: Int64, stream: Stream) -> UInt64:
    p = context.parameters
    field = prime_field(p.bulk_modulus)
    total = _key_stream(context, transformed, start, values.size)
    total += sample_binomial(stream, values.size)
    if max(int(values.max()), -int(values.min())) < (1 << 60) // p.bulk_delta:
        total += values * p.bulk_delta
    else:
        total += field.scale(field.reduce(values % p.bulk_modulus), p.bulk_delta)
    return field.canonical(total)


def _add_slabs(field: Field, slabs: tuple[UInt64, ...]) -> UInt64:
    total = slabs[0].view(np.int64).copy()
    for count, slab in enumerate(slabs[1:], 1):
        total += slab.view(np.int64)
        if count % 256 == 0:  # 256 residues of 52 bits stay below 2**61
            total = field.reduce(total)
    return field.canonical(total)


def _key_stream(context: RoundContext, transformed: Int64, start: int, count: int) -> Int64:
    """Returns the coefficients of a_k s for the chunks from `start`, cut to `count`."""
    p = context.parameters
    ntt = ntt_of(p.bulk_degree, p.bulk_modulus)
    rows = np.empty((p.chunks(count), p.bulk_degree), dtype=np.int64)
    i = context.instruction
    for row, chunk in zip(rows, range(start, start + len(rows)), strict=True):
        stream = derived_stream("bulk", bytes.fromhex(i.sid_star), i.round, i.attempt, chunk)
        row[:] = sample_uniform(stream, p.bulk_modulus, p.bulk_degree).view(np.int64)
    return ntt.inverse_natural(ntt.field.mul(rows, transformed)).reshape(-1)[:count]


def _write_slab(context: RoundContext, out: BinaryIO, tree: MerkleTree, residues: UInt64) -> None:
    body = pack_residues(residues, _width(context))
    _append_leaves(context, tree, body)
    out.write(body)


def _append_leaves(context: RoundContext, tree: MerkleTree, body: bytes) -> None:
    step = context.parameters.bulk_degree * _width(context)
    for offset in range(0, len(body), step):
        tree.append(body[offset : offset + step])


def _read_contribution(context: RoundContext, contribution: Contribution, source: Path | bytes) -> Iterator[UInt64]:
    sender = contribution.sender
    with _open(source, sender) as file:
        header = bulk_header(context, sender)
        tree = MerkleTree([_read_header(file, header, bulk_size(context, sender), sender)])
        for body in _bodies(context, file, sender):
            _append_leaves(context, tree, body)
            yield unpack_residues(body, context.parameters.bulk_modulus, sender)
        root = file.read(CHECK_BYTES)
        if root.hex() != contribution.bulk_root or root.hex() != tree.root():
            raise PeerError("bulk-root", sender, "the bulk does not have the Merkle root of its contribution.")
        verify_check(Kind.BULK, root, file.read(), context.plan.site(sender).identity_key, sender)


def _read_sum(context: RoundContext, source: Path | bytes) -> Iterator[UInt64]:
    peer = context.coordinator
    with _open(source, peer) as file:
        header = bulk_header(context, "")
        digest = hashlib.sha256(_read_header(file, header, bulk_size(context, ""), peer))
        for body in _bodies(context, file, peer):
            digest.update(body)
            yield unpack_residues(body, context.parameters.bulk_modulus, peer)
        if file.read() != digest.digest():
            raise PeerError("wire-check", peer, "the SHA-256 of a BULK_SUM blob does not match.")


def _read_header(file: BinaryIO, header: Header, size: int, peer: str) -> bytes:
    if file.seek(0, os.SEEK_END) != size:
        raise PeerError("wire-length", peer, f"a {header.kind.name} blob does not have its exact length.")
    file.seek(0)
    head = file.read(len(header.encode()))
    verify_header(head, header, peer)
    return head


def _bodies(context: RoundContext, file: BinaryIO, peer: str) -> Iterator[bytes]:
    left = context.instruction.length * _width(context)
    step = SLAB_CHUNKS * context.parameters.bulk_degree * _width(context)
    while left:
        body = file.read(min(step, left))
        if not body:
            raise PeerError("wire-length", peer, "a bulk blob ended while it was read.")
        left -= len(body)
        yield body


def _open(source: Path | bytes, peer: str) -> BinaryIO:
    try:
        return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError:
        raise PeerError("bulk-missing", peer, "its bulk blob cannot be read.") from None


def _emit(out: BinaryIO | None, digest: hashlib._Hash, data: bytes) -> None:
    digest.update(data)
    if out is not None:
        out.write(data)


def _width(context: RoundContext) -> int:
    return residue_width(context.parameters.bulk_modulus)
