"""What a role runs under systemd or in containers: hardened, checked by systemd's own tools, commands that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from infra.cli import main

FOLDER = Path(__file__).parents[2] / "infra" / "deploy"
UNITS = sorted(FOLDER.glob("*.service"))
COMPOSE = sorted(FOLDER.glob("compose.*.yaml"))
PROGRAM = "/opt/consilium/bin/consilium"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def verify_command(words: list[str]) -> None:
    """Fails unless consilium has this command with these options."""
    command: click.Command = main
    while words and isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert not isinstance(command, click.Group)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with their hardening as an administrator installs them, with a program that exists here."""
    program = tmp_path / "consilium"
    program.symlink_to(sys.executable)
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, str(program)))
        drop_in = tmp_path / f"{unit.name}.d"
        drop_in.mkdir()
        shutil.copy(FOLDER / "hardening.conf", drop_in)
    return tmp_path


def analyze(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:", "LC_ALL": "C.UTF-8"}
    return subprocess.run([str(ANALYZE), *command], env=environment, capture_output=True, text=True, check=False)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands_every_line(unit: Path, installed: Path) -> None:
    done = analyze(installed, "verify", "--man=no", str(installed / unit.name))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # The check can fail: a line that systemd does not know is said.
    (installed / f"{unit.name}.d" / "odd.conf").write_text("[Service]\nProtectEverything=yes\n")
    assert "ProtectEverything" in analyze(installed, "verify", "--man=no", str(installed / unit.name)).stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_stolen_process_can_do_little(unit: Path, installed: Path) -> None:
    done = analyze(installed, "security", "--offline=yes", "--no-pager", "--threshold=20", unit.name)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_command_that_exists(unit: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)
    program, *words = shlex.split(line)
    assert program == PROGRAM
    verify_command(words)


@needs_systemd
def test_the_backups_timer_starts_its_unit_every_night(installed: Path) -> None:
    shutil.copy(FOLDER / "consilium-backup.timer", installed)
    timer = installed / "consilium-backup.timer"
    done = analyze(installed, "verify", "--man=no", str(timer))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "Persistent=true" in timer.read_text()  # a machine that was off makes up for it
    (when,) = re.findall(r"^OnCalendar=(.+)$", timer.read_text(), re.MULTILINE)
    assert analyze(installed, "calendar", when).returncode == 0


def test_only_the_agent_is_refused_a_listening_port_and_every_unit_keeps_its_secrets() -> None:
    assert len(UNITS) == 4
    hardening = (FOLDER / "hardening.conf").read_text().splitlines()
    assert {"RemoveIPC=no", "LimitCORE=0", "MemorySwapMax=0", "User=consilium"} <= set(hardening)
    assert [unit.name for unit in UNITS if "SocketBindDeny=any" in unit.read_text()] == ["consilium-agent.service"]


def services() -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for path in COMPOSE:
        for name, service in yaml.safe_load(path.read_text())["services"].items():
            found.append((path.name, name, service))
    return found


@pytest.mark.parametrize(
    ("file", "name", "service"), services(), ids=lambda value: value if str(value) == value else ""
)
def test_a_container_has_no_privilege_and_runs_a_command_that_exists(
    file: str, name: str, service: dict[str, Any]
) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & set(service)
    assert "/var/run/docker.sock" not in json.dumps(service)
    assert "environment" not in service  # settings and secrets are in files of the home
    if "entrypoint" not in service:
        verify_command(list(service["command"]))


def test_containers_publish_the_proxy_and_nothing_else() -> None:
    assert [(name, service["ports"]) for _, name, service in services() if "ports" in service] == [
        ("servers", ["8443:8443"])
    ]
    assert {file for file, _, _ in services()} == {"compose.coordinator.yaml", "compose.hospital.yaml"}
    (table,) = [mount for _, name, s in services() if name == "agent" for mount in s["volumes"] if "/srv/" in mount]
    assert table.endswith(":ro")


def test_images_are_built_from_stages_and_extras_that_exist_and_run_as_nobody_special() -> None:
    text = (FOLDER / "Containerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert stages == ["base", "hospital", "coordinator"]
    assert {service["build"]["target"] for _, _, service in services() if "build" in service} == {*stages[1:]}
    for stage in text.split("FROM ")[2:]:
        assert stage.index("pip install") < stage.index("USER 10001:10001") < stage.index("ENTRYPOINT")
        words = json.loads(re.findall(r"^CMD (.+)$", stage, re.MULTILINE)[0])
        verify_command(words)
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    for extra in {e for group in re.findall(r"'\.\[(.+?)\]'", text) for e in group.split(",")}:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    for folder in re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE):
        assert (FOLDER.parents[1] / folder / "__init__.py").is_file()
    assert "torch==2.13.0" in text
    assert "torch==2.13.0" in project
