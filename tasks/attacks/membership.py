"""Membership inference: was this patient in the training data? Likelihood ratios against shadow models.

Many models are trained, each on a random half of the patients. Every model is attacked in turn with the others as
shadows: a patient's logit of the right label is compared with its distribution over models that had and had not the
patient (LiRA, Carlini et al., arXiv 2112.03570). Rates at small false-positive rates say more than an accuracy.

The bound: for a mechanism that is (epsilon, delta)-DP, TPR <= exp(epsilon) FPR + delta (Kairouz et al., 1311.0776).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from schemas.errors import OperationError
from schemas.plan import StudyPlan
from tasks.attacks.training import train_on
from tasks.contract.encoder import Cohort
from tasks.privacy.noise import NoiseStream
from tasks.training.evaluation import score_patients

FALSE_POSITIVE_RATES = (0.001, 0.01)
LEAST_MODELS, LEAST_PATIENTS = 8, 100
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class MembershipFigures:
    """What the attack reached.

    Attributes:
        auc: Area under the attack's ROC; 0.5 is blind.
        tpr: (FPR, TPR, 95 % lower, 95 % upper) at fixed false-positive rates.
        guesses: Number of (model, patient) pairs that were not members.
    """

    auc: float
    tpr: tuple[tuple[float, float, float, float], ...]
    guesses: int


def epsilon_bound(epsilon: float, delta: float, false_positive_rate: float) -> float:
    """Returns the largest true-positive rate that any attack on one patient can have: min(1, e^epsilon FPR + delta)."""
    return min(1.0, math.exp(epsilon) * false_positive_rate + delta)


def area_bound(epsilon: float, delta: float) -> float:
    """Returns the largest area under an attack's ROC: below TPR <= e^epsilon FPR + delta and its mirror image."""
    corner = (1.0 - delta) / (1.0 + math.exp(epsilon))
    first = corner * (delta + 1.0 - corner) / 2.0
    second = (1.0 - delta - corner) * (2.0 - corner) / 2.0
    return min(1.0, first + second + delta)


def infer_membership(
    plan: StudyPlan, cohort: Cohort, models: int, stream: NoiseStream, protected: bool = True
) -> MembershipFigures:
    """Trains `models` models on random halves of `cohort` and attacks each with the others as shadows.

    Args:
        cohort: Public or simulated patients, at least 100.
        models: At least 8.
        stream: Noise and the draw of the halves.
        protected: False for the same attack on models without noise.

    Raises:
        OperationError: `attack-too-small`.
    """
    if models < LEAST_MODELS or cohort.patient_count < LEAST_PATIENTS:
        raise OperationError(
            "attack-too-small",
            f"Expected at least {LEAST_MODELS} models and {LEAST_PATIENTS} patients: fewer would say nothing.",
            "Use a larger public table, or more models.",
        )
    halves = _random_halves(models, cohort.patient_count, stream)
    logits = np.stack([_right_logits(plan, cohort, train_on(plan, cohort.only(h), stream, protected)) for h in halves])
    scores = np.stack([_likelihood_ratios(logits, halves, target) for target in range(models)])
    return _figures(scores[halves], scores[~halves])


def _random_halves(models: int, patients: int, stream: NoiseStream) -> NDArray[np.bool_]:
    drawn = np.frombuffer(stream.random_bytes(8 * models * patients), "<u8").reshape(models, patients)
    # Each patient is in half of the models, so that both distributions are known for everybody.
    return np.argsort(np.argsort(drawn, axis=0), axis=0) < models // 2


def _right_logits(plan: StudyPlan, cohort: Cohort, weights: FloatArray) -> FloatArray:
    scores, labels = score_patients(plan, cohort, weights)
    right = np.clip(np.where(labels, scores, 1.0 - scores), 1e-12, 1.0 - 1e-12)
    return np.asarray(np.log(right) - np.log1p(-right), dtype=np.float64)


def _likelihood_ratios(logits: FloatArray, halves: NDArray[np.bool_], target: int) -> FloatArray:
    others = np.arange(len(logits)) != target
    scores = []
    for members in (True, False):
        marks = (halves == members) & others[:, None]
        count = marks.sum(axis=0)
        mean = np.where(marks, logits, 0.0).sum(axis=0) / count
        # One variance for all patients: a handful of shadows cannot tell a patient's own.
        spread = float(np.sqrt((np.where(marks, logits - mean, 0.0) ** 2).sum() / marks.sum())) + 1e-12
        scores.append(-(((logits[target] - mean) / spread) ** 2) / 2 - math.log(spread))
    return np.asarray(scores[0] - scores[1], dtype=np.float64)


def _figures(members: FloatArray, others: FloatArray) -> MembershipFigures:
    order = np.sort(others)
    below = np.searchsorted(order, members, "left") + np.searchsorted(order, members, "right")
    rates = []
    for rate in FALSE_POSITIVE_RATES:
        # The threshold lets at most that share of non-members through.
        threshold = order[-1 - math.floor(rate * len(order))]
        rates.append((rate, *wilson_interval(int((members > threshold).sum()), len(members))))
    return MembershipFigures(float(below.mean() / (2 * len(order))), tuple(rates), len(order))


def wilson_interval(hits: int, tries: int) -> tuple[float, float, float]:
    """Returns the rate and Wilson's 95 % interval."""
    z = NormalDist().inv_cdf(0.975)
    rate, scale = hits / tries, 1 + z * z / tries
    centre = (rate + z * z / (2 * tries)) / scale
    half = z * math.sqrt(rate * (1 - rate) / tries + z * z / (4 * tries * tries)) / scale
    return rate, max(0.0, centre - half), min(1.0, centre + half)
