"""A real nginx with the configuration that the program writes."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from infra.processes import start_process
from tests.runtime.waiting import wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass(frozen=True)
class Proxy:
    port: int
    folder: Path
    authority: Path
    site: str
    other: str

    @property
    def api_url(self) -> str:
        return f"https://127.0.0.1:{self.port}/api"

    def token(self, site: str) -> str:
        return (self.folder / "tokens" / site).read_text().strip()

    def ask(self, method: str, target: str, site: str | None = None, token: str | None = None) -> int:
        """Sends one request exactly as spelled and returns the status."""
        context = ssl.create_default_context(cafile=str(self.authority))
        connection = HTTPSConnection("127.0.0.1", self.port, context=context, timeout=20)
        headers = {"Content-Type": "application/json"}
        if site is not None:
            pair = f"{site}:{self.token(site) if token is None else token}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        try:
            connection.request(method, target, body=b"{}" if method != "GET" else None, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


@contextmanager
def running_nginx(config: Path, log: Path, port: int) -> Iterator[None]:
    command = [str(NGINX), "-c", str(config), "-g", "daemon off;"]
    nginx = start_process("nginx", command, log=log, environment={"PATH": os.environ["PATH"]})
    try:
        wait_until(lambda: listens(port) or not nginx.is_alive())
        assert nginx.is_alive(), nginx.log_tail()
        yield
    finally:
        nginx.stop()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
