"""Poisson sampling: exact coins that nobody outside knows, and an accountant that never says less than the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.accountants.analysis.rdp import compute_rdp
from scipy.stats import binomtest

from schemas.errors import BudgetError
from tasks.privacy.accounting import (
    calibrate_sampled_multiplier,
    composed_epsilon,
    epsilon_of_events,
    epsilon_report,
    renyi_cost,
)
from tasks.privacy.filters import GdpFilter, RenyiFilter, choose_filter
from tasks.privacy.mechanism import training_mechanism, verify_plan_within_budget
from tasks.privacy.noise import os_noise_stream
from tasks.privacy.recompute import check_recomputations
from tasks.privacy.renyi import choose_order, epsilon_of_renyi, renyi_limit, sampled_gaussian_cost
from tasks.privacy.sampler import sample_bernoulli
from tests.privacy.plans import make_mechanism, make_plan

# Frozen: (q, 1 / sigma^2, order) -> cost; (epsilon, delta, order) -> limit. Never edited, only added to.
COSTS = {
    (Fraction(1, 10), Fraction(1), 7): "0.844713611424949",
    (Fraction(1, 100), Fraction(1, 4), 16): "0.000237624019641",
    (Fraction(1, 2), Fraction(4), 4): "7.075811955620999",
    (Fraction(1), Fraction(1), 7): "3.5",
}
LIMITS = {("1", "1e-5", 16): "0.481849404955", ("3", "1e-5", 7): "1.559648127174", ("8", "1e-5", 4): "4.912138371168"}


class Bytes:
    """A stream of given 64-bit words."""

    def __init__(self, *words: int) -> None:
        self.words: Iterator[int] = iter(words)

    def random_bytes(self, n: int) -> bytes:
        return b"".join(next(self.words).to_bytes(8, "little") for _ in range(n // 8))


@pytest.mark.parametrize("probability", ["0.001", "0.1", "0.5", "0.97"])
def test_coins_fall_with_the_public_probability(probability: str) -> None:
    coins = sample_bernoulli(os_noise_stream(), Fraction(probability), 200_000)
    assert binomtest(int(coins.sum()), coins.size, float(Fraction(probability))).pvalue > 1e-6
    # Neighbouring coins are independent.
    pairs = int((coins[:-1] & coins[1:]).sum())
    assert binomtest(pairs, coins.size - 1, float(Fraction(probability)) ** 2).pvalue > 1e-9


def test_a_coin_that_64_bits_do_not_decide_is_decided_exactly() -> None:
    third = (1 << 64) // 3
    drawn = sample_bernoulli(Bytes(third - 1, third + 1, third, third, third - 1, third + 1), Fraction(1, 3), 4)
    assert drawn.tolist() == [True, False, True, False]
    half = sample_bernoulli(Bytes((1 << 63) - 1, 1 << 63), Fraction(1, 2), 2)
    assert half.tolist() == [True, False]
    assert sample_bernoulli(os_noise_stream(), Fraction(1), 3).all()
    assert not sample_bernoulli(os_noise_stream(), Fraction(0), 3).any()
    with pytest.raises(ValueError, match="outside"):
        sample_bernoulli(os_noise_stream(), Fraction(3, 2), 1)


def test_the_mechanism_draws_anew_every_round_and_the_size_of_a_batch_is_not_fixed() -> None:
    mechanism = make_mechanism(sampling_probability="0.3")
    draws = [mechanism.draw_patients(500, os_noise_stream()) for _ in range(40)]
    sizes = [int(d.sum()) for d in draws if d is not None]
    assert len(sizes) == 40
    assert len(set(sizes)) > 10, "Poisson, not a batch of a fixed size"
    assert abs(np.mean(sizes) - 150) < 6 * math.sqrt(500 * 0.21 / 40)
    assert make_mechanism().draw_patients(500, os_noise_stream()) is None


@pytest.mark.parametrize("figures", COSTS, ids=str)
def test_the_costs_are_frozen(figures: tuple[Fraction, Fraction, int]) -> None:
    assert sampled_gaussian_cost(*figures) == Fraction(COSTS[figures])


def test_the_limits_and_orders_are_those_of_the_design_note() -> None:
    assert [choose_order(epsilon, "1e-5") for epsilon in ("1", "3", "8")] == [16, 7, 4]
    for (epsilon, delta, order), limit in LIMITS.items():
        assert renyi_limit(epsilon, delta, order) == Fraction(limit)
        assert float(epsilon_of_renyi(Fraction(limit), delta, order)) == pytest.approx(float(epsilon), abs=2e-12)
        assert epsilon_of_renyi(Fraction(limit), delta, order) <= Fraction(epsilon)
    assert renyi_limit("0", "1e-5", 2) == 0


@given(st.decimals("0.001", "1", places=3), st.decimals("0.3", "20", places=2), st.integers(2, 64))
@settings(max_examples=80, deadline=None)
def test_the_cost_agrees_with_dp_accounting_and_opacus(q: object, sigma: object, order: int) -> None:
    probability, multiplier = Fraction(str(q)), Fraction(str(sigma))
    ours = sampled_gaussian_cost(probability, 1 / multiplier**2, order)
    google = RdpAccountant(orders=[order])
    google.compose(PoissonSampledDpEvent(float(probability), GaussianDpEvent(float(multiplier))))
    opacus = compute_rdp(q=float(probability), noise_multiplier=float(multiplier), steps=1, orders=[order])
    for value in (float(google._rdp[0]), float(np.ravel(opacus)[0])):
        assert float(ours) == pytest.approx(value, rel=1e-6, abs=1e-12)
    assert ours <= order / multiplier**2 / 2 + Fraction(1, 10**15), "sampling never costs more"


@pytest.mark.parametrize(("q", "sigma", "order"), [(0.1, 1.0, 7), (0.5, 2.0, 16), (0.9, 0.8, 4)])
def test_the_cost_bounds_both_directions_of_the_divergence_by_quadrature(q: float, sigma: float, order: int) -> None:
    """The definition, integrated: adding and removing the patient."""

    x = np.linspace(-20 * sigma, order + 20 * sigma, 400_001)

    def log_density(shift: float) -> NDArray[np.float64]:
        return np.asarray(-((x - shift) ** 2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi)))

    base = log_density(0)
    mixed = np.logaddexp(math.log(1 - q) + base, math.log(q) + log_density(1))

    def divergence(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> float:
        return math.log(float(np.exp(order * top + (1 - order) * bottom).sum() * (x[1] - x[0]))) / (order - 1)

    ours = float(sampled_gaussian_cost(Fraction(str(q)), 1 / Fraction(str(sigma)) ** 2, order))
    assert divergence(mixed, base) == pytest.approx(ours, rel=1e-6)
    assert divergence(base, mixed) <= ours


@pytest.mark.parametrize(("epsilon", "rounds", "q"), [("1", 20, "0.1"), ("3", 10, "0.25"), ("8", 50, "0.5")])
def test_calibrated_sampled_rounds_fit_and_hardly_anything_is_wasted(epsilon: str, rounds: int, q: str) -> None:
    order = choose_order(epsilon, "1e-5")
    multiplier = calibrate_sampled_multiplier(epsilon, "1e-5", rounds, q, order)
    event = make_mechanism(noise_multiplier=multiplier, sampling_probability=q).event()
    limit = renyi_limit(epsilon, "1e-5", order)
    assert rounds * renyi_cost(event, order) <= limit
    less = make_mechanism(noise_multiplier=str(round(float(multiplier) * 0.999, 6)), sampling_probability=q).event()
    assert rounds * renyi_cost(less, order) > limit
    everybody = float(calibrate_sampled_multiplier(epsilon, "1e-5", rounds, "1", order))
    assert float(multiplier) < 0.8 * everybody, "not being in every round needs less noise"
    with pytest.raises(BudgetError, match="Expected a budget that"):
        calibrate_sampled_multiplier("0", "1e-5", rounds, q, order)


def sampled_events(rounds: int = 10) -> list[object]:
    multiplier = calibrate_sampled_multiplier("3", "1e-5", rounds, "0.25", choose_order("3", "1e-5"))
    return [make_mechanism(noise_multiplier=multiplier, sampling_probability="0.25").event()] * rounds


def test_opacus_and_dp_accounting_agree_on_a_sampled_study() -> None:
    events = sampled_events()
    checks = check_recomputations(events, "1e-5")  # type: ignore[arg-type]
    assert [(c.name, c.passed) for c in checks] == [
        ("renyi-agrees", True),
        ("pld-below-rdp", True),
        ("rdp-agrees", True),
    ]


def test_the_report_of_a_sampled_study_is_below_its_budget_and_above_pld() -> None:
    plan, events = make_plan(sampling="0.25"), sampled_events()
    report = epsilon_report(plan, "site-a", events)  # type: ignore[arg-type]
    assert 2.7 < float(report.collusion) <= 3
    assert float(report.outsider) < float(report.collusion) < float(report.fallback)
    assert float(composed_epsilon(plan, events)) > 1.5 * float(report.collusion)  # type: ignore[arg-type]
    full = [make_mechanism(noise_multiplier=events[0].runs[0][1]).event()] * 10  # type: ignore[attr-defined]
    assert float(epsilon_of_events(full, "1e-5")) > 2 * float(report.collusion), "everybody in every round costs more"


def test_a_patient_in_two_sites_is_bounded_by_either_coin_and_twice_the_norm() -> None:
    event = make_mechanism(sampling_probability="0.25").event()
    twice = renyi_cost(event, 7, sites=2)
    q, inverse = 1 - Fraction(3, 4) ** 2, 4 / Fraction("4.39745") ** 2
    assert float(twice) == pytest.approx(float(sampled_gaussian_cost(q, inverse, 7)), rel=1e-6)


def test_each_plan_gets_the_filter_that_knows_its_batches() -> None:
    sampled, full = training_mechanism(make_plan(sampling="0.25")).event(), training_mechanism(make_plan()).event()
    assert choose_filter([full], "3", "1e-5") == GdpFilter()
    assert choose_filter([full, sampled], "3", "1e-5") == RenyiFilter(7)
    with pytest.raises(BudgetError, match="sampling probability 1"):
        GdpFilter().cost(sampled)
    both = RenyiFilter(7).cost(full)
    assert float(both) == pytest.approx(7 / 2 / 4.39745**2, rel=1e-6)
    assert RenyiFilter(7).cost(sampled) < both
    verify_plan_within_budget(make_plan(sampling="0.25", rounds=100))
