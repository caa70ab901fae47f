"""The local Prefect server of a one-machine consortium, and the settings every participant gives to Prefect.

Nothing here imports Prefect: its settings come from the environment and are read when it is first imported.
"""

from __future__ import annotations

import base64
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from infra.processes import ChildProcess, find_free_port, is_port_free, start_process
from schemas.errors import OperationError

Database = Literal["postgresql", "sqlite"]

# SQLite stalls when several agents write often: fewer polls and fewer heartbeats are what keeps it going.
_POLL_SECONDS: Final[dict[Database, float]] = {"postgresql": 0.3, "sqlite": 3.0}
_HEARTBEAT_SECONDS: Final[dict[Database, int]] = {"postgresql": 30, "sqlite": 60}

# Ours have a few kB; so has what Prefect tells of a task run.
LARGEST_EVENT_BYTES: Final = 64 << 10
_EVENTS_KEPT: Final = "P2D"

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_LOCKED_OUT: Final = "the proxy refuses the token"
_CERTIFICATE_REFUSED: Final = "its certificate is not trusted here"
_NO_CERTIFICATE: Final = "ca_file holds no certificate"
_REMEDIES: Final = {
    _NO_CERTIFICATE: "Write the PEM file of the authority that signed the server's certificate there, or correct "
    "ca_file in config.json.",
    _LOCKED_OUT: "Ask the coordinator for this site's token and write it to the file that token_file names.",
    _CERTIFICATE_REFUSED: "Name the authority that signed it as ca_file in config.json; if it is out of date, ask the "
    "coordinator.",
}
_NO_TELEMETRY: Final = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
}


@dataclass(frozen=True)
class PrefectServer:
    """A running server; `api_url` is what participants are given, `ui_url` what a person opens."""

    api_url: str
    ui_url: str
    database: Database
    process: ChildProcess

    def is_alive(self) -> bool:
        """Says whether the server process runs."""
        return self.process.is_alive()

    def stop(self) -> None:
        """Stops the server."""
        self.process.stop(grace_seconds=10.0)


