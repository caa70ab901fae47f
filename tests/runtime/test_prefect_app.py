"""A web page that the coordinator's operator happens to read reaches for the server on the same machine."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from infra.prefect_server import PrefectServer

EVIL = "https://evil.example"


def _ask(server: PrefectServer, method: str, path: str, host: str | None = None, **headers: str) -> int:
    """Sends a flow's name as a page would: without a content type a browser asks nobody first."""
    address = urlsplit(server.ui_url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=20)
    body = json.dumps({"name": f"flow-{uuid4()}"}).encode() if method == "POST" else b""
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or address.netloc)
        connection.putheader("Content-Length", str(len(body)))
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_page_of_another_origin_changes_and_reads_nothing(server: PrefectServer) -> None:
    for origin in (EVIL, "null", "http://127.0.0.1:1", "http://localhost:1", "http://127.0.0.1.evil.example", "x:y:z"):
        assert _ask(server, "POST", "/api/flows/", Origin=origin) == 403, origin
        assert _ask(server, "GET", "/api/admin/version", Origin=origin) == 403, origin
    asked_first = {"Origin": EVIL, "Access_Control_Request_Method": "POST"}
    assert _ask(server, "OPTIONS", "/api/deployments/", **asked_first) == 403


def test_a_name_that_was_pointed_at_this_machine_gets_nothing(server: PrefectServer) -> None:
    port = urlsplit(server.ui_url).port
    for host in (f"rebound.evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"user@localhost.:{port}"):
        assert _ask(server, "POST", "/api/flows/", host) == 403, host
        assert _ask(server, "POST", "/api/flows/", host, Origin=f"http://{host}") == 403, host


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out"])
def test_a_socket_of_another_page_is_not_opened(server: PrefectServer, path: str) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "bm90IGEgc2VjcmV0LCBvaw==",
    }
    assert _ask(server, "GET", path, Origin=EVIL, **upgrade) == 403
    assert _ask(server, "GET", path, **upgrade) == 101


def test_its_own_pages_and_programs_are_served(server: PrefectServer) -> None:
    port = urlsplit(server.ui_url).port
    assert _ask(server, "POST", "/api/flows/") == 201
    assert _ask(server, "GET", "/", Origin=server.ui_url) == 200
    assert _ask(server, "POST", "/api/flows/", Origin=server.ui_url) == 201
    assert _ask(server, "POST", "/api/flows/", f"localhost:{port}", Origin=f"http://localhost:{port}") == 201
    assert _ask(server, "POST", "/api/flows/", Origin=f"http://localhost:{port}") == 201
    # Another machine of one's own, by its address.
    assert _ask(server, "POST", "/api/flows/", f"192.0.2.1:{port}") == 201
