"""A whole consortium as processes: joined by commands, agents through the proxy, store on S3, audited, taken down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.postgres import find_postgres_programs
from infra.settings import load_settings
from schemas.options import CoordinatorSettings
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.storage.s3_client import open_client
from tests.canaries import BAD, GOOD, files_under, plant, search, verify_search_sees
from tests.consortium.parties import BUCKET, Place
from tests.consortium.supervisor import NGINX, ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.demo,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
    pytest.mark.skipif(find_postgres_programs() is None, reason="PostgreSQL is not installed"),
]


def ask(place: Place, action: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.consortium", action, "--folder", str(place.folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("consortium") / "here")
    done = ask(made, "up", "--rounds", "2")
    try:
        assert done.returncode == 0, done.stderr + (made.folder / "supervisor.log").read_text()[-3000:]
        yield made
    finally:
        if made.state.is_file():
            ask(made, "down")


def processes(place: Place) -> dict[int, str]:
    """Returns every process whose command line names the consortium's folder."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and int(path.name) != os.getpid():
            try:
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(place.folder) in words:
                found[int(path.name)] = words
    return found


def listening(pids: set[int]) -> set[int]:
    """Returns which of the processes hold a listening TCP socket."""
    sockets = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets.add(f"socket:[{fields[9]}]")
    holders = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(handle.readlink()) in sockets:
                    holders.add(pid)
            except OSError:
                continue
    return holders


def left_the_sites(place: Place) -> Iterator[tuple[str, bytes]]:
    """Yields everything outside the hospitals' homes: bucket, databases, artifacts, every log, the proxy's included."""
    settings = load_settings(CoordinatorSettings, place.coordinator / "config.json")
    assert settings.s3 is not None
    client = open_client(settings.s3)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page["Contents"]:
            yield item["Key"], client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
    programs = find_postgres_programs()
    assert programs is not None
    log = (place.coordinator / "services" / "postgres.log").read_text()
    socket_folder = Path(re.findall(r'Unix socket "(.+)"', log)[-1]).parent
    for database in ("prefect", "mlflow"):
        command = [str(programs / "pg_dump"), "-h", str(socket_folder), "-U", "consilium", "--inserts", database]
        dumped = subprocess.run(command, capture_output=True, check=True)
        assert len(dumped.stdout) > 10_000
        yield f"{database} database", dumped.stdout
    yield from files_under(place.coordinator)
    yield from files_under(place.folder / "logs")
    yield "proxy", (place.proxy / "access.log").read_bytes() + (place.proxy / "error.log").read_bytes()


def test_a_study_runs_through_proxy_and_bucket_verifies_and_leaves_no_process(place: Place) -> None:
    *others, refused = sorted(path for path in (place.folder / "tables").iterdir())
    plant(others[0], GOOD)
    plant(refused, BAD)
    done = ask(place, "study")
    logs = {name: place.log(name).read_text()[-1500:] for name in ("worker", *place.sites())}
    assert done.returncode == 0, done.stderr + json.dumps(logs, indent=1)
    assert (place.coordinator / "summary.json").is_file()

    report = verify_evidence(place.coordinator / "evidence", read_public_keys(place.coordinator / "public-keys.json"))
    assert report.passed

    verify_search_sees()
    everything = list(left_the_sites(place))
    assert len(everything) > 100
    assert search(everything) == []
    events = [json.loads(line) for line in (place.coordinator / "events.jsonl").read_text().splitlines()]
    assert [e for e in events if e["event"] == "site-state" and e["site"] == refused.stem and e["code"]]

    # Every hospital came through the proxy with its own token, and no token is written down.
    seen = (place.proxy / "access.log").read_text()
    for name in place.sites():
        assert f" {name} POST /api/work_pools/consilium-{name}/get_scheduled_flow_runs 200" in seen
        assert (place.proxy / "tokens" / name).read_text().strip() not in seen
    # Prefect's worker also asks for a channel that nobody needs.
    assert {line.split()[4].rpartition("/")[2] for line in seen.splitlines() if " 403 " in line} <= {"connect"}

    agents = {pid: words for pid, words in processes(place).items() if " site run " in words}
    assert len(agents) == len(place.sites())
    assert listening(set(agents)) == set(), "an agent listens on a port"
    servers = {pid for pid, words in processes(place).items() if "uvicorn" in words or "nginx" in words}
    assert listening(servers or set(processes(place))), "the check sees who listens"

    done = ask(place, "down")
    assert done.returncode == 0, done.stderr
    assert processes(place) == {}
    assert "No consortium runs" in ask(place, "down").stderr
    shutil.rmtree(place.folder)
