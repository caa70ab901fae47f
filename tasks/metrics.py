"""Metrics from an opened (label, score bin) histogram, each with a 95 % interval for noise and sampling together.

Everything here is post-processing of a released sum: it costs no privacy and uses no randomness, so that the auditor
gets the same figures from the same integers. Ratios are formed from the raw noisy counts, which are unbiased; negative
counts are projected away only where a shape is needed (curves, variances), never before a ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import EvidenceError
from schemas.plan import StudyPlan

FloatVector = NDArray[np.float64]

Z95 = 1.959963984540054
LARGEST_LOGIT = 8.0
_SMALLEST_SCORE = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A released value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RocPoint:
    """Share of either class that scores at or above `threshold`; the interval is that of the true positive rate."""

    threshold: float
    false_positive_rate: float
    true_positive_rate: float
    low: float
    high: float


@dataclass(frozen=True)
class CalibrationPoint:
    """Observed rate in the score bin [low, high); None where noise hides the bin's patients."""

    low: float
    high: float
    predicted: float
    observed: Estimate | None


@dataclass(frozen=True)
class EvaluationMetrics:
    """What a released histogram says about the model.

    Attributes:
        auc: Area under the ROC curve; ties inside a bin count one half.
        brier: Brier score with every score moved to the centre of its bin.
        mean_error: Mean predicted minus observed rate (calibration in the large).
        roc, calibration: Curves over the bin edges.
    """

    auc: Estimate
    brier: Estimate
    mean_error: Estimate
    roc: tuple[RocPoint, ...]
    calibration: tuple[CalibrationPoint, ...]

    def summary(self) -> tuple[tuple[str, str], ...]:
        """Returns (name, decimal string with 6 digits) for a release, sorted by name."""
        named = {"auc": self.auc, "brier": self.brier, "mean_error": self.mean_error}
        parts = [(n, e.value, e.low, e.high) for n, e in named.items()]
        flat = [(n, v) for n, v, _, _ in parts] + [(f"{n}_low", low) for n, _, low, _ in parts]
        flat += [(f"{n}_high", high) for n, _, _, high in parts]
        return tuple(sorted((name, _decimal(value)) for name, value in flat))


def derive_noise_sigma(plan: StudyPlan, participants: int) -> float:
    """Derives the standard deviation of the total noise on one count: sigma * sqrt(participants / h)."""
    shares = participants / plan.threshold.honest_noise_shares
    return float(plan.evaluation.noise_multiplier) * math.sqrt(shares)


def spread_scores(scores: FloatVector, steepness: float) -> FloatVector:
    """Maps scores in [0, 1] to [0, 1], where bins have equal width; increasing, public, the same for everybody.

    0 leaves probabilities alone; otherwise asinh(steepness * logit) / asinh(8 * steepness), logits clipped to [-8, 8],
    moved to [0, 1]: fine around one half and still telling certain scores apart.

    Args:
        scores: float64, any shape, in [0, 1].
    """
    if steepness == 0:
        return scores
    clipped = np.clip(scores, _SMALLEST_SCORE, 1.0 - _SMALLEST_SCORE)
    logits = np.clip(np.log(clipped / (1.0 - clipped)), -LARGEST_LOGIT, LARGEST_LOGIT)
    return np.asarray(0.5 + 0.5 * np.arcsinh(steepness * logits) / math.asinh(steepness * LARGEST_LOGIT))


def gather_scores(places: FloatVector, steepness: float) -> FloatVector:
    """Maps places in [0, 1] back to scores: the inverse of `spread_scores`; 0 and 1 stay the ends."""
    if steepness == 0:
        return places
    logits = np.sinh((2.0 * places - 1.0) * math.asinh(steepness * LARGEST_LOGIT)) / steepness
    scores = np.asarray(1.0 / (1.0 + np.exp(-logits)), dtype=np.float64)
    return np.where(places <= 0.0, 0.0, np.where(places >= 1.0, 1.0, scores))


