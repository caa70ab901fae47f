"""The evaluation counts of one site: one (label, score bin) cell per held-out patient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.plan import StudyPlan, histogram_length
from tasks.contract.encoder import Cohort
from tasks.metrics import spread_scores
from tasks.training.gradients import predict


def score_patients(
    plan: StudyPlan, cohort: Cohort, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores every patient of the cohort: the mean probability of the patient's rows, and whether any row is positive.

    Returns:
        scores float64 (patients,) in [0, 1]; a score that is not finite becomes 0.5. labels bool (patients,).
    """
    count = cohort.patient_count
    rows = np.nan_to_num(predict(plan, cohort.features, weights), nan=0.5)
    sizes = np.bincount(cohort.patients, minlength=count)
    scores = np.bincount(cohort.patients, weights=rows, minlength=count) / np.maximum(sizes, 1)
    labels = np.bincount(cohort.patients, weights=cohort.labels, minlength=count) > 0
    return scores, labels


def score_histogram(plan: StudyPlan, cohort: Cohort, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts the cohort's held-out patients by label and score bin; adds no noise.

    One patient changes exactly one count by 1, however many rows the patient has: L2 sensitivity 1 in counts. The
    caller encodes the counts on the mechanism's lattice and adds this site's noise share, also to all-zero counts.

    Args:
        plan: Names model and bins.
        cohort: The site's encoded cohort; training patients are left out.
        weights: float64 (P,), the released weights (`tasks.server_step.released_weights`).

    Returns:
        int64 (2 * bins,), label 0 first.
    """
    scores, labels = score_patients(plan, cohort.evaluation, weights)
    bins = plan.evaluation.bins
    spread = spread_scores(scores, float(plan.evaluation.steepness))
    place = np.minimum((spread * bins).astype(np.int64), bins - 1) + bins * labels.astype(np.int64)
    return np.bincount(place, minlength=histogram_length(plan)).astype(np.int64)
