"""A budget that cannot be overspent: not by two processes, a crash, a replay, another name, or many small requests."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import BudgetError, EvidenceError, SiteDataError
from schemas.ledger import NO_STUDY, PlanApproved, Refused
from schemas.plan import BudgetSpec
from tasks.ledger.budget import (
    BudgetExceeded,
    budget_state,
    commit,
    describe_budget,
    events_for,
    record_refusal,
    register_cohort,
    reserve,
    would_admit,
)
from tasks.privacy.accounting import exact, gdp_cost, gdp_limit
from tests.ledger.logs import COHORT, KEY_HEX, OWNER, STUDY, make_store
from tests.privacy.plans import digest, make_mechanism, make_plan

EVENT = make_mechanism().event()
COST = gdp_cost(EVENT)
LIMIT = gdp_limit("3", "1e-5")


def start(action: str, folder: Path, number: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.ledger.racing", action, str(folder), str(number)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(*children: subprocess.Popen[str]) -> list[str]:
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    return [child.communicate(timeout=120)[0].strip() for child in children]


def test_two_studies_racing_from_two_processes_cannot_both_have_the_last_of_the_budget(tmp_path: Path) -> None:
    make_store(tmp_path)
    outcomes = go(start("race", tmp_path, 1), start("race", tmp_path, 2))
    admitted = [int(outcome.split()[0]) for outcome in outcomes]
    assert [outcome.split()[1] for outcome in outcomes] == ["budget-exceeded"] * 2
    assert sum(admitted) == 10, "exactly what the budget was calibrated for"
    report = make_store(tmp_path).verify()
    assert exact(report.filters[0].spent) == 10 * COST <= LIMIT


def test_a_crash_between_reserve_and_commit_leaves_the_budget_spent(tmp_path: Path) -> None:
    make_store(tmp_path)
    child = start("crash", tmp_path)
    go(child)
    assert child.returncode == -signal.SIGKILL
    store = make_store(tmp_path)
    assert exact(budget_state(store).training.spent) == COST
    assert reserve(store, COHORT, digest("instruction", 1), 1, EVENT, STUDY) == budget_state(store).training
    assert exact(budget_state(store).training.spent) == COST, "the replay after the crash spends nothing"
    reserve(store, COHORT, digest("instruction", 1, "attempt 2"), 1, EVENT, STUDY)
    assert exact(budget_state(store).training.spent) == 2 * COST, "what was lost is not given back"


def test_a_crash_inside_the_transaction_leaves_nothing_half_written(tmp_path: Path) -> None:
    before = make_store(tmp_path).position()
    child = start("crash-open", tmp_path)
    go(child)
    assert child.returncode == -signal.SIGKILL
    assert make_store(tmp_path).position() == before


def test_a_replayed_instruction_spends_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first = reserve(store, COHORT, digest("i"), 1, EVENT, STUDY)
    position = store.position()
    assert [reserve(store, COHORT, digest("i"), 1, EVENT, STUDY) for _ in range(5)] == [first] * 5
    assert store.position() == position
    with pytest.raises(BudgetError, match="another mechanism, round or cohort"):
        reserve(store, COHORT, digest("i"), 2, EVENT, STUDY)
    cheaper = make_mechanism(noise_multiplier="50").event()
    with pytest.raises(BudgetError, match="another mechanism, round or cohort"):
        reserve(store, COHORT, digest("i"), 1, cheaper, STUDY)


@given(
    st.lists(st.tuples(st.sampled_from(["0.9", "3", "4.39745", "20"]), st.booleans(), st.integers(0, 2)), max_size=25)
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_sequence_of_requests_passes_the_limit(
    tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[str, bool, int]]
) -> None:
    store = make_store(tmp_path_factory.mktemp("budget"), epsilon="2")
    limit = gdp_limit("2", "1e-5")
    spent = {"training": Fraction(0), "held-out": Fraction(0)}
    for number, (multiplier, held_out, study_number) in enumerate(requests):
        part = "held-out" if held_out else "training"
        study = digest("study", study_number)
        store.append_once(study, PlanApproved(approval=digest(study)))
        event = make_mechanism(noise_multiplier=multiplier, data=part).event()
        fits = spent[part] + gdp_cost(event) <= limit
        try:
            would_admit(store, COHORT, event, None, study)
            admitted = True
        except BudgetExceeded:
            admitted = False
        assert admitted == fits
        if fits:
            after = reserve(store, COHORT, digest("request", number), number, event, study)
            spent[part] += gdp_cost(event)
            assert exact(after.spent) == spent[part] <= limit
        else:
            with pytest.raises(BudgetExceeded, match="requested"):
                reserve(store, COHORT, digest("request", number), number, event, study)
    if spent["training"] or spent["held-out"]:
        filters = store.verify().filters
        assert [exact(f.spent) for f in filters] == [spent["training"], spent["held-out"]]


def test_an_overspending_request_names_requested_spent_and_limit_and_charges_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, epsilon="1")
    reserve(store, COHORT, digest(1), 1, EVENT, STUDY)
    before = store.position()
    with pytest.raises(
        BudgetExceeded,
        match=r"requested 0\.0517128 .*, spent 0\.0517128 \(epsilon 0\.83.*limit 0\.0718514 \(epsilon 1\)",
    ) as caught:
        reserve(store, COHORT, digest(2), 2, EVENT, STUDY)
    assert caught.value.code == "budget-exceeded"
    assert exact(caught.value.requested) == COST
    assert caught.value.before == budget_state(store).training
    assert store.position() == before
    record_refusal(store, STUDY, b"instruction 2", caught.value)
    record_refusal(store, STUDY, b"instruction 2", caught.value)
    refusals = [entry.body for entry in store.find(STUDY, "refused")]
    assert len(refusals) == 1
    assert isinstance(refusals[0], Refused)
    assert refusals[0].requested == caught.value.requested


def test_the_study_may_not_spend_more_than_its_plan_says_though_the_site_has_more(tmp_path: Path) -> None:
    store = make_store(tmp_path, epsilon="8")
    budget = BudgetSpec(epsilon="1", delta="1e-5")
    reserve(store, COHORT, digest(1), 1, EVENT, STUDY, budget)
    with pytest.raises(BudgetExceeded, match="the study's budget") as caught:
        reserve(store, COHORT, digest(2), 2, EVENT, STUDY, budget)
    assert caught.value.code == "study-budget-exceeded"
    other = digest("another study")
    store.append(other, PlanApproved(approval=digest(1)))
    reserve(store, COHORT, digest(3), 1, EVENT, other, budget)
    assert exact(budget_state(store).training.spent) == 2 * COST


def test_a_budget_of_zero_refuses_everything(tmp_path: Path) -> None:
    store = make_store(tmp_path, epsilon="0")
    with pytest.raises(BudgetExceeded, match=r"limit 0 \(epsilon 0\)"):
        reserve(store, COHORT, digest(1), 1, EVENT, STUDY)


def test_another_name_for_the_same_patients_is_charged_again_and_resets_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    reserve(store, COHORT, digest(1), 1, EVENT, STUDY)
    with pytest.raises(BudgetError, match="not the one that the budget was registered for") as caught:
        reserve(store, digest("a new name"), digest(2), 2, EVENT, STUDY)
    assert caught.value.code == "cohort-mismatch"
    register_cohort(store, digest("a new name"), "3", "1e-5")
    assert exact(reserve(store, digest("a new name"), digest(2), 2, EVENT, STUDY).spent) == 2 * COST
    with pytest.raises(BudgetError, match="Expected delta 1e-5 for the lifetime"):
        register_cohort(store, COHORT, "3", "1e-4")


def test_nothing_is_reserved_without_a_registered_budget_or_an_approved_plan(tmp_path: Path) -> None:
    store = make_store(tmp_path, epsilon=None)
    with pytest.raises(BudgetError, match="Expected a budget") as caught:
        reserve(store, COHORT, digest(1), 1, EVENT, STUDY)
    assert caught.value.code == "cohort-unregistered"
    assert "every request is refused" in describe_budget(store)
    register_cohort(store, COHORT, "3", "1e-5")
    register_cohort(store, COHORT, "3", "1e-5")
    assert len(store.entries_for(NO_STUDY)) == 1
    with pytest.raises(EvidenceError, match="approved plan of its study"):
        reserve(store, COHORT, digest(1), 1, EVENT, digest("unapproved"))
    assert events_for(store, digest("unapproved")) == []


def test_a_sampled_event_is_refused_before_it_is_charged_where_full_batches_fixed_the_filter(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    sampled = EVENT.model_copy(update={"runs": (("0.1", "4.39745", 1),)})
    reserve(store, COHORT, digest(0), 1, EVENT, STUDY)
    with pytest.raises(BudgetError, match="sampling probability 1") as caught:
        reserve(store, COHORT, digest(1), 1, sampled, STUDY)
    assert caught.value.who_must_act == "the site's budget owner"
    assert exact(budget_state(store).training.spent) == COST
    assert "the site will refuse: it counts full batches" in describe_budget(store, make_plan(sampling="0.1"))


def test_commits_name_what_ran_and_are_idempotent(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(EvidenceError, match="Expected a reservation of the round"):
        commit(store, STUDY, 1, digest("i"), digest("c"))
    reserve(store, COHORT, digest("i"), 1, EVENT, STUDY)
    commit(store, STUDY, 1, digest("i"), digest("c"))
    position = store.position()
    commit(store, STUDY, 1, digest("i"), digest("c"))
    assert store.position() == position
    with pytest.raises(EvidenceError, match="It was committed before"):
        commit(store, STUDY, 1, digest("i"), digest("another contribution"))
    commit(store, STUDY, 1, digest("i", "attempt 2"), digest("another contribution"))
    assert events_for(store, STUDY) == [EVENT]


def test_a_refusal_for_another_reason_carries_its_code_and_no_figures(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    record_refusal(store, STUDY, b"instruction", SiteDataError("contract-violated", "37 rows have no age."))
    (entry,) = store.find(STUDY, "refused")
    assert isinstance(entry.body, Refused)
    assert (entry.body.code, entry.body.requested, entry.body.before) == ("contract-violated", None, None)
    assert b"37" not in store.entries()[-1]


def test_the_budget_is_told_in_words_with_what_a_planned_study_would_change(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    plan = make_plan()
    text = describe_budget(store, plan)
    assert "up to epsilon 3 at delta 1e-5 in total, over all studies and for ever" in text
    assert "'Example' would bring training patients to epsilon 3; it fits" in text
    assert "The share is of" not in text
    reserve(store, COHORT, digest("i"), 1, EVENT, STUDY)
    text = describe_budget(store, plan)
    assert "Training patients: epsilon 0.83" in text
    spent = re.search(r"Training patients: epsilon (\S+) spent \((\S+) % of the budget\)", text)
    assert spent is not None
    assert float(spent[2]) < 100 * float(spent[1]) / 3, "half of the epsilon takes less than half of the budget"
    assert "The share is of what adds up from use to use, and that is not epsilon" in text
    assert "Held-out patients: epsilon 0 spent" in text
    assert "it does NOT fit" in text
    assert KEY_HEX not in text
    assert OWNER in text
