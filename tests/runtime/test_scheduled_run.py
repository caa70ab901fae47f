"""The pinned versions work together: a server starts and a run that its own scheduler made completes."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.dispatch import dispatch, wait_for_end
from infra.prefect_server import PrefectServer, prefect_client_environment, start_prefect_server
from tests.runtime.agents import agent_process
from tests.runtime.waiting import wait_until

PARAMETERS = {"study": "scheduled", "round": 1}


def _trained(folder: Path) -> bool:
    path = folder / "trained.txt"
    return path.exists() and "scheduled 1" in path.read_text()


async def _schedule(site: str) -> None:
    """Asks the server to run the site's deployment every few seconds."""
    schedule = IntervalSchedule(interval=timedelta(seconds=4), anchor_date=datetime.now(UTC))
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(f"site-round/{site}")
        answer = await client._client.post(
            f"/deployments/{deployment.id}/schedules",
            json=[{"schedule": schedule.model_dump(mode="json"), "active": True, "parameters": PARAMETERS}],
        )
        assert answer.status_code == 201


@pytest.mark.usefixtures("prefect_settings")
def test_scheduled_run_completes(server: PrefectServer, tmp_path: Path, agent_environment: dict[str, str]) -> None:
    site = f"site-{uuid4().hex[:8]}"
    agent = agent_process(site, tmp_path, agent_environment)
    try:
        asyncio.run(_schedule(site))
        wait_until(lambda: _trained(tmp_path))
    finally:
        agent.stop()


def test_agent_outlives_a_restart_of_a_server_on_sqlite(tmp_path: Path) -> None:
    def start(port: int | None) -> PrefectServer:
        return start_prefect_server(tmp_path / "prefect", log=tmp_path / "prefect.log", port=port)

    server = start(None)
    settings = prefect_client_environment(server.api_url, tmp_path / "site", database="sqlite", poll_seconds=0.5)
    site, folder = "rural", tmp_path / "site"
    folder.mkdir()
    agent = agent_process(site, folder, {**os.environ, **settings})
    try:
        server.stop()
        server = start(int(server.ui_url.rpartition(":")[2]))

        async def ask() -> str:
            run_id = await dispatch(site, "site-round", PARAMETERS, "after-restart")
            return (await wait_for_end(run_id, 120.0)).type

        with temporary_settings({PREFECT_API_URL: server.api_url}):
            assert asyncio.run(ask()) == "COMPLETED"
        assert _trained(folder)
    finally:
        agent.stop()
        server.stop()
