"""Makes a coordinator and four hospitals by the commands that people type, on an S3 server or a folder."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.cli import main
from infra.settings import load_settings
from schemas.options import CoordinatorSettings
from tests.consortium.tls import write_certificate
from tests.simulator import change_settings, prepare
from tests.storage.s3_servers import write_credentials

SITES = 4
BUCKET = "study"


@dataclass(frozen=True)
class Ports:
    """TCP ports of this machine; `s3` and `proxy` are None where that server is not there."""

    prefect: int
    mlflow: int
    s3: int | None
    proxy: int | None


@dataclass(frozen=True)
class Place:
    """One consortium's folder."""

    folder: Path

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    @property
    def proxy(self) -> Path:
        return self.folder / "proxy"

    @property
    def certificate(self) -> Path:
        return self.folder / "tls.pem"

    @property
    def state(self) -> Path:
        return self.folder / "consortium.json"

    @property
    def study(self) -> str:
        return load_settings(CoordinatorSettings, self.coordinator / "config.json").study

    def sites(self) -> Mapping[str, Path]:
        """Returns every hospital's home by its name."""
        return {path.name: path for path in sorted((self.folder / "sites").iterdir())}

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"


def make_parties(place: Place, ports: Ports, rounds: int) -> None:
    """Makes everybody's home, lets the hospitals join and approve, and hands out the proxy's tokens."""
    draft = prepare(place.folder / "draft", rounds=rounds, sites=SITES)
    names = [site.name for site in draft.plan.sites]
    if ports.s3 is not None:
        _make_bucket(place, ports.s3)
    _type("coordinator", "init", "--home", str(place.coordinator), *_store(place, ports, "coordinator"), *_ports(ports))
    if ports.proxy is not None:
        write_certificate(place.folder, days=30)
    for name in names:
        home = place.folder / "sites" / name
        table = place.folder / "tables" / f"{name}.parquet"
        table.parent.mkdir(exist_ok=True)
        shutil.copyfile(draft.workdir.site(name) / "cohort.parquet", table)
        asked = ["--name", name, "--data", str(table), "--epsilon", "3", "--delta", "1e-5"]
        _type("site", "init", "--home", str(home), *asked, *_store(place, ports, name), *_server(place, ports, home))
        _type("site", "join", "--home", str(home), "--patients", "140")
    plan = place.folder / "draft.json"
    content = draft.plan.model_dump(mode="json") | {"reviewers": [], "release": {"reviewers_needed": 1}}
    plan.write_text(json.dumps(content))
    named = [part for name in names for part in ("--site", name)]
    _type("coordinator", "propose", "--home", str(place.coordinator), str(plan), *named)
    for name, home in place.sites().items():
        _type("site", "approve", "--home", str(home), place.study, "--yes")
        memory = place.folder / "memory" / name
        memory.mkdir(mode=0o700, parents=True)
        # Beside the rest: whoever removes the folder has removed everything.
        change_settings(home, memory_folder=str(memory))
    if ports.proxy is not None:
        _make_proxy(place, ports.proxy)


def _type(*command: str) -> None:
    main.main(list(command), standalone_mode=False)


def _ports(ports: Ports) -> Sequence[str]:
    return ("--prefect-port", str(ports.prefect), "--mlflow-port", str(ports.mlflow))


def _store(place: Place, ports: Ports, name: str) -> Sequence[str]:
    if ports.s3 is None:
        return ("--store", str(place.folder / "store"))
    keys = write_credentials(place.folder / "keys", name, secrets.token_urlsafe(16))
    return (
        "--store",
        f"s3://{BUCKET}/one",
        "--credentials",
        str(keys),
        "--endpoint",
        f"http://127.0.0.1:{ports.s3}",
    )


def _make_bucket(place: Place, port: int) -> None:
    from schemas.options import S3Settings
    from tasks.storage.s3_client import open_client

    (place.folder / "keys").mkdir(mode=0o700)
    keys = write_credentials(place.folder / "keys", "owner", secrets.token_urlsafe(16))
    settings = S3Settings(endpoint=f"http://127.0.0.1:{port}", credentials_file=str(keys))
    open_client(settings).create_bucket(Bucket=BUCKET)


def _server(place: Place, ports: Ports, home: Path) -> Sequence[str]:
    if ports.proxy is None:
        return ("--prefect", f"http://127.0.0.1:{ports.prefect}/api")
    address = f"https://127.0.0.1:{ports.proxy}/api"
    return ("--prefect", address, "--token-file", str(home / "token"), "--ca-file", str(place.certificate))


def _make_proxy(place: Place, port: int) -> None:
    tls = ("--certificate", str(place.certificate), "--key", str(place.folder / "tls-key.pem"))
    listen = f"127.0.0.1:{port}"
    _type("coordinator", "proxy", "--home", str(place.coordinator), "--listen", listen, *tls, "--out", str(place.proxy))
    for name, home in place.sites().items():
        token = home / "token"
        token.touch(mode=0o600)
        token.write_text((place.proxy / "tokens" / name).read_text())
