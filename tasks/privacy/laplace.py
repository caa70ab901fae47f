"""Discrete Laplace noise in shares: a purely epsilon-private sum of integer vectors, for counts before a study."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.ledger import LaplaceEvent
from tasks.privacy.accounting import ceil_sqrt, format_decimal
from tasks.privacy.mechanism import SMALLEST_NUMBER
from tasks.privacy.noise import NoiseStream
from tasks.privacy.pure import LARGEST_EPSILON
from tasks.privacy.sampler import sample_laplace_share

Int64: TypeAlias = NDArray[np.int64]
SCALE_DIGITS = 6
LARGEST_SCALE = 2**14
# Quantiles of larger scales are those of this one, stretched and rounded up.
_FINEST_SCALE = 256


@dataclass(frozen=True)
class LaplaceMechanism:
    """A sum of integer vectors, one per patient and each of L1 norm at most `sensitivity`, plus a noise share.

    h honest shares together are discrete Laplace noise of scale noise_multiplier * sensitivity on every coefficient, so
    the sum is purely epsilon-private with epsilon = sensitivity / scale; further shares only add noise.

    Attributes:
        data: Disjoint part of the data source.
        contribution_bound: The bound in words.
        id_column: Column of the contract that identifies a patient.
        max_sites_per_patient: From the plan.
        clip_norm: L1 bound in real units, decimal string.
        scale_bits: `sensitivity` is 2**scale_bits.
        noise_multiplier: b, decimal string; epsilon is 1/b or a little less.
        dimension: Number of coefficients.
        honest: h.
        sites_in_sum: k_min.
    """

    data: Literal["training", "held-out"]
    contribution_bound: str
    id_column: str
    max_sites_per_patient: int
    clip_norm: str
    scale_bits: int
    noise_multiplier: str
    dimension: int
    honest: int
    sites_in_sum: int

    def __post_init__(self) -> None:
        # As floats first: a rational with an exponent of millions would only exhaust memory.
        usual = all(SMALLEST_NUMBER <= float(x) <= 1 / SMALLEST_NUMBER for x in (self.noise_multiplier, self.clip_norm))
        if not usual or Fraction(self.noise_multiplier) * LARGEST_EPSILON < 1:
            raise PlanError(
                "mechanism-numbers",
                f"Expected a noise multiplier of at least 1/{LARGEST_EPSILON} and a positive bound, both up to 1e30.",
                "Correct the query.",
            )
        if self.scale > LARGEST_SCALE:
            raise PlanError(
                "noise-too-large", "Expected Laplace noise of a scale up to 2**14 lattice units.", "Lower scale_bits."
            )

    @property
    def sensitivity(self) -> int:
        """Integer L1 bound of one patient's vector."""
        return 1 << self.scale_bits

    @property
    def clip(self) -> Fraction:
        """The bound in real units."""
        return Fraction(self.clip_norm)

    @cached_property
    def scale(self) -> Fraction:
        """Scale of the h shares together: noise_multiplier * sensitivity, rounded up to a multiple of 1e-6."""
        return ceil_sqrt((Fraction(self.noise_multiplier) * self.sensitivity) ** 2, SCALE_DIGITS)

    @property
    def epsilon(self) -> Fraction:
        """Pure epsilon of one execution."""
        return self.sensitivity / self.scale

    def add_noise(self, values: Int64, stream: NoiseStream) -> Int64:
        """Adds this site's noise share; also where there is no patient, and never clamped.

        Args:
            values: int64 (dimension,).
            stream: Fresh randomness of this site.

        Raises:
            ValueError: wrong shape or type.
        """
        if values.shape != (self.dimension,) or values.dtype != np.int64:
            raise ValueError("expected int64 values of the mechanism's dimension")
        return values + sample_laplace_share(stream, self.scale, self.honest, self.dimension)

    def decode(self, opened: Int64) -> NDArray[np.float64]:
        """Returns an opened sum in real units, float64."""
        return opened.astype(np.float64) / float(self.sensitivity) * float(self.clip)

    def noise_std(self, shares: int) -> float:
        """Returns the standard deviation, in real units, of the noise in a sum of `shares` sites' contributions."""
        q = math.exp(-1 / float(self.scale))
        lattice = math.sqrt(2 * shares / self.honest * q) / (1 - q)
        return lattice / self.sensitivity * float(self.clip)

    def noise_reach(self, shares: int, level: float) -> float:
        """Returns x, in real units, such that noise of `shares` shares is in [-x, x] with probability >= `level`."""
        scale = float(self.scale)
        fine = min(scale, _FINEST_SCALE)
        reach = _quantile(fine, shares / self.honest, level)
        lattice = reach if scale == fine else math.ceil((reach + 1) * scale / fine)
        return lattice / self.sensitivity * float(self.clip)

    def event(self) -> LaplaceEvent:
        """Returns what one execution must be charged as."""
        return LaplaceEvent(
            data=self.data,
            contribution_bound=self.contribution_bound,
            id_column=self.id_column,
            max_sites_per_patient=self.max_sites_per_patient,
            clip_norm=self.clip_norm,
            scale_bits=self.scale_bits,
            sensitivity=self.sensitivity,
            scale=format_decimal(self.scale),
            dimension=self.dimension,
            sites_in_sum=self.sites_in_sum,
            honest_assumed=self.honest,
            rng="os-seeded-aes-ctr",
            sampler="polya-difference",
        )


@lru_cache(maxsize=256)
def _quantile(scale: float, size: float, level: float) -> int:
    """Least x with P(|X| <= x) >= level, X the difference of two Polya numbers of `size`, by its Fourier transform."""
    points = 1 << math.ceil(math.log2(64 * scale * max(size, 1.0) + 256))
    q = math.exp(-1 / scale)
    angles = np.arange(points // 2 + 1) * (2 * np.pi / points)
    transform = ((1 - q) ** 2 / (1 - 2 * q * np.cos(angles) + q * q)) ** size
    weights = np.fft.irfft(transform, points)
    covered = weights[0] + 2 * np.concatenate([np.zeros(1), np.cumsum(weights[1 : points // 2])])
    return int(np.searchsorted(covered, level - 1e-12))
