"""A study on Prefect's own pages, in a real browser: its artifacts are there, and nothing is asked for elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from prefect import flow

from flows.pages import StudyPage, current_run_url
from infra.prefect_server import PrefectServer
from tests.browser.chromium import open_page
from tests.tracking.studies import make_plan, train_facts

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_settings")]
MLFLOW = "http://mlflow.example:5000/#/experiments/1/runs/1"


def record_study() -> str:
    """Runs a flow that leaves a study's pages; returns the id of its run."""
    plan = make_plan()

    @flow(name="study", flow_run_name=f"study {plan.study[:12]}", retries=0, persist_result=False)
    async def study() -> str:
        page = StudyPage(plan, MLFLOW)
        await page.add(train_facts(plan, 1)[0])
        await page.finish("Released as version 1.")
        return current_run_url()

    return asyncio.run(study()).rpartition("/")[2]


def test_the_studys_flow_run_leads_to_its_summary_budget_and_to_mlflow(server: PrefectServer) -> None:
    plan, run = make_plan(), record_study()
    address = server.api_url.removesuffix("/api")
    with open_page() as (page, hosts):
        page.goto(f"{address}/runs/flow-run/{run}")
        page.get_by_text(f"study {plan.study[:12]}").first.wait_for()
        page.get_by_text("Artifacts", exact=True).last.click()
        page.get_by_text(f"budget-{plan.study[:12]}").first.wait_for()
        page.get_by_text(f"progress-{plan.study[:12]}").first.wait_for()
        page.get_by_text(f"study-{plan.study[:12]}").first.click()
        page.get_by_text("Released as version 1.").first.wait_for()
        text = page.locator("body").inner_text()
        link = page.get_by_role("link", name="The study in MLflow")
        assert link.get_attribute("href") == MLFLOW
    for words in (plan.title, "round 01", "west (silent)", "1.25"):
        assert words in text, words
    assert hosts == {"127.0.0.1"}
