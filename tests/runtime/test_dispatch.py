"""Agents as processes: killed, stopped, started again, while the coordinator dispatches."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from flows.dispatch import abandon_run, dispatch, dispatch_key, find_keys, run_state, wait_for_end, wait_for_start
from schemas.errors import OperationError
from tests.runtime.agents import agent_here, agent_process
from tests.runtime.waiting import wait_until

pytestmark = pytest.mark.usefixtures("prefect_settings")

PARAMETERS = {"study": "s1", "round": 1}


def test_killed_agents_run_does_not_block_a_new_dispatch(tmp_path: Path, agent_environment: dict[str, str]) -> None:
    site = f"site-{uuid4().hex[:8]}"
    first_key = dispatch_key("s1", "site-sleep", site, round=1)
    agent = agent_process(site, tmp_path, agent_environment)
    first = asyncio.run(dispatch(site, "site-sleep", PARAMETERS, first_key))
    wait_until((tmp_path / "sleeping-s1").exists)
    agent.kill()
    (tmp_path / "wake-s1").touch()

    async def resume() -> None:
        assert await dispatch(site, "site-sleep", PARAMETERS, first_key) == first
        second = await dispatch(
            site, "site-sleep", PARAMETERS, dispatch_key("s1", "site-sleep", site, round=1, dispatch=2)
        )
        assert second != first
        assert await find_keys([first_key, f"{first_key}0", "never"]) == {first_key}
        assert (await wait_for_end(second, 90.0, 0.1)).type == "COMPLETED"
        assert (await run_state(first)).type == "RUNNING"
        await abandon_run(first, "agent-silent")
        assert (await run_state(first)).code == "agent-silent"
        await abandon_run(second, "agent-silent")
        assert (await run_state(second)).type == "COMPLETED"

    agent = agent_process(site, tmp_path, agent_environment)
    try:
        asyncio.run(resume())
    finally:
        agent.stop()


def test_agent_told_to_stop_ends_its_run_and_exits_cleanly(tmp_path: Path, agent_environment: dict[str, str]) -> None:
    site = f"site-{uuid4().hex[:8]}"
    agent = agent_process(site, tmp_path, agent_environment)
    run_id = asyncio.run(dispatch(site, "site-sleep", PARAMETERS, f"{site}/1"))
    wait_until((tmp_path / "sleeping-s1").exists)
    os.kill(agent.pid, 15)
    assert agent.wait(60.0)
    assert agent.exit_code == 0
    state = asyncio.run(run_state(run_id))
    assert (state.type, state.code) == ("CRASHED", "agent-stopped")


def test_silent_site_is_reported_at_the_deadline_and_does_not_raise(tmp_path: Path) -> None:
    async def scenario() -> None:
        site = f"site-{uuid4().hex[:8]}"
        async with agent_here(site, tmp_path):
            pass
        run_id = await dispatch(site, "site-round", PARAMETERS, f"{site}/1")
        state = await wait_for_start(run_id, 0.0)
        assert (state.type, state.is_final, state.has_started) == ("SCHEDULED", False, False)
        state = await run_state(str(uuid4()))
        assert (state.type, state.is_final) == ("CRASHED", True)

    asyncio.run(scenario())


def test_dispatch_is_a_child_of_the_coordinators_flow_run_once(tmp_path: Path) -> None:
    site = f"site-{uuid4().hex[:8]}"

    @flow(name="coordinator-test")
    async def coordinate() -> list[str]:
        return [await dispatch(site, "site-round", PARAMETERS, f"{site}/1", run_name="round 1") for _ in range(2)]

    async def scenario() -> None:
        async with agent_here(site, tmp_path) as agent:
            first, second = await coordinate()
            assert first == second
            assert (await wait_for_end(first, 90.0, 0.05)).type == "COMPLETED"
            assert agent.trained() == ["s1 1"]
        async with get_client() as client:
            child = await client.read_flow_run(UUID(first))
            assert child.name == "round 1"
            assert child.parent_task_run_id is not None
            parent = await client.read_task_run(child.parent_task_run_id)
            assert parent.flow_run_id is not None
            assert (await client.read_flow_run(parent.flow_run_id)).deployment_id is None

    asyncio.run(scenario())


def test_site_that_never_registered_is_an_operator_error() -> None:
    with pytest.raises(OperationError, match="There is no deployment site-round/nowhere") as caught:
        asyncio.run(dispatch("nowhere", "site-round", PARAMETERS, uuid4().hex))
    assert caught.value.code == "site-not-registered"


def test_foreign_text_in_a_state_is_not_passed_on(tmp_path: Path) -> None:
    from prefect.states import Failed

    async def scenario() -> None:
        site = f"site-{uuid4().hex[:8]}"
        async with agent_here(site, tmp_path):
            pass
        run_id = await dispatch(site, "site-round", PARAMETERS, f"{site}/1")
        async with get_client() as client:
            await client.set_flow_run_state(UUID(run_id), Failed(message="\x1b[2J all is well"), force=True)
        assert (await run_state(run_id)).code == "unreadable-code"

    asyncio.run(scenario())
