"""Every command that the operators' documents name exists, with the options that they give it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from infra.cli import main

DOCS = Path(__file__).parents[2] / "docs"
GROUPS = "|".join(name for name, command in main.commands.items() if isinstance(command, click.Group))


def commands_in(text: str) -> list[str]:
    """Returns what stands in code marks and is a command of ours, also where ``consilium`` is left out."""
    spans = re.findall(r"`([^`\n]+)`", text)
    found = [re.fullmatch(rf"(?:consilium )?((?:{GROUPS}) [a-z].*)|consilium ([a-z].*)", span) for span in spans]
    return [match[1] or match[2] for match in found if match is not None]


@pytest.mark.parametrize("name", ["operations.md", "deployment.md"])
def test_a_runbooks_commands_exist(name: str) -> None:
    named = commands_in((DOCS / name).read_text())
    assert len(named) > 10
    for line in named:
        words = shlex.split(line.replace("…", ""))
        command: click.Command = main
        while isinstance(command, click.Group):
            assert words, line
            alternatives = [command.commands.get(word) for word in words.pop(0).split("|")]
            assert None not in alternatives, line
            command = alternatives[0] or command
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_a_command_that_is_gone_would_be_noticed() -> None:
    assert commands_in("run `coordinator frobnicate --home HOME`, then `consilium site run`") == [
        "coordinator frobnicate --home HOME",
        "site run",
    ]
