"""The command line teaches: every command explains itself with examples, at once."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from infra.cli import Example, main

COMMANDS = [
    ["demo"],
    ["site", "init"],
    ["site", "join"],
    ["site", "approve"],
    ["site", "status"],
    ["site", "pause"],
    ["site", "resume"],
    ["site", "leave"],
    ["coordinator", "init"],
    ["coordinator", "up"],
    ["coordinator", "sites"],
    ["coordinator", "propose"],
    ["coordinator", "status"],
    ["coordinator", "backup"],
    ["coordinator", "bucket"],
    ["site", "run"],
    ["site", "budget"],
    ["site", "contract", "check"],
    ["site", "attack"],
    ["contract", "show"],
    ["contract", "suite"],
    ["coordinator", "run"],
    ["coordinator", "deploy"],
    ["coordinator", "proxy"],
    ["coordinator", "serve"],
    ["audit", "export"],
    ["audit", "verify"],
    ["audit", "report"],
    ["audit", "explain"],
    ["audit", "snapshot"],
    ["attack", "run"],
    ["model", "list"],
    ["model", "describe"],
    ["plan", "check"],
    ["review", "init"],
    ["review", "list"],
    ["review", "show"],
    ["review", "approve"],
    ["review", "reject"],
    ["review", "gate"],
    ["study", "init"],
    ["study", "check"],
    ["statistics", "write"],
    ["statistics", "approve"],
    ["statistics", "ask"],
    ["statistics", "show"],
    ["study", "modes"],
    ["study", "run"],
    ["ui"],
]
HEAVY = {"torch", "opacus", "tenseal", "prefect", "mlflow", "great_expectations", "pyarrow", "pandas", "matplotlib"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_examples(command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert f"Examples:\n  consilium {' '.join(command)}" in result.output


def test_no_command_is_without_help() -> None:
    def leaves(group: click.Group, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = []
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                found += leaves(command, (*path, name))
            else:
                assert isinstance(command, Example), name
                found.append((*path, name))
            assert command.help, name
        return found

    assert sorted(leaves(main, ())) == sorted(tuple(command) for command in COMMANDS)


def test_every_option_is_explained() -> None:
    for command in COMMANDS:
        leaf: click.Command = main
        for name in command:
            assert isinstance(leaf, click.Group)
            leaf = leaf.commands[name]
        options = [p for p in leaf.params if isinstance(p, click.Option)]
        assert all(option.help for option in options), command


@pytest.mark.parametrize("module", ["infra.cli", "infra.demo.options", "infra.demo.workdir", "infra.demo.summary"])
def test_help_and_errors_load_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_version_is_printed() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output.startswith("consilium ")
