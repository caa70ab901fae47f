"""Runs a whole study on one machine as separate processes and watches over them.

The supervisor owns no key and takes part in no protocol: it starts every party, shows what the coordinator reports, and
starts an agent again that died. All of its children end with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from infra.demo.events import EventTail, StudyView
from infra.demo.options import DemoOptions
from infra.demo.prepare import load_plan, prepare_study, write_participant_settings
from infra.demo.progress import Display, open_display
from infra.demo.server import ControlPlane, open_control_plane, verify_reachable
from infra.demo.summary import DemoSummary, build_summary, render_summary
from infra.demo.workdir import DemoState, Workdir, open_workdir
from infra.processes import ChildProcess, start_process
from infra.settings import participant_environment, read_environment
from schemas.errors import (
    BudgetError,
    ConsiliumError,
    EvidenceError,
    OperationError,
    PeerError,
    PlanError,
    SiteDataError,
)
from schemas.options import RunOptions
from schemas.plan import StudyPlan

AGENT_PROCESSES = 12
# -P: a participant runs in its own home, and nothing that lies there may be imported.
PROGRAM = (sys.executable, "-P", "-m", "infra.cli")
_WATCH_SECONDS = 0.2
_RESTARTS_PER_MINUTE = 5
_ACTORS = {
    branch.exit_code: branch.who_must_act
    for branch in (SiteDataError, BudgetError, PlanError, PeerError, OperationError, EvidenceError)
}


class StudyStopped(ConsiliumError):
    """The coordinator's process ended before the study did; carries its exit code."""

    def __init__(self, exit_code: int, code: str, message: str, remedy: str) -> None:
        super().__init__(code, message, remedy)
        self.exit_code = exit_code if exit_code in _ACTORS else OperationError.exit_code
        self.who_must_act = _ACTORS[self.exit_code]


def run_demo(options: DemoOptions, as_json: bool) -> int:
    """Runs or continues a demo and prints its summary.

    Returns:
        The exit code: 0 if the audit verified everything, 15 if it did not, 130 if a person stopped the demo.
    """
    verify_reachable(read_environment().prefect_api_url, options.port)
    with _interrupt_on_terminate(), open_workdir(options) as (workdir, state):
        try:
            summary = _run_study(options, workdir, state)
        except KeyboardInterrupt:
            print(f"Stopped. Continue with `consilium demo --workdir {options.workdir} --resume`.", file=sys.stderr)
            return 130
    if as_json:
        print(summary.model_dump_json(indent=2, by_alias=True))
    else:
        render_summary(summary, Console())
    return 0 if summary.audit.passed else EvidenceError.exit_code


def _run_study(options: DemoOptions, workdir: Workdir, state: DemoState | None) -> DemoSummary:
    started = time.monotonic()
    display = open_display(Console(stderr=True))
    try:
        if state is None:
            display.say(f"Preparing a study in {workdir.root}: identities, data, plan, signatures")
            plan, state = prepare_study(options, workdir)
            workdir.write_state(state)
        else:
            plan = load_plan(workdir, state.study)
            display.say(f"Continuing the study in {workdir.root}")
        _run_processes(options, workdir, state, plan, display)
        display.say("Study done. Computing what only a demo can know, and auditing the evidence")
        summary = build_summary(workdir, state, plan, time.monotonic() - started)
        workdir.result.write_text(summary.model_dump_json(indent=2, by_alias=True) + "\n")
        workdir.write_state(workdir_state(workdir).model_copy(update={"stage": "finished"}))
        return summary
    finally:
        display.close()


def workdir_state(workdir: Workdir) -> DemoState:
    """Reads the state that this process wrote."""
    state = workdir.read_state()
    if state is None:
        raise OperationError("workdir-unreadable", f"{workdir.state_file} vanished.", "Start a new demo.")
    return state


def _run_processes(options: DemoOptions, workdir: Workdir, state: DemoState, plan: StudyPlan, display: Display) -> None:
    display.say("Starting the Prefect server")
    given_url = read_environment().prefect_api_url
    with open_control_plane(workdir, given_url, options.port, state.prefect_port) as control:
        workdir.write_state(state.model_copy(update={"prefect_port": control.port}))
        display.say(f"Prefect: {control.ui_url}")
        memory = _memory_folder(workdir, plan.study)
        in_turn = control.database == "sqlite"
        write_participant_settings(workdir, plan, control.api_url, memory, RunOptions(), in_turn)
        with _running_parties(workdir, plan, control, options.restart) as parties:
            _watch(workdir, plan, control, parties, display)
        shutil.rmtree(memory, ignore_errors=True)


def _memory_folder(workdir: Workdir, study: str) -> Path:
    """Makes the folder of all epoch secrets: memory where the system has such a folder, else named in the workdir."""
    shared = Path("/dev/shm")  # noqa: S108  the folder below is private
    if not (shared.is_dir() and os.access(shared, os.W_OK)):
        folder = workdir.root / "epoch-secrets"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    owner = shared / f"consilium-{os.getuid()}"
    owner.mkdir(mode=0o700, exist_ok=True)
    facts = owner.lstat()
    # Anybody may write to the shared folder and be there first.
    if not owner.is_dir() or owner.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise OperationError("memory-folder-unsafe", f"Expected a private folder at {owner}.", "Remove it.")
    folder = owner / study[:16]
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


