"""A consortium under measurement: real processes, a counting relay in front of every server, a supervisor at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from infra.processes import WorkdirLock, find_free_port
from tests.bench.consortium_figures import Event, Step
from tests.bench.consortium_wire import Wire
from tests.consortium.parties import Place, Ports, make_parties
from tests.consortium.stores import ObjectStore, open_object_store
from tests.consortium.supervisor import NGINX, Running
from tests.simulator import change_settings

PAUSE_SECONDS = 0.1


class Consortium:
    """What runs, and what is known about it."""

    def __init__(self, place: Place, ports: Ports, running: Running, wire: Wire, store: ObjectStore) -> None:
        self.place, self.ports, self.running, self.wire, self.store = place, ports, running, wire, store
        self.events: list[Event] = []
        self.starts = 0
        self.names = ("servers", "proxy", "worker", *place.sites())
        self._read = 0
        self._run = ""
        self._asked = 0.0
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{ports.prefect}/api", trust_env=False, timeout=20)

    def pids(self) -> dict[str, int]:
        """Returns the process ids of the supervised processes by name."""
        return {**self.store.pids(), **{name: self.running.pid(name) for name in self.names}}

    @property
    def finished(self) -> bool:
        return (self.place.coordinator / "summary.json").is_file()

    def look(self) -> list[Event]:
        """Starts again what ended, the study too, and returns the events that came since the last look."""
        time.sleep(PAUSE_SECONDS)
        self.running.tend_once()
        if not self.finished:
            self._tend_study()
        path = self.place.coordinator / "events.jsonl"
        if not path.is_file():
            return []
        with path.open("rb") as source:
            source.seek(self._read)
            lines = source.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read += len(lines)
        found = [json.loads(line) for line in lines.splitlines()]
        self.events += found
        return found

    def until(self, fact: Callable[[Event], bool], seconds: float = 600.0) -> Event:
        """Tends until an event comes of which `fact` holds.

        Raises:
            SystemExit: none came in time; a bench that hangs has no figures.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for event in self.look():
                if fact(event):
                    return event
        raise SystemExit(f"What was waited for did not happen within {seconds:.0f} s; see {self.place.folder}.")

    def steps(self) -> list[Step]:
        """Returns every finished task run of the sites' rounds, by the Prefect server's account."""
        runs = {}
        for run in self._all("flow_runs", {"flows": {"name": {"any_": ["site-round"]}}}):
            runs[run["id"]] = run["deployment_id"], run["parameters"]["round"]
        site_of = {d["id"]: d["name"] for d in self._all("deployments", {})}
        found = []
        for task in self._all("task_runs", {"flow_runs": {"id": {"any_": list(runs)}}}):
            if task["start_time"] is not None and task["end_time"] is not None:
                deployment, number = runs[task["flow_run_id"]]
                found.append(Step(site_of[deployment], number, task["name"], float(task["total_run_time"])))
        return found

    def is_up(self, path: str = "/ready") -> bool:
        """Says whether the Prefect server answers; `/ready` asks its database too."""
        try:
            return bool(self._api.get(path).status_code == 200)
        except httpx.HTTPError:
            return False

    def _tend_study(self) -> None:
        """Starts the study's deployment again whenever its run has ended: what the schedule does, without the pause."""
        if time.monotonic() - self._asked < 0.5:
            return
        self._asked = time.monotonic()
        try:
            if self._run:
                state = self._api.get(f"/flow_runs/{self._run}").raise_for_status().json()["state"]
                if state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") or self.finished:
                    return
            name = f"/deployments/name/scheduled-study/study-{self.place.study[:12]}"
            found = self._api.get(name).raise_for_status().json()["id"]
            asked = {"state": {"type": "SCHEDULED"}}
            made = self._api.post(f"/deployments/{found}/create_flow_run", json=asked).raise_for_status().json()
        except httpx.HTTPError:
            return  # the server is away; the next look tries again
        self._run, self.starts = str(made["id"]), self.starts + 1

    def _all(self, kind: str, filters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            asked = {**filters, "limit": 200, "offset": offset}
            page = self._api.post(f"/{kind}/filter", json=asked).raise_for_status().json()
            yield from page
            offset += len(page)
            if len(page) < 200:
                return


@contextlib.contextmanager
def running_consortium(rounds: int, poll_seconds: float, kept: Path | None) -> Iterator[Consortium]:
    """Makes and starts everything; what it prints goes to standard error.

    Args:
        poll_seconds: Every participant's longest pause between two looks at the store and at Prefect.
        kept: Folder to use and to keep; a temporary one by default.

    Raises:
        SystemExit: nginx is missing.
        OperationError: as the processes' starts.
    """
    if NGINX is None:
        raise SystemExit("nginx is not installed.")
    folder = kept.absolute() if kept is not None else Path(tempfile.mkdtemp(prefix="consilium-bench-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = Place(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if kept is None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(WorkdirLock(folder))
        wire = Wire()
        stack.callback(wire.close)
        store = stack.enter_context(open_object_store(folder, ["127.0.0.1"]))
        ports = Ports(find_free_port(), find_free_port(), store.port, find_free_port(), s3_scheme=store.scheme)
        running = Running(place, stack)
        make_parties(place, ports, rounds, store.add_user)
        _lay_wires(place, ports, wire, poll_seconds)
        running.start_servers(ports, again=True)
        running.run_once("deploy", "coordinator", "deploy", "--home", str(place.coordinator))
        running.start_parties()
        yield Consortium(place, ports, running, wire, store)


def _lay_wires(place: Place, ports: Ports, wire: Wire, poll_seconds: float) -> None:
    """Leads every participant's connections through a relay of its own."""
    assert ports.s3 is not None
    assert ports.proxy is not None
    for name, home in {"coordinator": place.coordinator, **place.sites()}.items():
        content = json.loads((home / "config.json").read_text())
        s3 = {**content["s3"], "endpoint": f"{ports.s3_scheme}://127.0.0.1:{wire.add(f'{name} - S3', ports.s3)}"}
        options = {**content["options"], "poll_interval_seconds": poll_seconds}
        change_settings(home, s3=s3, options=options)
        if name != "coordinator":
            port = wire.add(f"{name} - Prefect", ports.proxy)
            change_settings(home, prefect_api_url=f"https://127.0.0.1:{port}/api")
