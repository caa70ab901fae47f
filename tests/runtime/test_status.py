"""What `coordinator status` asks of a running Prefect server: when an agent was heard of, when the study is due."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from infra.deployments import PROJECT, apply_project, read_project
from infra.prefect_server import PrefectServer
from infra.prefect_view import agent_seen, study_schedule
from tests.runtime.agents import agent_process
from tests.runtime.waiting import wait_until

NOBODY = "http://127.0.0.1:9/api"


def test_a_killed_agent_that_counts_as_online_is_shown_with_the_age_of_its_heartbeat(
    server: PrefectServer, tmp_path: Path, agent_environment: dict[str, str]
) -> None:
    site = f"site-{uuid4().hex[:8]}"
    assert agent_seen(server.api_url, site) == {"agent": "not registered", "heartbeat_seconds": None}
    agent = agent_process(site, tmp_path, agent_environment)
    wait_until(lambda: agent_seen(server.api_url, site)["agent"] == "online")
    agent.kill()
    first = agent_seen(server.api_url, site, datetime.now(UTC) + timedelta(hours=1))
    assert first["agent"] == "online", "the server has not missed enough heartbeats yet"
    assert 3590 < first["heartbeat_seconds"] < 3800
    assert agent_seen(NOBODY, site) == {"agent": "unknown", "heartbeat_seconds": None}


@pytest.mark.usefixtures("prefect_settings")
def test_the_next_due_run_is_told_until_a_person_pauses_the_schedule(server: PrefectServer, tmp_path: Path) -> None:
    study = uuid4().hex * 2
    assert study_schedule(server.api_url, study) == {"state": "not deployed", "next_run": None}

    async def deploy() -> None:
        await apply_project(read_project(PROJECT, tmp_path, study), study, {}, None)

    async def pause() -> None:
        async with get_client() as client:
            found = await client.read_deployment_by_name(f"scheduled-study/study-{study[:12]}")
            for schedule in found.schedules:
                await client.update_deployment_schedule(found.id, schedule.id, active=False)

    asyncio.run(deploy())
    wait_until(lambda: study_schedule(server.api_url, study)["next_run"] is not None)
    told = study_schedule(server.api_url, study)
    assert told["state"] == "active"
    assert datetime.fromisoformat(told["next_run"]).minute % 15 == 0
    asyncio.run(pause())
    assert study_schedule(server.api_url, study) == {"state": "paused", "next_run": None}
    assert study_schedule(NOBODY, study) == {"state": "unknown", "next_run": None}
