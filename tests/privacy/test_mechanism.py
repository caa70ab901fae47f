"""One object drives bound, noise and event; a plan that cannot keep its promise is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from schemas.errors import PlanError
from schemas.plan import histogram_length, update_length
from tasks.privacy.accounting import exact, gdp_cost, gdp_limit
from tasks.privacy.mechanism import (
    evaluation_mechanism,
    mechanism_for,
    training_mechanism,
    verify_plan_within_budget,
)
from tasks.privacy.noise import AesCtrStream, os_noise_stream
from tests.privacy.plans import make_mechanism, make_plan


def test_the_event_states_exactly_what_the_sampler_is_given() -> None:
    plan = make_plan()
    for kind, length in (("train", update_length(plan)), ("evaluate", histogram_length(plan))):
        mechanism = mechanism_for(plan, kind)  # type: ignore[arg-type]
        event = mechanism.event()
        assert exact(event.local_sigma) == mechanism.local_sigma
        assert event.sensitivity == mechanism.sensitivity == 2**plan.mechanism.scale_bits
        assert event.dimension == mechanism.dimension == length
        assert event.honest_assumed == plan.threshold.honest_noise_shares
        assert event.sites_in_sum == plan.threshold.k_min
        assert event.id_column == "patient"
    assert training_mechanism(plan).event().data == "training"
    assert evaluation_mechanism(plan).event().data == "held-out"


@pytest.mark.parametrize("honest", [1, 2, 7, 93])
def test_the_honest_shares_together_carry_the_promised_noise(honest: int) -> None:
    mechanism = make_mechanism(honest=honest, sites_in_sum=honest, dimension=4000)
    wanted = Fraction(mechanism.noise_multiplier) * mechanism.sensitivity
    assert honest * mechanism.local_sigma**2 >= wanted**2
    assert honest * (mechanism.local_sigma - Fraction(1, 10**6)) ** 2 < wanted**2, "and hardly more"
    zero = np.zeros(4000, np.int64)
    total = sum((mechanism.add_noise(zero, AesCtrStream(bytes([i]) * 32)) for i in range(honest)), zero)
    measured = float(np.sqrt((total.astype(float) ** 2).mean()))
    assert abs(measured / float(wanted) - 1) < 5 / math.sqrt(2 * 4000)


def test_counts_get_real_noise_even_from_a_small_share_of_it() -> None:
    """On whole counts, sigma / sqrt(h) = 0.14 would leave almost every cell without any noise."""
    mechanism = make_mechanism(noise_multiplier="1.39", honest=93, sites_in_sum=93, dimension=2000)
    counts = np.arange(2000, dtype=np.int64)
    noisy = mechanism.decode(mechanism.add_noise(mechanism.encode_counts(counts), os_noise_stream()))
    error = noisy - counts
    assert abs(error.std() / mechanism.noise_std(1) - 1) < 0.1
    assert mechanism.noise_std(93) == pytest.approx(1.39, rel=1e-6)
    assert np.array_equal(mechanism.decode(mechanism.encode_counts(counts)), counts.astype(float))


def test_a_site_without_a_patient_adds_its_noise_all_the_same() -> None:
    mechanism = make_mechanism(dimension=100)
    assert np.count_nonzero(mechanism.add_noise(np.zeros(100, np.int64), os_noise_stream())) > 90


def test_the_noisy_vector_is_never_clamped() -> None:
    mechanism = make_mechanism(dimension=1000)
    at_bound = np.full(1000, mechanism.sensitivity, np.int64)
    noisy = mechanism.add_noise(at_bound, os_noise_stream())
    assert (noisy > 2 * mechanism.sensitivity).any()
    assert (noisy < -mechanism.sensitivity).any()


@pytest.mark.parametrize("values", [np.zeros(30, np.int64), np.zeros((31, 1), np.int64), np.zeros(31, np.float64)])
def test_values_of_another_shape_or_type_get_no_noise_and_no_way_out(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected int64 values"):
        make_mechanism().add_noise(values, os_noise_stream())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"noise_multiplier": "0.01", "scale_bits": 8}, "noise-too-fine"),
        ({"noise_multiplier": "0"}, "mechanism-numbers"),
        ({"clip_norm": "0"}, "mechanism-numbers"),
        ({"clip_norm": "5e-324"}, "mechanism-numbers"),
        ({"clip_norm": "1e999999999"}, "mechanism-numbers"),
        ({"noise_multiplier": "1e-999999999"}, "mechanism-numbers"),
        ({"noise_multiplier": "1e9", "scale_bits": 24}, "noise-too-large"),
    ],
)
def test_a_mechanism_that_cannot_keep_its_promise_is_not_built(changes: dict[str, object], code: str) -> None:
    with pytest.raises(PlanError, match="Expected") as caught:
        make_mechanism(**changes)
    assert caught.value.code == code


@pytest.mark.parametrize("sampling", ["0", "1.5", "-0.5", "1e-999"])
def test_a_sampling_probability_outside_its_range_is_refused(sampling: str) -> None:
    with pytest.raises(PlanError, match="sampling probability in"):
        training_mechanism(make_plan(sampling=sampling))


def test_the_event_of_a_sampled_round_states_the_public_probability_and_the_evaluation_samples_nobody() -> None:
    plan = make_plan(sampling="0.25")
    assert training_mechanism(plan).event().runs == (("0.25", plan.mechanism.noise_multiplier, 1),)
    assert evaluation_mechanism(plan).event().runs[0][0] == "1"
    assert evaluation_mechanism(plan).draw_patients(5, os_noise_stream()) is None


def test_a_plan_must_fit_its_own_budget() -> None:
    plan = make_plan()
    verify_plan_within_budget(plan)
    assert 10 * gdp_cost(training_mechanism(plan).event()) <= gdp_limit("3", "1e-5")
    with pytest.raises(PlanError, match="Expected training to cost at most") as caught:
        verify_plan_within_budget(make_plan(rounds=11))
    assert caught.value.code == "plan-overspends"
    with pytest.raises(PlanError, match="Expected the evaluation to cost at most"):
        verify_plan_within_budget(make_plan(evaluation="1.39"))
