"""The clipped sum of patients with one row each, without any patient's gradient in memory.

A linear layer's gradient of one row is the outer product of its upstream signal d and its input (a, 1) (Goodfellow,
arXiv 1510.01799): its norm is |d| |(a, 1)|, and the sum over clipped rows is one matrix product of scaled signals and
inputs. One forward pass, one backward pass and one product per layer: the cost of plain SGD.

Invariants:
1. Inputs and scaled signals are rounded to integers before the product, and every partial sum of it stays below 2**53:
   the sum is exact, so it does not depend on the order or the grouping of patients.
2. A row's integer gradient has norm at most (sensitivity - ceil(sqrt(P))) lattice units: the clip factor is computed
   for the rounded input and leaves room for rounding the scaled signal, sum over layers of |(a, 1)| sqrt(out) / 2 of
   its units, with a margin far above float64 error; then the integer norm is looked at.
3. The exact sum is rounded to the plan's lattice once. Two rounded sums that differ by a vector g differ by at most
   |g| + sqrt(P): with invariant 2, one patient moves the result by at most `sensitivity`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.plan import StudyPlan, update_length
from tasks.contract.encoder import Cohort
from tasks.training.gradients import Layers, forward, unflatten, upstream_signals, use_single_thread

INPUT_BITS = 20
SIGNAL_BITS = 23
# 2**10 rows of products below 2**43 units: partial sums stay below 2**53.
CHUNK_ROWS = 1 << 10
_FINE_BITS = INPUT_BITS + SIGNAL_BITS
# Relative float64 error of a norm over some thousand terms is below 2**-38.
_MARGIN, _CHECK = 1.0 - 2.0**-30, 1.0 - 2.0**-36
_LARGEST_LOSS = 1 / 16


@dataclass
class ExactSum:
    """A sum of integer vectors in units of 2**-(_FINE_BITS) clip norms, kept as high and low part.

    Attributes:
        high, low: int64 (P,); the value is high * 2**shift + low.
        shift: Bits by which the plan's lattice is coarser.
    """

    high: NDArray[np.int64]
    low: NDArray[np.int64]
    shift: int

    def add(self, values: NDArray[np.float64]) -> None:
        """Adds integers held in float64 (P,), each below 2**53."""
        whole = values.astype(np.int64)
        self.high += whole >> self.shift
        self.low += whole & ((1 << self.shift) - 1)

    def rounded(self) -> NDArray[np.int64]:
        """Returns the sum on the plan's lattice: floor(x + 1/2), int64 (P,)."""
        return self.high + ((self.low + (1 << (self.shift - 1))) >> self.shift)


def has_closed_form(plan: StudyPlan, sensitivity: int) -> bool:
    """Tells whether the plan's model has one and rounding takes less than a sixteenth of the bound; public."""
    return plan.model.kind != "module" and _rounding_loss(plan) <= sensitivity * _LARGEST_LOSS


def clipped_sum(plan: StudyPlan, cohort: Cohort, weights: NDArray[np.float64], sensitivity: int) -> NDArray[np.int64]:
    """Sums the clipped gradients of patients that have exactly one row each, on the plan's lattice.

    A row whose gradient norm is not finite counts as zero.

    Args:
        plan: Names model, clip norm and lattice.
        cohort: One row per patient.
        weights: float64 (P,).
        sensitivity: Integer L2 bound of one patient; `has_closed_form` must hold.

    Returns:
        int64 (P,).
    """
    use_single_thread()
    layers = unflatten(plan, weights)
    size = update_length(plan)
    clip = float(plan.mechanism.clip_norm)
    share = (sensitivity - _rounding_loss(plan)) / 2.0**plan.mechanism.scale_bits
    scale = _Scale(clip, clip * share * _MARGIN, 2.0**_FINE_BITS * share)
    shift = _FINE_BITS - plan.mechanism.scale_bits
    total = ExactSum(np.zeros(size, np.int64), np.zeros(size, np.int64), shift)
    # Always whole chunks: a row then meets the same kernels whoever else is in the sum. Its place in the chunk may
    # still decide the last bit of an activation, which matters only within 1e-15 of a rounding boundary.
    features = torch.zeros((CHUNK_ROWS, cohort.features.shape[1]), dtype=torch.float64)
    labels = torch.zeros(CHUNK_ROWS, dtype=torch.float64)
    for start in range(0, cohort.labels.size, CHUNK_ROWS):
        rows = cohort.features[start : start + CHUNK_ROWS]
        features[len(rows) :] = 0.0
        features[: len(rows)] = torch.from_numpy(np.ascontiguousarray(rows))
        labels[: len(rows)] = torch.from_numpy(cohort.labels[start : start + CHUNK_ROWS].astype(np.float64))
        total.add(_chunk_sum(layers, features, labels, len(rows), scale).numpy())
    return total.rounded()


