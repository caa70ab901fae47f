"""`consilium coordinator up` starts nothing where the commands would ask other servers than it starts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from infra.processes import WorkdirLock, find_free_port
from infra.services import _verify_ports, running_services
from infra.settings import load_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings
from schemas.services import ServiceSettings
from tests.simulator import change_settings


def _init(folder: Path, prefect: int, mlflow: int) -> tuple[str, ...]:
    ports = ("--prefect-port", str(prefect), "--mlflow-port", str(mlflow))
    return ("coordinator", "init", "--home", str(folder / "coordinator"), "--store", str(folder / "store"), *ports)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = CliRunner().invoke(main, _init(tmp_path, find_free_port(), find_free_port()))
    assert made.exit_code == 0, made.output
    return tmp_path / "coordinator"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def _refused(home: Path) -> OperationError:
    said: list[str] = []
    with pytest.raises(OperationError, match=r"port|servers") as caught, running_services(home, said.append):
        pass
    assert said == [], "nothing was started"
    return caught.value


def _change_services(home: Path, **values: object) -> None:
    path = home / "services.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_port_in_use_leads_to_both_files_that_name_it(home: Path, taken: int) -> None:
    _change_services(home, mlflow_port=taken)
    change_settings(home, mlflow_uri=f"http://127.0.0.1:{taken}")
    error = _refused(home)
    assert (error.code, error.message) == ("port-in-use", f"Port {taken} is in use by another program.")
    assert "as mlflow_port in services.json and in mlflow_uri of config.json" in error.remedy


@pytest.mark.parametrize(("field", "port_field"), [("prefect_api_url", "prefect_port"), ("mlflow_uri", "mlflow_port")])
def test_servers_at_other_ports_than_the_commands_ask_are_not_started(
    home: Path, taken: int, field: str, port_field: str
) -> None:
    for address in (f"http://127.0.0.1:{taken}/api", f"http://localhost:{taken}", "http://127.0.0.1", "http://[::1]:x"):
        change_settings(home, **{field: address})
        error = _refused(home)
        assert error.code == "ports-disagree"
        assert error.message.startswith(f"{port_field} in services.json and {field} in config.json name different")
        assert str(taken) not in str(error)


def test_another_server_that_is_named_on_purpose_is_no_disagreement(home: Path) -> None:
    services = load_settings(ServiceSettings, home / "services.json")
    local = load_settings(CoordinatorSettings, home / "config.json")
    for prefect, mlflow in (
        (local.prefect_api_url, local.mlflow_uri),
        (f"http://localhost:{services.prefect_port}/api", f"http://[::1]:{services.mlflow_port}"),
        ("http://prefect.example.org:4200/api", "https://mlflow.example.org"),
        ("https://127.0.0.1:8443/api", "sqlite:////srv/mlflow.db"),
    ):
        _verify_ports(local.model_copy(update={"prefect_api_url": prefect, "mlflow_uri": mlflow}), services)


def test_a_second_up_of_one_home_is_told_so_and_not_of_another_program(home: Path, taken: int) -> None:
    _change_services(home, prefect_port=taken)
    change_settings(home, prefect_api_url=f"http://127.0.0.1:{taken}/api")
    with WorkdirLock(home / "services"):
        error = _refused(home)
    assert error.code == "workdir-in-use"
    assert error.message.startswith("This home's servers run already.")
    assert "--workdir" not in error.remedy
    assert _refused(home).code == "port-in-use", "the lock was given back"


def test_one_port_for_both_servers_is_refused_before_anything_is_made(tmp_path: Path, home: Path) -> None:
    result = CliRunner().invoke(main, _init(tmp_path / "other", 4611, 4611))
    assert result.exit_code == 2
    assert "--prefect-port and --mlflow-port must differ" in result.output
    assert not (tmp_path / "other").exists()
    for content in ({"prefect_port": 4611, "mlflow_port": 4611}, {"prefect_port": 5000}):
        (home / "services.json").write_text(json.dumps(content))
        with pytest.raises(OperationError, match=r"services\.json of .*: mlflow_port \(the same as prefect_port\)"):
            load_settings(ServiceSettings, home / "services.json")
