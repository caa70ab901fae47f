"""The binary format of everything that is not JSON: residues and sealed bytes between sites and coordinator.

    magic "CSUM" | version u16 | kind u16 | session 32 | round u32 | attempt u32 | reference 32 |
    sender (u8 length, ASCII) | recipient (same) | number of counts u8 | counts u64 ... | body | check 32 | signature 64

Little-endian. `check` is SHA-256 over everything before it (bulk blobs: the Merkle root, see `tasks.secure_sum.bulk`);
the signature is Ed25519 over the labelled check, so over everything before it. Sum blobs, which signed messages name by
digest, carry no signature.

Invariant: a reader knows every header field, the exact length and the signer before it reads; it sizes nothing by
what the bytes claim.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from schemas.canonical import encode_parts, is_name
from schemas.errors import PeerError

MAGIC = b"CSUM"
VERSION = 1
CHECK_BYTES = 32
SIGNATURE_BYTES = 64
NO_REFERENCE = "0" * 64
_FIXED = struct.Struct("<4sHH32sII32s")


class Kind(IntEnum):
    """What a blob is; an unknown number is refused."""

    PUBLIC_SHARE = 1
    SEALED_KEY = 2
    SELF_TEST = 3
    KEY_CIPHERTEXT = 4
    SEALED_SHAMIR = 5
    BULK = 6
    KEY_SUM = 7
    BULK_SUM = 8
    SHARE = 9


UNSIGNED_KINDS = frozenset({Kind.KEY_SUM, Kind.BULK_SUM})


@dataclass(frozen=True)
class Header:
    """Where a blob belongs.

    Attributes:
        kind: Type of the blob.
        session: sid in a ceremony, sid* afterwards (hex).
        round: Round; 0 in a ceremony.
        attempt: Attempt; in a ceremony, the number of the self-test or 0.
        reference: Instruction digest of a round, the digest of record and active set for shares, the study in a
            ceremony (hex).
        sender: Who made it; empty for sums.
        recipient: Who may read it; empty if everybody.
        counts: Numbers of residues, or the size of a sealed body.
    """

    kind: Kind
    session: str
    round: int
    attempt: int
    reference: str
    sender: str
    recipient: str
    counts: tuple[int, ...]

    def encode(self) -> bytes:
        """Returns the canonical header bytes."""
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            self.kind,
            bytes.fromhex(self.session),
            self.round,
            self.attempt,
            bytes.fromhex(self.reference),
        )
        names = b"".join(bytes([len(name)]) + name.encode("ascii") for name in (self.sender, self.recipient))
        return fixed + names + bytes([len(self.counts)]) + struct.pack(f"<{len(self.counts)}Q", *self.counts)

    @property
    def trailer_bytes(self) -> int:
        """Size of what follows the body."""
        return CHECK_BYTES + (0 if self.kind in UNSIGNED_KINDS else SIGNATURE_BYTES)

    def blob_bytes(self, body_bytes: int) -> int:
        """Returns the size of the whole blob around a body of `body_bytes`."""
        return len(self.encode()) + body_bytes + self.trailer_bytes


def parse_header(data: bytes | memoryview, peer: str) -> tuple[Header, int]:
    """Parses a header and returns it with its size; nothing of it is believed yet.

    Raises:
        PeerError: `wire-header`.
    """
    view = memoryview(data)
    if len(view) < _FIXED.size + 3:
        raise PeerError("wire-header", peer, "expected a blob, got fewer bytes than a header has.")
    magic, version, kind, session, round_, attempt, reference = _FIXED.unpack(view[: _FIXED.size])
    if magic != MAGIC or version != VERSION or kind not in set(Kind):
        raise PeerError("wire-header", peer, f"expected a version {VERSION} blob of a known kind.")
    sender, offset = _read_name(view, _FIXED.size, peer)
    recipient, offset = _read_name(view, offset, peer)
    count = view[offset] if offset < len(view) else 256
    end = offset + 1 + 8 * count
    if end > len(view):
        raise PeerError("wire-header", peer, "the header ends early.")
    counts = struct.unpack(f"<{count}Q", view[offset + 1 : end])
    header = Header(Kind(kind), session.hex(), round_, attempt, reference.hex(), sender, recipient, counts)
    return header, end


def verify_header(data: bytes | memoryview, expected: Header, peer: str) -> int:
    """Refuses any header but exactly `expected` and returns its size.

    Raises:
        PeerError: `wire-header`, naming the first field that differs.
    """
    header, size = parse_header(data, peer)
    for field in ("kind", "session", "round", "attempt", "reference", "sender", "recipient", "counts"):
        if getattr(header, field) != getattr(expected, field):
            raise PeerError("wire-header", peer, f"the {field} in a {expected.kind.name} blob is not the expected one.")
    return size


def write_blob(header: Header, body: bytes | memoryview, key: Ed25519PrivateKey | None) -> bytes:
    """Returns header, body, SHA-256 and, unless the kind is a sum, the signature by `key`."""
    head = header.encode()
    check = hashlib.sha256(head)
    check.update(body)
    return b"".join((head, body, check.digest(), sign_check(header.kind, check.digest(), key)))


def hash_blob(data: bytes, kind: Kind) -> tuple[bytes, str]:
    """Returns, in one pass, what the check of a blob must be and the SHA-256 (hex) of all of it."""
    view = memoryview(data)
    end = max(0, len(view) - CHECK_BYTES - (0 if kind in UNSIGNED_KINDS else SIGNATURE_BYTES))
    hashed = hashlib.sha256(view[:end])
    check = hashed.digest()
    hashed.update(view[end:])
    return check, hashed.hexdigest()


def read_blob(
    data: bytes, expected: Header, body_bytes: int, key_hex: str | None, peer: str, hashed: bytes | None = None
) -> memoryview:
    """Verifies header, exact length, check and signature, and returns the body without copying it.

    Args:
        data: Untrusted bytes.
        expected: Every header field, from signed messages and the plan.
        body_bytes: Exact size of the body.
        key_hex: The signer's pinned Ed25519 key; None only for sums.
        peer: Who is named in errors.
        hashed: What `hash_blob` said of these same bytes; without it they are hashed here.

    Raises:
        PeerError: `wire-header`, `wire-length`, `wire-check` or `wire-signature`.
    """
    head = verify_header(data, expected, peer)
    if len(data) != head + body_bytes + expected.trailer_bytes:
        raise PeerError("wire-length", peer, f"a {expected.kind.name} blob does not have its exact length.")
    view = memoryview(data)
    end = head + body_bytes
    check = bytes(view[end : end + CHECK_BYTES])
    if (hashlib.sha256(view[:end]).digest() if hashed is None else hashed) != check:
        raise PeerError("wire-check", peer, f"the SHA-256 of a {expected.kind.name} blob does not match.")
    verify_check(expected.kind, check, bytes(view[end + CHECK_BYTES :]), key_hex, peer)
    return view[head:end]


def sign_check(kind: Kind, check: bytes, key: Ed25519PrivateKey | None) -> bytes:
    """Returns the signature over a blob's check; empty for sums, which have no signer."""
    if (key is None) != (kind in UNSIGNED_KINDS):
        raise ValueError(f"{kind.name}: only sums are unsigned")
    return b"" if key is None else key.sign(encode_parts("blob", int(kind), check))


