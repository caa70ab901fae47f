"""Membership inference against the released model itself: loss thresholds on a site's own patients.

Whoever trains lowers the loss of those it trains on. The attack guesses *member* below a threshold of the loss (Yeom et
al., arXiv 1709.01604), here with the best knowledge there is: training and held-out patients of the site, which a keyed
hash of the patient id told apart, so that nothing else distinguishes them.

Invariant: the figures are exact, made of patients, and without noise. They are the site's own and must not leave it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from schemas.errors import OperationError
from schemas.plan import StudyPlan
from tasks.attacks.figures import RateFigure
from tasks.attacks.membership import FALSE_POSITIVE_RATES, epsilon_bound, wilson_interval
from tasks.contract.encoder import Cohort
from tasks.training.gradients import predict

LEAST_PATIENTS = 20
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LossFigures:
    """What thresholds on the loss reach.

    Attributes:
        auc: (value, low, high), 95 % by DeLong.
    """

    auc: tuple[float, float, float]
    rates: tuple[RateFigure, ...]


def patient_losses(plan: StudyPlan, cohort: Cohort, weights: FloatArray) -> FloatArray:
    """Returns every patient's loss, float64 (patients,): the mean cross-entropy of its rows, as trained on."""
    found = predict(plan, cohort.features, weights)
    right = np.nan_to_num(np.where(cohort.labels, found, 1.0 - found), nan=0.5)
    losses = -np.log(np.clip(right, 1e-300, 1.0))
    sizes = np.bincount(cohort.patients, minlength=cohort.patient_count)
    return np.asarray(np.bincount(cohort.patients, losses, cohort.patient_count) / sizes, dtype=np.float64)


def measure_losses(members: FloatArray, others: FloatArray, epsilon: float, delta: float) -> LossFigures:
    """Measures how well small losses tell members from others.

    Args:
        members: Losses of the training patients, float64 (m,).
        others: Losses of the held-out patients, float64 (n,).
        epsilon, delta: What one patient's presence was charged.

    Raises:
        OperationError: `attack-too-small` for fewer than 20 of either: not even the area can be measured.
    """
    if min(len(members), len(others)) < LEAST_PATIENTS:
        raise OperationError(
            "attack-too-small",
            f"Expected at least {LEAST_PATIENTS} training and {LEAST_PATIENTS} held-out patients: with fewer neither "
            "the area nor any false-positive rate can be measured.",
            "Attack the plan on a public table instead: consilium attack run.",
        )
    rates = tuple(_rate(-members, -others, allowed, epsilon, delta) for allowed in FALSE_POSITIVE_RATES)
    return LossFigures(_area(-members, -others), rates)


def _rate(members: FloatArray, others: FloatArray, allowed: float, epsilon: float, delta: float) -> RateFigure:
    bound, needed = epsilon_bound(epsilon, delta, allowed), round(1 / allowed)
    passing = len(others) // needed
    if passing == 0:
        reason = f"too-few-held-out: a false-positive rate of {allowed * 100:g} % needs {needed} held-out patients"
        return RateFigure(allowed=allowed, bound=bound, tpr=None, fpr=None, above_bound=False, not_measured=reason)
    threshold = np.sort(others)[-1 - passing]
    tpr, fpr = (wilson_interval(int((scores > threshold).sum()), len(scores)) for scores in (members, others))
    above = tpr[1] > epsilon_bound(epsilon, delta, fpr[2])
    return RateFigure(allowed=allowed, bound=bound, tpr=tpr, fpr=fpr, above_bound=above, not_measured="")


def _area(members: FloatArray, others: FloatArray) -> tuple[float, float, float]:
    """Returns the area and DeLong's 95 % interval (Biometrics 44, 1988): variances of the placement values."""
    placed = [_placements(members, others), 1.0 - _placements(others, members)]
    area = float(placed[0].mean())
    half = NormalDist().inv_cdf(0.975) * math.sqrt(sum(float(p.var(ddof=1)) / len(p) for p in placed))
    return area, max(0.0, area - half), min(1.0, area + half)


def _placements(scores: FloatArray, among: FloatArray) -> FloatArray:
    order = np.sort(among)
    below = np.searchsorted(order, scores, "left") + np.searchsorted(order, scores, "right")
    return np.asarray(below / (2.0 * len(order)), dtype=np.float64)
