"""Exact discrete Gaussian samples, shares of discrete Laplace noise, vectorised, and exact coins.

Karney's method (ACM TOMS 42:1, algorithm D): draw k >= 0 with probability proportional to exp(-k^2 / 2), a sign, and
j uniform in [0, ceil(sigma)); let i = ceil(k sigma) + j and x = i / sigma - k; accept sign * i with probability
exp(-x (2k + x) / 2) if x < 1. The result has P(i) proportional to exp(-i^2 / (2 sigma^2)) on the integers.

Invariant: float64 never decides. A uniform number is compared as its first 53 (or 64) bits, and where those are closer
to the threshold than the certified error, more bits and exact arithmetic decide. Given uniform bytes the output is
exact, but for k > 60, which has probability below 2**-2500. Running time depends on the values drawn.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasks.privacy.noise import NoiseStream

Int64: TypeAlias = NDArray[np.int64]
BATCH = 1 << 16
MAX_K = 60
# Certified bound on the error of exp(-gamma) in float64: gamma <= 61 from three rounded operations, exp within 8 ulp.
MARGIN = 2.0**-44


def sample_discrete_gaussian(stream: NoiseStream, sigma: Fraction, size: int, margin: float = MARGIN) -> Int64:
    """Samples `size` independent discrete Gaussians with parameter `sigma` (P(i) ~ exp(-i^2 / (2 sigma^2))).

    Args:
        stream: Uniform bytes; about 34 per sample.
        sigma: Positive, at most 2**40; numerator and denominator at most 2**56.
        size: Number of samples.
        margin: Width of the zone decided exactly; a larger one is slower and equally exact (tests).

    Returns:
        int64 array of shape (size,).

    Raises:
        ValueError: `sigma` out of range.
    """
    p, q = sigma.numerator, sigma.denominator
    if not 0 < sigma <= 2**40 or max(p, q) > 2**56:
        raise ValueError("sigma outside the range of the sampler")
    parts: list[Int64] = []
    missing = size
    while missing > 0:
        accepted = _propose(stream, p, q, min(BATCH, missing + missing // 2 + 16), margin)
        # Acceptance does not depend on position, so keeping the first ones favours no value.
        parts.append(accepted[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def sample_bernoulli(stream: NoiseStream, probability: Fraction, size: int) -> NDArray[np.bool_]:
    """Samples `size` independent coins that are true with exactly `probability`, given uniform bytes.

    Args:
        stream: Uniform bytes; 8 per coin, and more where these 64 bits do not decide.
        probability: In [0, 1].
        size: Number of coins.

    Raises:
        ValueError: `probability` out of range.
    """
    if not 0 <= probability <= 1:
        raise ValueError("probability outside [0, 1]")
    bits = np.frombuffer(stream.random_bytes(8 * size), dtype="<u8")
    if probability == 1:
        return np.ones(size, np.bool_)
    first = (probability.numerator << 64) // probability.denominator
    coins: NDArray[np.bool_] = bits < np.uint64(first)
    for index in np.flatnonzero(bits == np.uint64(first)):
        coins[index] = _decide_coin(stream, first, probability)
    return coins


def _decide_coin(stream: NoiseStream, u: int, probability: Fraction) -> bool:
    """Decides U < probability where the first 64 bits of both are `u`, drawing more bits of U."""
    bits = 64
    while True:
        scaled = probability * (1 << bits)
        if u + 1 <= scaled or u >= scaled:
            return u + 1 <= scaled
        u = (u << 64) | int.from_bytes(stream.random_bytes(8), "little")
        bits += 64


def _propose(stream: NoiseStream, p: int, q: int, count: int, margin: float) -> Int64:
    raw = np.frombuffer(stream.random_bytes(24 * count), dtype="<u8").reshape(3, count)
    k = _draw_k(stream, raw[0])
    negative = (raw[1] & np.uint64(1)).astype(bool)
    j, usable = _uniform_below(raw[1] >> np.uint64(1), -(-p // q))
    i = -((-k * p) // q) + j
    # x = distance / p, exactly.
    distance = i * q - k * p
    usable &= (distance < p) & ~((i == 0) & negative)
    k, i, distance, negative = k[usable], i[usable], distance[usable], negative[usable]
    accept = _accept(stream, raw[2][usable] >> np.uint64(11), k, distance, p, margin)
    return np.where(negative, -i, i)[accept]


def _uniform_below(bits63: NDArray[np.uint64], bound: int) -> tuple[Int64, NDArray[np.bool_]]:
    """Reduces 63 uniform bits to [0, bound); the second array marks those that reduce without bias."""
    limit = (1 << 63) // bound * bound
    return (bits63 % np.uint64(bound)).astype(np.int64), bits63 < np.uint64(limit)


def _accept(
    stream: NoiseStream, bits53: NDArray[np.uint64], k: Int64, distance: Int64, p: int, margin: float
) -> NDArray[np.bool_]:
    """Decides U < exp(-x (2k + x) / 2) for x = distance / p, U a uniform real whose first 53 bits are given."""
    x = distance.astype(np.float64) / p
    gap = np.exp(-0.5 * x * (2.0 * k + x)) - bits53.astype(np.float64) * 2.0**-53
    result: NDArray[np.bool_] = gap > 0.0
    for index in np.flatnonzero(np.abs(gap) <= margin):
        d, whole = int(distance[index]), int(k[index])
        gamma = Fraction(d * (2 * whole * p + d), 2 * p * p)
        result[index] = _below(stream, int(bits53[index]), 53, partial(_exp_bounds, gamma))
    return result


def _below(stream: NoiseStream, u: int, bits: int, bounds: Callable[[int], tuple[int, int]]) -> bool:
    """Decides U < t exactly, drawing more bits of U until it leaves the bounds of t (integers scaled by 2**bits)."""
    while True:
        low, high = bounds(bits)
        if u < low:
            return True
        if u > high:
            return False
        u = (u << 64) | int.from_bytes(stream.random_bytes(8), "little")
        bits += 64


def _exp_bounds(gamma: Fraction, bits: int) -> tuple[int, int]:
    """Integers low <= 2**bits * exp(-gamma) <= high, for 0 <= gamma <= 2000."""
    digits = bits * 302 // 1000 + 12
    with decimal.localcontext(prec=digits):
        value = (Decimal(-gamma.numerator) / Decimal(gamma.denominator)).exp()
    # Relative error below 2001 * 10**(1 - digits), as exp is correctly rounded.
    return _bounds(Fraction(value), Fraction(3000, 10 ** (digits - 1)), bits)


def _bounds(value: Fraction, error: Fraction, bits: int) -> tuple[int, int]:
    low, high = (value - error) * 2**bits, (value + error) * 2**bits
    return max(low.numerator // low.denominator, 0), -(-high.numerator // high.denominator)


def _draw_k(stream: NoiseStream, bits64: NDArray[np.uint64]) -> Int64:
    table = _k_table()
    k = np.searchsorted(table, bits64, side="right").astype(np.int64)
    # Only a draw that equals the first 64 bits of a threshold is undecided.
    for index in np.flatnonzero(np.isin(bits64, table)):
        k[index] = _resolve_k(stream, int(bits64[index]))
    return k


def _resolve_k(stream: NoiseStream, u: int) -> int:
    bits = 64
    while True:
        u = (u << 64) | int.from_bytes(stream.random_bytes(8), "little")
        bits += 64
        for k in range(MAX_K + 1):
            low, high = _cumulative_bounds(k, bits)
            if u < low:
                return k
            if u <= high:
                break


@lru_cache(maxsize=1)
def _k_table() -> NDArray[np.uint64]:
    """First 64 bits of P(K <= m) for m = 0, 1, ... until they are all ones."""
    table: list[int] = []
    while not table or table[-1] < 2**64 - 1:
        low, _ = _cumulative_bounds(len(table), 192)
        table.append(low >> 128)
    return np.array(table, dtype=np.uint64)


@lru_cache(maxsize=1024)
def _cumulative_bounds(m: int, bits: int) -> tuple[int, int]:
    """Integers around 2**bits * P(K <= m), P(K = k) proportional to exp(-k^2 / 2) for k = 0 .. MAX_K."""
    digits = bits * 302 // 1000 + 12
    with decimal.localcontext(prec=digits):
        weights = [(Decimal(-k * k) / 2).exp() for k in range(MAX_K + 1)]
        value = sum(weights[: m + 1]) / sum(weights)
    return _bounds(Fraction(value), Fraction(1000, 10 ** (digits - 1)), bits)


def sample_laplace_share(stream: NoiseStream, scale: Fraction, shares: int, size: int) -> Int64:
    """Samples one of `shares` equal shares of discrete Laplace noise, `size` times.

    The sum of `shares` independent ones has P(i) proportional to exp(-|i| / scale): a discrete Laplace is the
    difference of two geometric numbers, and a geometric number the sum of `shares` Polya (negative binomial) ones of
    size 1/shares.

    Args:
        stream: Uniform bytes.
        scale: Positive, at most 2**20; numerator and denominator at most 2**56.
        shares: At least 1.
        size: Number of samples.

    Returns:
        int64 array of shape (size,).

    Raises:
        ValueError: `scale` or `shares` out of range.
    """
    if not 0 < scale <= 2**20 or max(scale.numerator, scale.denominator) > 2**56 or shares < 1:
        raise ValueError("scale or shares outside the range of the sampler")
    return _sample_polya(stream, scale, shares, size) - _sample_polya(stream, scale, shares, size)


def _sample_polya(stream: NoiseStream, scale: Fraction, shares: int, size: int) -> Int64:
    """P(k) proportional to exp(-k / scale) * product over j = 1 .. k of (1 - (1 - 1/shares) / j): thinned geometric."""
    expected = float(scale + 1) ** (1.0 - 1.0 / shares)
    parts: list[Int64] = []
    missing = size
    while missing > 0:
        count = min(BATCH, int(1.2 * missing * expected) + 16)
        parts.append(_thin(stream, _sample_geometric(stream, scale, count), shares)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _thin(stream: NoiseStream, k: Int64, shares: int) -> Int64:
    """Keeps each k with the product's probability, coin by coin; every coin is rational, so exact."""
    if shares == 1:
        return k
    kept = np.ones(k.size, np.bool_)
    waiting = np.flatnonzero(k >= 1)
    j = 1
    while waiting.size:
        passed = sample_bernoulli(stream, Fraction(shares * (j - 1) + 1, shares * j), waiting.size)
        kept[waiting[~passed]] = False
        j += 1
        waiting = waiting[passed & (k[waiting] >= j)]
    return k[kept]


