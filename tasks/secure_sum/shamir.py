"""Shamir sharing of residue vectors at the points 1 .. n, and Lagrange coefficients at zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.secure_sum.modular import Field, Int64
from tasks.secure_sum.sampling import Stream, sample_uniform


def generate_shares(field: Field, secret: Int64, threshold: int, holders: int, stream: Stream) -> Iterator[Int64]:
    """Yields f(1), f(2), .., f(holders) in [0, p) for fresh polynomials of degree threshold - 1 with f(0) = secret.

    Args:
        field: The prime field.
        secret: Balanced residues, any shape (m,).
        threshold: Shares needed to interpolate.
        holders: Number of shares.
        stream: Secret randomness for the other coefficients.
    """
    terms = [field.reduce(secret)]
    terms += [field.balanced(sample_uniform(stream, field.prime, secret.size)) for _ in range(threshold - 1)]
    for point in range(1, holders + 1):
        value = terms[-1]
        for term in reversed(terms[:-1]):
            value = field.reduce(field.scale(value, point) + term)
        yield field.canonical(value).view(np.int64)


def lagrange_at_zero(prime: int, points: Sequence[int]) -> dict[int, int]:
    """Returns, for each point of an active set, its coefficient: sum of coefficient * f(point) = f(0).

    Raises:
        ValueError: points are not distinct and positive.
    """
    if len(set(points)) != len(points) or any(not 0 < point < prime for point in points):
        raise ValueError("expected distinct positive points")
    result = {}
    for point in points:
        numerator = denominator = 1
        for other in points:
            if other != point:
                numerator = numerator * other % prime
                denominator = denominator * (other - point) % prime
        result[point] = numerator * pow(denominator, -1, prime) % prime
    return result


def combine_shares(field: Field, shares: dict[int, Int64]) -> Int64:
    """Interpolates at zero: balanced residues of f(0) from {point: residues}."""
    weights = lagrange_at_zero(field.prime, sorted(shares))
    total: Int64 | None = None
    for point, share in shares.items():
        term = field.scale(field.reduce(share), weights[point])
        total = term if total is None else field.reduce(total + term)
    if total is None:
        raise ValueError("expected at least one share")
    return field.reduce(total)
