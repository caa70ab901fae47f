"""Exact arithmetic modulo primes below 2**56, vectorised on int64 with a quotient estimated in float64.

Invariant: a product is a*b - round(a*b/p)*p in wrapping 64-bit integers. The quotient is estimated in float64, maybe
off by a few units; the true remainder then still fits in 63 bits, so that the wrapped result is exact, and one more
reduction (whose quotient is tiny) brings it back. Residues are balanced inside and in [0, p) at every boundary.
Not constant-time: an attacker who can time a site's own processor is out of scope.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

MAX_PRIME_BITS = 56
# Up to this size one estimated quotient leaves a remainder within (-p, p).
_FAST_BITS = 50
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


class Field:
    """The integers modulo a prime of 20 to 56 bits; methods take and return int64 arrays of balanced residues."""

    def __init__(self, prime: int) -> None:
        if not 20 <= prime.bit_length() <= MAX_PRIME_BITS or not is_prime(prime):
            raise ValueError(f"expected a prime of 20 to {MAX_PRIME_BITS} bits")
        self.prime = prime
        self.width = (prime.bit_length() + 7) // 8
        self._inverse = 1.0 / prime
        self._fast = prime.bit_length() <= _FAST_BITS

    def reduce(self, values: Int64) -> Int64:
        """Returns balanced residues (|r| <= 0.51 p) of any values below 2**62 in size."""
        quotient: Int64 = np.rint(values * self._inverse).astype(np.int64)
        quotient *= self.prime
        np.subtract(values, quotient, out=quotient)
        return quotient

    def canonical(self, values: Int64) -> UInt64:
        """Returns residues in [0, p) of any values below 2**62 in size."""
        result = self.reduce(values)
        result += (result >> 63) & self.prime
        return result.view(np.uint64)

    def balanced(self, residues: UInt64) -> Int64:
        """Returns the balanced form of residues in [0, p)."""
        signed = residues.astype(np.int64)
        signed -= np.where(signed > self.prime >> 1, np.int64(self.prime), np.int64(0))
        return signed

    def mul(self, left: Int64, right: Int64) -> Int64:
        """Multiplies elementwise; |left|, |right| <= p on input, |result| <= p on output."""
        estimate = left.astype(np.float64) * right
        estimate *= self._inverse
        quotient = np.rint(estimate, out=estimate).astype(np.int64)
        quotient *= self.prime
        product = left * right
        product -= quotient
        return product if self._fast else self.reduce(product)

    def scale(self, values: Int64, factor: int) -> Int64:
        """Multiplies by one integer of any size."""
        factor %= self.prime
        if factor > self.prime >> 1:
            factor -= self.prime
        return self.mul(values, np.asarray(factor, dtype=np.int64))

    def powers(self, base: int, count: int) -> Int64:
        """Returns base**0 .. base**(count-1), balanced."""
        out = np.ones(1, dtype=np.int64)
        while out.size < count:
            out = np.concatenate([out, self.scale(out, pow(base, out.size, self.prime))])
        return self.reduce(out[:count])


@lru_cache(maxsize=64)
def prime_field(prime: int) -> Field:
    """Returns the (shared, immutable) field of `prime`."""
    return Field(prime)


def is_prime(value: int) -> bool:
    """Tells whether `value` (below 2**64) is prime: Miller-Rabin with the first twelve primes is exact there."""
    if value < 2 or value.bit_length() > 64:
        return False
    for small in _WITNESSES:
        if value % small == 0:
            return value == small
    odd, twos = value - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(value, witness, odd, twos) for witness in _WITNESSES)


def _passes(value: int, witness: int, odd: int, twos: int) -> bool:
    x = pow(witness, odd, value)
    if x in (1, value - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % value
        if x == value - 1:
            return True
    return False


@lru_cache(maxsize=64)
def largest_primes(bits: int, order: int, count: int) -> tuple[int, ...]:
    """Returns the `count` largest primes below 2**bits that are 1 modulo `order`, ascending (SEAL's own choice)."""
    found: list[int] = []
    candidate = ((1 << bits) - 1) // order * order + 1
    while len(found) < count:
        if candidate >> (bits - 1) == 0:
            raise ValueError("not enough primes of that size")
        if candidate < 1 << bits and is_prime(candidate):
            found.append(candidate)
        candidate -= order
    return tuple(sorted(found))


@lru_cache(maxsize=64)
def minimal_root(prime: int, order: int) -> int:
    """Returns the smallest primitive `order`-th root of unity modulo `prime`; `order` is a power of two."""
    cofactor = (prime - 1) // order
    root = next(r for r in (pow(g, cofactor, prime) for g in range(2, 1000)) if pow(r, order // 2, prime) == prime - 1)
    square = root * root % prime
    best = current = root
    for _ in range(order // 2 - 1):
        current = current * square % prime
        best = min(best, current)
    return best


def ceil_sqrt(numerator: int, denominator: int = 1) -> int:
    """Returns the ceiling of sqrt(numerator / denominator), in integers."""
    quotient = -(-numerator // denominator)
    root = isqrt(quotient)
    return root if root * root == quotient else root + 1
