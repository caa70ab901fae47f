"""S3 servers for tests: moto in this process, and Debian's radosgw as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.processes import find_free_port
from schemas.options import S3Settings
from tasks.storage.s3_client import open_client


def write_credentials(folder: Path, access: str, secret: str) -> Path:
    """Writes a credentials file as a participant has it."""
    path = folder / f"{access}.json"
    path.write_text(json.dumps({"access_key_id": access, "secret_access_key": secret}))
    path.chmod(0o600)
    return path


@dataclass(frozen=True)
class S3Server:
    """A running server with the settings of its owner."""

    settings: S3Settings

    @cached_property
    def client(self) -> Any:
        return open_client(self.settings)

    def settings_for(self, credentials: Path) -> S3Settings:
        return self.settings.model_copy(update={"credentials_file": str(credentials)})


@contextlib.contextmanager
def running_moto(folder: Path, between: Any = None) -> Iterator[S3Server]:
    """Runs moto's server: it enforces conditional writes, versioning and object lock, and lets everybody in.

    Args:
        between: A WSGI layer whose `application` is set to moto's.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application: Any = DomainDispatcherApplication(create_backend_app)
    if between is not None:
        between.application = application
    server = make_server("127.0.0.1", 0, between or application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        credentials = write_credentials(folder, "owner", "owner-secret")
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield S3Server(S3Settings(endpoint=endpoint, credentials_file=str(credentials)))
    finally:
        server.shutdown()
        thread.join()


RADOSGW_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "monmaptool", "ceph-authtool", "radosgw-admin")


def missing_programs() -> list[str]:
    """Returns which programs of Debian's packages ceph-mon, ceph-osd, ceph-common and radosgw are not installed."""
    return [name for name in RADOSGW_PROGRAMS if shutil.which(name) is None]


class Radosgw:
    """One monitor, one in-memory store and one gateway, as processes in a folder.

    With `tls`, certificate chain and private key in one PEM file, the gateway speaks https.
    """

    def __init__(self, folder: Path, tls: Path | None = None) -> None:
        self.folder = folder
        self.tls = tls
        self.port = find_free_port()
        self._monitor_port = find_free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        self._osd: subprocess.Popen[bytes] | None = None
        self._osd_starts = 1
        self._configuration = folder / "ceph.conf"

    def start(self) -> None:
        for name in ("mon", "osd", "run"):
            (self.folder / name).mkdir()
        self._configuration.write_text(self._settings())
        self._run("ceph-authtool", "--create-keyring", str(self.folder / "keyring"))
        monitor = f"[v1:127.0.0.1:{self._monitor_port}]"
        mapping = str(self.folder / "monmap")
        identifier = "11111111-2222-3333-4444-555555555555"
        self._run("monmaptool", "--create", "--addv", "a", monitor, "--fsid", identifier, mapping)
        keyring, folder = str(self.folder / "keyring"), str(self.folder / "mon")
        self._run(*self._program("ceph-mon"), "--mkfs", "-i", "a", "--monmap", mapping, "--keyring", keyring)
        assert (self.folder / "mon").is_dir(), folder
        self._start("ceph-mon", "-i", "a")
        self._ceph("osd", "new", identifier)
        self._run(*self._program("ceph-osd"), "-i", "0", "--mkfs", "--osd-uuid", identifier)
        self._osd = self._start("ceph-osd", "-i", "0")
        self.start_gateway()
        self._wait()

    def start_gateway(self) -> None:
        """Starts the gateway; the store behind it keeps what it has."""
        self._gateway = self._start("radosgw", "-n", "client.rgw")

    def kill_gateway(self) -> None:
        """Kills the gateway as a machine that loses its power would."""
        if self._gateway is not None:
            self._gateway.kill()
            self._gateway.wait()
            self._processes.remove(self._gateway)
            self._gateway = None

    def has_gateway(self) -> bool:
        """Says whether the gateway runs."""
        return self._gateway is not None and self._gateway.poll() is None

    def pids(self) -> dict[str, int]:
        """Returns the ids of the running processes by their program's name."""
        return {Path(str(process.args[0])).name: process.pid for process in self._processes}

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def make_user(self, name: str, access: str, secret: str) -> None:
        command = ("user", "create", "--uid", name, "--display-name", name, "--access-key", access, "--secret", secret)
        self._run("radosgw-admin", "-c", str(self._configuration), "-n", "client.rgw", *command)

    def _program(self, name: str) -> tuple[str, ...]:
        return (name, "-c", str(self._configuration))

    def _ceph(self, *command: str) -> None:
        self._run("ceph", "-c", str(self._configuration), "--connect-timeout", "20", *command)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, timeout=180, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace')[-2000:]}")

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            command = (*self._program(program), "-f", *arguments)
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def _wait(self) -> None:
        deadline = time.monotonic() + 180
        while True:
            self._start_osd_again()
            if dead := [p.args for p in self._processes if p.poll() is not None]:
                raise RuntimeError(f"{dead} ended; see {self.folder}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"radosgw did not answer; see {self.folder}") from None
                time.sleep(0.25)

    def _start_osd_again(self) -> None:
        """Starts the store again where it asked its monitor before it knew the cluster's name, and ended over that."""
        if self._osd is None or self._osd.poll() is None or self._osd_starts >= 5:
            return
        self._processes.remove(self._osd)
        self._osd, self._osd_starts = self._start("ceph-osd", "-i", "0"), self._osd_starts + 1

    def _settings(self) -> str:
        user = "" if os.geteuid() else "setuser = root\nsetgroup = root\n"
        at = f"127.0.0.1:{self.port}"
        endpoint = f"endpoint={at}" if self.tls is None else f"ssl_endpoint={at} ssl_certificate={self.tls}"
        return f"""[global]
fsid = 11111111-2222-3333-4444-555555555555
mon_host = [v1:127.0.0.1:{self._monitor_port}]
mon_initial_members = a
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_pool_default_pg_autoscale_mode = off
ms_bind_msgr2 = false
run_dir = {self.folder}/run
admin_socket =
log_file = {self.folder}/$name.log
pid_file = {self.folder}/run/$name.pid
mon_data = {self.folder}/mon
osd_data = {self.folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_memory_target = 939524096
crash_dir = {self.folder}/run
{user}
[client.rgw]
rgw_frontends = beast {endpoint} tcp_nodelay=1
rgw_thread_pool_size = 32
rgw_dns_name = 127.0.0.1
rgw_lc_debug_interval = 5
"""


@contextlib.contextmanager
def running_radosgw(folder: Path, users: tuple[str, ...] = ()) -> Iterator[S3Server]:
    """Runs radosgw with a user `owner` and further `users`; every credentials file lies in `folder`."""
    server = Radosgw(folder)
    try:
        server.start()
        for name in ("owner", *users):
            server.make_user(name, name, f"{name}-secret")
            credentials = write_credentials(folder, name, f"{name}-secret")
        credentials = folder / "owner.json"
        yield S3Server(S3Settings(endpoint=f"http://127.0.0.1:{server.port}", credentials_file=str(credentials)))
    finally:
        server.stop()
