"""The bulk cipher, streamed: c_k = a_k s + e_k + delta m_k mod q per chunk of 2048 coefficients.

Sums of ciphertexts open with sums of one-time keys. Work goes slab by slab (64 chunks), each slab independent of the
others, over as many processes as the round's context says; memory is a few slabs per process, whatever the length and
the number of contributors, and the bytes do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from schemas.errors import OperationError, PeerError
from schemas.messages import Contribution
from schemas.wire import Kind, pack_residues, residue_width, sign_check, unpack_residues, verify_header
from tasks.secure_sum.bulk_blob import SLAB_CHUNKS, BulkForm, BulkInput
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.modular import Int64, prime_field
from tasks.secure_sum.ntt import ntt_of
from tasks.secure_sum.sampling import Stream, derived_stream, sample_binomial, sample_uniform
from tasks.secure_sum.spread import spread

SumSource = Path | bytes | IO[bytes]


@dataclass(frozen=True)
class BulkCipher:
    """The cipher of one (round, attempt) under one key; small, so that it travels to other processes.

    Attributes:
        degree, modulus, delta: N, q and the plaintext scale.
        session: sid*.
        round, attempt: Where the public polynomials a_k belong.
        key: Transform of a one-time key, or of a sum of such keys, natural order, balanced.
    """

    degree: int
    modulus: int
    delta: int
    session: bytes
    round: int
    attempt: int
    key: Int64 = field(repr=False)

    @classmethod
    def of(cls, context: RoundContext, key: Int64) -> BulkCipher:
        """Returns the cipher of a round under `key`, 2048 integers."""
        p, i = context.parameters, context.instruction
        session = bytes.fromhex(i.sid_star)
        ntt = ntt_of(p.bulk_degree, p.bulk_modulus)
        transformed = ntt.field.reduce(ntt.to_natural(ntt.forward(ntt.field.reduce(key))))
        return cls(p.bulk_degree, p.bulk_modulus, p.bulk_delta, session, i.round, i.attempt, transformed)

    def encrypt(self, start: int, values: Int64, errors: NDArray[np.int8]) -> bytes:
        """Encrypts the values from chunk `start` on and returns packed residues."""
        ring = prime_field(self.modulus)
        total = self.derive_key_stream(start, values.size)
        total += errors
        if max(int(values.max()), -int(values.min())) < (1 << 60) // self.delta:
            total += values * self.delta
        else:
            total += ring.scale(ring.reduce(values % self.modulus), self.delta)
        return pack_residues(ring.canonical(total), residue_width(self.modulus))

    def open(self, start: int, body: bytes, limit: int, peer: str) -> Int64 | None:
        """Returns the integers in packed residues from chunk `start` on; None if an error is above `limit`.

        Raises:
            PeerError: `wire-residue`, naming `peer`.
        """
        ring = prime_field(self.modulus)
        residues = unpack_residues(body, self.modulus, peer)
        noisy = ring.reduce(residues.view(np.int64) - self.derive_key_stream(start, residues.size))
        opened: Int64 = (noisy + (self.delta >> 1)) >> (self.delta.bit_length() - 1)
        noisy -= opened * self.delta
        return opened if max(int(noisy.max()), -int(noisy.min())) <= limit else None

    def derive_key_stream(self, start: int, count: int) -> Int64:
        """Returns `count` coefficients of a_k s for the chunks from `start` on."""
        ntt = ntt_of(self.degree, self.modulus)
        rows = np.empty((-(-count // self.degree), self.degree), dtype=np.int64)
        for row, chunk in zip(rows, range(start, start + len(rows)), strict=True):
            stream = derived_stream("bulk", self.session, self.round, self.attempt, chunk)
            row[:] = sample_uniform(stream, self.modulus, self.degree).view(np.int64)
        return ntt.inverse_natural(ntt.field.mul(rows, self.key)).reshape(-1)[:count]


def bulk_size(context: RoundContext, sender: str) -> int:
    """Returns the exact size in bytes of the bulk blob of `sender`."""
    return BulkForm.of(context, sender).size_bytes


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
        values: `length` int64 values as one array (also a memory-mapped one) or an iterable of arrays of any sizes.
        signing_key: The sender's identity key.
        path: Where the blob goes; replaced as a whole.
        stream: Fresh secret randomness for the errors.

    Raises:
        OperationError: `bulk-length`, `bulk-write` or `bulk-process`; nothing is left behind then.
    """
    form, cipher = BulkForm.of(context, sender), BulkCipher.of(context, key)
    # Errors are drawn here, in order, so that the blob is the same for any number of processes.
    jobs = (
        (start, slab, sample_binomial(stream, slab.size).astype(np.int8))
        for start, slab in slabs_of(values, form.length, form.degree)
    )
    tree = form.begin_root()
    with _replacing(path) as out:
        out.write(form.header.encode())
        for body in spread(cipher.encrypt, jobs, _processes(context, form)):
            tree.extend(form.hash_chunks(body))
            out.write(body)
        root = tree.root()
        out.write(bytes.fromhex(root) + sign_check(Kind.BULK, bytes.fromhex(root), signing_key))
    return root


