"""Random and pseudo-random residues: AES-256-CTR streams, keyed by the operating system or by a labelled hash.

Invariant: a secret is only ever drawn from `os_stream`; a value that everybody recomputes, or that must come out the
same on a re-send, is drawn from `derived_stream`, whose key is SHAKE256 over an injective, labelled encoding.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from schemas.canonical import encode_parts
from tasks.secure_sum.modular import Field, Int64, UInt64

BINOMIAL_BITS = 42
_LOW_42 = np.uint64((1 << 42) - 1)
_LOW_20 = np.uint32((1 << 20) - 1)
_LIMB_BITS = 48


class Stream:
    """A keystream that is read once, front to back."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def read(self, size: int) -> bytes:
        """Returns the next `size` bytes."""
        return self._encryptor.update(bytes(size))

    def words(self, count: int) -> UInt64:
        """Returns the next `count` little-endian 64-bit words."""
        return np.frombuffer(self.read(8 * count), dtype="<u8")


def os_stream() -> Stream:
    """Returns a stream keyed by 32 fresh bytes of the operating system's randomness."""
    return Stream(os.urandom(32))


def insecure_stream(seed: int) -> Stream:
    """Returns a repeatable stream, for tests and frozen vectors only."""
    return derived_stream("insecure-test-stream", seed)


def derived_stream(label: str, *parts: bytes | str | int) -> Stream:
    """Returns the stream that everybody who knows `parts` can derive."""
    return Stream(hashlib.shake_256(encode_parts(f"stream/{label}", *parts)).digest(32))


def sample_uniform(stream: Stream, prime: int, count: int) -> UInt64:
    """Draws `count` uniform residues: the first words, cut to the prime's bits, that are below the prime."""
    mask = np.uint64((1 << prime.bit_length()) - 1)
    values = stream.words(count) & mask
    values = values[values < prime]
    while values.size < count:
        more = stream.words(count - values.size) & mask
        values = np.concatenate([values, more[more < prime]])
    return values


def sample_binomial(stream: Stream, count: int) -> Int64:
    """Draws centred binomials: popcount of 42 bits minus popcount of 42 bits; variance 21, at most 42 in size."""
    raw = stream.read(12 * count)
    words = np.frombuffer(raw, dtype="<u8", count=count)
    rest = np.frombuffer(raw, dtype="<u4", offset=8 * count)
    value: Int64 = np.bitwise_count(words & _LOW_42).astype(np.int64)
    value -= np.bitwise_count(words >> np.uint64(42))
    value -= np.bitwise_count(rest & _LOW_20)
    return value


def sample_ternary(stream: Stream, count: int) -> Int64:
    """Draws uniformly from {-1, 0, 1}."""
    kept: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
    while kept.size < count:
        drawn = np.frombuffer(stream.read(count - kept.size), dtype=np.uint8)
        kept = np.concatenate([kept, drawn[drawn < 255]])
    values: Int64 = (kept % 3).astype(np.int64)
    return values - 1


def sample_box(stream: Stream, bits: int, count: int) -> UInt64:
    """Draws `count` uniform integers of [0, 2**bits) as limbs of 48 bits, shape (limbs, count), low limb first."""
    limbs = -(-bits // _LIMB_BITS)
    words = stream.words(limbs * count).reshape(limbs, count)
    out = words & np.uint64((1 << _LIMB_BITS) - 1)
    out[-1] &= np.uint64((1 << (bits - _LIMB_BITS * (limbs - 1))) - 1)
    return out


def reduce_box(limbs: UInt64, offset: int, field: Field) -> Int64:
    """Returns balanced residues of the integers in `limbs` plus `offset`."""
    total = np.zeros(limbs.shape[1], dtype=np.int64)
    for index, limb in enumerate(limbs):
        value = field.scale(field.reduce(limb.view(np.int64)), pow(2, _LIMB_BITS * index, field.prime))
        total = field.reduce(total + value)
    return field.reduce(total + np.int64(offset % field.prime))
