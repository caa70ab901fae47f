"""Opens MLflow and Prefect on what a demo left, on this machine only."""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from infra.demo.server import ControlPlane, open_control_plane
from infra.demo.workdir import Workdir
from infra.processes import ChildProcess, WorkdirLock, find_free_port, start_process
from infra.settings import participant_environment, read_environment
from schemas.errors import OperationError
from tasks.tracking.names import study_name

_START_SECONDS = 90.0


@dataclass(frozen=True)
class _Pages:
    """Where a person reads about one study; empty where there is nothing to read."""

    study_in_mlflow: str
    model_in_mlflow: str
    study_in_prefect: str


def run_ui(path: Path, browser: bool) -> None:
    """Starts both pages, prints their addresses and waits until it is stopped.

    Args:
        path: The workdir of a demo.
        browser: Also open both pages.

    Raises:
        OperationError: `no-demo`, `workdir-in-use` while the demo still runs, `mlflow-died`.
    """
    workdir = Workdir(path)
    state = workdir.read_state()
    if state is None or not (workdir.coordinator / "mlflow.db").exists():
        raise OperationError("no-demo", f"Expected a demo in {workdir.root}.", "Run `consilium demo` first.")
    given_url = read_environment().prefect_api_url
    # A terminated program stops its servers in order, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        click.echo("Starting MLflow and Prefect; this takes up to a minute.", err=True)
        with (
            WorkdirLock(workdir.root),
            open_control_plane(workdir, given_url, None, state.prefect_port) as control,
        ):
            mlflow, address = _start_mlflow(workdir, control)
            try:
                pages = _find_pages(address, control, state.study)
                _show(address, control, pages)
                if browser:
                    webbrowser.open(pages.study_in_mlflow or address)
                    webbrowser.open(pages.study_in_prefect or control.ui_url)
                while mlflow.is_alive():
                    control.verify_alive(workdir.logs)
                    time.sleep(0.5)
                raise OperationError("mlflow-died", f"MLflow ended; see {mlflow.log}.", "Run the command again.")
            finally:
                mlflow.stop()
    except KeyboardInterrupt:
        click.echo("Stopped.")


def _show(address: str, control: ControlPlane, pages: _Pages) -> None:
    # MLflow opens on its pages for language models; only this word in an address leads to the others.
    click.echo(f'MLflow:  {address}  (choose "Model training" at the top left)')
    if pages.study_in_mlflow:
        click.echo(f"  study: {pages.study_in_mlflow}")
    if pages.model_in_mlflow:
        click.echo(f"  model: {pages.model_in_mlflow}")
    click.echo(f"Prefect: {control.ui_url}")
    click.echo(f"  study: {pages.study_in_prefect or 'its runs are not in the database of this Prefect server'}")
    click.echo("Press Ctrl-C to stop both.")


def _find_pages(address: str, control: ControlPlane, study: str) -> _Pages:
    """Asks both servers where the study is; what does not answer is left out."""
    prefix, form = f"{address}/api/2.0/mlflow", "workflowType=machine_learning"
    condition = f"tags.`consilium.study` = '{study}'"
    found = _ask(f"{prefix}/experiments/search", {"max_results": 1, "filter": condition})
    experiments = [item["experiment_id"] for item in found.get("experiments", [])]
    condition = "tags.`consilium.level` = 'study'"
    asked = {"experiment_ids": experiments, "max_results": 1, "filter": condition}
    runs = _ask(f"{prefix}/runs/search", asked).get("runs", []) if experiments else []
    query = urllib.parse.urlencode({"filter": f"run_id = '{runs[0]['info']['run_id']}'"}) if runs else ""
    versions = _ask(f"{prefix}/model-versions/search?{query}").get("model_versions", []) if runs else []
    wanted = {"flow_runs": {"name": {"any_": [study_name(study)]}}, "sort": "START_TIME_DESC", "limit": 1}
    flow_runs = _ask(f"{control.api_url}/flow_runs/filter", wanted)
    pages = [f"{address}/#/experiments/{experiments[0]}/runs/{item['info']['run_id']}?{form}" for item in runs]
    models = [f"{address}/#/models/{item['name']}/versions/{item['version']}?{form}" for item in versions]
    flows = [f"{control.ui_url}/runs/flow-run/{item['id']}" for item in flow_runs]
    return _Pages(*(next(iter(group), "") for group in (pages, models, flows)))


def _ask(url: str, body: Mapping[str, object] | None = None) -> Any:
    """Returns the JSON answer of a server on this machine; an empty one where it gives none."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)  # noqa: S310  both servers were reached over http before
    try:
        with _opener().open(request, timeout=10) as answer:
            return json.loads(answer.read())
    except (urllib.error.URLError, OSError, ValueError):
        return {}


def _start_mlflow(workdir: Workdir, control: ControlPlane) -> tuple[ChildProcess, str]:
    home, port = workdir.coordinator, find_free_port()
    environment = participant_environment(home, control.variables(home))
    # Without its job runner MLflow needs two processes instead of ten; its gateway to language models has no use here.
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ENABLE_AI_GATEWAY": "false"}
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(home / "mlartifacts")]
    mlflow = start_process("MLflow", command, log=workdir.log("mlflow"), environment=environment, folder=home)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + _START_SECONDS
    while not _is_answering(f"{address}/health"):
        if not mlflow.is_alive() or time.monotonic() > deadline:
            mlflow.kill()
            raise OperationError("mlflow-died", f"MLflow did not start; see {mlflow.log}.", "Free memory and retry.")
        time.sleep(0.25)
    return mlflow, address


def _is_answering(url: str) -> bool:
    try:
        with _opener().open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _opener() -> urllib.request.OpenerDirector:
    # A proxy of the environment cannot reach this machine's own ports.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
