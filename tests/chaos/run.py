"""One study under chaos: real processes, a supervisor that restarts what a seed's script kills, links that it cuts.

Four hospitals' agents, the coordinator, a Prefect server and its PostgreSQL run as processes of their own; every agent
and the coordinator reach the server through a link of their own. The store is a folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from infra.demo.options import DemoOptions
from infra.demo.prepare import prepare_study, write_participant_settings
from infra.demo.supervisor import PROGRAM
from infra.demo.workdir import Workdir
from infra.postgres import Postgres, start_postgres
from infra.prefect_server import PrefectServer, prefect_client_environment, start_prefect_server
from infra.processes import ChildProcess, find_free_port, start_process
from infra.settings import participant_environment
from schemas.options import RunOptions
from schemas.plan import StudyPlan
from tasks.storage.folder import FolderStore
from tests.chaos.link import Link
from tests.chaos.script import Blow, write_script
from tests.chaos.verify import Verdict, verify_study

SITES = 4
DEADLINE_SECONDS = 20.0
OPTIONS = RunOptions(
    ceremony_deadline_seconds=60,
    contribute_deadline_seconds=DEADLINE_SECONDS,
    certify_deadline_seconds=DEADLINE_SECONDS,
    share_deadline_seconds=DEADLINE_SECONDS,
    opening_deadline_seconds=DEADLINE_SECONDS,
    release_deadline_seconds=DEADLINE_SECONDS,
    silent_grace_seconds=8,
)
_FAKETIME = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        seconds: From the first process to the release.
        recoveries: Times that the coordinator had to be started again.
    """

    seed: int
    seconds: float
    recoveries: int
    blows: tuple[str, ...]
    verdict: Verdict


@dataclass
class Hosts:
    """All processes of the study and the links between them."""

    workdir: Workdir
    plan: StudyPlan
    memory: Path
    port: int
    stack: ExitStack
    links: dict[str, Link] = field(default_factory=dict)
    processes: dict[str, ChildProcess] = field(default_factory=dict)
    down_until: dict[str, float] = field(default_factory=dict)
    skew: dict[str, str] = field(default_factory=dict)
    ballast: list[Path] = field(default_factory=list)
    postgres: Postgres | None = None
    server: PrefectServer | None = None
    coordinator_starts: int = 0

    def start(self, seed: int) -> None:
        """Starts everything."""
        self._start_servers()
        for index, name in enumerate([site.name for site in self.plan.sites] + ["coordinator"]):
            self.links[name] = Link(self.port, seed * 100 + index)
            self.stack.callback(self.links[name].close)
        write_participant_settings(self.workdir, self.plan, "http://unused.invalid/api", self.memory, OPTIONS)
        for site in self.plan.sites:
            self._start_party(site.name)
        self._start_party("coordinator")

    def tend(self) -> None:
        """Starts again whatever died, once its time has come."""
        now = time.monotonic()
        if self._due("postgres", self.postgres is not None and self.postgres.is_alive(), now) or self._due(
            "prefect", self.server is not None and self.server.is_alive(), now
        ):
            self._start_servers()
        for name in self.links:
            if name == "coordinator" and self.finished:
                continue
            if self._due(name, self.processes[name].is_alive(), now):
                self._start_party(name)

    @property
    def finished(self) -> bool:
        return self.workdir.coordinator_summary.is_file() and not self.processes["coordinator"].is_alive()

    def strike(self, blow: Blow) -> Callable[[], None]:
        """Does what `blow` says and returns what mends it."""
        if blow.kind == "kill":
            self.down_until[blow.target] = time.monotonic() + blow.lasts_seconds
            self._kill(blow.target)
            return lambda: None
        if blow.kind == "clock":
            return self._skew_clock(blow.target)
        if blow.kind == "disk-full":
            return self._fill_disk(blow.target)
        link = self.links[blow.target]
        if blow.kind == "cut":
            link.cut()
        elif blow.kind == "slow":
            link.state.delay_seconds = 0.4
        else:
            link.state.reset_chance = 0.05
        return link.mend

    def stop(self) -> None:
        """Stops everything."""
        for process in self.processes.values():
            process.kill()
        if self.server is not None:
            self.server.process.kill()
        if self.postgres is not None:
            self.postgres.stop()
            shutil.rmtree(self.postgres.data_folder, ignore_errors=True)

    def _due(self, name: str, alive: bool, now: float) -> bool:
        return not alive and now >= self.down_until.get(name, 0.0)

    def _kill(self, target: str) -> None:
        if target == "postgres" and self.postgres is not None:
            os.killpg(self.postgres.process.pid, signal.SIGKILL)
        elif target == "prefect" and self.server is not None:
            self.server.process.kill()
        else:
            self.processes[target].kill()

    def _start_servers(self) -> None:
        """Starts the database where it is down, and the Prefect server, which must learn its new socket."""
        if self.server is not None:
            self.server.process.kill()
        if self.postgres is None or not self.postgres.is_alive():
            self.postgres = start_postgres(self.workdir.postgres, log=self.workdir.log("postgres"))
        log, url = self.workdir.log("prefect-server"), self.postgres.url()
        self.server = start_prefect_server(self.workdir.prefect, log=log, database_url=url, port=self.port)

    def _start_party(self, name: str) -> None:
        home = self.workdir.coordinator if name == "coordinator" else self.workdir.site(name)
        old = self.processes.get(name)
        if old is not None:
            old.kill()
        self.coordinator_starts += name == "coordinator"
        command = ["coordinator", "run"] if name == "coordinator" else ["site", "run"]
        url = f"http://127.0.0.1:{self.links[name].port}/api"
        environment = participant_environment(home, prefect_client_environment(url, home / "prefect"))
        environment |= {"PREFECT_API_URL": url, **self._fake_clock(name)}
        self.processes[name] = start_process(
            name,
            [*PROGRAM, *command, "--home", str(home)],
            log=self.workdir.log(name),
            environment=environment,
            folder=home,
        )

    def _fake_clock(self, name: str) -> dict[str, str]:
        library = next((path for path in _FAKETIME if path.is_file()), None)
        if name not in self.skew or library is None:
            return {}
        return {"LD_PRELOAD": str(library), "FAKETIME": self.skew[name], "DONT_FAKE_MONOTONIC": "1"}

    def _skew_clock(self, site: str) -> Callable[[], None]:
        """Starts the agent again with a clock that is minutes off."""
        self.skew[site] = "+7m"
        self.processes[site].kill()

        def mend() -> None:
            self.skew.pop(site, None)

        return mend

    def _fill_disk(self, site: str) -> Callable[[], None]:
        """Takes all space of the site's home, which is a file system of its own."""
        ballast = self.workdir.site(site) / "ballast"
        self.ballast.append(ballast)
        with ballast.open("wb", buffering=0) as out:
            try:
                while True:
                    out.write(bytes(1 << 20))
            except OSError:
                pass

        def mend() -> None:
            ballast.unlink(missing_ok=True)

        return mend


