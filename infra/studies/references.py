"""What the same split gives without the protocol: a trusted party, full noise at every site, no privacy at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.datasets import exact_held_out_auc, simulated_aucs
from schemas.plan import StudyPlan

if TYPE_CHECKING:
    from tasks.contract.encoder import Cohort


@dataclass(frozen=True)
class References:
    """Exact held-out AUCs beside which a run is put; see `infra.studies.results.Run`."""

    central: float
    central_deviation: float
    local: float
    non_private: float
    repeats: int


def compute_references(plan: StudyPlan, cohorts: Sequence[Cohort], repeats: int) -> References:
    """Computes the references of one split and epsilon.

    Args:
        repeats: Independent noise draws of the central and the local-noise reference.
    """
    central = simulated_aucs(plan, cohorts, noise_shares=1, repeats=repeats)
    local = simulated_aucs(plan, cohorts, noise_shares=len(cohorts), repeats=repeats)
    return References(
        central=float(np.mean(central)),
        central_deviation=float(np.std(central, ddof=1)) if repeats > 1 else 0.0,
        local=float(np.mean(local)),
        non_private=exact_held_out_auc(plan, cohorts, non_private_weights(cohorts)),
        repeats=repeats,
    )


def non_private_weights(cohorts: Sequence[Cohort]) -> NDArray[np.float64]:
    """Fits logistic regression (L2 penalty 1, every patient of weight 1) on all training rows, without noise.

    Returns:
        float64 (d + 1,): weights, then bias, in the flat order of a logistic model.
    """
    from sklearn.linear_model import LogisticRegression

    from tasks.contract.encoder import pool_cohorts

    training = pool_cohorts(cohorts).training
    rows = np.bincount(training.patients)[training.patients]
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(training.features, training.labels, sample_weight=1 / rows)
    return np.concatenate([fitted.coef_.ravel(), fitted.intercept_]).astype(np.float64)
