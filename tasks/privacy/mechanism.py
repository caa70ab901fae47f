"""One frozen object per mechanism drives the encoding bound, the noise and the event, so that they cannot disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.ledger import GaussianEvent
from schemas.plan import StudyPlan, histogram_length, update_length
from tasks.privacy.accounting import (
    SMALLEST_SHARE_VARIANCE,
    ceil_sqrt,
    floor_sqrt,
    format_decimal,
)
from tasks.privacy.filters import choose_filter
from tasks.privacy.noise import NoiseStream
from tasks.privacy.sampler import sample_bernoulli, sample_discrete_gaussian

Int64: TypeAlias = NDArray[np.int64]
SIGMA_DIGITS = 6
LARGEST_SHARE_SIGMA = 2**35
# Far inside the range of float64, where scaling to the lattice cannot overflow.
SMALLEST_NUMBER = 1e-30


@dataclass(frozen=True)
class GaussianMechanism:
    """A sum of integer vectors, one per patient and each of L2 norm at most `sensitivity`, plus a noise share.

    One `event` charges `steps` such sums. ``local``: this site's share is all the noise there is, so h and k_min are 1.

    A real value x is encoded as round(x / C * 2**scale_bits) and the patient's vector clipped again in integers, so
    that rounding cannot exceed the bound. h honest shares together have at least standard deviation
    noise_multiplier * C in real units.

    Attributes:
        data: Disjoint part of the data source: ``training`` or ``held-out`` patients.
        contribution_bound: The bound in words.
        id_column: Column of the contract that identifies a patient.
        max_sites_per_patient: From the plan.
        clip_norm: C, decimal string.
        scale_bits: Fixed-point scale.
        noise_multiplier: sigma, decimal string.
        divisor: Public divisor of the server step.
        dimension: Number of coefficients.
        honest: h.
        sites_in_sum: k_min.
        sampling_probability: Public chance q of a patient to be in the sum, decimal string; "1" is everybody.
        steps: Sums per execution, each with fresh coins and fresh noise.
        scope: Whose noise counts.
    """

    data: Literal["training", "held-out"]
    contribution_bound: str
    id_column: str
    max_sites_per_patient: int
    clip_norm: str
    scale_bits: int
    noise_multiplier: str
    divisor: str
    dimension: int
    honest: int
    sites_in_sum: int
    sampling_probability: str = "1"
    steps: int = 1
    scope: Literal["distributed", "local"] = "distributed"

    def __post_init__(self) -> None:
        # As floats first: a rational with an exponent of millions would only exhaust memory.
        if not all(SMALLEST_NUMBER <= float(x) <= 1 / SMALLEST_NUMBER for x in (self.noise_multiplier, self.clip_norm)):
            raise PlanError(
                "mechanism-numbers",
                "Expected a positive clip norm and noise multiplier, between 1e-30 and 1e30.",
                "Correct the mechanism.",
            )
        if not SMALLEST_NUMBER <= float(self.sampling_probability) <= 1 or Fraction(self.sampling_probability) > 1:
            raise PlanError("mechanism-numbers", "Expected a sampling probability in (0, 1].", "Correct the mechanism.")
        if self.local_sigma**2 < SMALLEST_SHARE_VARIANCE:
            raise PlanError(
                "noise-too-fine",
                f"Expected a noise share of variance at least {SMALLEST_SHARE_VARIANCE} in lattice units.",
                "Raise scale_bits or the noise multiplier.",
            )
        if self.local_sigma > LARGEST_SHARE_SIGMA:
            raise PlanError(
                "noise-too-large", "Expected a noise share below 2**35 lattice units.", "Lower the noise multiplier."
            )

    @property
    def sensitivity(self) -> int:
        """Integer L2 bound of one patient's encoded vector, rounding included."""
        return 1 << self.scale_bits

    @property
    def clip(self) -> Fraction:
        """C in real units."""
        return Fraction(self.clip_norm)

    @cached_property
    def local_sigma(self) -> Fraction:
        """Standard deviation of this site's share in lattice units: the least multiple of 1e-6 that is at least
        noise_multiplier * sensitivity / sqrt(h)."""
        return ceil_sqrt((Fraction(self.noise_multiplier) * self.sensitivity) ** 2 / self.honest, SIGMA_DIGITS)

    def add_noise(self, values: Int64, stream: NoiseStream) -> Int64:
        """Adds this site's noise share; also where there is no patient, and never clamped.

        Clamping a share is not a post-processing of the noisy sum; the modulus is chosen so that sums cannot wrap.

        Args:
            values: int64 (dimension,), the sum of the patients' encoded vectors.
            stream: Fresh randomness of this site.

        Raises:
            ValueError: wrong shape or type.
        """
        if values.shape != (self.dimension,) or values.dtype != np.int64:
            raise ValueError("expected int64 values of the mechanism's dimension")
        return values + sample_discrete_gaussian(stream, self.local_sigma, self.dimension)

    def draw_patients(self, count: int, stream: NoiseStream) -> NDArray[np.bool_] | None:
        """Draws who is in this sum: one exact coin of probability q per patient; None for everybody (q = 1).

        The coins never leave the site, nor does how many fell: the amplification rests on nobody knowing them.

        Args:
            count: The site's patients of this data part.
            stream: Fresh randomness of this site.

        Returns:
            bool (count,), or None.
        """
        if Fraction(self.sampling_probability) == 1:
            return None
        return sample_bernoulli(stream, Fraction(self.sampling_probability), count)

    def encode_counts(self, counts: Int64) -> Int64:
        """Returns counts in lattice units: one patient's single count is `sensitivity` units."""
        return counts.astype(np.int64) * np.int64(self.sensitivity)

    def decode(self, opened: Int64) -> NDArray[np.float64]:
        """Returns an opened sum in real units, float64 (counts for the evaluation)."""
        return opened.astype(np.float64) / float(self.sensitivity) * float(self.clip)

    def noise_std(self, shares: int) -> float:
        """Returns the standard deviation, in real units, of the noise in a sum of `shares` sites' contributions."""
        return float(self.local_sigma / self.sensitivity * self.clip) * math.sqrt(shares)

    def noise_reach(self, shares: int, level: float) -> float:
        """Returns x, in real units, such that noise of `shares` shares is in [-x, x] with probability `level`."""
        return NormalDist().inv_cdf((1 + level) / 2) * self.noise_std(shares)

    def event(self) -> GaussianEvent:
        """Returns what one execution must be charged as."""
        return GaussianEvent(
            data=self.data,
            contribution_bound=self.contribution_bound,
            id_column=self.id_column,
            max_sites_per_patient=self.max_sites_per_patient,
            runs=((self.sampling_probability, self.noise_multiplier, self.steps),),
            clip_norm=self.clip_norm,
            scale_bits=self.scale_bits,
            sensitivity=self.sensitivity,
            local_sigma=format_decimal(self.local_sigma),
            divisor=self.divisor,
            dimension=self.dimension,
            noise_scope=self.scope,
            sites_in_sum=self.sites_in_sum,
            honest_assumed=self.honest,
            effective_sigma=format_decimal(floor_sqrt(self.honest * self.local_sigma**2, SIGMA_DIGITS)),
            rng="os-seeded-aes-ctr",
            sampler="discrete-gaussian",
        )


