"""Runs that a killed agent left: nobody works on them any more, and the server would show them running for ever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from site_agents.admission import pool_name


class RememberedRuns:
    """The flow runs that this agent has taken up and not ended: one empty file each, named by the run's id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def during(self, run_id: UUID) -> Iterator[None]:
        """Remembers `run_id` while the block runs; a process that dies in it leaves the mark."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        mark = self._folder / str(run_id)
        mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    async def close(self) -> int:
        """Marks what an agent that died left as crashed, so that the coordinator dispatches anew; returns how many."""
        marks = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        closed = 0
        async with get_client() as client:
            for mark in marks:
                with contextlib.suppress(ObjectNotFound, ValueError):
                    state = (await client.read_flow_run(UUID(mark.name))).state
                    if state is not None and not state.is_final():
                        await client.set_flow_run_state(UUID(mark.name), Crashed(message="agent-restarted"), force=True)
                        closed += 1
                mark.unlink(missing_ok=True)
        return closed


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
