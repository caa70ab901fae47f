"""An S3 server of a test: radosgw with a user and a policy per party where it is installed, else moto."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infra.processes import ChildProcess, find_free_port, start_process
from infra.services import is_answering
from tests.consortium.parties import let_in
from tests.consortium.tls import write_certificate
from tests.storage.s3_servers import Radosgw, missing_programs


class ObjectStore(Protocol):
    """An S3 server whose objects outlive it, on a port of this machine's loopback."""

    scheme: str

    @property
    def port(self) -> int:
        """Port of 127.0.0.1."""

    def add_user(self, name: str, secret: str) -> None:
        """Lets a party in."""

    def kill(self) -> bool:
        """Kills the server; False where that would lose its objects."""

    def is_alive(self) -> bool:
        """Says whether the server runs."""

    def start(self) -> None:
        """Starts the server again."""

    def pids(self) -> dict[str, int]:
        """Returns the ids of its processes by name."""


@dataclass
class Moto:
    """Objects in memory: this one cannot be killed."""

    port: int
    process: ChildProcess
    scheme: str = "http"
    # The very function: a bucket on a server that lets everybody in gets no policy.
    add_user = staticmethod(let_in)

    def kill(self) -> bool:
        return False

    def is_alive(self) -> bool:
        return True

    def start(self) -> None: ...

    def pids(self) -> dict[str, int]:
        return {"S3 (moto)": self.process.pid}


@dataclass
class Ceph:
    """A gateway, and behind it a store that outlives it."""

    radosgw: Radosgw
    scheme: str = "https"

    @property
    def port(self) -> int:
        return self.radosgw.port

    def add_user(self, name: str, secret: str) -> None:
        self.radosgw.make_user(name, name, secret)

    def kill(self) -> bool:
        self.radosgw.kill_gateway()
        return True

    def is_alive(self) -> bool:
        return self.radosgw.has_gateway()

    def start(self) -> None:
        self.radosgw.start_gateway()

    def pids(self) -> dict[str, int]:
        return {f"S3 ({name})": pid for name, pid in self.radosgw.pids().items()}


@contextlib.contextmanager
def open_object_store(folder: Path, addresses: Sequence[str]) -> Iterator[ObjectStore]:
    """Runs an S3 server in `folder`; ``tls.pem`` and ``tls-key.pem`` there are good for `addresses`."""
    write_certificate(folder, days=30, addresses=addresses)
    if missing_programs():
        port = find_free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = start_process("s3", command, log=folder / "s3.log", environment=dict(os.environ))
        try:
            while not is_answering(f"http://127.0.0.1:{port}/moto-api/") and process.is_alive():
                process.wait(0.2)
            yield Moto(port, process)
        finally:
            process.kill()
        return
    both = folder / "tls-both.pem"
    both.touch(mode=0o600)
    both.write_bytes((folder / "tls.pem").read_bytes() + (folder / "tls-key.pem").read_bytes())
    radosgw = Radosgw(folder, both)
    try:
        radosgw.start()
        yield Ceph(radosgw)
    finally:
        radosgw.stop()
