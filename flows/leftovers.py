"""Runs that a killed coordinator left: nobody works on them, and the server would show them running for ever."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows.pages import study_tag


async def close_leftover_runs(study: str) -> int:
    """Marks the coordinator's unfinished runs of `study` as crashed; returns how many.

    Call it before the study's flow starts, while this process alone holds the coordinator's home. The sites' runs have
    a deployment and are left alone: their agents may still be at work.
    """
    unfinished = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[study_tag(study)]),
        state=FlowRunFilterState(type=unfinished),
        deployment_id=FlowRunFilterDeploymentId(is_null_=True),
    )
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=wanted)
        for run in runs:
            await client.set_flow_run_state(run.id, Crashed(message="coordinator-restarted"), force=True)
    return len(runs)
