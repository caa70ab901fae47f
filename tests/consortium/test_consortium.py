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
from tests.consortium.proc import family, listening, naming, still_there
from tests.consortium.supervisor import NGINX, ROOT
from tests.databases import LEAKY_TABLES, dump_postgres, write_row_everywhere
from tests.runtime.waiting import wait_until

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


def left_the_sites(place: Place) -> Iterator[tuple[str, bytes]]:
    """Yields everything outside the hospitals' homes: bucket, databases, artifacts, every log, the proxy's included."""
    settings = load_settings(CoordinatorSettings, place.coordinator / "config.json")
    assert settings.s3 is not None
    client = open_client(settings.s3)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page["Contents"]:
            yield item["Key"], client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
    for database in ("prefect", "mlflow"):
        for table, rows in dump_postgres(sockets(place), database).items():
            yield f"{database} database/{table}", rows
    yield from files_under(place.coordinator)
    yield from files_under(place.folder / "logs")
    yield "proxy", b"".join((place.proxy / "logs" / f"{name}.log").read_bytes() for name in ("access", "error"))


def sockets(place: Place) -> Path:
    """Returns the folder with the socket of the coordinator's PostgreSQL."""
    log = (place.coordinator / "services" / "postgres.log").read_text()
    return Path(re.findall(r'Unix socket "(.+)"', log)[-1]).parent


def cluster_folder(place: Place) -> Path:
    """Returns where the coordinator's PostgreSQL keeps its data."""
    (home,) = {
        words.split(" -D ")[1].split()[0]
        for words in family(json.loads(place.state.read_text())["process"]).values()
        if "/postgres -D " in words
    }
    return Path(home)


def verify_databases_search_sees(place: Place) -> None:
    """Fails unless a row that a careless flow really writes into the same Prefect server is found, table by table."""
    before = dump_postgres(sockets(place), "prefect")
    # The refusal of the planted row is there: what was searched is where a site's states arrive.
    assert b"contract-violated" in before["flow_run_state"]
    assert b"contract-violated" in before["task_run_state"]
    settings = load_settings(CoordinatorSettings, place.coordinator / "config.json")
    write_row_everywhere(settings.prefect_api_url, place.folder / "careless", os.environ)

    def seen() -> bool:
        found = search(dump_postgres(sockets(place), "prefect").items())
        return {name.partition(":")[0] for name in found} >= LEAKY_TABLES

    wait_until(seen)


def test_a_study_runs_through_proxy_and_bucket_verifies_and_leaves_no_process(place: Place) -> None:
    *others, refused = sorted(path for path in (place.folder / "tables").iterdir())
    plant(others[0], GOOD)
    plant(refused, BAD)
    done = ask(place, "study")
    logs = {name: place.log(name).read_text()[-1500:] for name in ("worker", *place.sites())}
    assert done.returncode == 0, done.stderr + json.dumps(logs, indent=1)
    summary = json.loads((place.coordinator / "summary.json").read_text())
    for present in summary["participants"].values():
        assert others[0].stem in present
        assert refused.stem not in present

    report = verify_evidence(place.coordinator / "evidence", read_public_keys(place.coordinator / "public-keys.json"))
    assert report.passed

    verify_search_sees()
    everything = list(left_the_sites(place))
    assert len(everything) > 100
    assert search(everything) == []
    verify_databases_search_sees(place)
    events = [json.loads(line) for line in (place.coordinator / "events.jsonl").read_text().splitlines()]
    assert [e for e in events if e["event"] == "site-state" and e["site"] == refused.stem and e["code"]]

    # Every hospital came through the proxy with its own token, and no token is written down.
    seen = (place.proxy / "logs" / "access.log").read_text()
    for name in place.sites():
        assert f" {name} POST /api/work_pools/consilium-{name}/get_scheduled_flow_runs 200" in seen
        assert (place.proxy / "tokens" / name).read_text().strip() not in seen
    # Prefect's worker also asks for a channel that nobody needs.
    assert {line.split()[4].rpartition("/")[2] for line in seen.splitlines() if " 403 " in line} <= {"connect"}

    supervisor = json.loads(place.state.read_text())["process"]
    running = family(supervisor)
    agents = {pid for (pid, _), words in running.items() if " site run " in words}
    assert len(agents) == len(place.sites())
    behind = {pid for agent in agents for pid, _ in family(agent)}
    assert listening(behind) == set(), "an agent listens on a port"
    for server in ("uvicorn", "nginx", "moto.server", "mlflow"):
        started = {pid for (pid, _), words in running.items() if server in words}
        assert listening(started), f"the look does not see that {server} listens"
    assert [words for words in running.values() if "/postgres" in words]

    cluster = cluster_folder(place)
    done = ask(place, "down")
    assert done.returncode == 0, done.stderr
    assert {pid: words for (pid, start), words in running.items() if still_there([(pid, start)])} == {}
    assert naming(place.folder) == {}
    assert not sockets(place).exists()
    assert "No consortium runs" in ask(place, "down").stderr
    shutil.rmtree(place.folder)
    # Where root runs this, the cluster is another user's and lies elsewhere.
    shutil.rmtree(cluster, ignore_errors=True)
