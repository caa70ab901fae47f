"""Opens MLflow and Prefect on what a demo left, on this machine only."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

import click

from infra.demo.server import ControlPlane, open_control_plane
from infra.demo.workdir import Workdir
from infra.processes import ChildProcess, WorkdirLock, find_free_port, start_process
from infra.settings import participant_environment, read_environment
from schemas.errors import OperationError

_START_SECONDS = 90.0


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
    with (
        WorkdirLock(workdir.root),
        open_control_plane(workdir, given_url, None, state.prefect_port) as control,
    ):
        mlflow, address = _start_mlflow(workdir, control)
        try:
            click.echo(f"MLflow:  {address}")
            click.echo(f"Prefect: {control.ui_url}")
            click.echo("Press Ctrl-C to stop both.")
            if browser:
                webbrowser.open(address)
                webbrowser.open(control.ui_url)
            while mlflow.is_alive():
                control.verify_alive(workdir.logs)
                time.sleep(0.5)
            raise OperationError("mlflow-died", f"MLflow ended; see {mlflow.log}.", "Run the command again.")
        except KeyboardInterrupt:
            click.echo("Stopped.")
        finally:
            mlflow.stop()


def _start_mlflow(workdir: Workdir, control: ControlPlane) -> tuple[ChildProcess, str]:
    home, port = workdir.coordinator, find_free_port()
    environment = participant_environment(home, control.variables(home))
    # Without its job runner MLflow needs two processes instead of ten.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
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
    # A proxy of the environment cannot reach this machine's own ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
