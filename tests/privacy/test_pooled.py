"""Distributed sums are central DP-SGD: split data and pooled data give the same models.

Sums are integers, so with noise off the split does not even change a rounding. With noise, k shares of sigma / sqrt(k)
have the distribution of one share of sigma; compared on models after several steps, which noise has moved apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from schemas.plan import OptimizerSpec, StudyPlan, update_length
from tasks.contract.encoder import Cohort, pool_cohorts
from tasks.privacy.mechanism import GaussianMechanism, training_mechanism
from tasks.privacy.noise import NoiseStream, os_noise_stream
from tasks.server_step import ModelState, apply_step, initial_state
from tasks.training.train import train_sum
from tests.training.plans import make_cohort, make_plan

STEPS, MODELS = 4, 250
OPTIMIZERS = {
    "sgd": OptimizerSpec(kind="sgd", learning_rate="0.5", divisor="60"),
    "momentum": OptimizerSpec(kind="momentum", learning_rate="0.2", divisor="60", momentum="0.9"),
    "adam": OptimizerSpec(kind="adam", learning_rate="0.05", divisor="60"),
    "yogi": OptimizerSpec(kind="yogi", learning_rate="0.05", divisor="60", beta2="0.99", epsilon="1e-3"),
}
# Unequal sites on purpose: a mean over sites would differ, a sum over patients does not.
SITES = tuple(make_cohort(n, seed=n) for n in (3, 11, 0, 40, 26))

# Half a unit for each site that has patients and for the pool, in whole units.
ROUNDINGS = (sum(cohort.patient_count > 0 for cohort in SITES) + 1) // 2


def train(plan: StudyPlan, cohorts: Sequence[Cohort], mechanism: GaussianMechanism | None) -> ModelState:
    """All rounds over `cohorts`, one noise share each; no mechanism means no noise."""
    state = initial_state(plan)
    stream: NoiseStream = os_noise_stream()
    for _ in range(STEPS):
        opened = np.zeros(update_length(plan), np.int64)
        for cohort in cohorts:
            values = train_sum(plan, cohort, state.weights)
            opened += values if mechanism is None else mechanism.add_noise(values, stream)
        state = apply_step(plan, state, opened)
    return state


@pytest.mark.parametrize("hidden", [(), (6,)], ids=["logistic", "mlp"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_without_noise_split_and_pooled_data_give_the_same_weights(kind: str, hidden: tuple[int, ...]) -> None:
    """Every site rounds its sum to the lattice, and so does the pool: half a unit each, per step."""
    plan = make_plan(hidden=hidden, optimizer=OPTIMIZERS[kind], clip_norm="0.5")
    split, pooled = train(plan, SITES, None), train(plan, [pool_cohorts(SITES)], None)
    unit = 0.5 / 2**plan.mechanism.scale_bits / 60
    # Adam and Yogi divide by the size of the sum: half a unit in a coordinate that hardly moves weighs more, and no
    # bound in lattice units holds for every sum. For the others a step is at most the sum's difference.
    most = {"yogi": 80, "adam": 400}.get(kind, ROUNDINGS) * STEPS
    assert np.abs(split.weights - pooled.weights).max() <= most * unit
    assert np.abs(split.weights - initial_state(plan).weights).max() > 1000 * unit, "and something was learned"


@pytest.mark.parametrize("hidden", [(), (6,)], ids=["logistic", "mlp"])
def test_opened_sums_of_split_and_pooled_data_differ_by_one_rounding_each(hidden: tuple[int, ...]) -> None:
    plan = make_plan(hidden=hidden, clip_norm="0.5")
    weights = initial_state(plan).weights + 0.1
    split = sum(train_sum(plan, cohort, weights) for cohort in SITES)
    pooled = train_sum(plan, pool_cohorts(SITES), weights)
    assert np.abs(split - pooled).max() <= ROUNDINGS
    assert np.abs(pooled).max() > 1000


def models(cohorts: Sequence[Cohort], honest: int) -> NDArray[np.float64]:
    """Final weights of many studies, float64 (MODELS, P); every cohort adds one share of sigma / sqrt(honest)."""
    plan = make_plan(clip_norm="0.5")
    mechanism = replace(training_mechanism(plan), honest=honest, sites_in_sum=honest)
    return np.stack([train(plan, cohorts, mechanism).weights for _ in range(MODELS)])


def least_p_value(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Least p-value, corrected for their number, that two samples are alike: each weight, their joint moves, scales."""
    centre, scale = left.mean(axis=0), left.std(axis=0)
    a, b = (left - centre) / scale, (right - centre) / scale
    pairs = [(a[:, i], b[:, i]) for i in range(a.shape[1])]
    pairs += [(np.abs(x), np.abs(y)) for x, y in pairs]
    pairs += [(a.sum(axis=1), b.sum(axis=1)), ((a**2).sum(axis=1), (b**2).sum(axis=1))]
    return len(pairs) * min(float(ks_2samp(x, y).pvalue) for x, y in pairs)


def test_with_noise_split_and_pooled_data_give_the_same_distribution_of_models() -> None:
    """Sites that draw a share each are one data owner who draws the whole noise; a wrong share is noticed."""
    pooled = models([pool_cohorts(SITES)], honest=1)
    assert least_p_value(pooled, models(SITES, honest=len(SITES))) > 1e-6
    assert least_p_value(pooled, models(SITES, honest=1)) < 1e-6, "a whole sigma at each site is more noise"
    assert least_p_value(pooled, models(SITES, honest=3 * len(SITES))) < 1e-6, "a third of the variance is less"
