"""The server step is the same on every machine, binds the study, and refuses anything that does not follow."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from schemas.errors import EvidenceError, PlanError
from schemas.plan import OptimizerSpec, layer_shapes, update_length
from tasks.server_step import (
    ModelState,
    apply_step,
    decode_sum,
    initial_state,
    parse_state,
    released_weights,
    state_bytes,
    state_digest,
    weights_safetensors,
)
from tests.training.plans import make_plan

SGD = OptimizerSpec(kind="sgd", learning_rate="0.5", divisor="300", weight_decay="0.01")
MOMENTUM = OptimizerSpec(kind="momentum", learning_rate="0.5", divisor="300", momentum="0.9")
ADAM = OptimizerSpec(kind="adam", learning_rate="0.05", divisor="300")
YOGI = OptimizerSpec(kind="yogi", learning_rate="0.05", divisor="300", beta2="0.99", epsilon="1e-3")
sums = st.lists(st.integers(-(2**40), 2**40), min_size=4, max_size=4).map(lambda v: np.array(v, dtype=np.int64))


def run(plan, steps):
    state = initial_state(plan)
    for opened in steps:
        state = apply_step(plan, state, opened)
    return state


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM, YOGI], ids=lambda o: o.kind)
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(sums, min_size=1, max_size=4))
def test_vector_step_equals_scalar_python_arithmetic_bit_for_bit(optimizer, steps):
    plan = make_plan(optimizer=optimizer)
    expected = [scalar_reference(plan, [int(s[i]) for s in steps]) for i in range(4)]
    assert run(plan, steps).weights.tolist() == expected


def scalar_reference(plan, values):
    """One coordinate in plain Python floats: IEEE 754 doubles, one rounding per operation."""
    spec = plan.optimizer
    lr, div, wd = float(spec.learning_rate), float(spec.divisor), float(spec.weight_decay)
    b1, b2, eps, mu = float(spec.beta1), float(spec.beta2), float(spec.epsilon), float(spec.momentum)
    unit = float(plan.mechanism.clip_norm) / 2.0**plan.mechanism.scale_bits
    w = m = 0.0
    v = eps * eps if spec.kind == "yogi" else 0.0
    p1 = p2 = 1.0
    for value in values:
        g = float(value) * unit / div
        g = g + wd * w
        if spec.kind == "sgd":
            w = w - lr * g
        elif spec.kind == "momentum":
            m = mu * m + g
            w = w - lr * m
        elif spec.kind == "yogi":
            m = b1 * m + (1.0 - b1) * g
            v = v - ((1.0 - b2) * (g * g)) * float((v > g * g) - (v < g * g))
            w = w - lr * (m / (float(np.sqrt(v)) + eps))
        else:
            p1, p2 = p1 * b1, p2 * b2
            m = b1 * m + (1.0 - b1) * g
            v = b2 * v + (1.0 - b2) * (g * g)
            w = w - lr * ((m / (1.0 - p1)) / (float(np.sqrt(v / (1.0 - p2))) + eps))
    return w


def test_yogis_second_moment_moves_by_the_gradients_square_and_adams_by_their_difference():
    """What Yogi is for: after large gradients, small ones let Adam's step grow at once and Yogi's only slowly."""
    large, small = np.full(4, 1 << 26, dtype=np.int64), np.full(4, 1 << 10, dtype=np.int64)
    steps = [large] * 5 + [small] * 200
    yogi, adam = (run(make_plan(optimizer=o), steps).second for o in (YOGI, ADAM.model_copy(update={"beta2": "0.99"})))
    peak = run(make_plan(optimizer=YOGI), steps[:5]).second
    assert (yogi > 0.999 * peak).all()
    assert (adam < 0.2 * peak).all()


def test_sgd_step_is_the_exact_rational_step_to_rounding():
    plan = make_plan(optimizer=OptimizerSpec(kind="sgd", learning_rate="0.5", divisor="300"))
    opened = np.array([3 << 16, -(1 << 16), 7, 0], dtype=np.int64)
    exact = [-Fraction(int(v), 1 << 16) / 300 / 2 for v in opened]
    assert np.allclose(run(plan, [opened]).weights, [float(e) for e in exact], rtol=1e-15, atol=0)


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM, YOGI], ids=lambda o: o.kind)
def test_state_survives_its_bytes_and_continues_identically(optimizer):
    plan = make_plan(optimizer=optimizer)
    first, second = np.array([5, -6, 7, 1 << 30], dtype=np.int64), np.array([1, 2, 3, 4], dtype=np.int64)
    state = run(plan, [first])
    restored = parse_state(plan, state_bytes(state))
    assert state_digest(restored) == state_digest(state)
    assert state_bytes(apply_step(plan, restored, second)) == state_bytes(apply_step(plan, state, second))


def test_digest_binds_study_step_count_weights_and_optimizer_state():
    plan = make_plan(optimizer=MOMENTUM)
    state = run(plan, [np.array([5, -6, 7, 9], dtype=np.int64)])
    nudged = state.first.copy()
    nudged[2] = np.nextafter(nudged[2], 1)
    others = [
        ModelState("0" * 64, state.steps, state.weights, state.first, state.second, 1.0, 1.0),
        ModelState(state.study, 2, state.weights, state.first, state.second, 1.0, 1.0),
        ModelState(state.study, state.steps, state.weights, nudged, state.second, 1.0, 1.0),
        ModelState(state.study, state.steps, state.weights, state.first, state.second, 0.5, 1.0),
    ]
    assert len({state_digest(s) for s in [state, *others]}) == 5


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_or_appended_byte_of_a_state_is_refused(data):
    plan = make_plan(optimizer=ADAM)
    good = state_bytes(run(plan, [np.array([5, -6, 7, 9], dtype=np.int64)]))
    position = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(st.sampled_from([good[:position], good + b"\0", b"\0" + good]))
    with pytest.raises(EvidenceError, match="Expected a model state of this study"):
        parse_state(plan, bad)


def test_state_of_another_study_is_refused():
    plan, other = make_plan(), make_plan(nonce="2" * 64)
    state = initial_state(other)
    with pytest.raises(EvidenceError, match="model state of this study"):
        apply_step(plan, state, np.zeros(4, dtype=np.int64))
    with pytest.raises(EvidenceError, match="its encoding differs"):
        parse_state(plan, state_bytes(state))


@pytest.mark.parametrize("opened", [np.zeros(3, np.int64), np.zeros(4, np.float64), np.zeros((2, 2), np.int64)])
def test_sum_of_another_shape_or_type_is_refused(opened):
    plan = make_plan()
    with pytest.raises(EvidenceError, match="Expected an opened sum of 4 64-bit integers"):
        apply_step(plan, initial_state(plan), opened)


def test_diverging_step_is_the_coordinators_to_correct():
    plan = make_plan(optimizer=OptimizerSpec(kind="sgd", learning_rate="1e308", divisor="1e-300"))
    with pytest.raises(PlanError, match="no longer finite"):
        apply_step(plan, initial_state(plan), np.full(4, 1 << 50, dtype=np.int64))


@pytest.mark.parametrize(
    "change", [{"learning_rate": "0"}, {"divisor": "-1"}, {"momentum": "1"}, {"beta2": "1"}, {"epsilon": "0"}]
)
def test_optimizer_outside_its_range_is_refused(change):
    with pytest.raises(PlanError, match="Correct the plan's optimizer"):
        initial_state(make_plan(optimizer=SGD.model_copy(update=change)))


def test_mlp_start_is_derived_from_the_plan_and_nobody_else_chooses_it():
    plan = make_plan(hidden=(8, 4))
    state = initial_state(plan)
    assert np.array_equal(state.weights, initial_state(plan).weights)
    assert not np.array_equal(state.weights, initial_state(make_plan(hidden=(8, 4), nonce="2" * 64)).weights)
    tensors = load(weights_safetensors(plan, state))
    for name, shape in layer_shapes(plan):
        bound = 0.0 if name.endswith("bias") else shape[-1] ** -0.5
        assert np.abs(tensors[name]).max() <= bound
        # Of four uniform weights all are small in one start out of sixteen; of twenty-four, in none.
        assert tensors[name].size < 16 or np.abs(tensors[name]).max() > 0.5 * bound


def test_safetensors_bytes_are_deterministic_and_hold_the_released_weights():
    plan = make_plan(hidden=(5,), optimizer=ADAM)
    size = update_length(plan)
    state = run(plan, [np.arange(size, dtype=np.int64) * 1000])
    data = weights_safetensors(plan, state)
    assert data == weights_safetensors(plan, parse_state(plan, state_bytes(state)))
    tensors = load(data)
    assert [(n, tensors[n].shape) for n, _ in layer_shapes(plan)] == list(layer_shapes(plan))
    flat = np.concatenate([tensors[n].ravel() for n, _ in layer_shapes(plan)])
    assert np.array_equal(flat.astype(np.float64), released_weights(state))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"study": plan.study}


def test_decoded_sum_is_in_gradient_units():
    plan = make_plan(clip_norm="2")
    assert decode_sum(plan, np.array([1 << 16, -(1 << 15), 0, 1], dtype=np.int64)).tolist() == [2.0, -1.0, 0, 2.0**-15]


FROZEN = {
    "sgd": "15d68402242b19b4a8c4983cb4150b713b524b918aaaf190268cdcfa3dbc6a3f",
    "momentum": "ff766195ad66223b7416f50008868c36d7522c2d8c9ddc47ada006100ebb0649",
    "adam": "fb5513aebc106114f55d51e4fb6be662dc95cf9a6660cebe701060dfc5771d4d",
    "yogi": "5fa2efb9cd091b072de3ed6e16693e79438fb689d1913ee412538bebfce19c63",
}


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM, YOGI], ids=lambda o: o.kind)
def test_frozen_vector_of_three_steps(optimizer):
    """Never edited, only added to: another machine or numpy must reach the same bits."""
    plan = make_plan(optimizer=optimizer)
    steps = [np.array([12345, -678901, 1 << 40, k], dtype=np.int64) for k in (-1, 0, 7)]
    state = run(plan, steps)
    frozen = replace(state, study="ab" * 32)
    assert state_digest(frozen) == FROZEN[optimizer.kind]
