"""What a purely epsilon-differentially private mechanism costs in the two filters, rounded to the safe side.

Every such mechanism is a post-processing of randomised response with odds exp(epsilon) (Kairouz, Oh, Viswanath,
arXiv 1311.0776), and the trade-off curve of that lies above the Gaussian one of

    mu = 2 z,  Phi(z) = exp(epsilon) / (1 + exp(epsilon)),  that is  mu = -2 Phi^-1(1 / (1 + exp(epsilon))),

touching it where both errors are equal. At order a its Renyi divergence is, with p = exp(epsilon) / (1 + exp(epsilon)),

    log(p^a (1 - p)^(1 - a) + (1 - p)^a p^(1 - a)) / (a - 1).

Decimal arithmetic is the same on every machine.
"""

from __future__ import annotations

import decimal
import math
from decimal import Decimal as Number
from fractions import Fraction
from functools import lru_cache

GRID_DIGITS = 15
PRECISION = 60
LARGEST_EPSILON = 20
ERROR = Fraction(1, 10**30)
_TWO_PI = Number("6.283185307179586476925286766559005768394338798750211641949889")


@lru_cache(maxsize=4096)
def gdp_cost_of_pure(epsilon: Fraction) -> Fraction:
    """Derives mu^2 of an `epsilon`-differentially private mechanism, rounded up to 1e-15.

    Raises:
        ValueError: epsilon outside (0, 20].
    """
    _verify(epsilon, LARGEST_EPSILON)
    with decimal.localcontext(prec=PRECISION):
        odds = (Number(epsilon.numerator) / Number(epsilon.denominator)).exp()
        wanted = (odds - 1) / (2 * (odds + 1))
        low, high = Number(0), Number(8)
        for _ in range(120):
            middle = (low + high) / 2
            low, high = (middle, high) if _half_normal(middle) < wanted else (low, middle)
        return _round_up(4 * Fraction(high) ** 2 + ERROR)


@lru_cache(maxsize=4096)
def renyi_cost_of_pure(epsilon: Fraction, order: int) -> Fraction:
    """Derives the Renyi cost at `order` of an `epsilon`-differentially private mechanism, rounded up to 1e-15.

    Raises:
        ValueError: epsilon outside (0, 4096].
    """
    _verify(epsilon, 4096)
    with decimal.localcontext(prec=PRECISION, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN):
        odds = (Number(epsilon.numerator) / Number(epsilon.denominator)).exp()
        p = odds / (1 + odds)
        rest = 1 / (1 + odds)
        total = p**order * rest ** (1 - order) + rest**order * p ** (1 - order)
        return _round_up(Fraction(total.ln() / (order - 1)) + ERROR)


def _half_normal(x: Number) -> Number:
    """Phi(x) - 1/2 by the series phi(x) (x + x^3 / 3 + x^5 / (3 5) + ...)."""
    term = total = x
    k = 1
    while term > total * Number(10) ** -PRECISION:
        k += 2
        term = term * x * x / k
        total += term
    return total * (-x * x / 2).exp() / _TWO_PI.sqrt()


def _verify(epsilon: Fraction, largest: int) -> None:
    if not 0 < epsilon <= largest:
        raise ValueError(f"expected a pure epsilon in (0, {largest}]")


def _round_up(value: Fraction) -> Fraction:
    return Fraction(math.ceil(value * 10**GRID_DIGITS), 10**GRID_DIGITS)
