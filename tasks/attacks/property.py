"""Property inference: does one site treat mostly diseased patients? Guessed from a round's opened sum.

The attacker knows every other site's sum and simulates the target with many and with few positive labels; it projects
the opened sum on the difference of both means. Differential privacy per patient does not promise to hide a property of
a whole site: the figure says what noise and clipping leave of it, and has no bound beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from schemas.errors import OperationError
from schemas.plan import StudyPlan
from tasks.attacks.training import attacked_mechanism
from tasks.contract.encoder import Cohort
from tasks.privacy.noise import NoiseStream
from tasks.server_step import initial_state
from tasks.training.train import train_sum

HIGH, LOW = 0.65, 0.35


@dataclass(frozen=True)
class PropertyFigures:
    """Accuracy of telling a site with 65 % positive patients from one with 35 %; 0.5 is blind."""

    unprotected: float
    protected: float
    site_patients: int
    trials: int


def infer_property(plan: StudyPlan, cohort: Cohort, trials: int, stream: NoiseStream) -> PropertyFigures:
    """Simulates `trials` sites of each kind from public patients and attacks the first round's sum.

    Raises:
        OperationError: `attack-too-small`: too few patients of a label.
    """
    labels = np.bincount(cohort.patients, weights=cohort.labels, minlength=cohort.patient_count) > 0
    size = min(100, int(min(labels.sum(), (~labels).sum()) / HIGH))
    if size < 20 or trials < 20:
        raise OperationError(
            "attack-too-small",
            "Expected at least 20 trials and 20 patients of each label.",
            "Use a larger public table.",
        )
    everybody = replace(cohort, held_out=np.zeros_like(cohort.held_out))
    bare = [[_sum(plan, everybody, _draw(labels, size, share, stream)) for _ in range(trials)] for share in (HIGH, LOW)]
    mechanism = attacked_mechanism(plan)
    noised = [[mechanism.add_noise(total, stream) for total in kind] for kind in bare]
    return PropertyFigures(_accuracy(bare), _accuracy(noised), size, trials)


def _draw(labels: NDArray[np.bool_], size: int, share: float, stream: NoiseStream) -> NDArray[np.bool_]:
    order = np.argsort(np.frombuffer(stream.random_bytes(8 * labels.size), "<u8"))
    wanted = round(size * share)
    chosen = np.zeros(labels.size, bool)
    chosen[order[labels[order]][:wanted]] = True
    chosen[order[~labels[order]][: size - wanted]] = True
    return chosen


def _sum(plan: StudyPlan, cohort: Cohort, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    sampled = plan.mechanism.sampling_probability != "1"
    patients = cohort.only(chosen)
    everybody = np.ones(patients.patient_count, bool) if sampled else None
    return train_sum(plan, patients, initial_state(plan).weights, chosen=everybody)


def _accuracy(kinds: list[list[NDArray[np.int64]]]) -> float:
    """Learns the direction on one half of the trials and is judged on the other."""
    high, low = (np.stack(kind).astype(np.float64) for kind in kinds)
    half = len(high) // 2
    direction = high[:half].mean(axis=0) - low[:half].mean(axis=0)
    middle = (high[:half].mean(axis=0) + low[:half].mean(axis=0)) @ direction / 2
    right = (high[half:] @ direction > middle).sum() + (low[half:] @ direction <= middle).sum()
    return float(right / (2 * (len(high) - half)))