def verify_bulk(context: RoundContext, contribution: Contribution, source: Path | bytes) -> None:
    """Streams one bulk blob and verifies header, length, residues, root and signature.

    Raises:
        PeerError: `bulk-root` or a wire error, naming the sender.
        OperationError: `bulk-process`.
    """
    for _ in _add_slabs(context, {contribution.sender: (contribution, source)}):
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
        OperationError: `bulk-write` or `bulk-process`.
    """
    if not parts:
        raise ValueError("expected at least one contribution")
    digest = hashlib.sha256()
    target: AbstractContextManager[IO[bytes] | None] = _replacing(out_path) if out_path else nullcontext()
    with target as out:

        def emit(data: bytes) -> None:
            digest.update(data)
            if out is not None:
                out.write(data)

        emit(BulkForm.of(context, "").header.encode())
        for body in _add_slabs(context, parts):
            emit(body)
        emit(digest.digest())
    return digest.hexdigest()


def open_bulk(
    context: RoundContext, key_sum: Int64, source: SumSource, contributors: int, digest: str | None = None
) -> Iterator[Int64]:
    """Yields the opened integers slab by slab; believe none of them before the last one came.

    Args:
        context: The round.
        key_sum: Sum of the one-time keys, 2048 integers.
        source: The bulk-sum blob: a file, its bytes, or a stream, which is read once and may not be seekable.
        contributors: |U|, for the tail bound of the error.
        digest: SHA-256 (hex) that somebody signed for the blob, if somebody did.

    Raises:
        PeerError: `bulk-residual` if the key does not fit the sum, `bulk-sum` if it is another blob, or a wire error;
            all name the coordinator.
        OperationError: `bulk-process`.
    """
    cipher, form = BulkCipher.of(context, key_sum), BulkForm.of(context, "")
    limit, peer = context.parameters.residual_bound(contributors), context.coordinator
    with _open(source, peer) as file:
        bodies = enumerate(_read_sum(form, file, peer, digest))
        jobs = ((index * SLAB_CHUNKS, body, limit, peer) for index, body in bodies)
        for opened in spread(cipher.open, jobs, _processes(context, form)):
            if opened is None:
                raise PeerError(
                    "bulk-residual",
                    peer,
                    "the bulk sum does not open with the summed keys: a contribution, a share or the sum is wrong.",
                    "Verify the bulk roots and ask another active set.",
                )
            yield opened


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


def add_slab(inputs: tuple[BulkInput, ...], index: int) -> tuple[list[tuple[bytes, ...]], bytes]:
    """Adds one slab of all contributions; returns the leaf hashes of what was added, by input, and packed residues.

    Raises:
        PeerError: `wire-residue`, `wire-length` or `bulk-missing`, naming the sender.
    """
    form = inputs[0].form
    ring = prime_field(form.modulus)
    hashes: list[tuple[bytes, ...]] = []
    total = np.zeros(form.slab_place(index)[1] // form.width, dtype=np.int64)
    for count, blob in enumerate(inputs, 1):
        body = blob.read_slab(index)
        hashes.append(form.hash_chunks(body))
        total += unpack_residues(body, form.modulus, blob.sender).view(np.int64)
        if count % 256 == 0:  # 256 residues of 52 bits stay below 2**61
            total = ring.reduce(total)
    return hashes, pack_residues(ring.canonical(total), form.width)


def _add_slabs(context: RoundContext, parts: Mapping[str, tuple[Contribution, Path | bytes]]) -> Iterator[bytes]:
    inputs = tuple(BulkInput(BulkForm.of(context, sender), parts[sender][1]) for sender in sorted(parts))
    for blob in inputs:
        blob.verify_head()
    trees = [blob.form.begin_root() for blob in inputs]
    # Bytes in memory are added here: sending all of them along with every slab would cost more than adding.
    in_files = all(isinstance(blob.source, Path) for blob in inputs)
    form = inputs[0].form
    jobs = ((inputs, index) for index in range(form.slabs))
    for hashes, body in spread(add_slab, jobs, _processes(context, form) if in_files else 1):
        for tree, leaves in zip(trees, hashes, strict=True):
            tree.extend(leaves)
        yield body
    for blob, tree in zip(inputs, trees, strict=True):
        blob.verify_end(parts[blob.sender][0], tree, context.plan.site(blob.sender).identity_key)


def _read_sum(form: BulkForm, file: IO[bytes], peer: str, expected: str | None) -> Iterator[bytes]:
    head = file.read(len(form.header.encode()))
    verify_header(head, form.header, peer)
    digest = hashlib.sha256(head)
    for index in range(form.slabs):
        size = form.slab_place(index)[1]
        body = file.read(size)
        if len(body) != size:
            raise _wrong_size(peer)
        digest.update(body)
        yield body
    check = file.read(form.header.trailer_bytes + 1)
    if len(check) != form.header.trailer_bytes:
        raise _wrong_size(peer)
    if check != digest.digest():
        raise PeerError("wire-check", peer, "the SHA-256 of a BULK_SUM blob does not match.")
    digest.update(check)
    if expected is not None and digest.hexdigest() != expected:
        raise PeerError("bulk-sum", peer, "the bulk sum is not the one that was signed.")


def _open(source: SumSource, peer: str) -> AbstractContextManager[IO[bytes]]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, Path):
        return nullcontext(source)
    try:
        return source.open("rb")
    except OSError:
        raise PeerError("bulk-missing", peer, "its bulk blob cannot be read.") from None


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        raise OperationError(
            "bulk-write", f"A bulk file could not be written ({error.strerror}).", "Free disk space and try again."
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _processes(context: RoundContext, form: BulkForm) -> int:
    return min(context.processes, form.slabs)


def _wrong_size(peer: str) -> PeerError:
    return PeerError("wire-length", peer, "a BULK_SUM blob does not have its exact length.")


def _wrong_length() -> OperationError:
    return OperationError("bulk-length", "Expected exactly as many int64 coefficients as the instruction says.")
