"""Runs every process of a consortium on this machine, starts agents again that end, and stops all of them in order."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.prefect_server import is_healthy
from infra.processes import ChildProcess, WorkdirLock, find_free_port, start_process
from infra.services import is_answering
from infra.settings import participant_environment
from schemas.errors import OperationError
from tests.consortium.parties import Place, Ports, make_parties

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
ROOT = Path(__file__).parents[2]
_START_SECONDS = 300.0


def supervise(folder: Path, store: str, rounds: int) -> None:
    """Makes the parties if they are not there yet, and runs their processes until SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = Place(folder.absolute())
    # Never given back here: the kernel does when this process has ended, and `down` waits for that.
    WorkdirLock(place.folder).__enter__()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        ports = _ports(place, store)
        running = Running(place, stack)
        if ports.s3 is not None:
            moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports.s3)]
            running.start("s3", moto)
            running.wait("s3", lambda: is_answering(f"http://127.0.0.1:{ports.s3}/moto-api/"))
        if not place.coordinator.exists():
            make_parties(place, ports, rounds)
        running.start_servers(ports)
        # Applied before the agents come: behind the proxy nobody makes a pool for itself.
        running.run_once("deploy", "coordinator", "deploy", "--home", str(place.coordinator))
        running.start_parties()
        _write_state(place, ports, ready=True)
        running.tend()


class Running:
    """The processes, each with its log in ``logs/``."""

    def __init__(self, place: Place, stack: contextlib.ExitStack) -> None:
        self._place = place
        self._stack = stack
        self._processes: dict[str, ChildProcess] = {}
        self._again: dict[str, Callable[[], ChildProcess]] = {}
        stack.callback(self._stop)

    def start(self, name: str, command: list[str], home: Path | None = None, again: bool = False) -> ChildProcess:
        """Starts a process; with `again` it is started anew whenever it ends."""

        def begin() -> ChildProcess:
            environment = participant_environment(home or self._place.folder, {"PYTHONPATH": str(ROOT)})
            return start_process(name, command, log=self._place.log(name), environment=environment, folder=home)

        self._processes[name] = begin()
        if again:
            self._again[name] = begin
        return self._processes[name]

    def pid(self, name: str) -> int:
        """Returns the id of the process that runs, or ran last, under this name."""
        return self._processes[name].pid

    def start_servers(self, ports: Ports, again: bool = False) -> None:
        """Starts the coordinator's servers and the proxy in front of them."""
        home = self._place.coordinator
        self.start("servers", _consilium("coordinator", "up", "--home", str(home)), home, again)
        self.wait("servers", lambda: is_healthy(f"http://127.0.0.1:{ports.prefect}/api"))
        self.wait("servers", lambda: is_answering(f"http://127.0.0.1:{ports.mlflow}/health"))
        if ports.proxy is not None:
            # Started as root, nginx would become a user that may not read this folder.
            user = " user root;" if os.geteuid() == 0 else ""
            config = str(self._place.proxy / "nginx.conf")
            self.start("proxy", [str(NGINX), "-c", config, "-g", f"daemon off;{user}"])

    def start_parties(self) -> None:
        """Starts the coordinator's worker and one agent per hospital."""
        home = self._place.coordinator
        self.start("worker", _consilium("coordinator", "serve", "--home", str(home)), home, again=True)
        for name, folder in self._place.sites().items():
            self.start(name, _consilium("site", "run", "--home", str(folder)), folder, again=True)

    def run_once(self, name: str, *command: str) -> None:
        """Runs a command to its end; raises OperationError `command-failed` unless it succeeds."""
        process = self.start(name, _consilium(*command), self._place.coordinator)
        if not process.wait(_START_SECONDS) or process.exit_code:
            raise OperationError("command-failed", f"{' '.join(command)}: {process.log_tail(5)}", "See its log.")
        del self._processes[name]

    def wait(self, name: str, fact: Callable[[], bool]) -> None:
        """Waits until `fact` holds while the process runs; raises OperationError `process-ended`."""
        deadline = time.monotonic() + _START_SECONDS
        while not fact():
            process = self._processes[name]
            if not process.is_alive() or time.monotonic() > deadline:
                raise OperationError("process-ended", f"{name}: {process.log_tail(5)}", f"See {process.log}.")
            time.sleep(0.2)

    def tend(self) -> None:
        """Starts agents and worker again that ended; returns never, raises when a server ended."""
        while True:
            self.tend_once(pause_seconds=1.0)
            time.sleep(0.5)

    def tend_once(self, pause_seconds: float = 0.0) -> None:
        """Looks at every process once and starts those again that ended, after a pause."""
        for name, process in list(self._processes.items()):
            if process.is_alive():
                continue
            process.kill()
            if name not in self._again:
                raise OperationError("process-ended", f"{name} ended: {process.log_tail(5)}", "Start again.")
            time.sleep(pause_seconds)
            self._processes[name] = self._again[name]()

    def _stop(self) -> None:
        # The last started first: parties before servers, servers before the store.
        for process in reversed(self._processes.values()):
            process.stop(grace_seconds=30.0)
        self._place.state.unlink(missing_ok=True)


def _consilium(*command: str) -> list[str]:
    return [sys.executable, "-P", "-m", "infra.cli", *command]


def _ports(place: Place, store: str) -> Ports:
    kept = place.folder / "ports.json"
    if kept.is_file():
        content: dict[str, Any] = json.loads(kept.read_text())
        if content["s3"] is not None:
            raise OperationError(
                "store-forgotten", "The S3 server of this folder kept its objects in memory.", "Choose another folder."
            )
        return Ports(**content)
    if store == "s3" and importlib.util.find_spec("moto") is None:
        raise OperationError("not-installed", "An S3 server needs the package moto.", "Take --store folder.")
    ports = Ports(
        find_free_port(),
        find_free_port(),
        find_free_port() if store == "s3" else None,
        find_free_port() if NGINX else None,
    )
    kept.write_text(json.dumps(asdict(ports)))
    return ports


def _write_state(place: Place, ports: Ports, ready: bool) -> None:
    proxy = f"https://127.0.0.1:{ports.proxy}/api" if ports.proxy else None
    content = {
        "ready": ready,
        "process": os.getpid(),
        "study": place.study,
        "prefect": f"http://127.0.0.1:{ports.prefect}",
        "mlflow": f"http://127.0.0.1:{ports.mlflow}",
        "proxy": proxy,
        "store": f"s3 on port {ports.s3}" if ports.s3 else str(place.folder / "store"),
    }
    temporary = place.state.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=2))
    temporary.replace(place.state)
