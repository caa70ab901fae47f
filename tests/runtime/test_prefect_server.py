from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from infra.prefect_server import (
    PrefectServer,
    prefect_client_environment,
    start_prefect_server,
    verify_api_address,
    wait_for_api,
    why_unhealthy,
)
from infra.processes import find_free_port
from schemas.errors import OperationError

SHOW_SETTINGS = """
import json
from prefect.settings import get_current_settings
s = get_current_settings()
print(json.dumps({
    "serializer": s.results.default_serializer,
    "persist": s.results.persist_by_default,
    "storage": str(s.results.local_storage_path),
    "logs": s.logging.to_api.enabled,
    "retries": [s.tasks.default_retries, s.flows.default_retries],
    "analytics": s.server.analytics_enabled,
    "ephemeral": s.server.ephemeral.enabled,
    "query": s.worker.query_seconds,
    "metrics": s.telemetry.enable_resource_metrics,
    "orchestration_telemetry": s.cloud.enable_orchestration_telemetry,
}))
"""


def test_port_in_use_is_one_sentence_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(OperationError, match=f"Port {port} is in use by another program. Stop it") as caught:
            start_prefect_server(tmp_path / "prefect", log=tmp_path / "log", port=port)
    assert caught.value.code == "port-in-use"
    assert not (tmp_path / "log").exists()


def test_server_that_dies_while_starting_is_reported_with_its_log(tmp_path: Path) -> None:
    nowhere = f"postgresql+asyncpg://nobody@/prefect?host={tmp_path}/nowhere"
    waited: list[float] = []
    with pytest.raises(OperationError, match="The Prefect server ended while it started; see ") as caught:
        start_prefect_server(tmp_path / "prefect", log=tmp_path / "log", database_url=nowhere, on_wait=waited.append)
    assert caught.value.code == "prefect-server-died"
    assert waited == sorted(waited)
    assert (tmp_path / "log").read_text()


def test_server_that_nobody_runs_is_unreachable() -> None:
    with pytest.raises(OperationError, match="No Prefect server answered") as caught:
        wait_for_api(f"http://127.0.0.1:{find_free_port()}/api", timeout_seconds=0.0)
    assert caught.value.code == "prefect-unreachable"


def test_an_authority_that_is_no_certificate_is_told_at_once_and_as_such(tmp_path: Path) -> None:
    (tmp_path / "authority.json").write_text('{"name": "swordfish"}')
    for name in ("authority.json", "none.pem"):
        wrong = str(tmp_path / name)
        assert why_unhealthy("https://127.0.0.1:9/api", authority=wrong) == "ca_file holds no certificate"
        with pytest.raises(OperationError, match="ca_file holds no certificate") as caught:
            wait_for_api("https://127.0.0.1:9/api", timeout_seconds=3600, authority=wrong)
        assert "correct ca_file in config.json" in caught.value.remedy


class _Closed(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_refusal_at_an_address_without_api_says_so() -> None:
    with HTTPServer(("127.0.0.1", 0), _Closed) as closed:
        threading.Thread(target=closed.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{closed.server_port}"
        assert why_unhealthy(address) == "status 403, and the address does not end in /api"
        assert why_unhealthy(f"{address}/api") == "status 403"
        closed.shutdown()


@pytest.mark.parametrize("address", ["study.example.org", "https://127.0.0.1:4613", "https:///api", "ftp://x/api", ""])
def test_an_address_that_can_be_no_server_of_prefect_is_refused(address: str) -> None:
    with pytest.raises(OperationError, match=r"begin with https:// \(or http://\) and end in /api") as caught:
        verify_api_address(address)
    assert caught.value.code == "prefect-address"
    verify_api_address("https://study.example.org/api")


def test_participants_settings_reach_prefect(tmp_path: Path) -> None:
    settings = prefect_client_environment("http://127.0.0.1:1/api", tmp_path / "home", database="sqlite")
    shown = subprocess.run(
        [sys.executable, "-c", SHOW_SETTINGS],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout) == {
        "serializer": "json",
        "persist": False,
        "storage": str(tmp_path / "home" / "storage"),
        "logs": False,
        "retries": [0, 0],
        "analytics": False,
        "ephemeral": False,
        "query": 3.0,
        "metrics": False,
        "orchestration_telemetry": False,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's table of sockets")
def test_local_server_listens_on_this_machine_only(server: PrefectServer) -> None:
    wait_for_api(server.api_url, timeout_seconds=5.0)
    port = int(server.ui_url.rpartition(":")[2])
    table = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    owners = {line.split()[1] for line in table.splitlines() if f":{port:04X} 0" in line and " 0A " in line}
    assert owners == {f"0100007F:{port:04X}"}
