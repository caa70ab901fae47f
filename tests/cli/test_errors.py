"""Every refusal is one sentence, a remedy, who must act, and the exit code of its branch; never a traceback."""

import os
import socket
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from infra.cli import Consilium, main
from schemas.errors import BudgetError, ConsiliumError, OperationError, PeerError, PlanError, SiteDataError

SECRET = "patient 4711 has 3 stents"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def raising(error: Exception) -> Consilium:
    @click.group(cls=Consilium)
    def group() -> None: ...

    @group.command()
    def act() -> None:
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "exit_code", "actor"),
    [
        (SiteDataError("contract-violated", "Expected a table.", "Correct it."), 10, "the site's data steward"),
        (BudgetError("budget-exceeded", "Requested 2 of 1.", "Ask less."), 11, "the site's budget owner"),
        (PlanError("threshold-rule", "The plan breaks t <= Q.", "Use t=3."), 12, "the study coordinator"),
        (PeerError("bad-signature", "mercy", "the signature does not verify."), 13, "the named peer"),
        (OperationError("port-in-use", "Port 4200 is in use.", "Choose another."), 14, "the operator"),
    ],
    ids=lambda value: value.code if isinstance(value, ConsiliumError) else None,
)
def test_a_refusal_names_the_remedy_and_who_must_act(error: ConsiliumError, exit_code: int, actor: str) -> None:
    result = CliRunner().invoke(raising(error), ["act"])
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == f"Error ({error.code}): {error.message}"
    assert (f"  Remedy: {error.remedy}" in result.stderr) == bool(error.remedy)
    assert result.stderr.splitlines()[-1] == f"  To act: {actor}."


def test_an_unforeseen_error_prints_no_traceback_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(raising(ValueError(SECRET)), ["act"])
    assert result.exit_code == 1
    assert SECRET not in result.output
    assert "Traceback" not in result.output
    assert "something unforeseen went wrong (ValueError)" in result.stderr
    (log,) = tmp_path.iterdir()
    assert str(log) in result.stderr
    assert SECRET in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_DEBUG", "1")
    error = OperationError("port-in-use", "Port 4200 is in use.")
    assert CliRunner().invoke(raising(error), ["act"]).exception is error


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e99", "three", "0x3", "1_0", ""])
def test_an_epsilon_that_is_no_positive_decimal_is_wrong_usage(value: str, tmp_path: Path) -> None:
    result = run("demo", "--workdir", str(tmp_path / "w"), f"--epsilon={value}")
    assert result.exit_code == 2
    assert "Expected a positive number like 3 or 1e-5" in result.stderr
    assert not (tmp_path / "w").exists()


def test_too_few_hospitals_are_wrong_usage(tmp_path: Path) -> None:
    result = run("demo", "--workdir", str(tmp_path / "w"), "--sites", "3")
    assert result.exit_code == 2
    assert "--sites" in result.stderr


def test_a_home_without_settings_is_refused(tmp_path: Path) -> None:
    for command in (["site", "run"], ["coordinator", "run"], ["site", "budget"]):
        result = run(*command, "--home", str(tmp_path))
        assert result.exit_code == 14, command
        assert "config.json" in result.stderr


def test_an_audit_of_a_missing_folder_is_refused(tmp_path: Path) -> None:
    result = run("audit", "verify", str(tmp_path / "evidence"))
    assert result.exit_code == 14
    assert "Error (not-found)" in result.stderr


def test_a_ui_without_a_demo_is_refused(tmp_path: Path) -> None:
    result = run("ui", "--workdir", str(tmp_path), "--no-browser")
    assert result.exit_code == 14
    assert "Run `consilium demo` first." in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not valid JSON"),
        (b"{}", "these fields do not fit"),
        (b'{"a": 1, "a": 2}', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    result = run("plan", "check", str(file))
    assert result.exit_code == 12
    assert "Error (plan-unreadable)" in result.stderr
    assert said in result.stderr


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    result = run("plan", "check", str(tmp_path / "none.json"))
    assert result.exit_code == 12
    assert os.linesep.join(["  To act: the study coordinator."]) in result.stderr


def test_a_port_in_use_is_said_before_anything_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("demo", "--workdir", str(tmp_path / "w"), "--port", str(port))
    assert result.exit_code == 14
    assert f"Error (port-in-use): Port {port} is in use" in result.stderr
    assert "choose another" in result.stderr
    assert not (tmp_path / "w").exists()