def verify_check(kind: Kind, check: bytes, signature: bytes, key_hex: str | None, peer: str) -> None:
    """Verifies the signature over a blob's check.

    Raises:
        PeerError: `wire-signature`.
    """
    if kind in UNSIGNED_KINDS:
        return
    if key_hex is None:
        raise ValueError(f"{kind.name}: a signed blob needs its signer's key")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key_hex)).verify(
            signature, encode_parts("blob", int(kind), check)
        )
    except (InvalidSignature, ValueError):
        raise PeerError("wire-signature", peer, f"a {kind.name} blob is not signed by the pinned key.") from None


def residue_width(prime: int) -> int:
    """Returns the bytes per residue: ceil(bits / 8), 4 to 8."""
    return max(4, (prime.bit_length() + 7) // 8)


def pack_residues(values: NDArray[np.uint64], width: int) -> bytes:
    """Packs residues below 2**(8 width) as `width` little-endian bytes each (4 <= width <= 8)."""
    out = np.empty(values.size, dtype=_packed(width))
    flat = values.reshape(-1)
    for name, shift in _FIELDS[width]:
        np.copyto(out[name], flat >> np.uint64(shift) if shift else flat, casting="unsafe")
    return out.tobytes()


def unpack_residues(data: bytes | memoryview, prime: int, peer: str) -> NDArray[np.uint64]:
    """Unpacks residues and refuses any that is not below `prime`.

    Raises:
        PeerError: `wire-residue`.
    """
    width = residue_width(prime)
    packed = np.frombuffer(data, dtype=_packed(width))
    # Every residue but the last is read as eight bytes, of which the upper ones belong to the next.
    whole = np.ndarray((max(packed.size - 1, 0),), dtype="<u8", buffer=data, strides=(width,))
    out = np.empty(packed.size, dtype=np.uint64)
    np.bitwise_and(whole, np.uint64((1 << 8 * width) - 1), out=out[:-1])
    if packed.size:
        out[-1] = int.from_bytes(packed[-1:].tobytes(), "little")
    if out.size and int(out.max()) >= prime:
        raise PeerError("wire-residue", peer, "a residue is not below its modulus.")
    return out


_FIELDS: dict[int, tuple[tuple[str, int], ...]] = {
    4: (("a", 0),),
    5: (("a", 0), ("c", 32)),
    6: (("a", 0), ("b", 32)),
    7: (("a", 0), ("b", 32), ("c", 48)),
    8: (("a", 0), ("b", 32), ("d", 48)),
}
_TYPES = {"a": "<u4", "b": "<u2", "c": "u1", "d": "<u2"}


def _packed(width: int) -> np.dtype[np.void]:
    return np.dtype([(name, _TYPES[name]) for name, _ in _FIELDS[width]])


def _read_name(view: memoryview, offset: int, peer: str) -> tuple[str, int]:
    size = view[offset] if offset < len(view) else 256
    raw = bytes(view[offset + 1 : offset + 1 + size])
    name = raw.decode("ascii", errors="replace")
    if len(raw) != size or (name and not is_name(name)):
        raise PeerError("wire-header", peer, "a name in the header is malformed.")
    return name, offset + 1 + size
