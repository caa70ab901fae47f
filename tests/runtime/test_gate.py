"""The release gate as a flow run on a real Prefect server: the pause form is a door, and no door opens unsigned."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun

from flows.gate import run_gate
from flows.gate_steps import GateState
from infra.reviewing import sign_decision
from schemas.errors import OperationError
from tasks.tracking.review import find_version, post_decision, read_candidate
from tasks.tracking.vocabulary import RELEASED
from tests.conftest import FinishedStudy
from tests.review.studies import FIRST, SECOND, Registered, aliases, register
from tests.runtime.test_pages import pages_of

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_settings")]


def signed(study: Registered, reviewer: str) -> bytes:
    candidate = read_candidate(study.target, find_version(study.target, study.model, "1"))
    return sign_decision(study.reviewer(reviewer), candidate, "approved", "Read it.", None)


async def paused_run(study: Registered, seen: set[str]) -> FlowRun:
    """Waits for a pause of the gate's run that was not seen before."""
    name = FlowRunFilter(name=FlowRunFilterName(any_=[f"release {study.plan.study[:12]}"]))
    while True:
        async with get_client() as client:
            runs = await client.read_flow_runs(flow_run_filter=name)
        for run in runs:
            if run.state is not None and run.state.is_paused():
                key = str(run.state.state_details.pause_key)
                if run.state.state_details.run_input_keyset is not None and key not in seen:
                    seen.add(key)
                    return run
        await asyncio.sleep(0.2)


async def send_form(run: UUID, signed_decision: str) -> None:
    async with get_client() as client:
        await client.resume_flow_run(run, run_input={"decision": "approved", "signed_decision": signed_decision})


def test_the_form_opens_the_gate_only_with_a_signature_and_mlflow_is_watched_meanwhile(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    study = register(finished_study.prepared, tmp_path / "study")

    async def people() -> list[str]:
        seen: set[str] = set()
        run = await paused_run(study, seen)
        await send_form(run.id, "")
        await paused_run(study, seen)
        await send_form(run.id, json.dumps({"reviewer": FIRST, "decision": "approved"}))
        await paused_run(study, seen)
        assert RELEASED not in aliases(study)
        await send_form(run.id, signed(study, FIRST).decode())
        await paused_run(study, seen)
        assert RELEASED not in aliases(study)
        version = find_version(study.target, study.model, "1")
        post_decision(study.target, version, SECOND, signed(study, SECOND))
        return [str(run.id)]

    async def act() -> tuple[GateState, list[str]]:
        state, (run,) = await asyncio.gather(run_gate(study.home, 600, poll_seconds=1), people())
        return state, await pages_of(UUID(run))

    state, pages = asyncio.run(asyncio.wait_for(act(), 600))
    assert state.outcome == "released"
    assert {name: given.decision for name, given in state.standing.items()} == {FIRST: "approved", SECOND: "approved"}
    assert RELEASED in aliases(study)
    text = "\n".join(pages)
    assert "waiting: 2 of 2 signed approvals missing" in text
    assert "brought: somebody: an envelope" in text or "(malformed)" in text
    assert f"| {FIRST} | approved |" in text
    assert "released: 2 signed approvals" in text


def test_a_gate_that_nobody_answers_ends_and_says_that_nothing_is_lost(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    study = register(finished_study.prepared, tmp_path / "study")
    with pytest.raises(OperationError, match=r"did not decide in time\. Run the gate again; what was signed is kept"):
        asyncio.run(run_gate(study.home, 1, poll_seconds=1))
    assert RELEASED not in aliases(study)
