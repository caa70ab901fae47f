"""The arithmetic of the budget: exact, conservative, and a true bound on the integer mechanism."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import BudgetError
from tasks.privacy.accounting import calibrate_noise_multiplier as calibrate
from tasks.privacy.accounting import (
    ceil_sqrt,
    composed_epsilon,
    delta_of_gdp,
    epsilon_of_gdp,
    epsilon_report,
    exact,
    floor_sqrt,
    format_decimal,
    gdp_cost,
    gdp_limit,
    limit_is_honest,
    verify_event,
)
from tests.privacy.plans import make_mechanism, make_plan

# Frozen: (epsilon, delta) -> mu_B^2 and the noise multipliers of 1, 10 and 20 rounds. Never edited, only added to.
EPSILON_TABLE = {
    ("0", "1e-5"): ("0", ()),
    ("0.5", "1e-5"): ("0.020223842836", ("7.031832", "22.236591", "31.447287")),
    ("1", "1e-5"): ("0.071851404331", ("3.73064", "11.797296", "16.683894")),
    ("3", "1e-5"): ("0.517129884509", ("1.390616", "4.39745", "6.218928")),
    ("8", "1e-5"): ("2.775657948908", ("0.60028", "1.898108", "2.684318")),
    ("3", "1e-7"): ("0.351849643885", ("1.685878", "5.331163", "7.539399")),
}


def reference_delta(mu: float, epsilon: float) -> float:
    """The GDP curve in 60 digits."""
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        return float(mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2))


@pytest.mark.parametrize(("budget", "expected"), EPSILON_TABLE.items(), ids=str)
def test_the_epsilon_table_is_frozen(budget: tuple[str, str], expected: tuple[str, tuple[str, ...]]) -> None:
    limit, multipliers = expected
    assert format_decimal(gdp_limit(*budget)) == limit
    assert tuple(calibrate(*budget, rounds) for rounds in (1, 10, 20)[: len(multipliers)]) == multipliers


def test_limits_are_those_of_the_design_note() -> None:
    for epsilon, mu in (("1", 0.268), ("3", 0.719), ("8", 1.67)):
        assert math.sqrt(gdp_limit(epsilon, "1e-5")) == pytest.approx(mu, abs=0.005)


@given(st.floats(1e-3, 20), st.floats(0, 60))
@settings(max_examples=150, deadline=None)
def test_the_gdp_curve_agrees_with_sixty_digits(mu: float, epsilon: float) -> None:
    assert delta_of_gdp(mu, epsilon) == pytest.approx(reference_delta(mu, epsilon), rel=1e-6, abs=1e-15)


@given(st.floats(1e-3, 300), st.floats(-12, -1))
@settings(max_examples=100, deadline=None)
def test_epsilon_inverts_the_curve_from_above(mu: float, exponent: float) -> None:
    delta = 10.0**exponent
    epsilon = epsilon_of_gdp(mu, delta)
    assert delta_of_gdp(mu, epsilon) <= delta
    if epsilon > 1e-9:
        assert delta_of_gdp(mu, epsilon * (1 - 1e-6)) > delta


@given(st.decimals("0.01", "100", places=3), st.integers(2, 12))
@settings(max_examples=100, deadline=None)
def test_a_limit_never_admits_more_than_its_budget(epsilon: object, exponent: int) -> None:
    mu = math.sqrt(gdp_limit(str(epsilon), f"1e-{exponent}"))
    if mu > 0:
        assert reference_delta(mu, float(str(epsilon))) < 10.0**-exponent
        assert reference_delta(mu * (1 + 1e-5), float(str(epsilon))) > 10.0**-exponent


@pytest.mark.parametrize(
    "budget", [("-1", "1e-5"), ("1001", "1e-5"), ("3", "0"), ("3", "1"), ("x", "1e-5"), ("NaN", "1")]
)
def test_a_budget_that_means_nothing_is_refused(budget: tuple[str, str]) -> None:
    with pytest.raises(BudgetError, match="Expected 0 <= epsilon"):
        gdp_limit(*budget)


@given(
    st.decimals("0.05", "50", places=2),
    st.integers(1, 200),
    st.integers(8, 24),
    st.integers(1, 100),
    st.integers(1, 10_000_000),
)
@settings(max_examples=100, deadline=None)
def test_calibrated_rounds_fit_and_hardly_anything_is_wasted(
    epsilon: object, rounds: int, bits: int, honest: int, dimension: int
) -> None:
    multiplier = calibrate(str(epsilon), "1e-6", rounds)
    if (float(multiplier) * 2**bits) ** 2 < 8 * honest:
        return
    mechanism = make_mechanism(
        noise_multiplier=multiplier, scale_bits=bits, honest=honest, sites_in_sum=honest, dimension=dimension
    )
    limit = gdp_limit(str(epsilon), "1e-6")
    assert rounds * gdp_cost(mechanism.event()) <= limit
    if float(multiplier) > 0.5:
        slightly_less = make_mechanism(
            noise_multiplier=str(round(float(multiplier) * 0.9995, 6)), scale_bits=24, honest=1
        )
        assert rounds * gdp_cost(slightly_less.event()) > limit


def test_a_budget_of_zero_calibrates_to_a_clear_refusal() -> None:
    with pytest.raises(BudgetError, match="Expected a budget that 5 rounds can share"):
        calibrate("0", "1e-5", 5)


def discrete_gaussian(sigma: float, reach: int) -> np.ndarray:
    weights = np.exp(-(np.arange(-reach, reach + 1).astype(float) ** 2) / (2 * sigma * sigma))
    return weights / weights.sum()


@pytest.mark.parametrize(("honest", "sensitivity_bits"), [(1, 3), (2, 2), (2, 3), (5, 4), (12, 3)])
def test_the_cost_bounds_the_exact_loss_of_the_summed_integer_noise(honest: int, sensitivity_bits: int) -> None:
    """Exact privacy profile of the sum of h discrete Gaussians at the smallest admitted share, against mu-GDP."""
    share = math.sqrt(8.0) + 1e-6
    sensitivity = 2**sensitivity_bits
    noise = discrete_gaussian(share, 60)
    total = noise
    for _ in range(honest - 1):
        total = np.convolve(total, noise)
    event = make_mechanism(scale_bits=16, dimension=1, honest=honest, sites_in_sum=honest).event()
    event = event.model_copy(
        update={
            "scale_bits": sensitivity_bits,
            "sensitivity": sensitivity,
            "local_sigma": "2.828428",
            "effective_sigma": "1",
            "runs": (("1", "0.01", 1),),
        }
    )
    mu = math.sqrt(gdp_cost(event))
    padded = np.concatenate([np.zeros(sensitivity), total, np.zeros(sensitivity)])
    shifted = np.roll(padded, sensitivity)
    for epsilon in np.linspace(0.0, 12.0, 49):
        exact_delta = np.maximum(padded - math.exp(epsilon) * shifted, 0).sum()
        assert exact_delta <= delta_of_gdp(mu, float(epsilon)) + 1e-15


def test_outsiders_see_more_noise_and_one_share_is_the_fallback() -> None:
    plan = make_plan()
    event = make_mechanism(dimension=3).event()
    report = epsilon_report(plan, "site-a", [event] * 10)
    assert report.events == 10
    assert report.collusion == "3"
    assert float(report.outsider) < 2.1 < 3 < 4.2 < float(report.fallback) < 4.6
    assert epsilon_report(plan, "site-a", []).collusion == "0"


def test_training_and_held_out_patients_compose_in_parallel_and_never_by_summing_epsilons() -> None:
    plan = make_plan()
    training = make_mechanism().event()
    held_out = make_mechanism(data="held-out", noise_multiplier="1.390616", clip_norm="1", divisor="1").event()
    both = epsilon_report(plan, "site-a", [training] * 10 + [held_out])
    assert both.collusion == "3"
    one = epsilon_report(plan, "site-a", [training])
    assert float(both.collusion) < 10 * float(one.collusion), "rounds compose by mu^2"


def test_a_patient_in_two_sites_has_twice_the_mu() -> None:
    plan = make_plan()
    events = [make_mechanism().event()] * 10
    expected = epsilon_of_gdp(2 * math.sqrt(10 * gdp_cost(events[0])), 1e-5)
    assert float(composed_epsilon(plan, events)) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"sensitivity": 65535}, "sensitivity is 2\\*\\*scale_bits"),
        ({"local_sigma": "203782.010629"}, "noise_multiplier \\* sensitivity"),
        ({"local_sigma": "2.8"}, "local_sigma\\^2 >= 8"),
        ({"honest_assumed": 5}, "honest_assumed <= sites_in_sum"),
        ({"effective_sigma": "288191.283202"}, "effective_sigma <="),
        ({"runs": (("1", "4.39745", 0),)}, "steps and noise multiplier"),
        ({"runs": (("1", "4.39745", 1), ("1", "5", 1))}, "noise_multiplier \\* sensitivity"),
        ({"runs": (("0.5", "4.39745", 1),)}, "sampling probability 1"),
        ({"divisor": "0"}, "clip_norm and divisor"),
        ({"local_sigma": "1e999999999"}, "exponent of at most 60"),
    ],
)
def test_an_event_whose_figures_contradict_each_other_is_never_accounted(change: dict[str, object], rule: str) -> None:
    event = make_mechanism().event().model_copy(update=change)
    verify_event(make_mechanism().event())
    with pytest.raises(BudgetError, match=rule):
        gdp_cost(event)


@given(st.fractions(min_value=0, max_value=10**12), st.integers(0, 8))
def test_square_roots_are_rounded_to_the_stated_side(value: Fraction, digits: int) -> None:
    above, below = ceil_sqrt(value, digits), floor_sqrt(value, digits)
    step = Fraction(1, 10**digits)
    assert above**2 >= value > max(above - step, Fraction(-1)) ** 2 or above == 0 == value
    assert below**2 <= value < (below + step) ** 2


@given(st.integers(-(10**30), 10**30))
def test_decimal_strings_are_exact(scaled: int) -> None:
    value = Fraction(scaled, 10**15)
    assert exact(format_decimal(value)) == value
    with pytest.raises(ValueError, match="grid"):
        format_decimal(value + Fraction(1, 10**16))


def test_a_stated_limit_above_the_registered_budget_is_dishonest() -> None:
    limit = gdp_limit("3", "1e-5")
    assert limit_is_honest(limit, "3", "1e-5")
    assert limit_is_honest(limit / 2, "3", "1e-5")
    assert not limit_is_honest(limit + Fraction(1, 10**9), "3", "1e-5")
