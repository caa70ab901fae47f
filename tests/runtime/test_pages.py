"""What the coordinator leaves on Prefect's pages, on a real server."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.states import Running

from flows.leftovers import close_leftover_runs
from flows.pages import StudyPage, current_run_url, show_round, study_tag
from tests.tracking.studies import make_plan, train_facts

pytestmark = pytest.mark.usefixtures("prefect_settings")


async def pages_of(run: UUID) -> list[str]:
    async with get_client() as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        return [str(artifact.data) for artifact in await client.read_artifacts(artifact_filter=wanted)]


def test_each_round_has_its_summary_and_the_study_one_that_is_rewritten() -> None:
    plan, seen = make_plan(), dict[str, UUID]()

    async def here(name: str) -> None:
        seen[name] = UUID(current_run_url().rpartition("/")[2])

    @flow(retries=0, persist_result=False)
    async def a_round(page: StudyPage, number: int) -> None:
        facts = train_facts(plan, number)[0]
        await here(f"round {number}")
        await show_round(plan, facts, {"west": "contract-violated"})
        await page.add(facts)

    @flow(retries=0, persist_result=False)
    async def study() -> None:
        page = StudyPage(plan)
        await here("study")
        await a_round(page, 1)
        await a_round(page, 2)
        await page.finish("Released.")

    async def act() -> dict[str, list[str]]:
        await study()
        return {name: await pages_of(run) for name, run in seen.items()}

    found = asyncio.run(act())
    # A text and a table of sites per round; for the study one text, one progress bar, a budget table after every round.
    assert {name: len(pages) for name, pages in found.items()} == {"study": 4, "round 1": 2, "round 2": 2}
    (text,) = (page for page in found["round 2"] if "## round 02" in page)
    (table,) = (page for page in found["round 2"] if page != text)
    assert "no: silent (contract-violated)" in text
    assert "no: silent (contract-violated)" in table
    (summary,) = (page for page in found["study"] if page.startswith("# "))
    for words in ("Released.", "| round 01 |", "| round 02 |"):
        assert words in summary
    assert "66.7" in found["study"]
    assert sum("ε of held-out patients" in page for page in found["study"]) == 2


def test_a_killed_coordinators_runs_are_ended_and_nobody_elses() -> None:
    @flow(retries=0, persist_result=False)
    async def study() -> None: ...

    async def act() -> list[tuple[str, str | None]]:
        mine, other = ("ab" * 32, "cd" * 32)
        async with get_client() as client:
            left, foreign = [
                await client.create_flow_run(study, state=Running(), tags=[study_tag(owner)]) for owner in (mine, other)
            ]
            deployment = await client.create_deployment(flow_id=left.flow_id, name="east")
            at_site = await client.create_flow_run_from_deployment(deployment, state=Running(), tags=[study_tag(mine)])
            assert await close_leftover_runs(mine) == 1
            assert await close_leftover_runs(mine) == 0
            states = [(await client.read_flow_run(run.id)).state for run in (left, foreign, at_site)]
        return [(state.type.value, state.message) for state in states if state is not None]

    assert asyncio.run(act()) == [("CRASHED", "coordinator-restarted"), ("RUNNING", None), ("RUNNING", None)]
