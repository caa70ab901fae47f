"""The ring of the threshold CKKS half in plain numpy: residues, transforms, exact rounding, self-test ciphertexts.

Polynomials are (primes, N) arrays of residues in [0, p). Coefficient packing: the key half, 2048 integers, is scaled by
`key_delta` and put into the first 2048 coefficients; only those are ever opened.
"""

from __future__ import annotations

import numpy as np

from tasks.secure_sum.modular import Int64, UInt64, prime_field
from tasks.secure_sum.ntt import ntt_of
from tasks.secure_sum.parameters import KEY_BOUND, SumParameters
from tasks.secure_sum.sampling import derived_stream, sample_uniform

_SELF_TEST_WEIGHT = 32


def ring_primes(parameters: SumParameters) -> tuple[int, ...]:
    """Returns all primes of the public key: the data primes, then the special prime."""
    return (*parameters.data_primes, parameters.special_prime)


def expand_common(parameters: SumParameters, sid: str, seed: str) -> UInt64:
    """Derives the common polynomial a, (4, N) in SEAL's transformed order, from the opened nonces' seed."""
    rows = []
    for index, prime in enumerate(ring_primes(parameters)):
        stream = derived_stream("common-polynomial", bytes.fromhex(sid), bytes.fromhex(seed), index)
        rows.append(sample_uniform(stream, prime, parameters.ring_degree))
    return np.stack(rows)


def transform(parameters: SumParameters, values: Int64, primes: tuple[int, ...]) -> UInt64:
    """Transforms one small integer polynomial (N,) modulo each prime; |values| < 2**62."""
    rows = [ntt_of(parameters.ring_degree, p).forward(prime_field(p).reduce(values)) for p in primes]
    return np.stack(rows).view(np.uint64)


def inverse(parameters: SumParameters, values: UInt64) -> UInt64:
    """Returns the coefficients (k, N) of a transformed polynomial modulo the data primes."""
    rows = [
        ntt_of(parameters.ring_degree, p).inverse(row.view(np.int64))
        for p, row in zip(parameters.data_primes, values, strict=True)
    ]
    return np.stack(rows).view(np.uint64)


def add(parameters: SumParameters, left: UInt64, right: UInt64) -> UInt64:
    """Adds two arrays (..., k, m) of residues modulo the data primes."""
    primes = np.array(parameters.data_primes, dtype=np.uint64)[:, None]
    total = left + right
    reduced: UInt64 = np.minimum(total, total - primes)
    return reduced


def multiply(left: UInt64, right: UInt64, primes: tuple[int, ...]) -> UInt64:
    """Multiplies transformed polynomials (k, N) pointwise, k = len(primes)."""
    rows = []
    for p, a, b in zip(primes, left, right, strict=True):
        field = prime_field(p)
        rows.append(field.canonical(field.mul(field.balanced(a), field.balanced(b))))
    return np.stack(rows)


def encode_key(parameters: SumParameters, key: Int64) -> UInt64:
    """Returns the transform (3, N) of key_delta times the 2048 integers `key`, modulo the data primes."""
    padded = np.zeros(parameters.ring_degree, dtype=np.int64)
    padded[: key.size] = key
    rows = []
    for p in parameters.data_primes:
        field = prime_field(p)
        rows.append(ntt_of(parameters.ring_degree, p).forward(field.scale(padded, parameters.key_delta)))
    return np.stack(rows).view(np.uint64)


def lift(parameters: SumParameters, residues: UInt64) -> list[int]:
    """Returns the centred integers of (3, m) residues by the mixed-radix form of the Chinese remainder theorem."""
    primes = parameters.data_primes
    digits: list[Int64] = []
    for index, p in enumerate(primes):
        field = prime_field(p)
        value = field.balanced(residues[index])
        for earlier, digit in enumerate(digits):
            difference = field.reduce(value - field.reduce(digit))
            value = field.reduce(field.scale(difference, pow(primes[earlier], -1, p)))
        digits.append(value)
    weights = [1, primes[0], primes[0] * primes[1]]
    columns = [digit.tolist() for digit in digits]
    return [sum(w * v for w, v in zip(weights, row, strict=True)) for row in zip(*columns, strict=True)]


def round_key(parameters: SumParameters, values: list[int]) -> Int64 | None:
    """Divides by key_delta and rounds; None if any residual is above key_delta / 4 or a result does not fit."""
    delta = parameters.key_delta
    rounded = [(v + delta // 2) // delta for v in values]
    limit = KEY_BOUND * parameters.contributors
    if any(abs(v - delta * r) > delta // 4 or abs(r) > limit for v, r in zip(values, rounded, strict=True)):
        return None
    return np.array(rounded, dtype=np.int64)


def self_test_message(parameters: SumParameters, seed: str, index: int) -> Int64:
    """Derives the plaintext of self-test `index`: 2048 integers over the full range of an honest key sum."""
    stream = derived_stream("self-test-message", bytes.fromhex(seed), index)
    span = 2 * KEY_BOUND * parameters.contributors + 1
    words = stream.words(parameters.bulk_degree) % np.uint64(span)
    return words.astype(np.int64) - KEY_BOUND * parameters.contributors


def self_test_ciphertext(parameters: SumParameters, public_key: UInt64, seed: str, index: int) -> tuple[UInt64, UInt64]:
    """Derives self-test `index`: (b u + delta m, a u) with plaintext and randomness u both recomputed from the seed.

    A ciphertext taken as bytes would make the self-test a decryption oracle. u has 32 coefficients of +-1, so that the
    noise, a sum of 32 n_k key errors, stays below that of a key sum.
    """
    stream = derived_stream("self-test-randomness", bytes.fromhex(seed), index)
    words = stream.words(_SELF_TEST_WEIGHT)
    mask = np.zeros(parameters.ring_degree, dtype=np.int64)
    places = (words % np.uint64(parameters.ring_degree)).astype(np.int64)
    np.add.at(mask, places, 1 - 2 * (words >> np.uint64(63)).astype(np.int64))
    primes = parameters.data_primes
    spread = transform(parameters, mask, primes)
    body = multiply(public_key[0, : len(primes)], spread, primes)
    message = encode_key(parameters, self_test_message(parameters, seed, index))
    return add(parameters, body, message), multiply(public_key[1, : len(primes)], spread, primes)