def training_mechanism(plan: StudyPlan) -> GaussianMechanism:
    """Derives the mechanism of one training round; in ``local`` mode of all its steps at a site.

    Raises:
        PlanError: `mechanism-numbers`, `noise-too-fine`.
    """
    spec = plan.mechanism
    bound = f"sum of one patient's mean gradient over rows, clipped to L2 norm {spec.clip_norm}"
    shared = _shared(plan)
    if spec.local is not None:
        # Sites change their models between two steps, so noise of other sites does not add up with this one's.
        shared |= {"honest": 1, "sites_in_sum": 1, "steps": spec.local.steps, "scope": "local"}
        bound = f"in each step, {bound}"
    return GaussianMechanism(
        data="training",
        contribution_bound=bound,
        clip_norm=spec.clip_norm,
        noise_multiplier=spec.noise_multiplier,
        divisor=plan.optimizer.divisor,
        dimension=update_length(plan),
        sampling_probability=spec.sampling_probability,
        **shared,
    )


def evaluation_mechanism(plan: StudyPlan) -> GaussianMechanism:
    """Derives the mechanism of the evaluation histogram: one held-out patient changes one count by one.

    Counts are scaled to the same lattice as updates: on whole counts a share of sigma / sqrt(h) < 1 would be hardly
    any noise at all.

    Raises:
        PlanError: `mechanism-numbers`, `noise-too-fine`.
    """
    return GaussianMechanism(
        data="held-out",
        contribution_bound="one patient counts once, in one cell",
        clip_norm="1",
        noise_multiplier=plan.evaluation.noise_multiplier,
        divisor="1",
        dimension=histogram_length(plan),
        **_shared(plan),
    )


def mechanism_for(plan: StudyPlan, kind: Literal["train", "evaluate", "statistics"]) -> GaussianMechanism:
    """Derives the mechanism that an instruction of `kind` runs.

    Raises:
        PlanError: `wrong-kind`: a study answers no questions; `mechanism-numbers`, `noise-too-fine`.
    """
    if kind == "statistics":
        raise PlanError("wrong-kind", "The plan foresees no sum of kind statistics.", "Ask for what was signed.")
    return training_mechanism(plan) if kind == "train" else evaluation_mechanism(plan)


def verify_plan_within_budget(plan: StudyPlan) -> None:
    """Refuses a plan whose own mechanisms cost more than its own budget, training and evaluation each.

    Raises:
        PlanError: `plan-overspends`, naming what the plan needs and its limit (GDP mu^2, or Renyi if sampled).
    """
    needs = (
        ("training", plan.mechanism.rounds, training_mechanism(plan).event()),
        ("the evaluation", 1, evaluation_mechanism(plan).event()),
    )
    for what, times, event in needs:
        gate = choose_filter([event], plan.budget.epsilon, plan.budget.delta)
        limit, cost = gate.limit(plan.budget.epsilon, plan.budget.delta), times * gate.cost(event)
        if cost > limit:
            raise PlanError(
                "plan-overspends",
                f"Expected {what} to cost at most {gate.unit} = {float(limit):.6g}, got {float(cost):.6g}.",
                "Raise the noise multiplier or epsilon, or plan fewer rounds.",
            )


def _shared(plan: StudyPlan) -> dict[str, Any]:
    patient = plan.contract.column_with_role("patient_id")
    return {
        "id_column": patient.name if patient else "",
        "max_sites_per_patient": plan.budget.max_sites_per_patient,
        "scale_bits": plan.mechanism.scale_bits,
        "honest": plan.threshold.honest_noise_shares,
        "sites_in_sum": plan.threshold.k_min,
    }