def _chunk_sum(layers: Layers, features: torch.Tensor, labels: torch.Tensor, rows: int, scale: _Scale) -> torch.Tensor:
    """Returns the chunk's exact sum as integers in float64 (P,); rows from `rows` on are padding and count as zero."""
    activations = forward(layers, features)
    signals = upstream_signals(layers, activations, labels)
    inputs = [(a * 2.0**INPUT_BITS).round_() for a in activations[:-1]]
    lengths = [(torch.linalg.vector_norm(a, dim=1) * 2.0**-INPUT_BITS).square() + 1.0 for a in inputs]
    factor = scale.factor(signals, lengths)
    factor[rows:] = 0.0
    scaled = [(signal * factor[:, None]).round_() for signal in signals]
    # Whatever float64 did at its edges: a row enters only with an integer norm that was looked at.
    squares = sum(torch.linalg.vector_norm(d, dim=1).square() * n for d, n in zip(scaled, lengths, strict=True))
    fits = torch.as_tensor(squares).sqrt() * 2.0**INPUT_BITS <= scale.most * _CHECK
    if not bool(fits.all()):
        # Zero times infinity is not zero: what is left out must not reach the product.
        scaled = [torch.where(fits[:, None], d, 0.0) for d in scaled]
        inputs = [torch.where(fits[:, None], a, 0.0) for a in inputs]
    parts: list[torch.Tensor] = []
    for signal, rounded in zip(scaled, inputs, strict=True):
        parts += [(signal.T @ rounded).flatten(), signal.sum(dim=0) * 2.0**INPUT_BITS]
    return torch.cat(parts)


@dataclass(frozen=True)
class _Scale:
    """How signals become integers.

    Attributes:
        clip: C.
        bound: Norm to which a row's gradient is clipped, in real units.
        most: Integer norm that a row's gradient may have, in fine units.
    """

    clip: float
    bound: float
    most: float

    def factor(self, signals: list[torch.Tensor], lengths: list[torch.Tensor]) -> torch.Tensor:
        """Returns what each row's signals are multiplied by, float64 (rows,): clip factor times units per C."""
        squares, room = torch.zeros_like(lengths[0]), torch.zeros_like(lengths[0])
        for signal, length in zip(signals, lengths, strict=True):
            squares += torch.linalg.vector_norm(signal, dim=1).square() * length
            room += length.sqrt() * math.sqrt(signal.shape[1])
        units = 2.0**SIGNAL_BITS / self.clip if self.clip > 0 else math.inf
        allowed = torch.clamp(self.bound - room * (self.clip * 2.0 ** -(SIGNAL_BITS + 1)), min=0.0)
        return (torch.clamp(allowed / squares.sqrt(), max=1.0) * units).nan_to_num(nan=0.0)


def _rounding_loss(plan: StudyPlan) -> int:
    """Returns ceil(sqrt(P)): what rounding two sums can add to their distance, in lattice units."""
    return math.isqrt(update_length(plan) - 1) + 1
