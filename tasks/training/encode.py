"""From real gradients to integers of bounded norm: clip -> scale -> round -> clip again in integers.

Invariant: every row that leaves `encode_gradients` has integer L2 norm at most `sensitivity`, established in exact
integer arithmetic. The noise is calibrated to that number, so the guarantee does not rest on floating-point clipping.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def encode_gradients(
    gradients: NDArray[np.float64], clip_norm: float, scale_bits: int, sensitivity: int
) -> NDArray[np.int64]:
    """Encodes per-patient gradients as integers, one row per patient.

    A real x becomes round(x / C * 2**scale_bits) after its row is clipped to L2 norm C. Rounding can push a clipped row
    past the bound; such a row is shrunk towards zero until its integer norm holds.

    Args:
        gradients: float64 (patients, P), finite, unclipped.
        clip_norm: C.
        scale_bits: Fraction bits of the lattice.
        sensitivity: Integer L2 bound; `GaussianMechanism.sensitivity`.

    Returns:
        int64 (patients, P).
    """
    norms = np.sqrt((gradients * gradients).sum(axis=1, keepdims=True))
    clipped = gradients * np.minimum(1.0, clip_norm / np.maximum(norms, np.finfo(np.float64).tiny))
    # Overflowing norms (inf) give factor 0; a row whose product is still not a number counts as zero.
    clipped = np.where(np.isfinite(clipped), clipped, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.rint(clipped * (2.0**scale_bits / clip_norm))
    # A clip norm at the edge of float64 makes infinities, which as integers would wrap past every bound.
    integers = np.where(np.abs(scaled) <= 2.0 ** (scale_bits + 1), scaled, 0.0).astype(np.int64)
    return _clip_integers(integers, sensitivity)


def _clip_integers(integers: NDArray[np.int64], sensitivity: int) -> NDArray[np.int64]:
    bound = sensitivity * sensitivity
    squares = (integers * integers).sum(axis=1)
    for row in np.nonzero(squares > bound)[0]:
        values = [int(v) for v in integers[row]]
        norm = math.isqrt(sum(v * v for v in values)) + 1
        # Truncation towards zero of v * sensitivity / norm: each magnitude is at most the exact quotient.
        shrunk = [abs(v) * sensitivity // norm * (1 if v > 0 else -1) for v in values]
        integers[row] = shrunk
    return integers
