"""Runs that a killed agent left: nobody works on them any more, and the server would show them running for ever."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from site_agents.worker import pool_name


async def close_leftover_runs(site: str) -> int:
    """Marks the site's unfinished runs as crashed, so that the coordinator dispatches anew; returns how many.

    Call it once at start, while this process alone holds the site's home: then no run of the pool can be alive.
    """
    unfinished = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=unfinished)),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool_name(site)])),
        )
        for run in runs:
            await client.set_flow_run_state(run.id, Crashed(message="agent-restarted"), force=True)
    return len(runs)