def evaluate_histogram(histogram: FloatVector, noise_sigma: float, steepness: float = 0.0) -> EvaluationMetrics:
    """Computes the metrics of an opened histogram.

    Args:
        histogram: float64 (2 * bins,) decoded counts, label 0 first, equal-width score bins; noise makes them negative
            and fractional (`GaussianMechanism.decode`).
        noise_sigma: Standard deviation of the *total* noise on one count (`derive_noise_sigma`).
        steepness: Of the plan's evaluation: where the bins' edges are (`spread_scores`).

    Raises:
        EvidenceError: `malformed` for another shape or dtype, or a negative or non-finite sigma.
    """
    shaped = histogram.dtype == np.float64 and histogram.ndim == 1 and histogram.size >= 4 and histogram.size % 2 == 0
    if not shaped or not bool(np.isfinite(histogram).all()):
        raise EvidenceError("malformed", "Expected a histogram of two times at least two finite float64 counts.")
    if not 0.0 <= noise_sigma < math.inf:
        raise EvidenceError("malformed", "Expected a finite noise standard deviation.")
    bins = histogram.size // 2
    negatives, positives = histogram[:bins], histogram[bins:]
    centres = gather_scores((np.arange(bins) + 0.5) / bins, steepness)
    edges = gather_scores(np.arange(bins + 1) / bins, steepness)
    return EvaluationMetrics(
        auc=_auc(negatives, positives, noise_sigma),
        brier=_mean_per_patient(negatives, positives, centres**2, (1.0 - centres) ** 2, noise_sigma, 0.0),
        mean_error=_mean_per_patient(negatives, positives, centres, centres - 1.0, noise_sigma, -1.0),
        roc=_roc(negatives, positives, edges, noise_sigma),
        calibration=_calibration(negatives, positives, centres, edges, noise_sigma),
    )


def exact_auc(scores: FloatVector, labels: NDArray[np.bool_]) -> float:
    """Computes the exact AUC (Mann-Whitney, ties one half) from scores; only someone who holds the scores can.

    Args:
        scores: float64 (n,).
        labels: bool (n,).

    Raises:
        EvidenceError: `one-class` if all labels are equal.
    """
    positives = np.sort(scores[labels])
    negatives = np.sort(scores[~labels])
    if positives.size == 0 or negatives.size == 0:
        raise EvidenceError("one-class", "Expected held-out patients of both outcomes.")
    below = np.searchsorted(negatives, positives, side="left") + np.searchsorted(negatives, positives, side="right")
    return float(below.sum()) / (2.0 * positives.size * negatives.size)


def _auc(negatives: FloatVector, positives: FloatVector, sigma: float) -> Estimate:
    """Estimates AUC = sum_ij N_i P_j K_ij / (N P), K = 1, 1/2, 0 for i below, at, above j.

    Variance: delta method in the noise to second order plus Hanley and McNeil (1982) for sampling.
    """
    total_n, total_p = float(negatives.sum()), float(positives.sum())
    lost = 2.0 * sigma * math.sqrt(negatives.size)
    if min(total_n, total_p) <= max(lost, 0.5):
        return Estimate(0.5, 0.0, 1.0)  # A class total that noise explains: the data say nothing.
    steps = np.arange(negatives.size)
    kernel = 0.5 * (1.0 + np.sign(steps[None, :] - steps[:, None]))
    value = float(negatives @ kernel @ positives) / (total_n * total_p)
    value = min(max(value, 0.0), 1.0)
    shape_n, shape_p = _project(negatives) / total_n, _project(positives) / total_p
    slope_p = (shape_n @ kernel - value) / total_p
    slope_n = (kernel @ shape_p - value) / total_n
    second = float(((kernel - value) ** 2).sum()) * (sigma * sigma / (total_n * total_p)) ** 2
    noise = sigma * sigma * float((slope_p**2).sum() + (slope_n**2).sum()) + second
    return _interval(value, noise + _hanley_mcneil(value, total_n, total_p), 0.0, 1.0)


def _hanley_mcneil(value: float, total_n: float, total_p: float) -> float:
    """Returns the sampling variance of an AUC; a value at the edge is moved half a pair inward."""
    edge = 0.5 / (total_n * total_p + 1.0) + 0.5 / max(total_n, total_p)
    a = min(max(value, edge), 1.0 - edge)
    q1, q2 = a / (2.0 - a), 2.0 * a * a / (1.0 + a)
    spread = a * (1.0 - a) + (total_p - 1.0) * (q1 - a * a) + (total_n - 1.0) * (q2 - a * a)
    return max(spread, 0.0) / (total_n * total_p)