class Parties:
    """The processes of all sites and of the coordinator.

    Args:
        homes: Homes of the sites, grouped by the agent process that serves them.
        restart: Start an agent again that died.
        program: What every process runs; the command and `--home` follow.
    """

    def __init__(
        self,
        workdir: Workdir,
        homes: Sequence[Sequence[Path]],
        control: ControlPlane,
        restart: bool,
        program: tuple[str, ...] = PROGRAM,
    ) -> None:
        self._workdir = workdir
        self._control = control
        self._restart = restart
        self._program = program
        self._restarts: list[float] = []
        self._homes = {group[0].name: group for group in homes}
        self._agents: dict[str, ChildProcess] = {}
        self._lost: set[str] = set()
        self.coordinator: ChildProcess | None = None

    def start(self) -> None:
        """Starts every agent, then the coordinator."""
        for name in self._homes:
            self._agents[name] = self._start_agent(name)
        home = self._workdir.coordinator
        self.coordinator = self._start("coordinator", home, ["coordinator", "run", "--home", str(home)])

    def tend(self, display: Display) -> None:
        """Starts agents again that died, unless that was switched off or happens over and over.

        Raises:
            OperationError: `agent-keeps-dying`.
        """
        for name, agent in self._agents.items():
            if agent.is_alive() or name in self._lost:
                continue
            log = self._workdir.log(name)
            if not self._restart:
                self._lost.add(name)
                display.say(f"The agent of {name} died; it is not started again")
                continue
            now = time.monotonic()
            self._restarts = [t for t in self._restarts if now - t < 60] + [now]
            if len(self._restarts) > _RESTARTS_PER_MINUTE:
                raise OperationError(
                    "agent-keeps-dying", f"The agent of {name} dies again and again; see {log}.", "Mend it and resume."
                )
            display.say(f"The agent of {name} died and is started again; see {log}")
            agent.kill()  # what it started itself may still hold the home
            self._agents[name] = self._start_agent(name)

    def stop(self) -> None:
        """Stops everybody: the coordinator first, so that nobody it waits for seems to drop out."""
        if self.coordinator is not None:
            self.coordinator.stop()
        for agent in self._agents.values():
            if agent.is_alive():
                os.kill(agent.pid, signal.SIGTERM)
        for agent in self._agents.values():
            agent.stop()

    def _start_agent(self, name: str) -> ChildProcess:
        homes = self._homes[name]
        return self._start(name, homes[0], ["site", "run", *(part for h in homes for part in ("--home", str(h)))])

    def _start(self, name: str, home: Path, arguments: list[str]) -> ChildProcess:
        return start_process(
            name,
            [*self._program, *arguments],
            log=self._workdir.log(name),
            environment=participant_environment(home, self._control.variables(home)),
            folder=home,
        )


def group_homes(homes: Sequence[Path]) -> list[Sequence[Path]]:
    """Deals homes to at most `AGENT_PROCESSES` agent processes, one each while there are few."""
    size = -(-len(homes) // AGENT_PROCESSES)
    return [homes[start : start + size] for start in range(0, len(homes), size)]


@contextmanager
def _running_parties(workdir: Workdir, plan: StudyPlan, control: ControlPlane, restart: bool) -> Iterator[Parties]:
    homes = group_homes([workdir.site(site.name) for site in plan.sites])
    parties = Parties(workdir, homes, control, restart)
    try:
        parties.start()
        yield parties
    except KeyboardInterrupt:
        print("Stopping every process; this can take half a minute.", file=sys.stderr)
        raise
    finally:
        parties.stop()


def _watch(workdir: Workdir, plan: StudyPlan, control: ControlPlane, parties: Parties, display: Display) -> None:
    view, tail, budget = StudyView(), EventTail(workdir.events), float(plan.budget.epsilon)
    coordinator = parties.coordinator
    while coordinator is not None:
        ended = not coordinator.is_alive()  # asked before reading, so that its last events are not missed
        for event in tail.read():
            view.apply(event)
        display.update(view, budget)
        if ended:
            verify_finished(workdir, view, coordinator.exit_code or 0)
            return
        control.verify_alive(workdir.logs)
        parties.tend(display)
        time.sleep(_WATCH_SECONDS)


def verify_finished(workdir: Workdir, view: StudyView, exit_code: int) -> None:
    """Refuses a coordinator that ended before its study did.

    Raises:
        StudyStopped: with what the coordinator reported, or `coordinator-died`.
    """
    if exit_code == 0:
        return
    resume = f"Continue with `consilium demo --workdir {workdir.root} --resume`."
    failure = view.failure
    if exit_code > 0 and failure:
        raise StudyStopped(exit_code, failure["code"], failure["message"], f"{failure['remedy']} {resume}".strip())
    raise StudyStopped(
        exit_code,
        "coordinator-died",
        f"The coordinator's process ended (exit code {exit_code}); see {workdir.log('coordinator')}.",
        resume,
    )


@contextmanager
def _interrupt_on_terminate() -> Iterator[None]:
    """Lets SIGTERM end the demo like Ctrl-C, with every child stopped in order."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
