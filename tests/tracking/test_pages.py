"""What a person reads in Prefect about a round and a study."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from flows.pages import (
    StudyPage,
    current_run_url,
    describe_round,
    describe_study,
    show_round,
    tabulate_budget,
    tabulate_sites,
)
from tasks.tracking.story import Story, tell_story
from tests.tracking.studies import make_plan, train_facts


def test_a_round_names_who_is_in_the_sum_and_why_the_others_are_not() -> None:
    plan = make_plan()
    facts = replace(train_facts(plan)[0], dropped=(("west", "refused"),), participants=("east", "north", "south"))
    text = describe_round(plan, facts, {"west": "contract-violated"})
    assert "3 of 4 sites are in the opened sum" in text
    assert "| east | yes | 1.25 | 0.5 |" in text
    assert "| west | no: refused (contract-violated) | 1.25 | 0.5 |" in text
    assert "run *round 01*" in text


def test_a_site_that_was_charged_nothing_is_shown_with_nothing() -> None:
    plan = make_plan()
    facts = train_facts(plan)[0]
    text = describe_round(plan, replace(facts, epsilon=facts.epsilon[:3]), {})
    assert "| west | no: silent | 0 | 0 |" in text


def test_a_site_in_the_sum_whose_ledger_does_not_verify_is_not_shown_with_nothing() -> None:
    plan = make_plan()
    facts = train_facts(plan)[0]
    facts = replace(facts, epsilon=facts.epsilon[1:])
    assert "| east | yes | unknown | unknown |" in describe_round(plan, facts, {})
    first = tabulate_sites(plan, facts, {})[0]
    assert (first["site"], first["ε under collusion"], first["ε against outsiders"]) == ("east", "unknown", "unknown")
    assert tabulate_budget(plan, [train_facts(plan)[0], facts])[0]["ε of training patients"] == "unknown"
    assert "| east | 100 | 1 of 1 | none | unknown |" in tell_story(plan, Story("", [facts]))


def test_an_evaluation_shows_its_interval() -> None:
    plan = make_plan()
    facts = replace(train_facts(plan, 3)[0], kind="evaluate", metrics={"auc": 0.9, "auc_low": 0.8, "auc_high": 0.95})
    assert "AUC 0.900, 95 % interval 0.800 to 0.950" in describe_round(plan, facts, {})
    assert "| evaluation | 3 | west (silent) | 1.25 (held-out patients) | 0.5 | 1.8 |" in describe_study(
        plan, [facts], "Released."
    )


def test_a_study_lists_its_rounds_in_order_below_what_was_released() -> None:
    plan = make_plan()
    rounds = [train_facts(plan, number)[0] for number in (2, 1)]
    text = describe_study(plan, rounds, "")
    assert text.index("Not released yet.") < text.index("| round 01 |") < text.index("| round 02 |")
    assert plan.study in text


def test_outside_a_flow_run_nothing_is_written() -> None:
    plan = make_plan()
    facts = train_facts(plan)[0]
    page = StudyPage(plan)
    asyncio.run(page.add(facts))
    asyncio.run(show_round(plan, facts, {}))
    assert current_run_url() == ""
