"""The canary bound: what an attacker who knows everything but the noise measures of one patient's presence.

Many copies of a study's training sums run with and without one patient whose clipped gradient is as long as allowed,
through the real encoding and the real noise. From the error rates of the best threshold (chosen on one half, measured
on the other) follows a lower bound on mu of Gaussian differential privacy, at 95 % by Clopper and Pearson. It must stay
below what the ledger was charged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import StudyPlan
from tasks.attacks.training import attacked_mechanism
from tasks.privacy.mechanism import GaussianMechanism
from tasks.privacy.noise import NoiseStream
from tasks.privacy.sampler import sample_discrete_gaussian
from tasks.training.encode import encode_gradients

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class CanaryFigures:
    """Measured lower bound and claim, both in mu."""

    measured_mu: float
    claimed_mu: float
    studies: int


def measure_canary(plan: StudyPlan, studies: int, stream: NoiseStream) -> CanaryFigures:
    """Runs `studies` studies with and without the canary; the claim is sqrt(rounds) / noise multiplier.

    Raises:
        PlanError: `attack-sampled`: with sampled batches the claim is no Gaussian one.
    """
    if plan.mechanism.sampling_probability != "1":
        raise PlanError("attack-sampled", "Expected full batches: the canary's claim is in Gaussian privacy.")
    mechanism, rounds = attacked_mechanism(plan), plan.mechanism.rounds
    claim = math.sqrt(rounds) / float(plan.mechanism.noise_multiplier)
    without, canary = (_scores(mechanism, there, studies, rounds, stream) for there in (False, True))
    return CanaryFigures(max(0.0, lower_bound(without, canary)), claim, studies)


def lower_bound(without: FloatArray, canary: FloatArray) -> float:
    """Returns the 95 % lower bound on mu from the scores without and with the canary, float64 (studies,) each."""
    half = len(without) // 2
    thresholds = np.quantile(np.concatenate([without[:half], canary[:half]]), np.linspace(0.05, 0.95, 19))
    best = max(thresholds, key=lambda t: _bound(without[:half], canary[:half], float(t)))
    return _bound(without[half:], canary[half:], float(best))


def _bound(without: FloatArray, canary: FloatArray, threshold: float) -> float:
    from scipy.stats import beta

    count = len(without)
    rates = [
        float(beta.ppf(0.975, errors + 1, count - errors)) if errors < count else 1.0
        for errors in (int((without > threshold).sum()), int((canary <= threshold).sum()))
    ]
    return -sum(NormalDist().inv_cdf(min(max(rate, 1e-12), 1 - 1e-12)) for rate in rates)


def _scores(mechanism: GaussianMechanism, there: bool, studies: int, rounds: int, stream: NoiseStream) -> FloatArray:
    """The canary's gradient has one coordinate, as long as allowed: only that coordinate's noise matters."""
    row = np.array([[float(mechanism.clip) * (1.0 if there else 0.0)]])
    value = encode_gradients(row, float(mechanism.clip), mechanism.scale_bits, mechanism.sensitivity)[0, 0]
    noise = sample_discrete_gaussian(stream, mechanism.local_sigma, studies * rounds).reshape(studies, rounds)
    return np.asarray((noise + value).sum(axis=1), dtype=np.float64)
