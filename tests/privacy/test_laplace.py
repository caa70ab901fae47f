"""Discrete Laplace noise in shares: exact, purely epsilon-private, and charged for what it is in both filters."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from schemas.errors import BudgetError, PlanError
from tasks.privacy.accounting import delta_of_gdp, epsilon_of_events, gdp_cost, pure_epsilon, renyi_cost
from tasks.privacy.laplace import LaplaceMechanism
from tasks.privacy.noise import os_noise_stream
from tasks.privacy.pure import gdp_cost_of_pure, renyi_cost_of_pure
from tasks.privacy.recompute import check_recomputations, recompute_with_dp_accounting
from tasks.privacy.sampler import sample_laplace_share

EPSILONS = [Fraction(1, 100), Fraction(1, 4), Fraction(1), Fraction(3), Fraction(20)]


def mechanism(multiplier: str = "2", honest: int = 2, **changes: object) -> LaplaceMechanism:
    base = {
        "data": "training",
        "contribution_bound": "one patient counts once",
        "id_column": "patient",
        "max_sites_per_patient": 2,
        "clip_norm": "1",
        "scale_bits": 8,
        "noise_multiplier": multiplier,
        "dimension": 3,
        "honest": honest,
        "sites_in_sum": max(honest, 3),
    }
    return LaplaceMechanism(**(base | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("shares", "scale"), [(1, Fraction(3)), (2, Fraction(5, 2)), (5, Fraction(7, 3))])
def test_the_honest_shares_together_are_discrete_laplace(shares: int, scale: Fraction) -> None:
    count = 20_000
    total = sum(sample_laplace_share(os_noise_stream(), scale, shares, count) for _ in range(shares))
    assert isinstance(total, np.ndarray)
    edge = 12
    q = math.exp(-1 / scale)
    expected = {i: (1 - q) / (1 + q) * q ** abs(i) for i in range(-edge, edge + 1)}
    outside = 1 - sum(expected.values())
    statistic = sum((np.count_nonzero(total == i) - count * p) ** 2 / (count * p) for i, p in expected.items())
    statistic += (np.count_nonzero(np.abs(total) > edge) - count * outside) ** 2 / (count * outside)
    # 25 degrees of freedom: beyond 80 has probability below 1e-7.
    assert statistic < 80


def test_one_share_of_many_is_polya() -> None:
    """P(0) of a Polya difference of size 1/3, from its generating function; a full Laplace share would have less."""
    q, r, count = math.exp(-1 / 4), 1 / 3, 20_000
    weights = [1.0]
    for k in range(1, 400):
        weights.append(weights[-1] * q * (k - 1 + r) / k)
    p_zero = sum(w * w for w in weights) * (1 - q) ** (2 * r)
    zeros = np.count_nonzero(sample_laplace_share(os_noise_stream(), Fraction(4), 3, count) == 0) / count
    assert zeros == pytest.approx(p_zero, abs=6 * math.sqrt(p_zero * (1 - p_zero) / count))


def test_exact_arithmetic_decides_where_floats_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.privacy.sampler.MARGIN", 0.05)
    values = sample_laplace_share(os_noise_stream(), Fraction(3), 2, 300)
    assert values.shape == (300,)
    assert np.abs(values).max() < 120


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_gaussian_curve_of_a_pure_entry_touches_randomised_response(epsilon: Fraction) -> None:
    mu = math.sqrt(gdp_cost_of_pure(epsilon))
    # mu-GDP at its own "pure" point: the largest advantage of a test equals that of randomised response.
    advantage = math.tanh(float(epsilon) / 2)
    assert delta_of_gdp(mu, 0.0) == pytest.approx(advantage, rel=1e-9)
    for at in (0.1, 0.5, 1.0, 2.0):
        exact_delta = max(0.0, (math.exp(float(epsilon)) - math.exp(at)) / (1 + math.exp(float(epsilon))))
        assert delta_of_gdp(mu, at) >= exact_delta - 1e-12


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("order", [2, 4, 16])
def test_the_renyi_cost_of_a_pure_entry_is_that_of_randomised_response(epsilon: Fraction, order: int) -> None:
    p = math.exp(float(epsilon)) / (1 + math.exp(float(epsilon)))
    expected = math.log(p**order * (1 - p) ** (1 - order) + (1 - p) ** order * p ** (1 - order)) / (order - 1)
    cost = float(renyi_cost_of_pure(epsilon, order))
    assert cost == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert cost <= float(epsilon) + 1e-12


def test_the_event_states_the_epsilon_of_the_noise_that_is_drawn() -> None:
    event = mechanism("4").event()
    assert pure_epsilon(event) == Fraction(1, 4)
    assert gdp_cost(event) == gdp_cost_of_pure(Fraction(1, 4))
    assert renyi_cost(event, 7) == renyi_cost_of_pure(Fraction(1, 4), 7)
    assert renyi_cost(event, 7, sites=2) == renyi_cost_of_pure(Fraction(1, 2), 7)
    with pytest.raises(BudgetError, match="Fewer shares than the honest ones"):
        pure_epsilon(event, 1)


@pytest.mark.parametrize("change", [{"scale": "1"}, {"sensitivity": 255}, {"honest_assumed": 9}], ids=str)
def test_an_event_whose_figures_contradict_each_other_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BudgetError, match="Expected of a privacy event"):
        gdp_cost(mechanism().event().model_copy(update=change))


def test_noise_that_cannot_be_sampled_or_protects_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="scale up to"):
        mechanism("65")
    with pytest.raises(PlanError, match="noise multiplier of at least"):
        mechanism("0.04")


@pytest.mark.parametrize("shares", [2, 5])
def test_the_stated_reach_covers_the_noise(shares: int) -> None:
    made = mechanism("2", scale_bits=9)
    noise = sum(sample_laplace_share(os_noise_stream(), made.scale, 2, 2000) for _ in range(shares))
    assert isinstance(noise, np.ndarray)
    inside = np.mean(np.abs(made.decode(noise)) <= made.noise_reach(shares, 0.95))
    assert 0.93 <= inside <= 0.975  # 95 % plus the rounding of a stretched quantile, and four standard errors
    assert np.std(made.decode(noise)) == pytest.approx(made.noise_std(shares), rel=0.15)


def test_dp_accounting_finds_no_more_than_was_charged() -> None:
    events = [mechanism("4").event()] * 3
    checks = {check.name: check for check in check_recomputations(events, "1e-5")}
    assert checks["pld-below"].passed
    assert checks["rdp-agrees"].passed is None, "Opacus knows no Laplace noise"
    assert recompute_with_dp_accounting(events, "1e-5").pld <= float(epsilon_of_events(events, "1e-5"))
