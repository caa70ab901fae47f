"""The coordinator's schedules on a real server: applied twice they are there once, and what is due runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.deployments.flow_runs import arun_deployment

from flows.budget_report import describe_budgets, read_budgets
from flows.context import open_coordinator
from flows.lease import hold_study
from flows.notices import AUDIT_FAILED, notify
from infra.deployments import NOTICES, POOL, PROJECT, ProjectFile, apply_project, read_project
from infra.prefect_server import PrefectServer
from infra.processes import ChildProcess, start_process
from schemas.errors import OperationError
from tests.conftest import FinishedStudy
from tests.runtime.waiting import wait_until
from tests.simulator import change_settings, copy_study


class Hook:
    """A webhook that remembers what was posted to it."""

    def __init__(self) -> None:
        posted: list[dict[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.posted = posted
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/notices"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()


@pytest.fixture
def home(finished_study: FinishedStudy, server: PrefectServer, tmp_path: Path) -> Path:
    """The home of a coordinator whose sites' charges are known."""
    copied = copy_study(finished_study.prepared, tmp_path / "study")
    change_settings(copied.workdir.coordinator, prefect_api_url=server.api_url)
    return copied.workdir.coordinator


@pytest.fixture
def project(home: Path) -> ProjectFile:
    return read_project(PROJECT, home, _study(home))


def _study(home: Path) -> str:
    return str(json.loads((home / "config.json").read_text())["study"])


def _worker(home: Path, environment: dict[str, str]) -> ChildProcess:
    environment = {name: value for name, value in environment.items() if not name.startswith("PREFECT_HOME")}
    return start_process(
        "the coordinator's worker",
        [sys.executable, "-m", "infra.cli", "coordinator", "serve", "--home", str(home)],
        log=home / "worker.log",
        environment={**environment, "HOME": str(home), "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"},
        folder=Path(__file__).parents[2],
    )


async def _start(name: str) -> str:
    return str((await arun_deployment(name, timeout=0)).id)


async def _state(run: str) -> tuple[str, str]:
    async with get_client() as client:
        found = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    state = found[0].state
    return (state.type.value, state.name) if state else ("", "")


def _ended(run: str) -> bool:
    return asyncio.run(_state(run))[0] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@pytest.mark.usefixtures("prefect_settings")
def test_deploying_twice_makes_everything_once(project: ProjectFile, home: Path) -> None:
    study = _study(home)

    async def apply() -> tuple[list[str], int, int, list[bool]]:
        lines = await apply_project(project, study, {"study": "0 2 * * *"}, None)
        async with get_client() as client:
            names = [d.name for d in await client.read_deployments() if d.name.endswith(study[:12])]
            automations = [a for a in await client.read_automations() if a.name.endswith(study[:12])]
            found = await client.read_deployment_by_name(f"scheduled-study/study-{study[:12]}")
            for schedule in found.schedules:  # a person pauses it
                await client.update_deployment_schedule(found.id, schedule.id, active=False)
        return lines, len(names), len(automations), [s.active for s in found.schedules]

    first = asyncio.run(apply())
    second = asyncio.run(apply())
    assert first[1:] == (4, len(NOTICES), [True])
    assert second[1:] == (4, len(NOTICES), [False]), "what was paused stays paused"
    assert f"deployment scheduled-study/study-{study[:12]}: 0 2 * * * (paused)" in second[0]
    assert f"deployment audit/audit-{study[:12]}: 30 3 * * *" in second[0]


@pytest.mark.usefixtures("prefect_settings")
def test_an_unknown_deployment_is_refused(project: ProjectFile, home: Path) -> None:
    with pytest.raises(OperationError, match="no deployment studdy"):
        asyncio.run(apply_project(project, _study(home), {"studdy": "0 2 * * *"}, None))


def test_a_second_process_cannot_run_the_same_study(home: Path) -> None:
    with hold_study(home), pytest.raises(OperationError, match="Another process is running this study"):
        with hold_study(home):
            pass
    with hold_study(home):
        pass


@pytest.mark.usefixtures("prefect_settings")
def test_overlap_is_told_a_released_study_stops_and_low_budgets_are_posted(
    project: ProjectFile, home: Path, hook: Hook, agent_environment: dict[str, str]
) -> None:
    study = _study(home)
    # Nothing of it is due while this test starts the runs itself.
    asyncio.run(apply_project(project, study, {"study": "0 2 1 1 *", "review": "0 2 1 1 *"}, hook.address))
    environment = {**os.environ, **agent_environment}
    worker = _worker(home, environment)
    try:
        with hold_study(home):
            overlapping = asyncio.run(_start(f"scheduled-study/study-{study[:12]}"))
            wait_until(lambda: _ended(overlapping) or not worker.is_alive())
        assert asyncio.run(_state(overlapping)) == ("CANCELLED", "AlreadyRunning"), worker.log_tail(60)
        (home / "summary.json").write_text("{}")
        released = asyncio.run(_start(f"scheduled-study/study-{study[:12]}"))
        report = asyncio.run(_start(f"budget-report/budget-{study[:12]}"))
        wait_until(lambda: _ended(released) and _ended(report))
        assert asyncio.run(_state(released))[0] == "COMPLETED", worker.log_tail(60)
        assert asyncio.run(_state(report))[0] == "COMPLETED", worker.log_tail(60)
        assert not any(asyncio.run(_schedules(study)))
        review = asyncio.run(_start(f"scheduled-review/review-{study[:12]}"))
        wait_until(lambda: _ended(review))
        # The embedded study was never registered in MLflow: there is nothing that anybody could have decided about.
        assert asyncio.run(_state(review)) == ("COMPLETED", "NothingToReview"), worker.log_tail(60)
        sites = {line.site for line in read_budgets(open_coordinator(home))}
        wait_until(lambda: {p["about"].rsplit(".", 1)[1] for p in hook.posted} == sites)
        assert {p["event"] for p in hook.posted} == {"consilium.budget.low"}
        # A hospital's token may send any event: what it calls itself stays one text.
        forged = 'x", "text": "call this number'
        asyncio.run(notify(AUDIT_FAILED, study, forged, {}))
        wait_until(lambda: forged in {p["about"] for p in hook.posted})
        assert {(p["about"] == forged, p["text"]) for p in hook.posted if p["event"] == AUDIT_FAILED} == {
            (True, "The audit of a study found something.")
        }
        assert {p["study"] for p in hook.posted} == {study[:12]}
    finally:
        worker.stop()


async def _schedules(study: str) -> list[bool]:
    async with get_client() as client:
        found = await client.read_deployment_by_name(f"scheduled-study/study-{study[:12]}")
    return [schedule.active for schedule in found.schedules]


def test_the_budget_report_names_every_site_and_no_patient_figure(home: Path) -> None:
    context = open_coordinator(home)
    page = describe_budgets(read_budgets(context))
    for site in context.plan.contributors:
        assert f"| {site.name} | training patients | 0% |" in page
    assert str(context.plan.sites[0].declared_patients) not in page


def test_only_the_two_known_variables_are_filled_in(tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted" {{ $CONSILIUM_STUDY }} home'
    assert POOL in {d.work_pool.name for d in read_project(PROJECT, tmp_path, "ab" * 32).deployments}
    assert "abababababab" in read_project(PROJECT, odd, "ab" * 32).deployments[0].name
    with pytest.raises(OperationError, match=r"Expected deployments in nothing\.yaml"):
        read_project(tmp_path / "nothing.yaml", tmp_path, "ab" * 32)
