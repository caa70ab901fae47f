"""Gradient inversion: a patient's row rebuilt from one update, as it would have been sent bare and as it was sent.

With a first linear layer the gradient is d (a, 1): the row is the weight gradient divided by the bias gradient (Phong
et al., 2017/715). A site with one patient is the worst case. What is really sent is encrypted as well; the attack is
granted a broken key and sees the site's clipped integers with its own noise share (the fallback reading).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import StudyPlan, feature_count, layer_shapes
from tasks.contract.encoder import Cohort
from tasks.privacy.mechanism import training_mechanism
from tasks.privacy.noise import NoiseStream
from tasks.server_step import decode_sum, initial_state
from tasks.training.gradients import patient_gradients
from tasks.training.train import train_sum

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class InversionFigures:
    """Mean absolute error per encoded feature (range -1 to 1), over patients.

    Attributes:
        unprotected: From the bare gradient.
        protected: From the clipped integers with the site's own noise share, encryption broken.
        guess: Of always answering the mean row of the public table: an attack that is not better learned nothing.
    """

    unprotected: float
    protected: float
    guess: float
    patients: int


def invert_gradients(plan: StudyPlan, cohort: Cohort, patients: int, stream: NoiseStream) -> InversionFigures:
    """Attacks the first update of `patients` one-patient sites.

    Raises:
        PlanError: `attack-module`: a module's gradient has no known inverse here.
    """
    if plan.model.module is not None:
        raise PlanError("attack-module", "Expected a logistic or mlp model: a module's gradient has no closed inverse.")
    weights, mechanism = initial_state(plan).weights, training_mechanism(plan)
    errors: list[tuple[float, float, float]] = []
    mean = cohort.features.mean(axis=0)
    for index in range(min(patients, cohort.patient_count)):
        one = cohort.only(np.arange(cohort.patient_count) == index)
        one = Cohort(one.features[:1], one.labels[:1], one.patients[:1], np.zeros(1, bool))
        row = one.features[0]
        bare = patient_gradients(plan, one, weights).numpy()[0]
        sent = mechanism.add_noise(train_sum(plan, one, weights, mechanism.sensitivity, _drawn(plan)), stream)
        found = [np.abs(_rebuild(plan, g) - row).mean() for g in (bare, decode_sum(plan, sent))]
        errors.append((float(found[0]), float(found[1]), float(np.abs(mean - row).mean())))
    unprotected, protected, guess = np.mean(errors, axis=0)
    return InversionFigures(float(unprotected), float(protected), float(guess), len(errors))


def _drawn(plan: StudyPlan) -> NDArray[np.bool_] | None:
    return None if plan.mechanism.sampling_probability == "1" else np.ones(1, bool)


def _rebuild(plan: StudyPlan, gradient: FloatArray) -> FloatArray:
    width = layer_shapes(plan)[0][1][0]
    features = feature_count(plan.contract)
    weight, bias = gradient[: width * features].reshape(width, features), gradient[width * features :][:width]
    # Least squares over the layer's units; what leaves the known range is clipped to it.
    signal = float(bias @ bias)
    return np.clip(bias @ weight / signal if signal > 0 else np.zeros(features), -1.0, 1.0)
