"""Real agents for the tests: in this process, where attacks are looked at, or as processes, which are killed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client

from infra.processes import ChildProcess, start_process
from site_agents.worker import run_agent
from tests.runtime.site_process import make_flows
from tests.runtime.waiting import wait_until


@dataclass
class RunningAgent:
    """An agent in this process."""

    site: str
    folder: Path
    refusals: list[tuple[str, str]] = field(default_factory=list)

    def trained(self) -> list[str]:
        """Lists `study round` of each training that happened."""
        path = self.folder / "trained.txt"
        return [line.rsplit(" ", 1)[0] for line in path.read_text().splitlines()] if path.exists() else []


@contextlib.asynccontextmanager
async def agent_here(site: str, folder: Path) -> AsyncIterator[RunningAgent]:
    """Runs the agent of `site` in this process until the block ends."""
    running = RunningAgent(site, folder)
    stop, ready = asyncio.Event(), asyncio.Event()
    work = asyncio.create_task(
        run_agent(
            site,
            make_flows(folder),
            on_refusal=lambda code, run: running.refusals.append((code, run)),
            poll_seconds=0.1,
            on_ready=ready.set,
            grace_seconds=0.0,
            stop=stop,
        )
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if work.done():
            waiting.cancel()
            await work
        yield running
    finally:
        stop.set()
        await work


def agent_process(site: str, folder: Path, environment: Mapping[str, str]) -> ChildProcess:
    """Starts the agent of `site` as a process and waits until it asks for work."""
    (folder / "ready").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.runtime.site_process", site, str(folder)]
    child = start_process(
        site, command, log=folder / "agent.log", environment=environment, folder=Path(__file__).parents[2]
    )
    wait_until(lambda: (folder / "ready").exists() or not child.is_alive())
    assert child.is_alive(), child.log_tail()
    return child


async def everything_the_server_knows(flow_run_id: str) -> str:
    """Returns, as text, the flow run with all its states, task runs, their states, logs and artifacts."""
    from uuid import UUID

    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
    async with get_client() as client:
        known: list[Any] = [await client.read_flow_run(UUID(flow_run_id))]
        known += await client.read_flow_run_states(UUID(flow_run_id))
        tasks = await client.read_task_runs(flow_run_filter=run)
        known += tasks
        for task_run in tasks:
            known += await client.read_task_run_states(task_run.id)
        known += await client.read_logs()
        known += await client.read_artifacts(flow_run_filter=run)
    return "\n".join(entry.model_dump_json() for entry in known)
