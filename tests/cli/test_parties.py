"""The supervisor keeps agents running, gives each its own home, and leaves no process behind."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from infra.demo.events import StudyView
from infra.demo.progress import PlainDisplay
from infra.demo.server import ControlPlane
from infra.demo.supervisor import AGENT_PROCESSES, Parties, StudyStopped, group_homes, verify_finished
from infra.demo.workdir import Workdir
from infra.processes import find_free_port
from infra.settings import save_settings
from schemas.errors import OperationError
from schemas.options import SiteSettings

# Stands in for an agent: says where it runs and what it was told, then waits to be stopped.
WAITS = "import os, signal, sys; print(os.getpid(), os.getcwd(), *sys.argv[1:], flush=True); signal.pause()"
DIES = "raise SystemExit(3)"
SITES = ("mercy", "valley")


class World:
    """Two sites and a coordinator whose program is `source`."""

    def __init__(self, root: Path) -> None:
        self.workdir = Workdir(root)
        self.out = io.StringIO()
        self.display = PlainDisplay(Console(file=self.out, width=300))
        for home in (self.workdir.coordinator, *map(self.workdir.site, SITES)):
            home.mkdir(parents=True)

    def parties(self, source: str, restart: bool = True) -> Parties:
        control = ControlPlane("http://127.0.0.1:1/api", "http://127.0.0.1:1", "postgresql", 1, ())
        homes = group_homes([self.workdir.site(site) for site in SITES])
        return Parties(self.workdir, homes, control, restart, (sys.executable, "-c", source))

    def started(self, process: str, times: int = 1) -> list[list[str]]:
        """Returns the words that the process wrote at each start, once it was started `times` times."""
        log = self.workdir.log(process)
        until(lambda: log.exists() and log.read_text().count("\n") >= times)
        return [line.split() for line in log.read_text().splitlines()]

    def tended(self, parties: Parties, said: str) -> bool:
        """Lets the supervisor look after its processes once; says whether it has mentioned `said`."""
        parties.tend(self.display)
        return said in self.out.getvalue()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.01)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_every_party_runs_in_its_own_home_and_none_outlives_the_supervisor(world: World) -> None:
    parties = world.parties(WAITS)
    parties.start()
    pids = []
    for site in SITES:
        ((pid, folder, *arguments),) = world.started(site)
        assert folder == str(world.workdir.site(site))
        assert arguments == ["site", "run", "--home", folder]
        pids.append(int(pid))
    ((pid, folder, *arguments),) = world.started("coordinator")
    assert arguments == ["coordinator", "run", "--home", str(world.workdir.coordinator)]
    parties.stop()
    assert not any(exists(p) for p in [*pids, int(pid)])


def test_an_agent_that_is_killed_is_started_again_in_its_home(world: World) -> None:
    parties = world.parties(WAITS)
    parties.start()
    try:
        ((pid, *_),) = world.started("mercy")
        os.kill(int(pid), signal.SIGKILL)
        until(lambda: world.tended(parties, "mercy"))
        first, second = world.started("mercy", times=2)
        assert first[1:] == second[1:]
        assert first[0] != second[0]
        assert len(world.started("valley")) == 1
        assert "The agent of mercy died and is started again" in world.out.getvalue()
    finally:
        parties.stop()


def test_without_restart_a_dead_agent_stays_a_drop_out(world: World) -> None:
    parties = world.parties(WAITS, restart=False)
    parties.start()
    try:
        ((pid, *_),) = world.started("mercy")
        os.kill(int(pid), signal.SIGKILL)
        until(lambda: world.tended(parties, "mercy"))
        parties.tend(world.display)
        assert world.out.getvalue() == "The agent of mercy died; it is not started again\n"
        assert len(world.started("mercy")) == 1
    finally:
        parties.stop()


def test_an_agent_that_dies_again_and_again_stops_the_demo(world: World) -> None:
    parties = world.parties(DIES)
    parties.start()

    try:
        with pytest.raises(OperationError, match="dies again and again; see ") as caught:
            until(lambda: world.tended(parties, "never said"))
        assert caught.value.code == "agent-keeps-dying"
    finally:
        parties.stop()


def test_more_sites_than_processes_share_them() -> None:
    homes = [Path(f"site-{n}") for n in range(30)]
    groups = group_homes(homes)
    assert len(groups) <= AGENT_PROCESSES
    assert [home for group in groups for home in group] == homes
    assert all(len(group) == 1 for group in group_homes(homes[:AGENT_PROCESSES]))


def test_a_coordinator_that_was_killed_asks_for_resume(tmp_path: Path) -> None:
    with pytest.raises(StudyStopped, match="--resume") as caught:
        verify_finished(Workdir(tmp_path), StudyView(), -signal.SIGKILL)
    assert (caught.value.code, caught.value.exit_code) == ("coordinator-died", 14)


def test_a_coordinator_that_refused_passes_its_reason_and_exit_code_on(tmp_path: Path) -> None:
    view = StudyView()
    view.apply({"event": "failed", "code": "threshold-rule", "message": "The plan breaks.", "remedy": "Use t=3."})
    with pytest.raises(StudyStopped, match=r"The plan breaks\. Use t=3\. Continue with") as caught:
        verify_finished(Workdir(tmp_path), view, 12)
    assert (caught.value.code, caught.value.exit_code) == ("threshold-rule", 12)
    assert caught.value.who_must_act == "the study coordinator"


def test_a_coordinator_that_finished_is_believed(tmp_path: Path) -> None:
    verify_finished(Workdir(tmp_path), StudyView(), 0)


def test_a_hand_started_agent_asks_the_server_of_its_settings_and_starts_none_of_its_own(tmp_path: Path) -> None:
    settings = SiteSettings(
        name="general",
        store=str(tmp_path / "store"),
        data=str(tmp_path / "cohort.parquet"),
        studies=(),
        prefect_api_url=f"http://127.0.0.1:{find_free_port()}/api",
        epsilon="1",
        delta="1e-6",
    )
    save_settings(settings, tmp_path / "config.json")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "infra.cli", "site", "run", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 14
    assert "Error (prefect-unreachable)" in done.stderr
    assert settings.prefect_api_url in done.stderr
    assert "temporary server" not in done.stderr