def _mean_per_patient(
    negatives: FloatVector, positives: FloatVector, cost_n: FloatVector, cost_p: FloatVector, sigma: float, floor: float
) -> Estimate:
    """Estimates the mean cost over patients, a ratio of sums, with the delta-method variance."""
    total = float(negatives.sum() + positives.sum())
    if total <= max(2.0 * sigma * math.sqrt(2.0 * negatives.size), 0.5):
        return Estimate(0.5 * (floor + 1.0), floor, 1.0)
    value = float(negatives @ cost_n + positives @ cost_p) / total
    value = min(max(value, floor), 1.0)
    gap_n, gap_p = cost_n - value, cost_p - value
    noise = sigma * sigma * float((gap_n**2).sum() + (gap_p**2).sum()) / (total * total)
    sampling = float(_project(negatives) @ gap_n**2 + _project(positives) @ gap_p**2) / (total * total)
    return _interval(value, noise + sampling, floor, 1.0)


def _roc(negatives: FloatVector, positives: FloatVector, edges: FloatVector, sigma: float) -> tuple[RocPoint, ...]:
    bins = negatives.size
    total_p = max(float(positives.sum()), 1.0)
    false_rates = _upper_tail(_project(negatives))
    true_rates = _upper_tail(_project(positives))
    points = []
    for k in range(bins, -1, -1):
        rate = float(true_rates[k])
        noise = sigma * sigma * ((bins - k) * (1.0 - rate) ** 2 + k * rate**2) / (total_p * total_p)
        band = _interval(rate, noise + rate * (1.0 - rate) / total_p, 0.0, 1.0)
        points.append(RocPoint(float(edges[k]), float(false_rates[k]), rate, band.low, band.high))
    return tuple(points)


def _upper_tail(counts: FloatVector) -> FloatVector:
    """Returns the share of counts in bins k and above, for k = 0..bins."""
    tail = np.concatenate([np.cumsum(counts[::-1])[::-1], np.zeros(1)])
    return np.asarray(np.clip(tail / tail[0], 0.0, 1.0), dtype=np.float64)


def _calibration(
    negatives: FloatVector, positives: FloatVector, centres: FloatVector, edges: FloatVector, sigma: float
) -> tuple[CalibrationPoint, ...]:
    bins = negatives.size
    points = []
    for k in range(bins):
        total = float(negatives[k] + positives[k])
        observed = None
        if total >= max(1.0, 3.0 * sigma * math.sqrt(2.0)):
            rate = min(max(float(positives[k]) / total, 0.0), 1.0)
            noise = sigma * sigma * ((1.0 - rate) ** 2 + rate**2) / (total * total)
            observed = _interval(rate, noise + max(rate * (1.0 - rate), 0.25 / total) / total, 0.0, 1.0)
        points.append(CalibrationPoint(float(edges[k]), float(edges[k + 1]), float(centres[k]), observed))
    return tuple(points)


def _project(counts: FloatVector) -> FloatVector:
    """Projects counts onto non-negative vectors of the same total (at least 1), in Euclidean distance.

    Clipping alone would add the clipped noise to the total; the projection (Duchi et al. 2008) keeps it.
    """
    total = max(float(counts.sum()), 1.0)
    ordered = np.sort(counts)[::-1]
    excess = (np.cumsum(ordered) - total) / np.arange(1, counts.size + 1)
    last = int(np.nonzero(ordered > excess)[0][-1])
    return np.asarray(np.maximum(counts - excess[last], 0.0), dtype=np.float64)


def _interval(value: float, variance: float, floor: float, ceiling: float) -> Estimate:
    reach = Z95 * math.sqrt(variance)
    return Estimate(value, max(value - reach, floor), min(value + reach, ceiling))


def _decimal(value: float) -> str:
    """Returns `value` with at most 6 fractional digits in the canonical decimal form of the schemas."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
