"""Hospitals pause, resume and leave while real agents, a real server and the coordinator's worker run the study."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.deployments.flow_runs import arun_deployment

from flows.dispatch import run_state
from infra.cli import main
from infra.prefect_server import PrefectServer, prefect_client_environment
from infra.processes import ChildProcess, start_process
from infra.settings import participant_environment
from schemas.ledger import PrivacyReserved
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.identity import load_identity
from tasks.ledger.store import LedgerStore
from tests.runtime.waiting import wait_until
from tests.simulator import Prepared, change_settings, prepare

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.usefixtures("prefect_settings")]

OPTIONS = {"attempt_pause_seconds": 0.1, "silent_grace_seconds": 8, "certify_deadline_seconds": 20}


@dataclass(frozen=True)
class Study:
    """A study whose agents, and the coordinator's worker, run as processes."""

    prepared: Prepared
    worker: ChildProcess
    agents: ChildProcess

    @property
    def sites(self) -> list[str]:
        return [site.name for site in self.prepared.plan.sites]

    @property
    def coordinator(self) -> Path:
        return self.prepared.workdir.coordinator

    def site(self, command: str, name: str, *more: str) -> None:
        """Types `consilium site COMMAND` for a hospital."""
        main.main(["site", command, "--home", str(self.prepared.workdir.site(name)), *more], standalone_mode=False)

    def start(self) -> str:
        """Makes the study due now, as its schedule does."""
        name = f"scheduled-study/study-{self.prepared.plan.study[:12]}"
        return str(asyncio.run(arun_deployment(name, timeout=0)).id)

    def ends_as(self, run: str) -> str:
        self.until(lambda: asyncio.run(run_state(run)).is_final)
        return asyncio.run(run_state(run)).type

    def until(self, holds: Any) -> None:
        wait_until(lambda: holds() or not (self.worker.is_alive() and self.agents.is_alive()), 900.0)
        assert self.worker.is_alive(), self.worker.log_tail(40)
        assert self.agents.is_alive(), self.agents.log_tail(40)

    def events(self) -> list[dict[str, Any]]:
        path = self.coordinator / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_round(self, number: int) -> None:
        self.until(lambda: any(e["event"] == "round-done" and e["round"] == number for e in self.events()))

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.coordinator / "summary.json").read_text())
        return content

    def charged(self, name: str) -> list[int]:
        home = self.prepared.workdir.site(name)
        ledger = LedgerStore(home / "ledger.sqlite", name, load_identity(home / "identity.json").signing)
        found = ledger.find(self.prepared.plan.study, "privacy-reserved")
        return [entry.body.round for entry in found if isinstance(entry.body, PrivacyReserved)]

    def verify(self) -> None:
        """Fails unless everything that the study published verifies."""
        report = verify_evidence(self.coordinator / "evidence", read_public_keys(self.prepared.keys))
        assert [result for result in report.results if result.status == "failed"] == []
        assert report.passed


@contextmanager
def running(folder: Path, server: PrefectServer, rounds: int) -> Iterator[Study]:
    prepared = prepare(folder, rounds=rounds, sites=4)
    homes = [prepared.workdir.site(site.name) for site in prepared.plan.sites]
    for home in (prepared.workdir.coordinator, *homes):
        change_settings(home, prefect_api_url=server.api_url, options=OPTIONS)
    root = Path(__file__).parents[2]

    def start(name: str, home: Path, *command: str) -> ChildProcess:
        variables = prefect_client_environment(server.api_url, home / "prefect", database=server.database)
        environment = participant_environment(home, {**variables, "PYTHONPATH": str(root)})
        words = [sys.executable, "-P", "-m", "infra.cli", *command]
        return start_process(name, words, log=folder / f"{name}.log", environment=environment, folder=home)

    home = prepared.workdir.coordinator
    with ExitStack() as stack:
        deploy = start("deploy", home, "coordinator", "deploy", "--home", str(home), "--cron", "study=0 0 1 1 *")
        stack.callback(deploy.stop)
        assert deploy.wait(300.0)
        assert deploy.exit_code == 0, deploy.log_tail(20)
        agents = start("agents", homes[0], "site", "run", *[part for h in homes for part in ("--home", str(h))])
        stack.callback(agents.stop)
        worker = start("worker", home, "coordinator", "serve", "--home", str(home))
        stack.callback(worker.stop)
        yield Study(prepared, worker, agents)


def test_paused_sites_are_left_out_come_back_and_one_leaves(tmp_path: Path, server: PrefectServer) -> None:
    with running(tmp_path / "study", server, rounds=4) as study:
        first, second, gone, _ = study.sites
        for name in (first, second):
            study.site("pause", name)
        assert study.ends_as(study.start()) == "FAILED"
        assert study.events()[-1]["code"] == "too-few-contributions"

        study.site("resume", first)
        run = study.start()
        study.wait_for_round(1)
        study.site("resume", second)
        study.wait_for_round(2)
        study.site("leave", gone, study.prepared.plan.study[:12], "--yes")
        assert study.ends_as(run) == "COMPLETED", study.worker.log_tail(40)

        summary = study.summary()
        assert summary["complete"]
        assert second not in summary["participants"]["1"]
        assert [second, "refused"] in summary["dropped"]["1"]
        assert sorted(summary["participants"]["5"]) == sorted(set(study.sites) - {gone})
        assert [gone, "refused"] in summary["dropped"]["5"]
        assert {study.charged(name) == [1, 2, 3, 4, 5] for name in study.sites if name not in (second, gone)} == {True}
        assert 1 not in study.charged(second)
        assert 5 not in study.charged(gone)
        memory = tmp_path / "study" / "memory" / gone
        assert list(memory.glob("*/epoch-*/sid"))
        assert not list(memory.glob("*/epoch-*/secrets-*"))
        codes = {(e["site"], e["code"]) for e in study.events() if e["event"] == "site-state" and e["code"]}
        assert {(first, "site-paused"), (second, "site-paused"), (gone, "site-left")} <= codes
        study.verify()


def test_a_study_whose_holders_left_releases_what_it_has(tmp_path: Path, server: PrefectServer) -> None:
    with running(tmp_path / "study", server, rounds=4) as study:
        run = study.start()
        study.wait_for_round(1)
        for name in study.sites[:2]:
            study.site("leave", name, study.prepared.plan.study[:12], "--yes")
        assert study.ends_as(run) == "COMPLETED", study.worker.log_tail(40)
        summary = study.summary()
        assert not summary["complete"]
        assert summary["reason"] == f"Too few hospitals remain: {', '.join(study.sites[:2])} left the study."
        assert 1 <= summary["rounds"] < 4
        assert summary["evaluation"] is None
        for name in study.sites:
            assert 5 not in study.charged(name), "the evaluation asked for nothing"
        study.verify()
        assert (study.coordinator / "evidence" / summary["weights"]).stat().st_size
