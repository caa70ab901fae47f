"""More of what the Prefect server's owner can edit; the agent runs the installed flow, or refuses, and nothing else.

Commands, environments, pull steps, entrypoints, parameters, retries, template and result storage: `test_worker.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import WorkPoolStorageConfiguration
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.dispatch import wait_for_end
from site_agents.worker import pool_name
from tests.runtime.agents import agent_here

pytestmark = pytest.mark.usefixtures("prefect_settings")

PARAMETERS = {"study": "s1", "round": 1}

Edit = Callable[[PrefectClient, UUID, str, Path], Awaitable[UUID]]


async def _run(client: PrefectClient, deployment: UUID) -> UUID:
    return (await client.create_flow_run_from_deployment(deployment, parameters=PARAMETERS)).id


async def _default_parameters(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    change = DeploymentUpdate(parameters={"out": str(marker)}, enforce_parameter_schema=False)
    await client.update_deployment(deployment, change)
    return await _run(client, deployment)


async def _path_alone(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    await client.update_deployment(deployment, DeploymentUpdate(path=str(marker.parent)))
    return await _run(client, deployment)


async def _storage_block(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    from prefect.filesystems import LocalFileSystem

    block = await LocalFileSystem(basepath=str(marker.parent)).asave(f"code-{uuid4().hex[:8]}", client=client)
    await client.update_deployment(deployment, DeploymentUpdate(storage_document_id=block))
    return await _run(client, deployment)


async def _run_without_deployment(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    content = {
        "flow_id": str(await client.create_flow_from_name("site-round")),
        "parameters": PARAMETERS,
        "work_pool_name": pool_name(site),
        "state": {"type": "SCHEDULED"},
        "job_variables": {"command": f"touch {marker}"},
    }
    answer = await client._client.post("/flow_runs/", json=content)
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


async def _automation_with_a_command(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    variables = {"type": "object", "properties": {"command": {"type": "string"}}}
    template = {"job_configuration": {"command": "{{ command }}"}, "variables": variables}
    await client.update_work_pool(pool_name(site), WorkPoolUpdate(base_job_template=template))
    return await _automate(client, deployment, {"command": f"touch {marker}"})


async def _automate(client: PrefectClient, deployment: UUID, job_variables: dict[str, str]) -> UUID:
    """Lets the server itself start the deployment when an event comes, and returns the run."""
    event = f"planted.{uuid4().hex}"
    action = RunDeployment(
        source="selected", deployment_id=deployment, parameters=PARAMETERS, job_variables=job_variables or None
    )
    trigger = EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1, within=timedelta(0))
    await client.create_automation(AutomationCore(name=event, trigger=trigger, actions=[action]))
    wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    deadline = asyncio.get_running_loop().time() + 90.0
    while not (found := await client.read_flow_runs(flow_run_filter=wanted)):
        assert asyncio.get_running_loop().time() < deadline
        # Sent again: the server learns of a new automation a little later.
        sent = {"event": event, "resource": {"prefect.resource.id": "planted"}, "id": str(uuid4())}
        from prefect.types._datetime import now

        await client._client.post("/events", json=[{**sent, "occurred": now().isoformat()}])
        await asyncio.sleep(0.5)
    return found[0].id


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (_default_parameters, "parameters-invalid"),
        (_path_alone, "foreign-entrypoint"),
        (_storage_block, "foreign-storage"),
        (_run_without_deployment, "foreign-deployment"),
        (_automation_with_a_command, "job-variables"),
    ],
)
def test_what_the_owner_edits_is_refused_and_recorded(edit: Edit, code: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        marker = tmp_path / "planted"
        async with agent_here(f"site-{uuid4().hex[:8]}", tmp_path) as agent, get_client() as client:
            deployment = (await client.read_deployment_by_name(f"site-round/{agent.site}")).id
            run = str(await edit(client, deployment, agent.site, marker))
            state = await wait_for_end(run, 90.0, 0.05)
            assert (state.is_refused, state.code) == (True, code)
            assert (code, run) in agent.refusals
            assert agent.trained() == []
            assert not marker.exists()

    asyncio.run(scenario())


async def _bundles(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {marker}"}}
    storage = WorkPoolStorageConfiguration(bundle_upload_step=step, bundle_execution_step=step)
    await client.update_work_pool(pool_name(site), WorkPoolUpdate(storage_configuration=storage))
    return await _run(client, deployment)


async def _limits(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    await client.update_work_pool(pool_name(site), WorkPoolUpdate(concurrency_limit=1))
    await client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=1))
    return await _run(client, deployment)


async def _automation(client: PrefectClient, deployment: UUID, site: str, marker: Path) -> UUID:
    return await _automate(client, deployment, {})


@pytest.mark.parametrize("edit", [_bundles, _limits, _automation])
def test_what_remains_runs_the_installed_flow_and_nothing_else(edit: Edit, tmp_path: Path) -> None:
    async def scenario() -> None:
        marker = tmp_path / "planted"
        async with agent_here(f"site-{uuid4().hex[:8]}", tmp_path) as agent, get_client() as client:
            deployment = (await client.read_deployment_by_name(f"site-round/{agent.site}")).id
            run = str(await edit(client, deployment, agent.site, marker))
            assert (await wait_for_end(run, 90.0, 0.05)).type == "COMPLETED"
            assert set(agent.trained()) == {"s1 1"}
            assert agent.refusals == []
            assert not marker.exists()

    asyncio.run(scenario())
