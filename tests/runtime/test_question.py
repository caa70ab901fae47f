"""A question asked through Prefect: real agents take up `site-statistics`, and nothing but the sum is opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.demo.prepare import write_participant_settings
from infra.prefect_server import PrefectServer
from infra.processes import start_process
from infra.questions import approve_question, propose_question, write_question
from schemas.options import RunOptions
from tests.simulator import Prepared, copy_study
from tests.statistics.asking import question

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def test_agents_answer_a_question_and_asking_again_returns_the_same_answer(
    prepared_study: Prepared, server: PrefectServer, agent_environment: dict[str, str], tmp_path: Path
) -> None:
    prepared = copy_study(prepared_study, tmp_path / "study")
    workdir, options = prepared.workdir, RunOptions(contribute_deadline_seconds=600, ceremony_deadline_seconds=600)
    write_participant_settings(workdir, prepared.plan, server.api_url, tmp_path / "study" / "memory", options)
    plan = write_question(prepared.plan, question(epsilon="0.4", noise="gaussian", column="mean_radius", bins=4))
    propose_question(workdir.coordinator, plan)
    homes = [workdir.site(site.name) for site in plan.sites]
    for home in homes:
        approve_question(home, plan.study)

    root = Path(__file__).parents[2]
    everybody = [part for home in homes for part in ("--home", str(home))]
    agents = start_process(
        "agents",
        [sys.executable, "-m", "infra.cli", "site", "run", *everybody],
        log=tmp_path / "agents.log",
        environment=agent_environment,
        folder=root,
    )
    asked = [sys.executable, "-m", "infra.cli", "statistics", "ask", plan.study, "--home", str(workdir.coordinator)]
    try:
        done = [
            subprocess.run(
                [*asked, "--json"], env=agent_environment, cwd=root, capture_output=True, text=True, check=False
            )
            for _ in range(2)
        ]
    finally:
        agents.stop()
    assert done[0].returncode == 0, done[0].stderr + agents.log_tail(40)
    answer = json.loads(done[0].stdout)
    assert answer["participants"] == [site.name for site in plan.sites]
    assert "hospital-01: contributed" in done[0].stderr
    assert json.loads(done[1].stdout) == answer
    evidence = workdir.coordinator / "questions" / plan.study[:16] / "evidence"
    for site in plan.sites:
        assert (evidence / "sites" / site.name / plan.study / "ledger" / "witness.json").is_file()
