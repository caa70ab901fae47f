"""What a reviewer sees in MLflow's pages: a real server, a real browser, three clicks, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.demo.workdir import Workdir
from infra.ui import _start_mlflow
from schemas.plan import StudyPlan
from tasks.tracking.target import TrackingTarget
from tasks.tracking.vocabulary import model_name
from tests.browser.chromium import CHROMIUM, open_page
from tests.browser.studies import tell_invented_study

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StudyPlan, str]]:
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    workdir = Workdir(tmp_path_factory.mktemp("mlflow"))
    workdir.coordinator.mkdir()
    workdir.logs.mkdir()
    plan = tell_invented_study(
        TrackingTarget.local(workdir.coordinator / "mlflow.db", workdir.coordinator / "mlartifacts")
    )
    with _start_mlflow(workdir) as server:
        server.wait()
        yield plan, server.address


def test_three_clicks_lead_to_epsilon_the_roc_and_who_took_part_without_scrolling(told: tuple[StudyPlan, str]) -> None:
    plan, address = told
    with open_page() as (page, hosts):
        page.goto(address)
        clicks = (
            page.get_by_text("Model training", exact=True).first,
            page.get_by_text(plan.title).first,
            page.get_by_text("ROC, who took part, model card").first,
        )
        for click in clicks[:-1]:
            click.click(no_wait_after=True)
        with page.expect_popup() as opened:
            clicks[-1].click()
        version = opened.value
        shown = [version.get_by_text(words).first for words in ("ε = 2.5 under", "Who took part", "west (0)")]
        roc = version.locator("img[src*='roc.png']")
        shown.append(roc)
        for part in shown:
            part.wait_for()
        version.wait_for_function("e => e.complete && e.naturalWidth > 100", arg=roc.element_handle())
        height = version.viewport_size["height"]
        boxes = [part.bounding_box() for part in shown]
        text = version.locator("body").inner_text()
    assert len(clicks) <= 3
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= height for box in boxes)
    assert "AUC 0.951" in text
    assert "east (2)" in text
    assert hosts == {"127.0.0.1"}


def test_the_runs_page_tells_the_whole_story(told: tuple[StudyPlan, str]) -> None:
    plan, address = told
    with open_page() as (page, hosts):
        page.goto(f"{address}/#/experiments/1?workflowType=machine_learning")
        page.get_by_text(f"study {plan.study[:12]}").first.click(no_wait_after=True)
        page.get_by_text("Released as").first.wait_for()
        page.get_by_text("Show more").first.click()
        roc = page.locator("img[src*='roc.png']")
        roc.wait_for()
        page.wait_for_function("e => e.complete && e.naturalWidth > 100", arg=roc.element_handle())
        page.get_by_role("cell", name="failed: age-range").wait_for()
        whole = page.locator("body").inner_text()
    assert "ε = 2.5 under the plan's collusion" in whole
    for words in ("2 of 2", "west (silent)", "No attack evaluation was logged", plan.purpose, "flow run in Prefect"):
        assert words in whole, words
    assert hosts == {"127.0.0.1"}


def test_the_version_shows_card_alias_and_tags(told: tuple[StudyPlan, str]) -> None:
    plan, address = told
    with open_page() as (page, hosts):
        page.goto(f"{address}/#/models/{model_name(plan)}/versions/1?workflowType=machine_learning")
        page.get_by_text("Intended use").first.wait_for()
        text = page.locator("body").inner_text()
    for words in ("candidate", "Privacy: what ε means here", "consilium.epsilon_collusion"):
        assert words in text, words
    assert hosts == {"127.0.0.1"}


def test_the_browser_would_notice_a_request_that_leaves_the_machine() -> None:
    with open_page() as (page, hosts):
        page.set_content("<img src='http://elsewhere.invalid/x.png' alt='x'>")
        page.wait_for_function("document.images[0].complete")
    assert hosts == {"elsewhere.invalid"}
