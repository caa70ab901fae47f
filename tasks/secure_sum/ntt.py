"""Negacyclic number-theoretic transform over Z_p[X]/(X^N + 1), vectorised in numpy.

Both directions use one constant-geometry Cooley-Tukey network: every stage pairs j with j + N/2 and writes 2j and
2j + 1, so that all array operations run over long contiguous halves. Evaluation order is SEAL's (bit-reversed): output
i of `forward` is the value at psi**(2 brv(i) + 1) with the smallest primitive 2N-th root psi.

Invariant: magnitudes are bounded when the tables are built (`_plan_stages`); a stage reduces its inputs or products
exactly where 63 bits would not hold otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tasks.secure_sum.modular import Field, Int64, minimal_root, prime_field

_BLOCK_ELEMENTS = 1 << 13
_HEADROOM = float(1 << 62)


@dataclass(frozen=True)
class _Stage:
    twiddle: Int64
    quotient: NDArray[np.float64]
    reduce_input: bool
    reduce_product: bool


class Ntt:
    """Transforms of rows of length N modulo one prime.

    Args:
        degree: N, a power of two from 8.
        prime: A prime of at most 56 bits with p = 1 mod 2N.
    """

    def __init__(self, degree: int, prime: int) -> None:
        if degree < 8 or degree & (degree - 1) or (prime - 1) % (2 * degree):
            raise ValueError("expected a power of two N >= 8 and a prime p = 1 mod 2N")
        self.degree = degree
        self.field = prime_field(prime)
        psi = minimal_root(prime, 2 * degree)
        exponents, leaves = _tree(degree, degree)
        self._forward = _plan_stages(self.field, self.field.powers(psi, 2 * degree), exponents)
        self._natural = np.argsort(leaves >> 1)
        exponents, leaves = _tree(degree, 0)
        inverse_psi = self.field.powers(pow(psi, -1, prime), 2 * degree)
        self._backward = _plan_stages(self.field, inverse_psi, exponents)
        self._order = np.argsort(leaves >> 1)
        self._scale = self.field.scale(inverse_psi[:degree], pow(degree, -1, prime))

    def forward(self, values: Int64) -> Int64:
        """Transforms rows (..., N) of residues of at most p in size; returns residues in [0, p), SEAL order."""
        return self._rows(values, self._forward_block)

    def inverse(self, values: Int64) -> Int64:
        """Inverts `forward`: rows (..., N) in SEAL order to coefficients in [0, p)."""
        return self.inverse_natural(values[..., self._natural])

    def inverse_natural(self, values: Int64) -> Int64:
        """Inverts rows in natural order (value k at psi**(2k+1)); saves a permutation where the order is ours."""
        return self._rows(values, self._inverse_block)

    def to_natural(self, values: Int64) -> Int64:
        """Permutes rows from SEAL order to natural order."""
        return values[..., self._natural]

    def _rows(self, values: Int64, work: object) -> Int64:
        rows = np.ascontiguousarray(values, dtype=np.int64).reshape(-1, self.degree)
        out = np.empty_like(rows)
        step = max(1, _BLOCK_ELEMENTS // self.degree)
        for start in range(0, len(rows), step):
            work(rows[start : start + step], out[start : start + step])  # type: ignore[operator]
        return out.reshape(values.shape)

    def _forward_block(self, rows: Int64, out: Int64) -> None:
        out[...] = self.field.canonical(_run(self._forward, rows, self.field)).view(np.int64)

    def _inverse_block(self, rows: Int64, out: Int64) -> None:
        raw = self.field.reduce(_run(self._backward, rows, self.field)[:, self._order])
        out[...] = self.field.canonical(self.field.mul(raw, self._scale)).view(np.int64)


@lru_cache(maxsize=64)
def ntt_of(degree: int, prime: int) -> Ntt:
    """Returns the (shared, immutable) transform of that ring."""
    return Ntt(degree, prime)


def _tree(degree: int, root: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Returns, per stage, the exponents of the node constants, and the exponents of the leaves.

    A node is the ring Z[z]/(z^L - psi^e); its children are z^(L/2) - psi^(e/2) and z^(L/2) + psi^(e/2).
    """
    nodes = np.array([root], dtype=np.int64)
    stages = []
    while nodes.size < degree:
        half = nodes >> 1
        stages.append(half)
        nodes = np.stack([half, half + degree], axis=1).ravel() % (2 * degree)
    return stages, nodes


def _plan_stages(field: Field, powers: Int64, exponents: list[NDArray[np.int64]]) -> tuple[_Stage, ...]:
    prime = float(field.prime)
    bound = 1.01
    stages = []
    for nodes in exponents:
        twiddle = np.tile(powers[nodes], len(powers) // 4 // nodes.size)
        reduce_input = _product_bound(bound, prime) * prime >= _HEADROOM
        if reduce_input:
            bound = 0.51
        product = _product_bound(bound, prime)
        reduce_product = product > 2.0
        bound += 0.51 if reduce_product else product
        stages.append(_Stage(twiddle, twiddle / prime, reduce_input, reduce_product))
    return tuple(stages)


def _product_bound(bound: float, prime: float) -> float:
    # |y| <= bound * p, |w| <= 0.51 p: rounding to the nearest quotient plus its float64 error, in units of p.
    return 0.51 + bound * prime * 0.51 * 6 * 2.0**-53


def _run(stages: tuple[_Stage, ...], rows: Int64, field: Field) -> Int64:
    count, degree = rows.shape
    half = degree >> 1
    source, spare = rows, np.empty_like(rows)
    estimate = np.empty((count, half), dtype=np.float64)
    quotient = np.empty((count, half), dtype=np.int64)
    product = np.empty((count, half), dtype=np.int64)
    for stage in stages:
        if stage.reduce_input:
            source = field.reduce(source)
        low, high = source[:, :half], source[:, half:]
        np.multiply(high, stage.quotient, out=estimate)
        np.rint(estimate, out=estimate)
        np.copyto(quotient, estimate, casting="unsafe")
        np.multiply(high, stage.twiddle, out=product)
        quotient *= field.prime
        product -= quotient
        term = field.reduce(product) if stage.reduce_product else product
        pairs = spare.reshape(count, half, 2)
        np.add(low, term, out=pairs[:, :, 0])
        np.subtract(low, term, out=pairs[:, :, 1])
        source, spare = spare, (source if source is not rows else np.empty_like(rows))
    return source