def _sample_geometric(stream: NoiseStream, scale: Fraction, count: int) -> Int64:
    """P(k) proportional to exp(-k / scale) (Canonne, Kamath, Steinke, arXiv 2004.00010, algorithm 2); up to `count`.

    With scale = t/s: u uniform below t, kept with probability exp(-u/t); v counts coins of exp(-1); (u + t v) // s.
    """
    t, s = scale.numerator, scale.denominator
    raw = np.frombuffer(stream.random_bytes(16 * count), dtype="<u8").reshape(2, count)
    u, usable = _uniform_below(raw[0] >> np.uint64(1), t)
    u, bits = u[usable], raw[1][usable] >> np.uint64(11)
    u = u[_below_exp(stream, bits, u, t)]
    v = np.zeros(u.size, np.int64)
    alive = np.arange(u.size)
    while alive.size:
        bits = np.frombuffer(stream.random_bytes(8 * alive.size), dtype="<u8") >> np.uint64(11)
        alive = alive[_below_exp(stream, bits, np.ones(alive.size, np.int64), 1)]
        v[alive] += 1
    if v.size and int(v.max()) * t >= 2**62:
        raise ValueError("scale outside the range of the sampler")
    return (u + t * v) // s


def _below_exp(stream: NoiseStream, bits53: NDArray[np.uint64], top: Int64, bottom: int) -> NDArray[np.bool_]:
    """Decides U < exp(-top / bottom), top / bottom in [0, 1], U a uniform real whose first 53 bits are given."""
    gap = np.exp(-(top.astype(np.float64) / bottom)) - bits53.astype(np.float64) * 2.0**-53
    result: NDArray[np.bool_] = gap > 0.0
    for index in np.flatnonzero(np.abs(gap) <= MARGIN):
        gamma = Fraction(int(top[index]), bottom)
        result[index] = _below(stream, int(bits53[index]), 53, partial(_exp_bounds, gamma))
    return result
