"""What a database holds, table by table, and a program that really writes a patient's row into Prefect's."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from infra.postgres import find_postgres_programs
from infra.prefect_server import prefect_client_environment
from tests.canaries import GOOD, PATIENT

# Where a careless program of a site would leave a row: parameters, states' messages, logs, artifacts, events.
LEAKY_TABLES = {"flow_run", "flow_run_state", "task_run_state", "log", "artifact", "events"}
ROW = {"patient_id": PATIENT, **GOOD}
_COPIED = re.compile(rb"^COPY public\.\"?(\w+)\"? [^\n]*FROM stdin;\n(.*?)^\\\.$", re.MULTILINE | re.DOTALL)


def dump_postgres(socket_folder: Path, database: str) -> dict[str, bytes]:
    """Returns every table's rows as pg_dump writes them, and the whole dump under ``dump``."""
    programs = find_postgres_programs()
    assert programs is not None
    command = [str(programs / "pg_dump"), "-h", str(socket_folder), "-U", "consilium", database]
    done = subprocess.run(command, capture_output=True, check=True)
    tables = {found[1].decode(): found[2] for found in _COPIED.finditer(done.stdout)}
    assert len(tables) > 20, sorted(tables)
    return {**tables, "dump": done.stdout}


def dump_sqlite(file: Path) -> dict[str, bytes]:
    """Returns every table's rows as text, and the file's own bytes, the journal's included, under ``dump``."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables = {name: repr(connection.execute(f'SELECT * FROM "{name}"').fetchall()).encode() for name in names}
    raw = b"".join(path.read_bytes() for path in sorted(file.parent.glob(f"{file.name}*")))
    assert len(tables) > 20, sorted(tables)
    return {**tables, "dump": raw}


def write_row_everywhere(api_url: str, home: Path, environment: Mapping[str, str]) -> None:
    """Runs, against the server, a flow that puts the row into everything that Prefect records of a run."""
    settings = prefect_client_environment(api_url, home) | {"PREFECT_LOGGING_TO_API_ENABLED": "true"}
    command = [sys.executable, "-m", "tests.databases"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env={**environment, **settings}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _leak() -> None:
    from prefect import flow, get_run_logger, task
    from prefect.artifacts import create_markdown_artifact
    from prefect.events import emit_event

    @task(name="train", retries=0)
    def train() -> None:
        get_run_logger().warning("row %s", ROW)
        raise ValueError(f"could not convert {ROW}")

    @flow(name="careless", retries=0)
    def careless(row: dict[str, object]) -> None:
        create_markdown_artifact(key="row", markdown=str(row))
        emit_event("consilium.test.row", resource={"prefect.resource.id": "consilium.test"}, payload=dict(row))
        train()

    state = careless(dict(ROW), return_state=True)
    assert state.is_failed()


if __name__ == "__main__":
    _leak()
