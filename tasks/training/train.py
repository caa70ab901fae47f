"""The training sum of one site and round: the integers that noise is added to and that the secure sum carries."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import StudyPlan, update_length
from tasks.contract.encoder import Cohort
from tasks.training.closed_form import clipped_sum, has_closed_form
from tasks.training.encode import encode_gradients
from tasks.training.gradients import patient_gradients

_CHUNK_NUMBERS = 1 << 22


def train_sum(
    plan: StudyPlan,
    cohort: Cohort,
    weights: NDArray[np.float64],
    sensitivity: int | None = None,
    chosen: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Sums the clipped, encoded gradients of the cohort's training patients; adds no noise.

    The caller adds this site's noise share (`GaussianMechanism.add_noise`) before anything leaves the process, also
    when the cohort is empty and the sum is all zero.

    Args:
        plan: Names model, clip norm and lattice.
        cohort: The site's encoded cohort; held-out patients are left out.
        weights: float64 (P,), the model that the site recomputed itself.
        sensitivity: Integer L2 bound of one patient; by default the training mechanism's.
        chosen: Which training patients are in the sum, bool (training patients,), drawn by the mechanism; None for
            everybody, which a plan with sampling probability below 1 does not admit.

    Returns:
        int64 (P,): the same in any order of patients.

    Raises:
        PlanError: `sampling-undrawn` (patients were not drawn as the plan says), `weights-length`.
    """
    spec = plan.mechanism
    if (Fraction(spec.sampling_probability) != 1) != (chosen is not None):
        # Charged as a sample, a full batch would cost its patients far more than the ledger says.
        raise PlanError(
            "sampling-undrawn",
            f"Expected patients drawn with the plan's sampling probability {spec.sampling_probability}.",
            "Draw them with the plan's mechanism.",
        )
    bound = _training_sensitivity(plan) if sensitivity is None else sensitivity
    total = np.zeros(update_length(plan), dtype=np.int64)
    training = cohort.training if chosen is None else cohort.training.only(chosen)
    if has_closed_form(plan, bound):
        # Which way a patient's rows go depends on the patient alone, so the bounds of both ways hold together.
        single = np.bincount(training.patients, minlength=training.patient_count) == 1
        total += clipped_sum(plan, training if single.all() else training.only(single), weights, bound)
        training = training.only(~single)
    for part in _chunks(training, update_length(plan)):
        gradients = patient_gradients(plan, part, weights).numpy()
        total += encode_gradients(gradients, float(spec.clip_norm), spec.scale_bits, bound).sum(axis=0)
    return total


def _training_sensitivity(plan: StudyPlan) -> int:
    from tasks.privacy.mechanism import training_mechanism

    return training_mechanism(plan).sensitivity


def _chunks(cohort: Cohort, length: int) -> Iterator[Cohort]:
    """Splits a cohort between patients, so that no chunk's row gradients take more than some 32 MB (or one patient)."""
    rows = cohort.patients.size
    ends = np.nonzero(np.append(cohort.patients[1:] != cohort.patients[:-1], rows > 0))[0] + 1
    most = max(1, _CHUNK_NUMBERS // length)
    low = 0
    while low < rows:
        first = np.searchsorted(ends, low, side="right")
        last = np.searchsorted(ends, low + most, side="right") - 1
        high = int(ends[max(first, last)])
        patients = cohort.patients[low:high] - cohort.patients[low]
        yield Cohort(cohort.features[low:high], cohort.labels[low:high], patients, cohort.held_out[low:high])
        low = high
