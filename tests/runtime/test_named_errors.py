"""What stops a study is named once with its remedy, at the coordinator and at a site; no traceback of the engine."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import pytest
from prefect import flow, task

from flows.ceremony import follow_phases
from flows.context import open_coordinator
from flows.dispatch import wait_for_end
from flows.waiting import SiteRuns
from infra.prefect_server import PrefectServer
from infra.processes import start_process
from schemas.errors import OperationError
from site_agents.flows import site_flows
from site_agents.worker import ensure_site_deployments, ensure_site_pool, run_agent
from tasks.run_log import hide_expected_tracebacks, is_unforeseen
from tests.simulator import Prepared, change_settings, copy_study

ENGINE = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


@pytest.fixture
def prepared(prepared_study: Prepared, server: PrefectServer, tmp_path: Path) -> Prepared:
    copied = copy_study(prepared_study, tmp_path / "study")
    options = {"ceremony_deadline_seconds": 0.2}
    change_settings(copied.workdir.coordinator, prefect_api_url=server.api_url, options=options)
    return copied


@pytest.mark.usefixtures("prefect_settings")
def test_a_stopped_study_says_why_once_and_debug_shows_where(
    prepared: Prepared, agent_environment: dict[str, str]
) -> None:
    home = prepared.workdir.coordinator

    def run(**variables: str) -> tuple[int | None, str]:
        log = home / f"run{len(variables)}.log"
        command = [sys.executable, "-m", "infra.cli", "coordinator", "run", "--home", str(home)]
        environment = {**agent_environment, **variables}
        process = start_process("run", command, log=log, environment=environment, folder=Path(__file__).parents[2])
        assert process.wait(500.0)
        return process.exit_code, log.read_text()

    code, log = run()
    assert code == OperationError.exit_code
    holders = ", ".join(f"{site.name} (its agent never registered)" for site in prepared.plan.key_holders)
    assert f"Error (ceremony-incomplete): Epoch 1: no nonce-commit from {holders}." in log
    assert log.count("ceremony-incomplete") == log.count("Remedy: Every key holder takes part in a ceremony") == 1
    assert "Traceback" not in log
    assert "Finished in state" not in log
    code, log = run(CONSILIUM_DEBUG="1")
    assert code == 1
    assert log.count("Traceback") > 1
    assert "Epoch 2: no nonce-commit" in log


@pytest.mark.usefixtures("prefect_settings")
def test_a_holder_whose_flow_failed_is_named_with_its_code_and_its_own_log_says_it_once(
    prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    change_settings(prepared.workdir.coordinator, options={"ceremony_deadline_seconds": 3600})
    context = open_coordinator(prepared.workdir.coordinator)
    broken, idle, unknown = (site.name for site in prepared.plan.sites[:3])
    (prepared.workdir.site(broken) / "config.json").write_text("{")
    flows = site_flows(prepared.workdir.site(broken))

    async def ask() -> str:
        await ensure_site_pool(idle)
        await ensure_site_deployments(idle, flows)
        runs = SiteRuns(context, "site-ceremony", 1, "epoch 1", {"study": context.study, "epoch": 1})
        stop, ready = asyncio.Event(), asyncio.Event()
        agent = run_agent(
            broken, flows, on_refusal=lambda code, run: None, poll_seconds=0.1, on_ready=ready.set, stop=stop
        )
        working = asyncio.create_task(agent)
        await ready.wait()
        try:
            await runs.start([broken, idle, unknown])
            assert await runs.describe([idle]) == f"{idle} (its agent does not run)"
            await wait_for_end(runs._runs[broken][0], 90.0, 0.1)
            said = await runs.describe([broken, idle, unknown])
            # A holder that has failed is not waited for, and the others do not wait for it either.
            with pytest.raises(OperationError, match=rf"no nonce-commit from {broken} \(settings-unreadable\)\. Every"):
                await follow_phases.fn(context, 1, runs)
            assert await runs.describe([idle]) == f"{idle} (silent)"
            return said
        finally:
            stop.set()
            await working

    said = asyncio.run(ask())
    others = f"{idle} (its agent does not run), {unknown} (its agent never registered)"
    assert said == f"{broken} (settings-unreadable), {others}"
    assert caplog.text.count("settings-unreadable") == 1
    assert "NoneType" not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("prefect_settings")
def test_what_nobody_foresaw_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def divide() -> None:
        raise ZeroDivisionError

    @flow(name="unforeseen")
    async def unforeseen() -> None:
        await divide()

    hide_expected_tracebacks()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(unforeseen())
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_debug_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENGINE:
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    monkeypatch.setenv("CONSILIUM_DEBUG", "1")
    hide_expected_tracebacks()
    assert not any(logging.getLogger(name).filters for name in ENGINE)
    monkeypatch.setenv("CONSILIUM_DEBUG", "0")
    hide_expected_tracebacks()
    hide_expected_tracebacks()
    assert [logging.getLogger(name).filters for name in ENGINE] == [[is_unforeseen]] * 3
