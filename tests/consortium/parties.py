"""Makes a coordinator and four hospitals by the commands that people type, on an S3 server or a folder."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.cli import main
from infra.settings import load_settings
from schemas.options import CoordinatorSettings
from tests.consortium.tls import write_certificate
from tests.simulator import Prepared, change_settings, prepare
from tests.storage.s3_servers import write_credentials

AddUser = Callable[[str, str], None]
SITES = 4
BUCKET = "study"


@dataclass(frozen=True)
class Ports:
    """TCP ports of this machine; `s3` and `proxy` are None where that server is not there."""

    prefect: int
    mlflow: int
    s3: int | None
    proxy: int | None
    bucket: str = BUCKET
    s3_scheme: str = "http"

    def s3_endpoint(self, name: str) -> str:
        """Returns where the participant `name` finds the S3 server."""
        return f"{self.s3_scheme}://127.0.0.1:{self.s3}"

    def prefect_url(self, name: str) -> str:
        """Returns where the hospital `name` finds Prefect: the proxy, or the server where there is no proxy."""
        return f"http://127.0.0.1:{self.prefect}/api" if self.proxy is None else f"https://127.0.0.1:{self.proxy}/api"

    def listen(self) -> str:
        """Returns where the proxy listens."""
        return f"127.0.0.1:{self.proxy}"


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


def let_in(name: str, secret: str) -> None:
    """Adds no user: moto takes any key."""


def make_parties(place: Place, ports: Ports, rounds: int, add_user: AddUser = let_in) -> None:
    """Makes everybody's home, lets the hospitals join and approve, and hands out the proxy's tokens.

    Args:
        add_user: Told every name and secret that the S3 server is to know; the bucket then has a policy.
    """
    draft = prepare(place.folder / "draft", rounds=rounds, sites=SITES)
    names = [site.name for site in draft.plan.sites]
    if ports.proxy is not None and not place.certificate.exists():
        write_certificate(place.folder, days=30)
    stores = {name: _store(place, ports, name, add_user) for name in ("coordinator", *names)}
    owner: Sequence[str] = ()
    if ports.s3 is not None:
        _make_bucket(place, ports, add_user)
        owner = () if add_user is let_in else ("--owner", str(place.folder / "keys" / "owner.json"))
    home = str(place.coordinator)
    _type("coordinator", "init", "--home", home, *stores["coordinator"], *_ports(ports), *owner)
    if owner:
        _type("coordinator", "bucket", "--home", home, *names, *owner)
    for name in names:
        _make_hospital(place, name, draft, stores[name], ports)
    plan = place.folder / "draft.json"
    content = draft.plan.model_dump(mode="json") | {"reviewers": [], "release": {"reviewers_needed": 1}}
    plan.write_text(json.dumps(content))
    named = [part for name in names for part in ("--site", name)]
    _type("coordinator", "propose", "--home", home, str(plan), *named)
    for name, site in place.sites().items():
        _type("site", "approve", "--home", str(site), place.study, "--yes")
        memory = place.folder / "memory" / name
        memory.mkdir(mode=0o700, parents=True)
        # Beside the rest: whoever removes the folder has removed everything.
        change_settings(site, memory_folder=str(memory))
    if ports.proxy is not None:
        _make_proxy(place, ports)


def _make_hospital(place: Place, name: str, draft: Prepared, store: Sequence[str], ports: Ports) -> None:
    home = place.folder / "sites" / name
    table = place.folder / "tables" / f"{name}.parquet"
    table.parent.mkdir(exist_ok=True)
    shutil.copyfile(draft.workdir.site(name) / "cohort.parquet", table)
    asked = ["--name", name, "--data", str(table), "--epsilon", "3", "--delta", "1e-5"]
    # The proxy and the S3 server have one certificate.
    trusted = ["--ca-file", str(place.certificate)] if ports.proxy is not None else []
    token = ["--token-file", str(home / "token")] if ports.proxy is not None else []
    server = ["--prefect", ports.prefect_url(name), *token, *trusted]
    _type("site", "init", "--home", str(home), *asked, *store, *server)
    _type("site", "join", "--home", str(home), "--patients", "140")


def _type(*command: str) -> None:
    main.main(list(command), standalone_mode=False)


def _ports(ports: Ports) -> Sequence[str]:
    return ("--prefect-port", str(ports.prefect), "--mlflow-port", str(ports.mlflow))


def _store(place: Place, ports: Ports, name: str, add_user: AddUser) -> Sequence[str]:
    if ports.s3 is None:
        return ("--store", str(place.folder / "store"))
    endpoint = ports.s3_endpoint(name)
    trusted = ("--ca-file", str(place.certificate)) if endpoint.startswith("https") else ()
    keys = _write_keys(place, name, add_user)
    return ("--store", f"s3://{ports.bucket}/one", "--credentials", str(keys), "--endpoint", endpoint, *trusted)


def _write_keys(place: Place, name: str, add_user: AddUser) -> Path:
    secret = secrets.token_urlsafe(16)
    add_user(name, secret)
    (place.folder / "keys").mkdir(mode=0o700, exist_ok=True)
    return write_credentials(place.folder / "keys", name, secret)


def _make_bucket(place: Place, ports: Ports, add_user: AddUser) -> None:
    from schemas.options import S3Settings
    from tasks.storage.s3_client import open_client

    endpoint = ports.s3_endpoint("coordinator")
    authority = str(place.certificate) if endpoint.startswith("https") else None
    keys = _write_keys(place, "owner", add_user)
    settings = S3Settings(endpoint=endpoint, credentials_file=str(keys), ca_file=authority)
    open_client(settings).create_bucket(Bucket=ports.bucket)


def _make_proxy(place: Place, ports: Ports) -> None:
    tls = ("--certificate", str(place.certificate), "--key", str(place.folder / "tls-key.pem"))
    listen = ports.listen()
    _type("coordinator", "proxy", "--home", str(place.coordinator), "--listen", listen, *tls, "--out", str(place.proxy))
    for name, home in place.sites().items():
        token = home / "token"
        token.touch(mode=0o600)
        token.write_text((place.proxy / "tokens" / name).read_text())
