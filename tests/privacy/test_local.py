"""Local mode costs what its steps cost: every one is charged, with the noise of the one site that draws it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from schemas.errors import BudgetError, PlanError
from schemas.ledger import GaussianEvent
from schemas.plan import StudyPlan
from tasks.contract.encoder import Cohort
from tasks.privacy.accounting import (
    calibrate_noise_multiplier,
    calibrate_sampled_multiplier,
    composed_epsilon,
    epsilon_of_events,
    epsilon_report,
    gdp_cost,
    gdp_limit,
    renyi_cost,
    verify_event,
)
from tasks.privacy.filters import GdpFilter, RenyiFilter, choose_filter
from tasks.privacy.mechanism import evaluation_mechanism, training_mechanism, verify_plan_within_budget
from tasks.privacy.noise import AesCtrStream
from tasks.privacy.recompute import check_recomputations
from tasks.privacy.renyi import choose_order
from tasks.training.local import train_locally
from tests.privacy.test_canary import lower_bound
from tests.training.local_plans import make_local_plan

STEPS, ROUNDS = 5, 4


def calibrated(sampling: str = "1", steps: int = STEPS, rounds: int = ROUNDS) -> StudyPlan:
    if sampling == "1":
        multiplier = calibrate_noise_multiplier("3", "1e-5", rounds * steps)
    else:
        order = choose_order("3", "1e-5")
        multiplier = calibrate_sampled_multiplier("3", "1e-5", rounds * steps, sampling, order)
    return make_local_plan(steps, sampling=sampling, rounds=rounds, noise_multiplier=multiplier)


def event_of(plan: StudyPlan) -> GaussianEvent:
    return training_mechanism(plan).event()


@pytest.mark.parametrize("sampling", ["1", "0.25"])
def test_a_round_is_charged_for_each_of_its_steps_with_the_sites_own_noise(sampling: str) -> None:
    plan = calibrated(sampling)
    mechanism, event = training_mechanism(plan), event_of(plan)
    assert plan.threshold.honest_noise_shares > 1
    assert event.noise_scope == "local"
    assert (event.honest_assumed, event.sites_in_sum) == (1, 1)
    assert mechanism.local_sigma >= Fraction(plan.mechanism.noise_multiplier) * mechanism.sensitivity
    assert event.runs == ((sampling, plan.mechanism.noise_multiplier, STEPS),)
    gate = choose_filter([event], "3", "1e-5")
    assert isinstance(gate, GdpFilter if sampling == "1" else RenyiFilter)
    single = event.model_copy(update={"runs": ((sampling, plan.mechanism.noise_multiplier, 1),)})
    assert float(gate.cost(event)) == pytest.approx(STEPS * float(gate.cost(single)), rel=1e-9)
    assert ROUNDS * gate.cost(event) <= gate.limit("3", "1e-5") < (ROUNDS * 1.001) * gate.cost(event)
    verify_plan_within_budget(plan)
    assert evaluation_mechanism(plan).event().noise_scope == "distributed"


def test_steps_miscounted() -> None:
    """A plan calibrated for its rounds, with the steps forgotten, is refused."""
    multiplier = calibrate_noise_multiplier("3", "1e-5", ROUNDS)
    with pytest.raises(PlanError, match="Expected training to cost at most"):
        verify_plan_within_budget(make_local_plan(STEPS, rounds=ROUNDS, noise_multiplier=multiplier))


def test_local_noise_counted_as_if_others_added_to_it_is_refused() -> None:
    event = event_of(calibrated())
    with pytest.raises(BudgetError, match="local noise is that of one site"):
        verify_event(event.model_copy(update={"sites_in_sum": 3}))
    with pytest.raises(BudgetError, match=r"honest_assumed <= sites_in_sum"):
        verify_event(event.model_copy(update={"honest_assumed": 2}))


def test_the_noise_of_others_promises_an_outsider_nothing_more() -> None:
    """Sites move their models between two steps: their noise is not a share of this site's."""
    plan = calibrated()
    report = epsilon_report(plan, "birch", [event_of(plan)] * ROUNDS)
    assert 2.99 < float(report.collusion) <= 3
    assert report.outsider == report.collusion == report.fallback


@pytest.mark.parametrize("sampling", ["1", "0.25"])
def test_a_patient_in_two_sites_is_charged_at_both(sampling: str) -> None:
    """Two noises of their own: costs add up; twice in one sum would be four times the cost."""
    plan = calibrated(sampling)
    events = [event_of(plan)] * ROUNDS
    assert plan.budget.max_sites_per_patient == 2
    assert composed_epsilon(plan, events) == epsilon_of_events(events * 2, "1e-5")
    assert renyi_cost(events[0], 7, sites=2) == pytest.approx(2 * renyi_cost(events[0], 7), rel=1e-9)
    distributed = events[0].model_copy(update={"noise_scope": "distributed"})
    assert float(composed_epsilon(plan, [distributed] * ROUNDS)) > float(composed_epsilon(plan, events))


@pytest.mark.parametrize("sampling", ["1", "0.25"])
def test_opacus_and_dp_accounting_agree_on_a_local_study(sampling: str) -> None:
    checks = check_recomputations([event_of(calibrated(sampling))] * ROUNDS, "1e-5")
    assert [c.name for c in checks if c.passed is not True] == []


# --- the canary, through the whole local loop

STUDIES = 2000
CLAIM = math.sqrt(gdp_limit("3", "1e-5"))


def attack(plan: StudyPlan, present: bool) -> np.ndarray:
    """Scores of studies of one round: the attacker projects the site's update on the canary's gradient.

    The canary's row is as large as the contract admits and its outcome the opposite of what the model says, so that
    its gradient is clipped and points the same way in all steps.
    """
    rows = [[-0.1, 0.2, 0.1], [0.1, -0.1, 0.3], [0.9, 0.9, 0.9]]
    features = np.array(rows if present else rows[:2])
    count = len(features)
    cohort = Cohort(features, np.zeros(count, bool), np.arange(count), np.zeros(count, bool))
    stream = AesCtrStream(f"canary {present}".encode().ljust(32, b"."))
    start = np.full(4, 2.0)
    direction = np.array([0.9, 0.9, 0.9, 1.0])
    sent = np.stack([train_locally(plan, "birch", cohort, start, stream) for _ in range(STUDIES)])
    return np.asarray(sent @ direction, dtype=np.float64)


def audited(plan: StudyPlan) -> float:
    return lower_bound(attack(plan, False), attack(plan, True))


def canary_plan(**changes: str) -> StudyPlan:
    multiplier = changes.get("noise_multiplier", calibrate_noise_multiplier("3", "1e-5", 4))
    return make_local_plan(4, "0.01", update_norm="1", noise_multiplier=multiplier, clip_norm="0.5")


def test_local_steps_stay_below_their_claim_and_the_attack_is_not_blind() -> None:
    plan = canary_plan()
    assert math.sqrt(gdp_cost(event_of(plan))) == pytest.approx(CLAIM, rel=1e-4)
    assert 0.5 * CLAIM < audited(plan) <= CLAIM


def test_noise_for_one_step_in_a_round_of_several_is_caught() -> None:
    assert audited(canary_plan(noise_multiplier=calibrate_noise_multiplier("3", "1e-5", 1))) > CLAIM
