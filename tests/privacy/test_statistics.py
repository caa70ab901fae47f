"""Counts, means and histograms before a study: bounded per patient, noised at every site, charged every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.contract import Column
from schemas.errors import PlanError
from schemas.statistics import StatisticsQuery
from tasks.ledger.budget import BudgetExceeded, budget_state
from tasks.ledger.statistics import reserve_statistics
from tasks.privacy.accounting import exact, gdp_cost
from tasks.privacy.noise import os_noise_stream
from tasks.privacy.statistics import Statistics, decode_statistics, statistics_mechanism, statistics_sum
from tests.ledger.logs import COHORT, make_store

BASE = {
    "name": "Who qualifies?",
    "purpose": "Feasibility.",
    "id_column": "patient",
    "honest_noise_shares": 2,
    "k_min": 3,
}
AGE = StatisticsQuery.model_validate(
    BASE | {"column": "age", "minimum": "18", "maximum": "98", "bins": 8, "noise_multiplier": "4"}
)
COUNT = StatisticsQuery.model_validate(BASE | {"noise_multiplier": "4"})


def answer(query: StatisticsQuery, sites: Sequence[tuple[np.ndarray, np.ndarray]]) -> Statistics:
    mechanism = statistics_mechanism(query, "training")
    opened = sum(mechanism.add_noise(statistics_sum(query, v, q), os_noise_stream()) for v, q in sites)
    assert isinstance(opened, np.ndarray)
    return decode_statistics(query, opened, len(sites))


@given(st.floats(allow_nan=True, allow_infinity=True), st.booleans(), st.integers(8, 24))
@settings(max_examples=200, deadline=None)
def test_no_patient_moves_the_sum_beyond_the_bound_whatever_the_value(value: float, there: bool, bits: int) -> None:
    for question in (AGE, COUNT):
        query = question.model_copy(update={"scale_bits": bits})
        total = statistics_sum(query, np.array([value]), np.array([there]))
        assert sum(int(v) ** 2 for v in total) <= statistics_mechanism(query, "training").sensitivity ** 2
        assert total.any() == there


def test_figures_of_three_unequal_sites_are_inside_their_intervals() -> None:
    rng = np.random.default_rng(3)
    sites = [(np.append(rng.uniform(20, 90, n), np.nan), np.arange(n + 1) % 5 != 0) for n in (10, 400, 900)]
    everybody = np.concatenate([v[q] for v, q in sites])
    known = everybody[np.isfinite(everybody)]
    covered = {"count": 0, "mean": 0, "bin": 0}
    for _ in range(60):
        result = answer(AGE, sites)
        assert result.mean is not None
        covered["count"] += result.count.low <= everybody.size <= result.count.high
        covered["mean"] += result.mean.low <= known.mean() <= result.mean.high
        truth = np.histogram(known, bins=8, range=(18, 98))[0]
        covered["bin"] += sum(i.low <= t <= i.high for i, t in zip(result.histogram, truth, strict=True)) / 8
    # 95 % of 60 is 57; 46 or fewer has probability below 1e-6.
    assert min(covered.values()) > 46


def test_a_site_without_a_patient_answers_with_noise_and_too_few_values_give_no_mean() -> None:
    nobody = (np.zeros(0), np.zeros(0, bool))
    mechanism = statistics_mechanism(AGE, "training")
    sent = mechanism.add_noise(statistics_sum(AGE, *nobody), os_noise_stream())
    assert np.count_nonzero(sent) == mechanism.dimension
    zero = decode_statistics(AGE, np.zeros(mechanism.dimension, np.int64), 3)
    assert zero.mean is None
    assert zero.count.low == 0 < zero.count.high
    assert answer(COUNT, [nobody]).histogram == ()


def test_the_same_question_under_another_name_is_charged_again(tmp_path: Path) -> None:
    """Averaging answers to one question under many names would take the noise away."""
    store = make_store(tmp_path)
    cost = gdp_cost(statistics_mechanism(AGE, "training").event())
    first = reserve_statistics(store, COHORT, AGE)
    assert [exact(s.spent) for s in first] == [cost, cost], "both parts of the data are touched"
    position = store.position()
    assert reserve_statistics(store, COHORT, AGE) == first
    assert store.position() == position, "a replay spends nothing"
    renamed = AGE.model_copy(update={"name": "Another question"})
    assert [exact(s.spent) for s in reserve_statistics(store, COHORT, renamed)] == [2 * cost, 2 * cost]
    assert [f.spent for f in make_store(tmp_path).verify().filters] == [s.spent for s in state(store)]


def state(store: object) -> tuple[object, object]:
    totals = budget_state(store)  # type: ignore[arg-type]
    return totals.training, totals.held_out


def test_a_question_that_does_not_fit_is_refused_and_charged_to_neither_part(tmp_path: Path) -> None:
    store = make_store(tmp_path, epsilon="0.5")
    before = store.position()
    greedy = COUNT.model_copy(update={"noise_multiplier": "1"})
    with pytest.raises(BudgetExceeded, match="the site's budget for training patients"):
        reserve_statistics(store, COHORT, greedy)
    assert store.position() == before


@pytest.mark.parametrize(
    "change",
    [
        {"bins": 0},
        {"column": ""},
        {"minimum": "98"},
        {"honest_noise_shares": 4},
        {"minimum": "-1e308", "maximum": "1e308"},
        {"minimum": "-1e400"},
    ],
    ids=str,
)
def test_a_question_without_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="Expected"):
        StatisticsQuery.model_validate(AGE.model_dump() | change)
    with pytest.raises(ValueError, match="one mark per patient"):
        statistics_sum(AGE, np.zeros(3), np.zeros(2, bool))


@pytest.mark.parametrize("field", ["noise_multiplier", "minimum"])
def test_a_number_that_only_exhausts_the_readers_memory_is_refused(field: str) -> None:
    for number in ("1e-99999999", "1e99999999", "0e-99999999"):
        with pytest.raises(ValidationError, match="pattern"):
            StatisticsQuery.model_validate(AGE.model_dump() | {"noise": "laplace", "scale_bits": 8, field: number})
        with pytest.raises(ValidationError, match="pattern"):
            Column(name="age", kind="number", minimum="0", maximum="1", max_missing=number)
