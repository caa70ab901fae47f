"""`consilium statistics` from the first word to the answer, all hospitals in one process."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from infra.cli import main
from tests.simulator import Prepared, copy_study


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["statistics", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_question_is_written_approved_asked_and_shown(prepared_study: Prepared, tmp_path: Path) -> None:
    prepared = copy_study(prepared_study, tmp_path / "study")
    home, plan = str(prepared.workdir.coordinator), str(prepared.workdir.plan)
    about = ("--name", "Large masses", "--purpose", "Feasibility", "--where", "mean_radius>=15", "--epsilon", "0.4")
    written = json.loads(run("write", "--home", home, "--plan", plan, *about, "--json").stdout)
    question = written["question"]
    refused = run("ask", question, "--home", home, code=14)
    assert "Not approved yet by: hospital-01" in refused.output
    assert f"`consilium statistics approve {question} --home HOME`" in refused.output
    homes = [str(prepared.workdir.site(site)) for site in written["sites"]]
    for site in homes:
        approved = run("approve", question, "--home", site, "--yes").output
        assert "epsilon 0.4 at delta 1e-5" in approved
    assert "Approved by all; not answered yet." in run("show", question, "--home", homes[0]).output
    status = CliRunner().invoke(main, ["site", "status", "--home", homes[0]])
    assert f"Study        {question[:12]} Large masses: approved (a question)" in status.output

    everybody = [part for site in homes for part in ("--site-home", site)]
    assert "No folder was named for" in run("ask", question, "--home", home, *everybody[:4], code=14).output
    answer = json.loads(run("ask", question, "--home", home, *everybody, "--json").stdout)
    assert [figure["name"] for figure in answer["figures"]] == ["patients"]
    assert len(answer["participants"]) == 5
    shown = run("show", question, "--home", homes[1]).output
    assert "patients who qualify" in shown
    assert "mean_radius is at least 15" in shown
    assert json.loads(run("show", question, "--home", home, "--json").stdout) == answer
    assert run("show", "0" * 64, "--home", home, code=14).output.startswith("Error (no-such-question)")
