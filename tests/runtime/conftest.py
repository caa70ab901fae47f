"""One real Prefect server for all tests of this folder: on PostgreSQL where its programs are installed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.postgres import Postgres, find_postgres_programs, start_postgres
from infra.prefect_server import PrefectServer, prefect_client_environment, start_prefect_server


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the server's files and logs."""
    return tmp_path_factory.mktemp("consortium")


@pytest.fixture(scope="session")
def cluster(server_folder: Path) -> Iterator[Postgres | None]:
    """The server's database, or None where PostgreSQL is not installed: then it is a file."""
    if find_postgres_programs() is None:
        yield None
        return
    running = start_postgres(server_folder / "postgres", log=server_folder / "logs" / "postgres.log")
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(running.data_folder)


@pytest.fixture(scope="session")
def server(server_folder: Path, cluster: Postgres | None) -> Iterator[PrefectServer]:
    address = cluster.url() if cluster else None
    log = server_folder / "logs" / "prefect.log"
    running = start_prefect_server(server_folder / "prefect", log=log, database_url=address)
    yield running
    running.stop()


@pytest.fixture
def agent_environment(server: PrefectServer, tmp_path: Path) -> dict[str, str]:
    """The whole environment of a site-agent process."""
    settings = prefect_client_environment(server.api_url, tmp_path / "prefect", database=server.database)
    return {**os.environ, **settings, "PREFECT_WORKER_QUERY_SECONDS": "0.3"}


@pytest.fixture
def prefect_settings(server: PrefectServer, tmp_path: Path) -> Iterator[None]:
    """Points Prefect, in this process, at the server, and undoes what an agent changes in it."""
    import prefect._internal.states
    import prefect.states
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_HOME,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_LOGGING_TO_API_ENABLED,
        PREFECT_RESULTS_DEFAULT_SERIALIZER,
        temporary_settings,
    )

    settings = {
        PREFECT_API_URL: server.api_url,
        PREFECT_HOME: tmp_path / "prefect",
        PREFECT_LOCAL_STORAGE_PATH: tmp_path / "prefect" / "storage",
        PREFECT_LOGGING_TO_API_ENABLED: False,
        PREFECT_RESULTS_DEFAULT_SERIALIZER: "json",
    }
    with temporary_settings(settings), pytest.MonkeyPatch.context() as patch:
        for module in (prefect.states, prefect._internal.states):
            patch.setattr(module, "format_exception", module.format_exception)
        yield


@pytest.fixture
def stubborn_command() -> list[str]:
    """A program that ignores the polite signal."""
    code = f"import signal, time; signal.signal({int(signal.SIGTERM)}, signal.SIG_IGN); print('up', flush=True)"
    return ["python3", "-c", f"{code}\nwhile True: time.sleep(1)"]
