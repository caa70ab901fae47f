"""A hospital whose only way out is its own HTTP proxy: names that nobody but the proxy can resolve, TLS to the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError

from infra.prefect_server import PrefectServer
from infra.processes import start_process
from infra.settings import participant_environment
from schemas.options import S3Settings, SiteSettings
from site_agents.worker import pool_name
from tasks.identity import generate_identity, save_identity
from tests.runtime.waiting import wait_until
from tests.storage.s3_servers import running_moto, write_credentials

ROOT = Path(__file__).parents[2]
COORDINATOR, STORE = "coordinator.invalid", "store.invalid"


@dataclass
class Outside:
    """The world behind an HTTP proxy that knows CONNECT and nothing else; each name ends in a TLS server.

    Args:
        behind: Name -> (host, port) of the plain server behind the TLS of that name.
    """

    certificate: Path
    key: Path
    behind: dict[str, tuple[str, int]]
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(self.certificate, self.key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            got = connection.recv(4096)
            if not got:
                return
            head += got
        method, target, _ = head.split(b"\r\n")[0].decode().split()
        self.asked.append(f"{method} {target}")
        name = target.rpartition(":")[0]
        if method != "CONNECT" or name not in self.behind:
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            connection.close()
            return
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with contextlib.suppress(OSError):
            inner = self._tls.wrap_socket(connection, server_side=True)
            upstream = socket.create_connection(self.behind[name])
            threading.Thread(target=_pump, args=(upstream, inner), daemon=True).start()
            _pump(inner, upstream, host=upstream.getpeername())


def _write_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "consilium test")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(COORDINATOR), x509.DNSName(STORE)])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).add_extension(names, critical=False)
    made = made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    paths = folder / "outside.pem", folder / "outside-key.pem"
    paths[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def _pump(source: socket.socket, target: socket.socket, host: tuple[str, int] | None = None) -> None:
    """Passes bytes on; with `host`, requests name the server itself, as the coordinator's proxy makes them do."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            if host is not None:
                data = re.sub(
                    rb"(?i)\r\nhost: %b\r\n" % COORDINATOR.encode(), b"\r\nHost: %b:%d\r\n" % _bytes(host), data
                )
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _bytes(host: tuple[str, int]) -> tuple[bytes, int]:
    return host[0].encode(), host[1]


@pytest.fixture
def outside(server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    # The server would take the first word of its own name for a bucket.
    monkeypatch.setattr("moto.settings.S3_IGNORE_SUBDOMAIN_BUCKETNAME", True)
    certificate, key = _write_certificate(tmp_path)
    with running_moto(tmp_path) as moto:
        moto.client.create_bucket(Bucket="study")
        ports = [int(str(url).rpartition(":")[2].split("/")[0]) for url in (server.ui_url, moto.settings.endpoint)]
        names = dict(zip((COORDINATOR, STORE), [("127.0.0.1", port) for port in ports], strict=True))
        made = Outside(certificate, key, names)
        yield made
        made.close()


@pytest.fixture
def home(outside: Outside, tmp_path: Path) -> Path:
    made = tmp_path / "hospital"
    made.mkdir(mode=0o700)
    site = f"site-{uuid4().hex[:8]}"
    keys = write_credentials(tmp_path, site, "secret")
    ca = str(outside.certificate)
    store = S3Settings(credentials_file=str(keys), endpoint=f"https://{STORE}", ca_file=ca, attempts=1)
    settings = SiteSettings(
        name=site,
        store="s3://study/one",
        s3=store,
        data=str(made / "cohort.parquet"),
        prefect_api_url=f"https://{COORDINATOR}/api",
        epsilon="3",
        delta="1e-5",
        ca_file=ca,
        memory_folder=str(tmp_path / "memory"),
    )
    (made / "config.json").write_text(settings.model_dump_json())
    save_identity(generate_identity(site), made / "identity.json")
    return made


def _environment(home: Path, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name not in inherited:
                patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        return participant_environment(home, {"PYTHONPATH": str(ROOT)})


def test_store_and_server_are_asked_through_the_proxy_alone(outside: Outside, home: Path) -> None:
    command = [sys.executable, "-m", "infra.cli", "site", "status", "--home", str(home), "--json"]

    def status(**variables: str) -> tuple[str, str]:
        environment = _environment(home, **variables)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
        found = json.loads(done.stdout)
        return found["store"]["state"], found["prefect"]

    assert status() == ("store-unreachable", "does not answer: no connection")
    assert outside.asked == []
    assert status(HTTPS_PROXY=outside.address) == ("answers", "answers")
    assert set(outside.asked) == {f"CONNECT {name}:443" for name in (COORDINATOR, STORE)}
    assert status(HTTPS_PROXY=outside.address, NO_PROXY=STORE) == ("store-unreachable", "answers")


@pytest.mark.long
@pytest.mark.usefixtures("prefect_settings")
def test_an_agent_registers_and_asks_for_work_through_the_proxy(outside: Outside, home: Path) -> None:
    site = json.loads((home / "config.json").read_text())["name"]
    agent = start_process(
        site,
        [sys.executable, "-P", "-m", "infra.cli", "site", "run", "--home", str(home)],
        log=home / "agent.log",
        environment=_environment(home, HTTPS_PROXY=outside.address),
        folder=home,
    )

    async def online() -> bool:
        async with get_client() as client:
            workers = await client.read_workers_for_work_pool(pool_name(site))
        return [worker.name.startswith(site) for worker in workers] == [True]

    def asks() -> bool:
        try:
            return "serving" in agent.log_tail(50) and asyncio.run(online())
        except PrefectHTTPStatusError:  # there is no pool yet
            return False

    try:
        wait_until(lambda: not agent.is_alive() or asks(), 180.0)
        assert agent.is_alive(), agent.log_tail(30)
    finally:
        agent.stop()
    assert {line.split()[1] for line in outside.asked} == {f"{COORDINATOR}:443"}
