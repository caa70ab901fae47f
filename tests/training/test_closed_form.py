"""The closed form is exact, bounded for every patient, and equal to Opacus; no patient's gradient is ever in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tasks.training.train
from schemas.plan import update_length
from tasks.server_step import decode_sum
from tasks.training.closed_form import clipped_sum, has_closed_form
from tasks.training.train import train_sum
from tests.training.plans import make_cohort, make_contract, make_plan, reorder
from tests.training.test_gradients import opacus_patient_gradients, weights_for

SENSITIVITY = 1 << 16
MODELS = [(), (8,), (6, 4)]


def everybody(patients: int, **changes):
    cohort = make_cohort(patients, **changes)
    return replace(cohort, held_out=np.zeros_like(cohort.held_out))


def ones(cohort, index: int):
    return cohort.only(np.arange(cohort.patient_count) == index)


@pytest.mark.parametrize("clip", ["0.05", "1", "20"])
@pytest.mark.parametrize("hidden", MODELS, ids=str)
def test_every_patients_clipped_gradient_equals_opacus(hidden, clip):
    plan = make_plan(hidden=hidden, clip_norm=clip)
    cohort, weights = everybody(30), weights_for(plan)
    bound = float(clip) * (1 - (np.ceil(np.sqrt(update_length(plan)))) / SENSITIVITY)
    gradients = opacus_patient_gradients(plan, cohort, weights)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    expected = gradients * np.minimum(1, bound / norms)
    found = np.stack([decode_sum(plan, clipped_sum(plan, ones(cohort, i), weights, SENSITIVITY)) for i in range(30)])
    lattice = float(clip) / SENSITIVITY
    assert np.abs(found - expected).max() <= 0.51 * lattice + 1e-5
    whole = decode_sum(plan, clipped_sum(plan, cohort, weights, SENSITIVITY))
    assert np.abs(whole - expected.sum(axis=0)).max() <= 0.51 * lattice + 30 * 1e-6
    assert (norms > bound).any() == (clip == "0.05") or clip == "1"


@settings(max_examples=60, deadline=None)
@given(
    features=arrays(np.float64, (4, 3), elements=st.floats(width=64)),
    weights=arrays(np.float64, 41, elements=st.floats(-1e3, 1e3)),
    clip=st.sampled_from(["0.001", "1", "1000", "1e308", "5e-324", "1e-320", "1e-400"]),
    bits=st.sampled_from([12, 16, 24]),
)
def test_one_patient_never_moves_the_sum_beyond_the_sensitivity(features, weights, clip, bits):
    """In exact integers, rounding included, whatever the row holds: the noise is calibrated to this."""
    plan = make_plan(hidden=(8,), clip_norm=clip, scale_bits=bits)
    assert update_length(plan) == weights.size
    cohort = everybody(4)
    cohort = replace(cohort, features=features)
    with np.errstate(all="ignore"):
        for leave in range(4):
            rest = cohort.only(np.arange(4) != leave)
            moved = train_sum(plan, cohort, weights, 1 << bits) - train_sum(plan, rest, weights, 1 << bits)
            assert sum(int(v) ** 2 for v in moved) <= (1 << bits) ** 2


@pytest.mark.parametrize("hidden", MODELS, ids=str)
def test_the_exact_sum_does_not_depend_on_order_or_chunks(hidden, monkeypatch):
    plan = make_plan(hidden=hidden, scale_bits=24)
    cohort, weights = everybody(150), weights_for(plan)
    whole = train_sum(plan, cohort, weights, 1 << 24)
    shuffled = reorder(cohort, np.random.default_rng(2).permutation(150))
    assert np.array_equal(train_sum(plan, shuffled, weights, 1 << 24), whole)
    monkeypatch.setattr("tasks.training.closed_form.CHUNK_ROWS", 64)
    assert np.abs(train_sum(plan, cohort, weights, 1 << 24) - whole).max() <= 1


def test_sites_and_pool_differ_by_each_sites_rounding_alone():
    plan = make_plan(hidden=(8,))
    cohort, weights = everybody(90), weights_for(plan)
    parts = [cohort.only(np.arange(90) % 3 == i) for i in range(3)]
    split = sum(train_sum(plan, part, weights, SENSITIVITY) for part in parts)
    assert np.abs(split - train_sum(plan, cohort, weights, SENSITIVITY)).max() <= 2


def test_no_patients_gradient_is_materialised(monkeypatch):
    def refuse(*_):
        raise AssertionError("per-patient gradients in memory")

    monkeypatch.setattr(tasks.training.train, "patient_gradients", refuse)
    plan = make_plan(hidden=(8,))
    assert train_sum(plan, everybody(20), weights_for(plan), SENSITIVITY).any()


def test_a_row_that_is_not_finite_counts_as_zero_and_the_others_stay():
    plan, cohort = make_plan(hidden=(8,)), everybody(9)
    weights = weights_for(plan)
    clean = train_sum(plan, cohort.only(np.arange(9) != 4), weights, SENSITIVITY)
    for value in (np.inf, -np.inf, np.nan, 1e200):
        features = cohort.features.copy()
        features[4] = value
        poisoned = train_sum(plan, replace(cohort, features=features), weights, SENSITIVITY)
        assert np.abs(poisoned - clean).max() <= (0 if value != 1e200 else SENSITIVITY)
    assert clean.any()


def test_what_is_not_finite_in_one_chunk_stays_out_of_the_next(monkeypatch):
    monkeypatch.setattr("tasks.training.closed_form.CHUNK_ROWS", 8)
    plan, cohort = make_plan(hidden=(8,)), everybody(11)
    features = cohort.features.copy()
    features[6] = np.inf
    weights = weights_for(plan)
    poisoned = train_sum(plan, replace(cohort, features=features), weights, SENSITIVITY)
    assert np.abs(poisoned - train_sum(plan, cohort.only(np.arange(11) != 6), weights, SENSITIVITY)).max() <= 1


def test_a_lattice_too_coarse_for_one_rounding_takes_the_slow_way():
    coarse = make_plan(make_contract(30), hidden=(40,), scale_bits=8)
    assert not has_closed_form(coarse, 1 << 8)
    assert has_closed_form(make_plan(make_contract(30), hidden=(40,)), 1 << 16)
    total = train_sum(coarse, everybody(1, features=30), weights_for(coarse), 1 << 8)
    assert 0 < sum(int(v) ** 2 for v in total) <= (1 << 8) ** 2


def test_patients_with_one_and_with_several_rows_add_up():
    plan, cohort = make_plan(hidden=(8,)), everybody(20, rows=2)
    keep = np.ones(40, bool)
    keep[1::4] = False  # Every other patient keeps one row.
    mixed = replace(
        cohort,
        features=cohort.features[keep],
        labels=cohort.labels[keep],
        patients=cohort.patients[keep],
        held_out=cohort.held_out[keep],
    )
    weights = weights_for(plan)
    parts = sum(train_sum(plan, ones(mixed, i), weights, SENSITIVITY) for i in range(20))
    assert np.abs(parts - train_sum(plan, mixed, weights, SENSITIVITY)).max() <= 10
