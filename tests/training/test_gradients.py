"""Closed-form per-patient gradients agree with Opacus and with a slow loop; no patient moves a sum beyond the bound."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.errors import PlanError
from schemas.plan import update_length
from tasks.server_step import apply_step, decode_sum, initial_state
from tasks.training.encode import encode_gradients
from tasks.training.gradients import patient_gradients
from tasks.training.train import train_sum
from tests.training.plans import make_cohort, make_contract, make_plan, reorder

MODELS = [(), (8,), (6, 4)]
SENSITIVITY = 1 << 16


def weights_for(plan, seed=3):
    return np.random.default_rng(seed).normal(0, 0.7, update_length(plan))


def sequential(plan, weights):
    """Builds the same model as torch modules, weights in the order of the flat vector."""
    sizes = (3, *plan.model.hidden, 1)
    modules = []
    for fan_in, fan_out in pairwise(sizes):
        modules += [torch.nn.Linear(fan_in, fan_out, dtype=torch.float64), torch.nn.Tanh()]
    net = torch.nn.Sequential(*modules[:-1])
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), net.parameters())
    return net


def opacus_patient_gradients(plan, cohort, weights):
    from opacus.grad_sample import GradSampleModule

    net = GradSampleModule(sequential(plan, weights), loss_reduction="sum")
    logits = net(torch.from_numpy(cohort.features).requires_grad_())[:, 0]
    labels = torch.from_numpy(cohort.labels.astype(np.float64))
    torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    rows = torch.cat([p.grad_sample.flatten(1) for p in net.parameters()], dim=1).numpy()
    return np.stack([rows[cohort.patients == i].mean(axis=0) for i in range(cohort.patient_count)])


@pytest.mark.parametrize("rows", [1, 3], ids=["one-row", "three-rows"])
@pytest.mark.parametrize("hidden", MODELS, ids=str)
def test_closed_form_equals_opacus_per_patient(hidden, rows):
    plan = make_plan(hidden=hidden)
    cohort, weights = make_cohort(40, rows=rows), weights_for(plan)
    ours = patient_gradients(plan, cohort, weights).numpy()
    assert np.abs(ours - opacus_patient_gradients(plan, cohort, weights)).max() < 1e-10


def test_patient_with_five_rows_counts_once_and_is_clipped_once():
    plan = make_plan(clip_norm="0.01")
    one, five = make_cohort(1), make_cohort(1)
    five = replace(
        five,
        features=np.repeat(five.features, 5, axis=0),
        labels=np.repeat(five.labels, 5),
        patients=np.zeros(5, np.int64),
        held_out=np.repeat(five.held_out, 5),
    )
    weights = weights_for(plan)
    total = train_sum(plan, five, weights, SENSITIVITY)
    slow = patient_gradients(plan, one, weights).numpy()
    assert np.array_equal(total, encode_gradients(slow, 0.01, 16, SENSITIVITY)[0]), "the mean of five equal rows is one"
    # One row goes through the closed form: clipped ceil(sqrt(P)) = 2 units tighter, and two roundings of half a unit.
    assert np.abs(total - train_sum(plan, one, weights, SENSITIVITY)).max() <= 2 + 1
    assert (total.astype(float) ** 2).sum() <= SENSITIVITY**2


@settings(max_examples=150, deadline=None)
@given(
    gradients=arrays(np.float64, (3, 7), elements=st.floats(allow_nan=False, width=64)),
    bits=st.integers(8, 24),
    clip=st.sampled_from([5e-324, 1e-310, 1e-3, 0.7, 1.0, 1e6, 1e308]),
)
def test_integer_norm_never_exceeds_the_sensitivity(gradients, bits, clip):
    with np.errstate(all="ignore"):
        encoded = encode_gradients(gradients, clip, bits, 1 << bits)
    for row in encoded:
        assert sum(int(v) ** 2 for v in row) <= (1 << bits) ** 2


def test_integer_clip_is_needed_and_acts():
    """Rounding up every coordinate of a clipped row passes the bound: the re-clip, not luck, keeps it."""
    length = 900
    row = np.full((1, length), 1.0)
    rounded = np.rint(row / np.sqrt(length) * 2**8)
    assert (rounded**2).sum() > 2**16
    assert (encode_gradients(row, 1.0, 8, 2**8).astype(float) ** 2).sum() <= 2**16


def test_small_gradients_are_encoded_to_half_a_lattice_unit():
    gradients = np.random.default_rng(1).normal(0, 0.01, (50, 6))
    encoded = encode_gradients(gradients, 1.0, 16, SENSITIVITY)
    assert np.abs(encoded / 2.0**16 - gradients).max() <= 0.5 / 2**16


@pytest.mark.parametrize("hidden", MODELS, ids=str)
def test_sum_does_not_depend_on_order_sites_or_chunks(hidden, monkeypatch):
    plan = make_plan(hidden=hidden)
    cohort, weights = make_cohort(60, rows=2), weights_for(plan)
    whole = train_sum(plan, cohort, weights, SENSITIVITY)
    shuffled = reorder(cohort, np.random.default_rng(2).permutation(60))
    assert np.array_equal(train_sum(plan, shuffled, weights, SENSITIVITY), whole)
    half = cohort.patients < 25
    parts = [replace_rows(cohort, half), replace_rows(cohort, ~half)]
    assert np.array_equal(sum(train_sum(plan, p, weights, SENSITIVITY) for p in parts), whole)
    monkeypatch.setattr("tasks.training.train._CHUNK_NUMBERS", 7 * update_length(plan))
    assert np.array_equal(train_sum(plan, cohort, weights, SENSITIVITY), whole)


def replace_rows(cohort, rows):
    patients = np.unique(cohort.patients[rows], return_inverse=True)[1].astype(np.int64)
    return replace(
        cohort,
        features=cohort.features[rows],
        labels=cohort.labels[rows],
        patients=patients,
        held_out=cohort.held_out[rows],
    )


def test_held_out_patients_are_not_trained_on():
    plan = make_plan()
    cohort, weights = make_cohort(20), weights_for(plan)
    changed = replace(cohort, features=np.where(cohort.held_out[:, None], 1.0, cohort.features))
    assert np.array_equal(train_sum(plan, cohort, weights, SENSITIVITY), train_sum(plan, changed, weights, SENSITIVITY))
    assert not np.array_equal(cohort.features, changed.features)


def test_non_finite_gradient_of_one_patient_is_zeroed_and_the_others_stay():
    plan = make_plan(hidden=(8,))
    cohort, weights = make_cohort(9), weights_for(plan)
    features = cohort.features.copy()
    features[4] = np.inf
    poisoned = patient_gradients(plan, replace(cohort, features=features), weights).numpy()
    clean = patient_gradients(plan, cohort, weights).numpy()
    assert (poisoned[4] == 0).all()
    assert np.allclose(np.delete(poisoned, 4, axis=0), np.delete(clean, 4, axis=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("hidden", MODELS, ids=str)
def test_empty_cohort_gives_zeros_of_the_full_length(hidden):
    plan = make_plan(hidden=hidden)
    total = train_sum(plan, make_cohort(0), weights_for(plan), SENSITIVITY)
    assert total.dtype == np.int64
    assert total.tolist() == [0] * update_length(plan)


def test_one_patient_only_is_within_the_bound():
    plan = make_plan(clip_norm="0.001")
    total = train_sum(plan, make_cohort(1), weights_for(plan), SENSITIVITY)
    assert 0 < sum(int(v) ** 2 for v in total) <= SENSITIVITY**2


@pytest.mark.parametrize("hidden", [(), (8,)], ids=str)
def test_rounds_without_noise_equal_plain_full_batch_training(hidden):
    """With a clip that never acts, the federated rounds are torch autograd on the pooled rows to fixed-point."""
    plan = make_plan(hidden=hidden, clip_norm="64", scale_bits=24)
    cohort = make_cohort(50)
    state = initial_state(plan)
    weights = state.weights.copy()
    for _ in range(5):
        total = train_sum(plan, cohort, state.weights, 1 << 24)
        slow = slow_gradient_sum(plan, cohort.training, weights)
        assert np.allclose(decode_sum(plan, total), slow, atol=1e-3)
        state = apply_step(plan, state, total)
        weights = weights - 0.5 * slow / 300
    assert np.abs(state.weights - weights).max() < 1e-6


def slow_gradient_sum(plan, cohort, weights):
    net = sequential(plan, weights)
    labels = torch.from_numpy(cohort.labels.astype(np.float64))
    logits = net(torch.from_numpy(cohort.features))[:, 0]
    torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    return torch.nn.utils.parameters_to_vector([p.grad for p in net.parameters()]).numpy()


def test_weights_of_another_model_are_refused():
    plan = make_plan()
    with pytest.raises(PlanError, match="Expected 4 weights"):
        train_sum(plan, make_cohort(4), np.zeros(5), SENSITIVITY)


def test_a_sampled_plan_never_sums_everybody_and_a_full_one_never_a_sample():
    """Original instead of Poisson loader: charged as a sample, everybody would pay far more than the ledger says."""
    sampled, full = make_plan(make_contract(), sampling_probability="0.5"), make_plan(make_contract())
    chosen = np.array([True, False, True])
    for plan, marks in ((sampled, None), (full, chosen)):
        with pytest.raises(PlanError, match="Expected patients drawn with the plan's sampling probability"):
            train_sum(plan, make_cohort(4), np.zeros(4), SENSITIVITY, marks)
    with pytest.raises(ValueError, match="one mark per patient"):
        train_sum(sampled, make_cohort(4), np.zeros(4), SENSITIVITY, np.append(chosen, True))


def test_a_sampled_sum_is_the_sum_of_the_chosen_patients_with_all_their_rows():
    sampled, full = make_plan(make_contract(), sampling_probability="0.5"), make_plan(make_contract())
    cohort, weights = make_cohort(24, rows=3), weights_for(full)
    chosen = np.arange(18) % 3 == 0
    alone = [cohort.training.only(np.arange(18) == i) for i in np.flatnonzero(chosen)]
    expected = sum(train_sum(full, patient, weights, SENSITIVITY) for patient in alone)
    assert np.array_equal(train_sum(sampled, cohort, weights, SENSITIVITY, chosen), expected)
    nobody = np.zeros(18, bool)
    assert not train_sum(sampled, cohort, weights, SENSITIVITY, nobody).any()


def test_training_runs_on_one_thread_whatever_was_set():
    plan = make_plan()
    torch.set_num_threads(2)
    train_sum(plan, make_cohort(4), np.zeros(4), SENSITIVITY)
    assert torch.get_num_threads() == 1
