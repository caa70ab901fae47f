"""The filter of sampled batches: fixed with the first charge, never overspent, never exchanged for another."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from schemas.errors import EvidenceError
from schemas.ledger import NO_STUDY, Body, CohortRegistered, FilterState, PlanApproved, PrivacyReserved, RenyiState
from schemas.plan import BudgetSpec
from tasks.ledger.budget import BudgetExceeded, budget_state, describe_budget, register_cohort, reserve
from tasks.ledger.verify import verify_log
from tasks.privacy.accounting import calibrate_sampled_multiplier, exact, format_decimal, gdp_cost, renyi_cost
from tasks.privacy.filters import choose_filter
from tasks.privacy.renyi import renyi_limit
from tests.ledger.logs import COHORT, KEY_HEX, OWNER, STUDY, make_store, sign_log
from tests.privacy.plans import digest, make_mechanism, make_plan

MULTIPLIER = calibrate_sampled_multiplier("3", "1e-5", 4, "0.25", 7)
SAMPLED = make_mechanism(noise_multiplier=MULTIPLIER, sampling_probability="0.25").event()
FULL = make_mechanism(noise_multiplier="30").event()
COST, LIMIT = renyi_cost(SAMPLED, 7), renyi_limit("3", "1e-5", 7)


def test_sampled_rounds_are_charged_at_one_order_up_to_the_budget_and_no_further(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for round_ in range(1, 5):
        after = reserve(store, COHORT, digest(round_), round_, SAMPLED, STUDY)
        assert after == RenyiState(
            order=7, data="training", spent=format_decimal(round_ * COST), limit=format_decimal(LIMIT)
        )
    before = store.position()
    with pytest.raises(BudgetExceeded, match=r"requested .* \(epsilon .*limit 1\.55965 \(epsilon 3\)") as caught:
        reserve(store, COHORT, digest(5), 5, SAMPLED, STUDY)
    assert caught.value.code == "budget-exceeded"
    assert caught.value.before == budget_state(store).training
    assert store.position() == before
    report = make_store(tmp_path).verify()
    assert report.filters[0] == budget_state(store).training
    assert isinstance(report.filters[1], FilterState), "the held-out patients were never sampled"


def test_full_batches_enter_a_sampled_filter_at_what_they_cost_there(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    reserve(store, COHORT, digest(1), 1, SAMPLED, STUDY)
    other = digest("a full-batch study")
    store.append(other, PlanApproved(approval=digest(other)))
    after = reserve(store, COHORT, digest(2), 1, FULL, other, BudgetSpec(epsilon="3", delta="1e-5"))
    assert isinstance(after, RenyiState)
    assert exact(after.spent) == COST + renyi_cost(FULL, 7)
    assert exact(after.spent) - COST > 3 * gdp_cost(FULL)


def test_another_epsilon_registered_later_changes_the_limit_but_not_the_order(tmp_path: Path) -> None:
    """An order chosen after results were seen is not covered by the filter's theorem."""
    store = make_store(tmp_path)
    reserve(store, COHORT, digest(1), 1, SAMPLED, STUDY)
    register_cohort(store, COHORT, "8", "1e-5")
    after = reserve(store, COHORT, digest(2), 2, SAMPLED, STUDY)
    assert isinstance(after, RenyiState)
    assert (after.order, exact(after.limit)) == (7, renyi_limit("8", "1e-5", 7))
    assert exact(after.spent) == 2 * COST


def test_the_study_has_its_own_limit_in_a_sampled_filter_too(tmp_path: Path) -> None:
    store = make_store(tmp_path, epsilon="8")
    budget = BudgetSpec(epsilon="3", delta="1e-5")
    for round_ in range(1, 5):
        reserve(store, COHORT, digest(round_), round_, SAMPLED, STUDY, budget)
    with pytest.raises(BudgetExceeded, match="the study's budget") as caught:
        reserve(store, COHORT, digest(5), 5, SAMPLED, STUDY, budget)
    assert caught.value.code == "study-budget-exceeded"
    assert exact(caught.value.before.spent) == 4 * COST


