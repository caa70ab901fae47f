"""What the owner of the Prefect server can and cannot make a hospital's agent do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.exceptions import InfrastructureNotFound, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling, Crashed
from pydantic import ValidationError

from flows.dispatch import dispatch, dispatch_key, run_state, wait_for_end, wait_for_start
from infra.prefect_server import PrefectServer
from schemas.errors import OperationError
from site_agents.admission import AgentFlow, SiteJobConfiguration
from site_agents.flow_thread import guard_flow
from site_agents.worker import ConsiliumWorker, _repeat, ensure_site_pool, pool_name, run_agent
from tests.runtime.agents import agent_here, everything_the_server_knows
from tests.runtime.site_process import SECRET_CELL, make_flows

pytestmark = pytest.mark.usefixtures("prefect_settings")

PARAMETERS = {"study": "s1", "round": 1}


def _site() -> str:
    return f"site-{uuid4().hex[:8]}"


async def _run(site: str, flow_name: str, parameters: dict[str, Any] = PARAMETERS, number: int = 1) -> str:
    key = dispatch_key(str(parameters["study"]), flow_name, site, round=1, dispatch=number)
    return await dispatch(site, flow_name, parameters, key)


async def _open_template(client: PrefectClient, site: str, marker: Path) -> None:
    """Replaces the closed template by one that a stock worker would obey."""
    template = {
        "job_configuration": {"command": "{{ command }}", "env": "{{ env }}"},
        "variables": {
            "type": "object",
            "properties": {
                "command": {"type": "string", "default": f"touch {marker}"},
                "env": {"type": "object", "default": {"PYTHONSTARTUP": str(marker)}},
            },
        },
    }
    await client.update_work_pool(pool_name(site), WorkPoolUpdate(base_job_template=template))


Attack = Callable[[PrefectClient, str, Path], Awaitable[UUID]]


async def _deployment_id(client: PrefectClient, site: str) -> UUID:
    return (await client.read_deployment_by_name(f"site-round/{site}")).id


async def _change_and_run(client: PrefectClient, site: str, change: DeploymentUpdate) -> UUID:
    deployment_id = await _deployment_id(client, site)
    await client.update_deployment(deployment_id, change)
    return (await client.create_flow_run_from_deployment(deployment_id, parameters=PARAMETERS)).id


async def _command_in_deployment(client: PrefectClient, site: str, marker: Path) -> UUID:
    await _open_template(client, site, marker)
    return await _change_and_run(client, site, DeploymentUpdate(job_variables={"command": f"touch {marker}"}))


async def _environment_in_run(client: PrefectClient, site: str, marker: Path) -> UUID:
    await _open_template(client, site, marker)
    run = await client.create_flow_run_from_deployment(
        await _deployment_id(client, site), parameters=PARAMETERS, job_variables={"env": {"BASH_ENV": str(marker)}}
    )
    return run.id


async def _pull_steps(client: PrefectClient, site: str, marker: Path) -> UUID:
    step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {marker}"}}
    return await _change_and_run(client, site, DeploymentUpdate(pull_steps=[step]))


async def _entrypoint(client: PrefectClient, site: str, marker: Path) -> UUID:
    marker.with_suffix(".py").write_text(f"open({str(marker)!r}, 'w')")
    return await _change_and_run(
        client, site, DeploymentUpdate(entrypoint=f"{marker.with_suffix('.py')}:flow", path=str(marker.parent))
    )


async def _extra_parameter(client: PrefectClient, site: str, marker: Path) -> UUID:
    deployment_id = await _deployment_id(client, site)
    await client.update_deployment(deployment_id, DeploymentUpdate(enforce_parameter_schema=False))
    extra = {**PARAMETERS, "out": str(marker)}
    return (await client.create_flow_run_from_deployment(deployment_id, parameters=extra)).id


async def _wrong_type(client: PrefectClient, site: str, marker: Path) -> UUID:
    deployment_id = await _deployment_id(client, site)
    await client.update_deployment(deployment_id, DeploymentUpdate(enforce_parameter_schema=False))
    wrong = {"study": "s1", "round": "1"}
    return (await client.create_flow_run_from_deployment(deployment_id, parameters=wrong)).id


async def _large_parameter(client: PrefectClient, site: str, marker: Path) -> UUID:
    large = {"study": "s" * 9000, "round": 1}
    deployment_id = await _deployment_id(client, site)
    return (await client.create_flow_run_from_deployment(deployment_id, parameters=large)).id


async def _retries(client: PrefectClient, site: str, marker: Path) -> UUID:
    deployment_id = await _deployment_id(client, site)
    answer = await client._client.post(
        f"/deployments/{deployment_id}/create_flow_run",
        json={"parameters": PARAMETERS, "empirical_policy": {"retries": 3, "retry_delay": 0}},
    )
    return UUID(answer.json()["id"])


async def _unknown_flow(client: PrefectClient, site: str, marker: Path) -> UUID:
    deployment_id = await client.create_deployment(
        flow_id=await client.create_flow_from_name("site-export"), name=site, work_pool_name=pool_name(site)
    )
    return (await client.create_flow_run_from_deployment(deployment_id, parameters=PARAMETERS)).id


async def _deployment_of_another_site(client: PrefectClient, site: str, marker: Path) -> UUID:
    deployment_id = await client.create_deployment(
        flow_id=await client.create_flow_from_name("site-round"), name=f"{site}-too", work_pool_name=pool_name(site)
    )
    return (await client.create_flow_run_from_deployment(deployment_id, parameters=PARAMETERS)).id


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (_command_in_deployment, "job-variables"),
        (_environment_in_run, "job-variables"),
        (_pull_steps, "pull-steps"),
        (_entrypoint, "foreign-entrypoint"),
        (_extra_parameter, "parameters-invalid"),
        (_wrong_type, "parameters-invalid"),
        (_large_parameter, "parameters-too-large"),
        (_retries, "retries-not-allowed"),
        (_unknown_flow, "unknown-flow"),
        (_deployment_of_another_site, "foreign-deployment"),
    ],
)
def test_server_owner_cannot_make_the_agent_run_anything_else(attack: Attack, code: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        marker = tmp_path / "planted"
        async with agent_here(_site(), tmp_path) as agent:
            async with get_client() as client:
                run_id = str(await attack(client, agent.site, marker))
            state = await wait_for_end(run_id, 90.0, 0.05)
            assert (state.type, state.name, state.code) == ("CANCELLED", "Refused", code)
            assert state.is_refused
            assert agent.refusals == [(code, run_id)]
            assert agent.trained() == []
            assert not marker.exists()

    asyncio.run(scenario())


def test_template_alone_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:
            async with get_client() as client:
                await _open_template(client, agent.site, tmp_path / "planted")
            state = await wait_for_end(await _run(agent.site, "site-round"), 90.0, 0.05)
            assert state.type == "COMPLETED"
            assert agent.trained() == ["s1 1"]
            assert not (tmp_path / "planted").exists()

    asyncio.run(scenario())


def test_closed_pool_and_deployment_reject_bad_input_at_the_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:
            with pytest.raises(OperationError, match="rejected site-round/") as caught:
                await dispatch(agent.site, "site-round", {**PARAMETERS, "command": "true"}, "k1")
            assert caught.value.code == "dispatch-rejected"
            async with get_client() as client:
                with pytest.raises(PrefectHTTPStatusError, match="422"):
                    await client.create_flow_run_from_deployment(
                        await _deployment_id(client, agent.site),
                        parameters=PARAMETERS,
                        job_variables={"command": "true"},
                    )
            assert agent.refusals == []

    asyncio.run(scenario())


def test_result_storage_that_the_server_names_receives_nothing(server: PrefectServer, tmp_path: Path) -> None:
    from prefect.filesystems import LocalFileSystem

    async def scenario() -> None:
        loot = tmp_path / "loot"
        async with agent_here(_site(), tmp_path) as agent, get_client() as client:
            block = LocalFileSystem(basepath=str(loot))
            block_id = await block.asave(f"loot-{uuid4().hex[:8]}", client=client)
            try:
                await client.update_server_default_result_storage(block_id)
                for flow_name in ("site-round", "site-leak"):
                    await wait_for_end(await _run(agent.site, flow_name), 90.0, 0.05)
            finally:
                await client.clear_server_default_result_storage()
            assert agent.trained() == ["s1 1"]
            assert not loot.exists()

    asyncio.run(scenario())


def test_site_steps_are_task_runs_of_the_sites_own_flow_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:
            run_id = await _run(agent.site, "site-round")
            assert (await wait_for_end(run_id, 90.0, 0.05)).type == "COMPLETED"
            deadline = asyncio.get_running_loop().time() + 90.0
            while '"train-' not in (known := await everything_the_server_knows(run_id)):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.2)
            assert f'"flow_run_id":"{run_id}"' in known

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("flow_name", "state_type", "code"),
    [("site-refuse", "CANCELLED", "budget-exceeded"), ("site-leak", "FAILED", "internal-error")],
)
def test_text_of_an_exception_stays_at_the_site(flow_name: str, state_type: str, code: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:
            run_id = await _run(agent.site, flow_name)
            state = await wait_for_end(run_id, 90.0, 0.05)
            assert (state.type, state.code) == (state_type, code)
            deadline = asyncio.get_running_loop().time() + 90.0
            while '"task_key"' not in (known := await everything_the_server_knows(run_id)):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.2)
            assert code in known
            assert SECRET_CELL not in known
        if flow_name == "site-refuse":
            assert (tmp_path / "reserve-state.txt").read_text() == "Refused budget-exceeded"

    asyncio.run(scenario())


def test_two_studies_run_at_once_even_when_a_step_blocks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:
            slow = await _run(agent.site, "site-sleep", {"study": "slow", "round": 1})
            assert (await wait_for_start(slow, 90.0, 0.05)).type == "RUNNING"
            quick = await _run(agent.site, "site-round", {"study": "quick", "round": 1})
            assert (await wait_for_end(quick, 90.0, 0.05)).type == "COMPLETED"
            assert not (await run_state(slow)).is_final
            (tmp_path / "wake-slow").touch()
            assert (await wait_for_end(slow, 90.0, 0.05)).type == "COMPLETED"

    asyncio.run(scenario())


def test_run_cancelled_by_a_person_ends_at_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site_agents.worker._CANCEL_CHECK_SECONDS", 0.2)

    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:
            run_id = await _run(agent.site, "site-sleep")
            await wait_for_start(run_id, 90.0, 0.05)
            async with get_client() as client:
                await client.set_flow_run_state(UUID(run_id), Cancelling(), force=True)
                state = await wait_for_end(run_id, 90.0, 0.1)
                assert (state.type, state.name, state.code) == ("CANCELLED", "Cancelled", "cancelled-on-request")
                flow_run = await client.read_flow_run(UUID(run_id))
            assert flow_run.state is not None
            assert flow_run.state.type == StateType.CANCELLED
            assert agent.refusals == []

    asyncio.run(scenario())


def test_a_run_deleted_by_a_person_ends_at_the_site_and_the_agent_serves_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("site_agents.worker._CANCEL_CHECK_SECONDS", 0.2)

    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:
            deleted = await _run(agent.site, "site-sleep")
            await wait_for_start(deleted, 90.0, 0.05)
            async with get_client() as client:
                await client.delete_flow_run(UUID(deleted))
            state = await wait_for_end(await _run(agent.site, "site-round"), 90.0, 0.05)
            assert state.type == "COMPLETED"
            deadline = asyncio.get_running_loop().time() + 90.0
            while any(thread.name == "flow-site-sleep" for thread in threading.enumerate()):
                assert asyncio.get_running_loop().time() < deadline, "nobody wakes it: it was told to stop"
                await asyncio.sleep(0.1)
            assert agent.refusals == []

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ObjectNotFound(ValueError()), ValidationError.from_exception_data("Answer", [])])
def test_an_answer_that_nobody_expects_does_not_end_the_agent(error: Exception) -> None:
    calls: list[int] = []

    async def work() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise error

    async def pause(_: float) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(_repeat(work, lambda: 0.0, pause))
    assert calls == [0, 1, 2]


def test_mistyped_site_is_refused_and_makes_no_pool(tmp_path: Path) -> None:
    async def scenario() -> None:
        site = _site()
        with pytest.raises(OperationError, match=f"There is no work pool consilium-{site}") as caught:
            await run_agent(site, make_flows(tmp_path), on_refusal=lambda *_: None, register=False)
        assert caught.value.code == "work-pool-missing"
        async with get_client() as client:
            assert pool_name(site) not in {pool.name for pool in await client.read_work_pools()}

    asyncio.run(scenario())


def test_pool_of_a_stock_worker_is_refused(tmp_path: Path) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    async def scenario() -> None:
        site = _site()
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=pool_name(site), type="process"))
        with pytest.raises(OperationError, match="of type consilium-site, got process") as caught:
            await ensure_site_pool(site)
        assert caught.value.code == "work-pool-foreign"

    asyncio.run(scenario())


def test_flow_with_open_parameters_or_retries_is_not_accepted_locally() -> None:
    from prefect import flow
    from pydantic import BaseModel

    class Open(BaseModel):
        study: str

    @flow(name="again", retries=2)
    async def again(study: str) -> None:
        raise AssertionError(study)

    with pytest.raises(TypeError, match="without retries"):
        AgentFlow(again, Open)
    with pytest.raises(TypeError, match="forbid extra fields"):
        AgentFlow(again.with_options(retries=0), Open)


def test_refusal_ends_the_run_even_when_the_site_cannot_record_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with agent_here(_site(), tmp_path) as agent:

            def broken(pair: tuple[str, str]) -> None:
                raise OSError("disk full")

            agent.refusals = type("Broken", (list,), {"append": lambda self, pair: broken(pair)})()
            async with get_client() as client:
                run_id = str(await _pull_steps(client, agent.site, tmp_path / "planted"))
            assert (await wait_for_end(run_id, 90.0, 0.05)).code == "pull-steps"
            assert not (tmp_path / "planted").exists()

    asyncio.run(scenario())


def test_body_starts_once_however_often_the_server_answers_running(tmp_path: Path) -> None:
    async def scenario() -> None:
        guarded = guard_flow(make_flows(tmp_path)["site-sleep"].flow, Crashed)
        (tmp_path / "wake-s1").touch()
        assert await guarded.fn("s1", 1) is None
        (tmp_path / "sleeping-s1").unlink()
        again = await guarded.fn("s1", 1)
        assert (again.name, again.message) == ("Refused", "run-repeated")
        assert not (tmp_path / "sleeping-s1").exists()

    asyncio.run(scenario())


def test_agent_kills_no_run_but_its_own(tmp_path: Path) -> None:
    worker = ConsiliumWorker("pool", site="general", flows=make_flows(tmp_path), on_refusal=lambda *_: None)
    for identifier in (f"{worker.name}:{uuid4()}", f"somebody-else:{uuid4()}", "4711"):
        with pytest.raises(InfrastructureNotFound, match="does not run that flow run"):
            asyncio.run(worker.kill_infrastructure(identifier, SiteJobConfiguration()))


def test_the_end_of_a_run_wakes_the_question_for_the_next_one(tmp_path: Path) -> None:
    worker = ConsiliumWorker("pool", site="general", flows=make_flows(tmp_path), on_refusal=lambda *_: None)

    async def scenario() -> None:
        pausing = asyncio.create_task(worker.pause(3600))
        await asyncio.sleep(0)
        worker._run_ended.set()
        await asyncio.wait_for(pausing, 30)
        worker._run_ended.set()  # while nobody paused
        await asyncio.wait_for(worker.pause(3600), 30)

    asyncio.run(scenario())
