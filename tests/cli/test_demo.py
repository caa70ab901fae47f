"""One whole demo with real processes: an agent and the coordinator are killed, the study ends as it should."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.demo.events import EventTail
from infra.demo.workdir import Workdir
from schemas.ledger import PrivacyReserved
from tasks.identity import load_identity
from tasks.ledger.store import LedgerStore

ROUNDS = 3
SITES = [f"hospital-{number:02d}" for number in range(1, 6)]


class RunningDemo:
    """`consilium demo` as a person starts it, with its output in files."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self.workdir = Workdir(root)
        self.out, self.err = root.with_suffix(".out"), root.with_suffix(".err")
        command = [sys.executable, "-m", "infra.cli", "demo", "--workdir", str(root), "--json", *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)

    def wait_for(self, event: str, **fields: Any) -> None:
        tail, seen = EventTail(self.workdir.events), list[dict[str, Any]]()

        def happened() -> bool:
            seen.extend(tail.read())
            wanted = {"event": event, **fields}
            return any(wanted.items() <= e.items() for e in seen)

        self.until(happened, event)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 400
        while not holds():
            assert self.process.poll() is None, f"the demo ended before {what}: {self.err.read_text()}"
            assert time.monotonic() < deadline, f"never saw {what}: {self.err.read_text()}"
            time.sleep(0.05)

    def finish(self) -> int:
        return self.process.wait(400)


def processes_of(*arguments: str) -> list[int]:
    """Returns the ids of the processes whose command line holds all `arguments`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if all(any(argument in word for word in words) for argument in arguments):
                found.append(int(folder.name))
    return found


def kill(*arguments: str) -> int:
    (pid,) = processes_of("infra.cli", *arguments)
    os.kill(pid, signal.SIGKILL)
    return pid


def openings(workdir: Workdir) -> dict[str, bytes]:
    return {str(p.relative_to(workdir.store)): p.read_bytes() for p in workdir.store.rglob("opening.json")}


def charged_rounds(workdir: Workdir, site: str, study: str) -> Counter[int]:
    home = workdir.site(site)
    ledger = LedgerStore(home / "ledger.sqlite", site, load_identity(home / "identity.json").signing)
    bodies = [entry.body for entry in ledger.find(study, "privacy-reserved")]
    return Counter(body.round for body in bodies if isinstance(body, PrivacyReserved))


@pytest.mark.demo
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_demo_outlives_a_killed_agent_and_a_killed_coordinator(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    demo = RunningDemo(root, "--rounds", str(ROUNDS))
    demo.wait_for("round-started", round=1)
    kill("site", str(demo.workdir.site(SITES[1])))
    demo.wait_for("round-done", round=1)
    demo.until(lambda: f"The agent of {SITES[1]} died and is started again" in demo.err.read_text(), "the restart")
    kill("coordinator", str(demo.workdir.coordinator))

    assert demo.finish() == 14
    assert "Error (coordinator-died)" in demo.err.read_text()
    assert "--resume" in demo.err.read_text()
    assert demo.out.read_text() == ""
    assert processes_of(str(root)) == []
    opened = openings(demo.workdir)
    assert len(opened) >= 1

    again = RunningDemo(root)
    assert again.finish() == 14
    assert "Error (workdir-unfinished)" in again.err.read_text()

    resumed = RunningDemo(root, "--resume")
    assert resumed.finish() == 0, resumed.err.read_text()
    summary = json.loads(resumed.out.read_text())
    verify_summary(summary)
    assert opened.items() <= openings(demo.workdir).items()
    for site in SITES:
        charged = charged_rounds(demo.workdir, site, summary["study"])
        assert set(charged.values()) == {1}
        assert set(charged) <= set(range(1, ROUNDS + 2))
    assert processes_of(str(root)) == []
    verify_secrecy(demo.workdir, summary)

    finished = RunningDemo(root, "--resume")
    assert finished.finish() == 14
    assert "Error (workdir-finished)" in finished.err.read_text()
    verify_pages(root)


def verify_pages(root: Path) -> None:
    """`consilium ui` prints two addresses, both answer, and Ctrl-C leaves nothing behind."""
    command = [sys.executable, "-m", "infra.cli", "ui", "--workdir", str(root), "--no-browser"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as pages:
        assert pages.stdout is not None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for name in ("MLflow", "Prefect"):
            found = re.fullmatch(rf"{name}: +(http://127\.0\.0\.1:\d+)\n", pages.stdout.readline())
            assert found is not None
            with opener.open(found[1], timeout=30) as answer:
                assert answer.status == 200
        said = "".join(iter(pages.stdout.readline, "Press Ctrl-C to stop both.\n"))
        assert "The study in Prefect: http" in said
        for page in ("/#/experiments/1/runs/", "/#/models/breast-cancer-logistic/versions/1", "/runs/flow-run/"):
            assert page in said
        pages.send_signal(signal.SIGINT)
        assert pages.wait(60) == 0
    assert processes_of(str(root)) == []


def verify_summary(summary: dict[str, Any]) -> None:
    assert summary["audit"]["passed"] is True
    assert summary["audit"]["failed"] == 0
    assert summary["complete"] is True
    assert summary["rounds"] == ROUNDS
    assert set(summary["participants"]) == {str(number) for number in range(1, ROUNDS + 2)}
    for number, present in summary["participants"].items():
        assert len(present) >= 4
        assert sorted([*present, *(site for site, _ in summary["dropped"][number])]) == SITES
    auc = summary["released_auc"]
    assert auc["low"] <= auc["value"] <= auc["high"]
    assert summary["exact_auc"] > 0.9
    assert summary["central_auc"] > 0.9
    assert sorted(summary["epsilon"]) == SITES
    for spent in summary["epsilon"].values():
        assert 0 < spent["outsider"] < spent["collusion"] <= 3 < spent["fallback"]
    assert summary["bytes"]["up"] > 0
    assert summary["model_version"].endswith("/1")


def verify_secrecy(workdir: Workdir, summary: dict[str, Any]) -> None:
    """What only a demo can know is in no file of the coordinator or the store; keys are where they belong."""
    exact = str(summary["exact_auc"]).encode()
    for folder in (workdir.coordinator, workdir.store):
        for path in folder.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert b"exact_auc" not in data, path
                assert exact not in data or len(exact) < 8, path
    for home in (workdir.coordinator, *map(workdir.site, SITES)):
        assert home.stat().st_mode & 0o077 == 0
        assert (home / "identity.json").stat().st_mode & 0o077 == 0
    memory = Path("/dev/shm") / f"consilium-{os.getuid()}" / summary["study"][:16]
    assert not memory.exists()
