"""Whole trainings of a plan on public data, with the noise that the collusion reading counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import StudyPlan
from tasks.contract.encoder import Cohort
from tasks.privacy.mechanism import GaussianMechanism, training_mechanism
from tasks.privacy.noise import NoiseStream
from tasks.server_step import apply_step, initial_state
from tasks.training.train import train_sum


def attacked_mechanism(plan: StudyPlan) -> GaussianMechanism:
    """Returns the plan's training mechanism with the h honest shares as one: what colluding sites leave.

    Raises:
        PlanError: `attack-local`: a study of local steps has another mechanism, which is not attacked here.
    """
    if plan.mechanism.local is not None:
        raise PlanError("attack-local", "Expected a plan in distributed mode; attacks on local mode do not exist yet.")
    return replace(training_mechanism(plan), honest=1, sites_in_sum=1)


def train_on(plan: StudyPlan, cohort: Cohort, stream: NoiseStream, protected: bool = True) -> NDArray[np.float64]:
    """Trains the plan's rounds on all patients of `cohort` as one data owner; returns the weights, float64 (P,).

    Args:
        cohort: Public or simulated rows; held-out marks are ignored.
        stream: Fresh noise.
        protected: False leaves out the noise, for comparison only.
    """
    mechanism = attacked_mechanism(plan)
    everybody = replace(cohort, held_out=np.zeros_like(cohort.held_out))
    state = initial_state(plan)
    for _ in range(plan.mechanism.rounds):
        chosen = mechanism.draw_patients(everybody.patient_count, stream)
        total = train_sum(plan, everybody, state.weights, mechanism.sensitivity, chosen)
        state = apply_step(plan, state, mechanism.add_noise(total, stream) if protected else total)
    return state.weights
