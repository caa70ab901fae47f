"""Renyi differential privacy of the Poisson-sampled Gaussian mechanism at one integer order, rounded to the safe side.

With probability q a patient is in the sum, whose noise is N(0, sigma^2) for patients' vectors of norm 1. At an integer
order a >= 2, for adding or removing one patient (Mironov, Talwar, Zhang, arXiv 1908.10530, theorems 4 and 5),

    (a - 1) rho(a) = log sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 sigma^2)),   k = 0 .. a.

Events chosen adaptively add up at one order that was fixed before the first of them (a filter: Feldman and Zrnic,
arXiv 2008.11193), and (a, rho) gives (epsilon, delta) with epsilon = rho + log((a - 1) / a) - log(a delta) / (a - 1)
(Canonne, Kamath, Steinke, arXiv 2004.00010, proposition 12). Decimal arithmetic is the same on every machine; 60 more
digits than the grid cover its errors, and every result is rounded to the side that promises less.
"""

from __future__ import annotations

import decimal
import math
from decimal import Decimal as Number
from fractions import Fraction
from functools import lru_cache

GRID_DIGITS = 15
LARGEST_ORDER = 256
PRECISION = 90
# Above this the sampled cost is not worth its exact value: the full batch, which never costs less, is charged.
LARGEST_EXPONENT = 100_000
ERROR = Fraction(1, 10**40)
# Sampled costs grow somewhat faster than linearly in the order; 16, 7 and 4 for epsilon 1, 3 and 8 at delta 1e-5.
ORDER_GROWTH = 1.3


@lru_cache(maxsize=65536)
def sampled_gaussian_cost(probability: Fraction, inverse_variance: Fraction, order: int) -> Fraction:
    """Derives rho at `order`, rounded up to 1e-15.

    Args:
        probability: q in (0, 1].
        inverse_variance: 1 / sigma^2, for patients' vectors of norm 1.
        order: Integer, at least 2.
    """
    full = order * inverse_variance / 2
    if probability == 1 or order * full > LARGEST_EXPONENT:
        return _round_up(full)
    with decimal.localcontext(prec=PRECISION, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN):
        q, rest, half = _number(probability), _number(1 - probability), _number(inverse_variance / 2)
        terms = (
            math.comb(order, k) * rest ** (order - k) * q**k * (half * (k * k - k)).exp() for k in range(order + 1)
        )
        rho = Fraction(sum(terms, Number(0)).ln() / (order - 1))
    return min(_round_up(max(rho, Fraction(0)) + ERROR), _round_up(full))


@lru_cache(maxsize=4096)
def renyi_limit(epsilon: str, delta: str, order: int) -> Fraction:
    """Derives the largest total at `order` that (`epsilon`, `delta`) admits, rounded down; 0 if it admits nothing."""
    allowed = Fraction(Number(epsilon)) + _conversion(delta, order) - ERROR
    return max(Fraction(math.floor(allowed * 10**12), 10**12), Fraction(0))


def epsilon_of_renyi(total: Fraction, delta: str, order: int) -> Fraction:
    """Derives the epsilon that `total` at `order` stands for at `delta`, rounded up to 1e-12."""
    wanted = total - _conversion(delta, order) + ERROR
    return max(Fraction(math.ceil(wanted * 10**12), 10**12), Fraction(0))


@lru_cache(maxsize=256)
def choose_order(epsilon: str, delta: str) -> int:
    """Chooses the order of a new filter: the one whose limit admits most sampled steps, roughly.

    Any order is sound that is fixed before the first charge, so nobody needs to agree on this choice.
    """
    return max(range(2, LARGEST_ORDER + 1), key=lambda a: float(renyi_limit(epsilon, delta, a)) / a**ORDER_GROWTH)


@lru_cache(maxsize=4096)
def _conversion(delta: str, order: int) -> Fraction:
    """log(a / (a - 1)) + log(a delta) / (a - 1)."""
    with decimal.localcontext(prec=PRECISION):
        a, tail = Number(order), Number(delta)
        return Fraction((a / (a - 1)).ln() + (a * tail).ln() / (a - 1))


def _number(value: Fraction) -> Number:
    return Number(value.numerator) / Number(value.denominator)


def _round_up(value: Fraction) -> Fraction:
    return Fraction(math.ceil(value * 10**GRID_DIGITS), 10**GRID_DIGITS)
