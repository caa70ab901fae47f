"""docs/for-auditors.md is followed to the letter on a finished study."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from infra.evidence import open_published_study
from tasks.audit.export import export_evidence
from tasks.audit.verify import CHECKS
from tests.conftest import FinishedStudy

DOCUMENT = Path(__file__).parents[2] / "docs" / "for-auditors.md"
COMMANDS = re.findall(r"```sh\n(.+?)\n```", DOCUMENT.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def auditor(finished_study: FinishedStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an auditor has: the export without bulk and the key list."""
    folder = tmp_path_factory.mktemp("auditor")
    study = open_published_study(finished_study.prepared.workdir.root)
    export_evidence(study.store, study.plan, folder / "evidence", study.identity.signing, without_bulk=True)
    shutil.copy(finished_study.keys, folder / "public-keys.json")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_for_auditors_works(command: str, auditor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(auditor)
    quick = tuple(check for check in CHECKS if check.number not in ("C27", "C28"))
    monkeypatch.setattr("tasks.audit.verify.CHECKS", quick)
    words = shlex.split(command)
    assert words[0] == "consilium"
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code == 0, result.output
    if words[2] == "verify":
        for said in ("verified: ", "Privacy: epsilon 3 of 3 at delta 1e-5", "Quality: AUC"):
            assert said in result.output
    if words[2] == "report":
        assert "<title>Audit: " in (auditor / "report.html").read_text()
    if words[2] == "explain":
        assert "Who acts: " in result.output


def test_the_document_shows_verify_report_and_explain() -> None:
    assert [shlex.split(command)[2] for command in COMMANDS] == ["verify", "report", "explain"]
