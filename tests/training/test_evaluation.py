"""The evaluation histogram: one count per held-out patient, whatever the number of rows; nobody else is in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tasks.metrics import derive_noise_sigma, evaluate_histogram, exact_auc, gather_scores, spread_scores
from tasks.training.evaluation import score_histogram, score_patients
from tests.training.plans import make_cohort, make_plan

WEIGHTS = np.array([2.0, -0.5, 0.3, 0.1])


def test_every_held_out_patient_is_one_count_in_its_cell():
    plan = make_plan(bins=10)
    cohort = make_cohort(80, rows=3)
    histogram = score_histogram(plan, cohort, WEIGHTS)
    held = cohort.evaluation
    assert histogram.sum() == held.patient_count == 20
    probability = 1 / (1 + np.exp(-(held.features @ WEIGHTS[:3] + WEIGHTS[3])))
    expected = np.zeros(20, np.int64)
    for patient in range(20):
        rows = held.patients == patient
        cell = min(int(probability[rows].mean() * 10), 9)
        expected[cell + 10 * bool(held.labels[rows].any())] += 1
    assert np.array_equal(histogram, expected)


def test_adding_rows_to_a_patient_moves_at_most_one_count():
    plan = make_plan()
    cohort = make_cohort(40)
    last = np.nonzero(cohort.held_out)[0][-1]
    picked = np.concatenate([np.arange(40), np.full(7, last)])
    more = replace(
        cohort,
        features=cohort.features[picked],
        labels=cohort.labels[picked],
        patients=cohort.patients[picked],
        held_out=cohort.held_out[picked],
    )
    order = np.argsort(more.patients, kind="stable")
    more = replace(
        more,
        features=more.features[order],
        labels=more.labels[order],
        patients=more.patients[order],
        held_out=more.held_out[order],
    )
    change = score_histogram(plan, more, WEIGHTS) - score_histogram(plan, cohort, WEIGHTS)
    assert np.abs(change).sum() <= 2
    assert change.sum() == 0


def test_training_patients_are_not_counted():
    plan = make_plan()
    cohort = make_cohort(40)
    changed = replace(cohort, features=np.where(cohort.held_out[:, None], cohort.features, -1.0))
    assert np.array_equal(score_histogram(plan, cohort, WEIGHTS), score_histogram(plan, changed, WEIGHTS))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_patient_whose_score_is_not_a_number_is_still_one_count(bad):
    plan = make_plan()
    cohort = make_cohort(8)
    broken = replace(cohort, features=np.where(cohort.patients[:, None] == 3, bad, cohort.features))
    assert score_histogram(plan, broken, WEIGHTS).sum() == 2


def test_empty_cohort_counts_nothing():
    assert score_histogram(make_plan(), make_cohort(0), WEIGHTS).tolist() == [0] * 20


def test_histogram_auc_approaches_the_exact_auc():
    plan = make_plan(bins=200)
    cohort = make_cohort(2000)
    metrics = evaluate_histogram(score_histogram(plan, cohort, WEIGHTS).astype(np.float64), 0.0)
    assert metrics.auc.value == pytest.approx(exact_auc(*score_patients(plan, cohort.evaluation, WEIGHTS)), abs=0.003)


def test_noise_of_every_participant_is_in_the_interval():
    plan = make_plan()
    assert derive_noise_sigma(plan, 4) == pytest.approx(1.5 * 2**0.5)
    assert derive_noise_sigma(plan, 2) == pytest.approx(1.5)


def test_after_few_rounds_a_steep_transform_tells_scores_apart_that_probabilities_do_not():
    """Small weights: all scores are near one half and fall into two bins of probability; certain scores stay apart."""
    base = make_plan(bins=20)
    steep = base.model_copy(update={"evaluation": base.evaluation.model_copy(update={"steepness": "16"})})
    cohort = make_cohort(2000)
    for size, gain in ((0.05, 0.05), (0.1, 0.05), (1.0, -0.005), (3.0, -0.005)):
        weights = WEIGHTS * size
        exact = exact_auc(*score_patients(base, cohort.evaluation, weights))
        flat = evaluate_histogram(score_histogram(base, cohort, weights).astype(np.float64), 0.0)
        fine = evaluate_histogram(score_histogram(steep, cohort, weights).astype(np.float64), 0.0, 16.0)
        assert abs(fine.auc.value - exact) < 0.015
        assert abs(flat.auc.value - exact) - abs(fine.auc.value - exact) >= gain
        assert abs(fine.brier.value - flat.brier.value) < 0.02


def test_the_transform_moves_nobody_between_patients_and_can_be_undone():
    scores = np.linspace(0.001, 0.999, 997)
    for steepness in (0.0, 1.0, 16.0, 1000.0):
        places = spread_scores(scores, steepness)
        assert np.all(np.diff(places) > 0)
        assert np.allclose(gather_scores(places, steepness), scores, atol=1e-6)
        assert spread_scores(np.array([0.0, 1.0]), steepness).tolist() == [0.0, 1.0]
        assert gather_scores(np.array([0.0, 1.0]), steepness).tolist() == [0.0, 1.0]
    assert spread_scores(np.array([0.5]), 16.0).tolist() == [0.5]
