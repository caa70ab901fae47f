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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from infra.demo.server import ControlPlane, open_control_plane
from infra.demo.workdir import DemoState, Workdir
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
    click.echo("Starting MLflow and Prefect; this takes up to a minute.", err=True)
    try:
        with (
            _hold(workdir, state),
            _start_mlflow(workdir) as mlflow,
            open_control_plane(workdir, given_url, None, state.prefect_port) as control,
        ):
            mlflow.wait()
            pages = _find_pages(mlflow.address, control, state.study)
            _show(mlflow.address, control, pages)
            if browser:
                webbrowser.open(pages.study_in_mlflow or mlflow.address)
                webbrowser.open(pages.study_in_prefect or control.ui_url)
            while True:
                mlflow.verify_alive()
                control.verify_alive(workdir.logs)
                time.sleep(0.5)
    except KeyboardInterrupt:
        click.echo("Stopped.")


@contextmanager
def _hold(workdir: Workdir, state: DemoState) -> Iterator[None]:
    """Holds the workdir, or says where a demo that still runs can be watched."""
    lock = WorkdirLock(workdir.root)
    try:
        lock.__enter__()
    except OperationError as error:
        if error.code != "workdir-in-use":
            raise
        watch = f"Watch it at http://127.0.0.1:{state.prefect_port}" if state.prefect_port else "Wait until it ends"
        raise OperationError(error.code, error.message, f"{watch}; run the command again when it has ended.") from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _show(address: str, control: ControlPlane, pages: _Pages) -> None:
    click.echo(f"MLflow:  {address}")
    click.echo(f"Prefect: {control.ui_url}")
    if pages.study_in_mlflow:
        click.echo(f"The study in MLflow:  {pages.study_in_mlflow}")
    if pages.model_in_mlflow:
        click.echo(f"The released model:   {pages.model_in_mlflow}")
    click.echo(f"The study in Prefect: {pages.study_in_prefect or 'not in the database of this server'}")
    # Otherwise MLflow shows its pages for language models, without the model registry.
    click.echo('In MLflow choose "Model training" at the top left.')
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


class _Mlflow:
    """MLflow's server while it starts and runs; leaving the context stops it."""

    def __init__(self, process: ChildProcess, address: str) -> None:
        self.address = address
        self._process = process
        self._deadline = time.monotonic() + _START_SECONDS

    def __enter__(self) -> _Mlflow:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def wait(self) -> None:
        """Waits until the server answers; raises OperationError `mlflow-died`."""
        while not _is_answering(f"{self.address}/health"):
            self.verify_alive()
            if time.monotonic() > self._deadline:
                raise OperationError(
                    "mlflow-died", f"MLflow is too slow; see {self._process.log}.", "Free memory and retry."
                )
            time.sleep(0.25)

    def verify_alive(self) -> None:
        """Raises OperationError `mlflow-died` if the server has ended."""
        if not self._process.is_alive():
            raise OperationError("mlflow-died", f"MLflow ended; see {self._process.log}.", "Run the command again.")


def _start_mlflow(workdir: Workdir) -> _Mlflow:
    """Starts MLflow's server without waiting for it: Prefect's starts meanwhile."""
    home, port = workdir.coordinator, find_free_port()
    environment = participant_environment(home, {})
    # Without its job runner MLflow needs two processes instead of ten; its gateway to language models has no use here.
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_ENABLE_AI_GATEWAY": "false"}
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(home / "mlartifacts")]
    process = start_process("MLflow", command, log=workdir.log("mlflow"), environment=environment, folder=home)
    return _Mlflow(process, f"http://127.0.0.1:{port}")


def _is_answering(url: str) -> bool:
    try:
        with _opener().open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _opener() -> urllib.request.OpenerDirector:
    # A proxy of the environment cannot reach this machine's own ports.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