def test_the_budget_of_a_sampled_filter_is_told_in_words(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    reserve(store, COHORT, digest(1), 1, SAMPLED, STUDY)
    text = describe_budget(store, make_plan(noise_multiplier="4.39745", sampling="0.25", rounds=5))
    assert "Training patients: epsilon 1." in text
    assert "it fits" in text


def entry(before: object, after: object, event: object = SAMPLED, round_: int = 1) -> tuple[str, Body]:
    return STUDY, PrivacyReserved(
        cohort=COHORT, instruction=digest(round_), round=round_, event=event, before=before, after=after
    )


def renyi(spent: Fraction, order: int = 7, limit: Fraction | None = None) -> RenyiState:
    allowed = renyi_limit("3", "1e-5", order) if limit is None else limit
    return RenyiState(order=order, data="training", spent=format_decimal(spent), limit=format_decimal(allowed))


def gdp(spent: Fraction) -> FilterState:
    return FilterState(data="training", spent=format_decimal(spent), limit="0.517129884509")


ZERO, TOO_HIGH = Fraction(0), LIMIT + Fraction(1, 10**12)
FIRST = entry(renyi(ZERO), renyi(COST))


@pytest.mark.parametrize(
    ("bodies", "code"),
    [
        ([entry(gdp(ZERO), gdp(COST))], "filter-kind"),
        ([entry(renyi(ZERO), renyi(renyi_cost(FULL, 7)), FULL)], "filter-kind"),
        ([entry(renyi(ZERO), gdp(COST))], "filter-kind"),
        ([FIRST, entry(renyi(COST, 16), renyi(COST + renyi_cost(SAMPLED, 16), 16), round_=2)], "filter-kind"),
        ([FIRST, entry(gdp(ZERO), gdp(gdp_cost(FULL)), FULL, 2)], "filter-kind"),
        ([entry(renyi(ZERO), renyi(COST - Fraction(1, 10**15)))], "filter-after"),
        ([entry(renyi(ZERO, limit=TOO_HIGH), renyi(COST, limit=TOO_HIGH))], "filter-limit"),
        ([FIRST, entry(renyi(ZERO), renyi(COST), round_=2)], "filter-before"),
    ],
)
def test_a_log_that_bends_the_sampled_filter_is_refused(bodies: list[tuple[str, Body]], code: str) -> None:
    head: list[tuple[str, Body]] = [
        (NO_STUDY, CohortRegistered(cohort=COHORT, epsilon="3", delta="1e-5")),
        (STUDY, PlanApproved(approval=digest("approval"))),
    ]
    assert verify_log(sign_log([*head, FIRST]), OWNER, KEY_HEX).size == 3
    with pytest.raises(EvidenceError, match=f"Entry {len(head) + len(bodies) - 1} of") as caught:
        verify_log(sign_log([*head, *bodies]), OWNER, KEY_HEX)
    assert caught.value.code == code


def test_local_steps_are_charged_together_in_either_filter(tmp_path: Path) -> None:
    """One entry per round with all of its steps; the round that does not fit is refused whole."""
    local = {"scope": "local", "honest": 1, "sites_in_sum": 1, "steps": 5, "noise_multiplier": "6"}
    for name, sampling, unit in (("full", "1", "mu^2"), ("sampled", "0.25", "order 7")):
        folder = tmp_path / name
        folder.mkdir()
        store = make_store(folder)
        event = make_mechanism(**local, sampling_probability=sampling).event()
        gate = choose_filter([event], "3", "1e-5")
        assert unit in gate.unit
        fits = int(gate.limit("3", "1e-5") / gate.cost(event))
        assert fits >= 2
        for round_ in range(1, fits + 1):
            after = reserve(store, COHORT, digest(round_), round_, event, STUDY)
            assert exact(after.spent) == round_ * gate.cost(event)
        with pytest.raises(BudgetExceeded, match="the site's budget for training patients"):
            reserve(store, COHORT, digest(0), fits + 1, event, STUDY)
        assert exact(make_store(folder).verify().filters[0].spent) == fits * gate.cost(event)
