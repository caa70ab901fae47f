"""The Prefect server of a demo: a given one, or a local one on a local PostgreSQL where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.demo.workdir import Workdir
from infra.postgres import Postgres, find_postgres_programs, start_postgres
from infra.prefect_server import (
    Database,
    PrefectServer,
    prefect_client_environment,
    start_prefect_server,
    wait_for_api,
)
from infra.processes import is_port_free
from schemas.errors import OperationError


@dataclass(frozen=True)
class ControlPlane:
    """Where flows are orchestrated; `port` is None for a server that somebody else runs."""

    api_url: str
    ui_url: str
    database: Database
    port: int | None
    processes: tuple[PrefectServer | Postgres, ...]

    def variables(self, home: Path) -> dict[str, str]:
        """Returns what a participant tells Prefect; `home` holds the participant's own Prefect files."""
        return prefect_client_environment(self.api_url, home / "prefect", database=self.database)

    def verify_alive(self, logs: Path) -> None:
        """Raises OperationError `prefect-server-died` if a process of the control plane has ended."""
        if not all(process.is_alive() for process in self.processes):
            raise OperationError(
                "prefect-server-died", f"The Prefect server or its database ended; see {logs}.", "Resume the demo."
            )


def verify_reachable(given_url: str | None, port: int | None) -> None:
    """Refuses a server that does not answer and a port that is taken, before anything is prepared.

    Raises:
        OperationError: `prefect-unreachable`, `port-in-use`.
    """
    if given_url is not None:
        wait_for_api(given_url, timeout_seconds=10)
    elif port is not None and not is_port_free(port):
        raise OperationError(
            "port-in-use", f"Port {port} is in use by another program.", "Leave --port out, or choose another."
        )


@contextmanager
def open_control_plane(
    workdir: Workdir, given_url: str | None, port: int | None, last_port: int | None
) -> Iterator[ControlPlane]:
    """Starts the control plane, or waits for the given one, and stops what it started.

    Args:
        given_url: A Prefect server that somebody else runs, or None.
        port: Port that a person asked for: refused when in use.
        last_port: Port of the last start, taken again where it is free, so that open browser pages keep working.
    """
    if given_url is not None:
        wait_for_api(given_url)
        yield ControlPlane(given_url, given_url.removesuffix("/api"), "postgresql", None, ())
        return
    if port is None and last_port is not None and is_port_free(last_port):
        port = last_port
    with ExitStack() as stack:
        postgres = None
        if find_postgres_programs() is not None:
            postgres = start_postgres(workdir.postgres, log=workdir.log("postgres"))
            stack.callback(postgres.stop)
        server = start_prefect_server(
            workdir.prefect,
            log=workdir.log("prefect-server"),
            database_url=postgres.url() if postgres else None,
            port=port,
        )
        stack.callback(server.stop)
        chosen = int(server.ui_url.rsplit(":", 1)[1])
        processes = (server, postgres) if postgres else (server,)
        yield ControlPlane(server.api_url, server.ui_url, server.database, chosen, processes)