def start_prefect_server(
    folder: Path,
    *,
    log: Path,
    database_url: str | None = None,
    port: int | None = None,
    on_wait: Callable[[float], None] | None = None,
    start_timeout_seconds: float = 120.0,
) -> PrefectServer:
    """Starts a server on 127.0.0.1 and waits until its health check answers.

    Args:
        folder: The server's private PREFECT_HOME.
        log: File that receives the server's output.
        database_url: An SQLAlchemy address on asyncpg; None uses an SQLite file in `folder`.
        port: TCP port; None takes a free one.
        on_wait: Called with the seconds waited so far, about four times a second.

    Raises:
        OperationError: `port-in-use`, `prefect-server-died`, `prefect-server-slow`.
    """
    if port is not None and not is_port_free(port):
        raise OperationError(
            "port-in-use", f"Port {port} is in use by another program.", "Stop it or choose another --port."
        )
    chosen = port or find_free_port()
    folder.mkdir(parents=True, exist_ok=True)
    database: Database = "postgresql" if database_url else "sqlite"
    address = database_url or f"sqlite+aiosqlite:///{folder.resolve() / 'prefect.db'}"
    # The command of `prefect server start --background` without its questions to a terminal, and closed to other pages.
    command = [sys.executable, "-m", "uvicorn", "--factory", "infra.prefect_app:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(chosen), "--timeout-keep-alive", "30", "--log-level", "warning"]
    command += ["--ws-max-size", str(4 * LARGEST_EVENT_BYTES)]
    command += ["--timeout-graceful-shutdown", "2"]  # without it a browser page left open keeps the server alive
    process = start_process(
        "the Prefect server",
        command,
        log=log,
        environment=_server_environment(folder, address, chosen),
        folder=folder,
    )
    server = PrefectServer(f"http://127.0.0.1:{chosen}/api", f"http://127.0.0.1:{chosen}", database, process)
    try:
        _wait_until_healthy(server, on_wait or (lambda _: None), start_timeout_seconds)
    except BaseException:
        process.kill()
        raise
    return server


def poll_seconds_for(database: Database) -> float:
    """Returns the pause between an idle agent's questions that a server on `database` bears."""
    return _POLL_SECONDS[database]


def prefect_client_environment(
    api_url: str, home: Path, *, database: Database = "postgresql", poll_seconds: float | None = None
) -> dict[str, str]:
    """Returns the settings of a coordinator or an agent, to be set before Prefect is imported.

    Args:
        api_url: Address of the server, ending in `/api`.
        home: A private PREFECT_HOME, one for each participant: it holds that participant's own result files.
        database: What the server runs on; decides how often it is asked.
        poll_seconds: Overrides the seconds between two questions of a worker.
    """
    return (
        _NO_TELEMETRY
        | _local_shortcuts(api_url)
        | {
            "PREFECT_API_URL": api_url,
            "PREFECT_HOME": str(home.resolve()),
            "PREFECT_PROFILES_PATH": str(home.resolve() / "profiles.toml"),
            # Never pickle: a result file must not be able to run code in whoever reads it.
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
            "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
            # A log line may quote a record; logs stay with the participant that wrote them.
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_COLORS": "false",
            # A retry is a decision about privacy: only where it is written beside the task.
            "PREFECT_TASKS_DEFAULT_RETRIES": "0",
            "PREFECT_FLOWS_DEFAULT_RETRIES": "0",
            "PREFECT_WORKER_QUERY_SECONDS": str(poll_seconds or _POLL_SECONDS[database]),
            "PREFECT_WORKER_PREFETCH_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": str(_HEARTBEAT_SECONDS[database]),
            # Without a server's address Prefect would start a private one and the study would run unseen.
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        }
    )


def wait_for_api(
    api_url: str, timeout_seconds: float = 60.0, password: str | None = None, authority: str | None = None
) -> None:
    """Waits until the server at `api_url` answers its health check; arguments as `why_unhealthy`.

    Raises:
        OperationError: `prefect-unreachable`.
    """
    deadline = time.monotonic() + timeout_seconds
    while (why := why_unhealthy(api_url, password, authority)) is not None:
        if why == _NO_CERTIFICATE or time.monotonic() > deadline:
            raise OperationError(
                "prefect-unreachable",
                f"No Prefect server answered at {api_url} within {timeout_seconds:.0f} seconds: {why}.",
                _REMEDIES.get(
                    why, "Check prefect_api_url in config.json (or PREFECT_API_URL) and that the server runs."
                ),
            )
        time.sleep(0.25)


def _server_environment(folder: Path, address: str, port: int) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return (
        inherited
        | _NO_TELEMETRY
        | {
            "PREFECT_HOME": str(folder.resolve()),
            "PREFECT_PROFILES_PATH": str(folder.resolve() / "profiles.toml"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": address,
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_COLORS": "false",
            # Every state of every task run would be a transaction of its own; together they are shown a second later.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
            # Any hospital can send events; what a round did is told by runs and artifacts, which stay.
            "PREFECT_SERVER_EVENTS_MAXIMUM_SIZE_BYTES": str(LARGEST_EVENT_BYTES),
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": _EVENTS_KEPT,
            "PREFECT__SERVER_FINAL": "1",
        }
    )


def _wait_until_healthy(server: PrefectServer, on_wait: Callable[[float], None], timeout_seconds: float) -> None:
    started = time.monotonic()
    while not is_healthy(server.api_url):
        waited = time.monotonic() - started
        if not server.is_alive():
            tail = server.process.log_tail()
            if "address already in use" in tail:
                raise OperationError(
                    "port-in-use",
                    f"The port of {server.ui_url} was taken while the server started.",
                    "Run the command again or choose another --port.",
                )
            raise OperationError(
                "prefect-server-died",
                f"The Prefect server ended while it started; see {server.process.log}.",
                "Install the versions of constraints.txt.",
            )
        if waited > timeout_seconds:
            raise OperationError(
                "prefect-server-slow",
                f"The Prefect server did not answer within {timeout_seconds:.0f} seconds; see {server.process.log}.",
                "Close other programs and run the command again.",
            )
        on_wait(waited)
        time.sleep(0.25)
    if not server.is_alive():  # somebody else's server answered on the port
        raise OperationError("port-in-use", f"Another program answers at {server.ui_url}.", "Run the command again.")


def proxies_for(url: str) -> urllib.request.ProxyHandler:
    """Returns the environment's proxies, or none: they cannot reach this machine's own ports."""
    return urllib.request.ProxyHandler({}) if is_loopback(url) else urllib.request.ProxyHandler()


def is_healthy(api_url: str, password: str | None = None, authority: str | None = None) -> bool:
    """Says whether the server at `api_url` answers its health check; arguments as `why_unhealthy`."""
    return why_unhealthy(api_url, password, authority) is None


def why_unhealthy(api_url: str, password: str | None = None, authority: str | None = None) -> str | None:
    """Says in words why the server at `api_url` does not answer its health check; None if it does.

    Args:
        password: ``name:token`` for the proxy in front of the server, which lets nobody in without it.
        authority: File with the authority of the proxy's certificate; by default the system's, or ``SSL_CERT_FILE``.
    """
    if not api_url.startswith(("http://", "https://")):
        return "the address is none of http or https"
    request = urllib.request.Request(f"{api_url}/health")  # noqa: S310  the scheme was looked at above
    if password is not None:
        # Not for whoever a redirect leads to.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(password.encode()).decode()}")
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError:  # no such file, or nothing in it that is a certificate
        return _NO_CERTIFICATE
    try:
        https = urllib.request.HTTPSHandler(context=context)
        with urllib.request.build_opener(proxies_for(api_url), https).open(request, timeout=2) as answer:
            return None if answer.status == 200 else _say_status(answer.status, api_url)
    except urllib.error.HTTPError as error:
        return _LOCKED_OUT if error.code == 401 else _say_status(error.code, api_url)
    except (OSError, ValueError) as error:
        untrusted = isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError)
        return _CERTIFICATE_REFUSED if untrusted else "no connection"


def _say_status(status: int, api_url: str) -> str:
    return f"status {status}" if api_url.endswith("/api") else f"status {status}, and the address does not end in /api"


def verify_api_address(address: str) -> None:
    """Refuses what cannot be a Prefect server's address.

    Raises:
        OperationError: `prefect-address`.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or not address.endswith("/api"):
        raise OperationError(
            "prefect-address",
            "Expected the address of the Prefect server or proxy to begin with https:// (or http://) and end in /api.",
            "Name it like https://study.example.org/api, as the coordinator gave it to you.",
        )


def is_loopback(api_url: str) -> bool:
    """Says whether an address is this machine's own."""
    return urlsplit(api_url).hostname in _LOOPBACK


def _local_shortcuts(api_url: str) -> dict[str, str]:
    """Returns what is different for a server on this machine: no proxy in between, no request for a CSRF token."""
    if not is_loopback(api_url):
        return {}
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    without = ",".join(dict.fromkeys([*[name for name in given.split(",") if name], *_LOOPBACK]))
    return {
        "NO_PROXY": without,
        "no_proxy": without,  # the one that counts where both are set
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
    }
