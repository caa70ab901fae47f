"""A bulk blob as bytes: header, packed residues in slabs of 64 chunks, Merkle root or SHA-256, signature.

The leaves of a contribution's root are its header and its chunks of 2048 residues. Residues are coefficients (not
transforms), so the last chunk is cut to the length and a short contribution is a short blob. A slab is what is in
memory at a time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import PeerError
from schemas.messages import Contribution
from schemas.wire import (
    CHECK_BYTES,
    SIGNATURE_BYTES,
    Header,
    Kind,
    residue_width,
    verify_check,
    verify_header,
)
from tasks.ledger.merkle import MerkleFrontier, hash_leaf
from tasks.secure_sum.context import RoundContext

SLAB_CHUNKS = 64


@dataclass(frozen=True)
class BulkForm:
    """Sizes and places of everything in one bulk blob.

    Attributes:
        header: Its exact header.
        modulus: Of the residues.
        degree: Residues of a chunk.
        length: Residues of the blob.
    """

    header: Header
    modulus: int
    degree: int
    length: int

    @classmethod
    def of(cls, context: RoundContext, sender: str) -> BulkForm:
        """Returns the form of a site's bulk blob, or of the sum if `sender` is empty."""
        kind, length = Kind.BULK if sender else Kind.BULK_SUM, context.instruction.length
        p = context.parameters
        return cls(context.header(kind, sender, (length,)), p.bulk_modulus, p.bulk_degree, length)

    @property
    def width(self) -> int:
        """Bytes per residue."""
        return residue_width(self.modulus)

    @property
    def size_bytes(self) -> int:
        """Exact size of the blob."""
        return len(self.header.encode()) + self.length * self.width + self.header.trailer_bytes

    @property
    def slabs(self) -> int:
        """Number of slabs; the last one may be shorter."""
        return -(-self.length // (SLAB_CHUNKS * self.degree))

    def slab_place(self, index: int) -> tuple[int, int]:
        """Returns offset and size in bytes of one slab."""
        step = SLAB_CHUNKS * self.degree
        residues = min(step, self.length - index * step)
        return len(self.header.encode()) + index * step * self.width, residues * self.width

    def hash_chunks(self, slab: bytes) -> tuple[bytes, ...]:
        """Returns the leaf hashes of a slab's chunks."""
        step = self.degree * self.width
        return tuple(hash_leaf(slab[at : at + step]) for at in range(0, len(slab), step))

    def begin_root(self) -> MerkleFrontier:
        """Returns a tree that holds the header's leaf."""
        tree = MerkleFrontier()
        tree.append_hash(hash_leaf(self.header.encode()))
        return tree


@dataclass(frozen=True)
class BulkInput:
    """A contribution's bulk blob somewhere, untrusted.

    Attributes:
        form: What it must look like.
        source: The bytes, or the file that holds them.
    """

    form: BulkForm
    source: Path | bytes

    @property
    def sender(self) -> str:
        """Who is named in errors."""
        return self.form.header.sender

    def verify_head(self) -> None:
        """Verifies exact length and header.

        Raises:
            PeerError: `wire-length`, `wire-header` or `bulk-missing`, naming the sender.
        """
        try:
            size = len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size
        except OSError:
            raise self._missing() from None
        if size != self.form.size_bytes:
            raise PeerError("wire-length", self.sender, "a BULK blob does not have its exact length.")
        verify_header(self._read(0, len(self.form.header.encode())), self.form.header, self.sender)

    def read_slab(self, index: int) -> bytes:
        """Returns the packed residues of one slab, unverified."""
        return self._read(*self.form.slab_place(index))

    def verify_end(self, contribution: Contribution, tree: MerkleFrontier, key_hex: str) -> None:
        """Verifies root and signature after every slab was read.

        Args:
            contribution: The sender's.
            tree: Header and every chunk, from the bytes that were used.
            key_hex: The sender's identity key.

        Raises:
            PeerError: `bulk-root` or `wire-signature`, naming the sender.
        """
        trailer = self._read(self.form.size_bytes - CHECK_BYTES - SIGNATURE_BYTES, CHECK_BYTES + SIGNATURE_BYTES)
        root, signature = trailer[:CHECK_BYTES], trailer[CHECK_BYTES:]
        if root.hex() != contribution.bulk_root or root.hex() != tree.root():
            raise PeerError("bulk-root", self.sender, "the bulk does not have the Merkle root of its contribution.")
        verify_check(Kind.BULK, root, signature, key_hex, self.sender)

    def _read(self, offset: int, size: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[offset : offset + size]
        # Opened for each slab: a thousand contributions at once would be more files than a process may hold open.
        try:
            with self.source.open("rb") as file:
                file.seek(offset, os.SEEK_SET)
                data = file.read(size)
        except OSError:
            raise self._missing() from None
        if len(data) != size:
            raise PeerError("wire-length", self.sender, "a bulk blob ended while it was read.")
        return data

    def _missing(self) -> PeerError:
        return PeerError("bulk-missing", self.sender, "its bulk blob cannot be read.")