def run_seed(seed: int, folder: Path, rounds: int = 10, limit_seconds: float = 900) -> Outcome:
    """Runs a study under the script of `seed` in `folder` and verifies what it left.

    Raises:
        AssertionError: the study did not finish in time, or something does not hold afterwards.
    """
    folder.mkdir(parents=True)
    workdir = Workdir(folder)
    options = DemoOptions(workdir=folder, sites=SITES, threshold=2, rounds=rounds, epsilon="3", delta="1e-5")
    plan, _ = prepare_study(options, workdir)
    memory = Path("/dev/shm" if Path("/dev/shm").is_dir() else folder) / f"consilium-chaos-{os.getpid()}-{seed}"
    memory.mkdir(mode=0o700)
    names = [site.name for site in plan.sites]
    script = write_script(seed, names, 8.0 * rounds, DEADLINE_SECONDS)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, memory, ignore_errors=True)
        _mount_homes(workdir, names, stack)
        hosts = Hosts(workdir, plan, memory, find_free_port(), stack)
        stack.callback(hosts.stop)
        hosts.start(seed)
        started = time.monotonic()
        _play(hosts, script, started, limit_seconds)
        seconds = time.monotonic() - started
        hosts.stop()
        verdict = verify_study(workdir, plan, FolderStore(workdir.store))
    return Outcome(seed, seconds, hosts.coordinator_starts - 1, tuple(str(blow) for blow in script), verdict)


def _play(hosts: Hosts, script: list[Blow], started: float, limit_seconds: float) -> None:
    waiting, mending = list(script), list[tuple[float, Callable[[], None]]]()
    while not hosts.finished:
        now = time.monotonic() - started
        if now > limit_seconds:
            raise AssertionError(f"the study did not finish within {limit_seconds:.0f} s; see {hosts.workdir.logs}")
        while waiting and waiting[0].at_seconds <= now:
            blow = waiting.pop(0)
            print(f"  {blow}", file=sys.stderr, flush=True)
            mending.append((now + blow.lasts_seconds, hosts.strike(blow)))
        for due in [item for item in mending if item[0] <= now]:
            mending.remove(due)
            due[1]()
        hosts.tend()
        time.sleep(0.2)


def _mount_homes(workdir: Workdir, sites: list[str], stack: ExitStack) -> None:
    """Gives each site a small file system, so that its disk can be full; needs root, else its disk never is."""
    if os.geteuid() != 0:
        return
    for site in sites:
        home = workdir.site(site)
        kept = home.with_name(f"{site}.kept")
        home.rename(kept)
        home.mkdir(mode=0o700)
        if os.spawnlp(os.P_WAIT, "mount", "mount", "-t", "tmpfs", "-o", "size=96m,mode=0700", "tmpfs", str(home)):
            home.rmdir()
            kept.rename(home)
            return
        shutil.copytree(kept, home, dirs_exist_ok=True)
        shutil.rmtree(kept)
        stack.callback(os.spawnlp, os.P_WAIT, "umount", "umount", "-l", str(home))
