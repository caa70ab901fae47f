"""The README's commands are the ones that work: cheap ones are executed, the others parsed."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from infra.cli import main
from tests.conftest import FinishedStudy

ROOT = Path(__file__).parents[2]


def readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.+?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = [words[1:] for words in readme_commands() if words[0] == "consilium"]
MAKE_TARGETS = sorted({words[1] for words in readme_commands() if words[0] == "make"})
# These open pages, run a whole study, or both: `make test` runs a demo elsewhere.
NOT_CHEAP = ("demo", "ui")


def test_the_readme_shows_every_kind_of_command() -> None:
    shown = {command[0] for command in COMMANDS}
    assert shown == {"demo", "ui", "audit", "plan", "site"}
    assert {"demo", "test"} <= set(MAKE_TARGETS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_is_understood(command: list[str]) -> None:
    leaf: click.Command = main
    words = list(command)
    while isinstance(leaf, click.Group):
        leaf = leaf.commands[words.pop(0)]
    leaf.make_context("consilium", words)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] not in NOT_CHEAP], ids=" ".join)
def test_cheap_commands_of_the_readme_work_on_a_finished_study(
    command: list[str], finished_study: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo-study").symlink_to(finished_study.prepared.workdir.root)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


@pytest.mark.parametrize("target", [*MAKE_TARGETS, "test-long", "bench", "lint", "clean", "ui"])
def test_every_make_target_has_a_recipe(target: str) -> None:
    result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_the_ci_script_is_valid_and_calls_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()
    assert "make test" in script.read_text()


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    variables = [f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(["make", "demo", *variables], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "consilium needs Python 3.11 or newer" in result.stderr
    assert not (tmp_path / "venv").exists()
