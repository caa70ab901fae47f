"""What the coordinator's scheduled deployments run. Each takes only a home folder on the coordinator's own machine."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed

from flows.context import open_coordinator
from flows.endings import failed_state
from flows.gate_pass import pass_gate
from flows.gate_steps import GateState
from flows.lease import hold_study
from flows.progress import Progress
from flows.study import run_study
from schemas.errors import ConsiliumError
from tasks.run_log import hide_expected_tracebacks

# A study that runs, is not released yet, or names no reviewer: the next run looks again.
_NOTHING_TO_REVIEW = frozenset({"study-running", "not-a-candidate", "no-reviewers", "version-unknown"})

_log = logging.getLogger("consilium.coordinator")


@flow(name="scheduled-study", persist_result=False)
async def scheduled_study(home: str) -> State[Any]:
    """Runs the study of `home`, or continues it where a crash left it; a study that is released stops its schedule."""
    hide_expected_tracebacks()
    folder = Path(home)
    try:
        with hold_study(folder):
            if not (folder / "summary.json").is_file():
                await run_study(open_coordinator(folder))
    except ConsiliumError as error:
        if error.code == "study-running":
            return Cancelled(name="AlreadyRunning", message=error.message)
        Progress(folder / "events.jsonl").emit("failed", code=error.code, message=error.message, remedy=error.remedy)
        return failed_state(error)
    await _stop_schedule()
    return Completed(message="The study is released.")


@flow(name="scheduled-review", persist_result=False)
async def scheduled_review(home: str) -> State[Any]:
    """Looks once for reviewers' signed decisions and does what follows; stops its schedule once they have decided."""
    try:
        state = await asyncio.to_thread(_pass_gate, Path(home))
    except ConsiliumError as error:
        if error.code in _NOTHING_TO_REVIEW:
            return Completed(name="NothingToReview", message=f"{error.code}: {error.message}")
        return failed_state(error)
    if state.outcome == "waiting":
        return Completed(name="Waiting", message="Waiting for signed decisions.")
    await _stop_schedule()
    return Completed(message=f"The reviewers decided: {state.outcome}.")


def _pass_gate(home: Path) -> GateState:
    return pass_gate(home)[1]


async def _stop_schedule() -> None:
    """Switches off the schedules of the deployment that this run came from; a run by hand has none."""
    run = FlowRunContext.get()
    deployment = run.flow_run.deployment_id if run is not None and run.flow_run is not None else None
    if deployment is None:
        return
    try:
        async with get_client() as client:
            for schedule in await client.read_deployment_schedules(deployment):
                await client.update_deployment_schedule(deployment, schedule.id, active=False)
    except httpx.HTTPError as error:  # the next run finds the study as it is, and tries again
        _log.warning("the schedule could not be stopped (%s)", type(error).__name__)
