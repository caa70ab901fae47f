"""The coordinator's servers on its own machine: PostgreSQL, Prefect, MLflow; they end with their supervisor."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from infra.postgres import Postgres, find_postgres_programs, start_postgres
from infra.prefect_server import PrefectServer, is_loopback, start_prefect_server
from infra.processes import ChildProcess, WorkdirLock, is_port_free, start_process
from infra.settings import load_settings, participant_environment
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings
from schemas.services import ServiceSettings

_START_SECONDS = 120.0
_MAXIMUM_RESTARTS, _RESTART_WINDOW_SECONDS = 5, 300.0
_POSTGRES, _PREFECT, _MLFLOW = "PostgreSQL", "the Prefect server", "MLflow"


@dataclass
class Services:
    """What runs, and where.

    Attributes:
        restarts: Times (monotonic seconds) at which a server was started again.
    """

    prefect: PrefectServer
    mlflow: ChildProcess
    mlflow_address: str
    postgres: Postgres | None
    start_prefect: Callable[[], PrefectServer]
    start_mlflow: Callable[[], ChildProcess]
    restarts: list[float] = field(default_factory=list)

    def verify_alive(self) -> None:
        """Raises OperationError `service-died`, naming the one that ended and its log."""
        for name, alive, log in self._states():
            if not alive:
                raise OperationError("service-died", f"{name} ended; see {log}.", "Run the command again.")

    def tend(self, say: Callable[[str], None]) -> None:
        """Starts Prefect or MLflow again where it ended: the death of a view must not stop what others do.

        Raises:
            OperationError: `service-died` if PostgreSQL ended, which takes both along, or servers end again and again.
        """
        died = [name for name, alive, _ in self._states() if not alive]
        if not died:
            return
        now = time.monotonic()
        self.restarts = [at for at in self.restarts if now - at < _RESTART_WINDOW_SECONDS]
        if len(self.restarts) >= _MAXIMUM_RESTARTS or _POSTGRES in died:
            self.verify_alive()
        self.restarts.append(now)
        say(f"Starting {' and '.join(died)} again")
        # First whatever a dead server left behind: it may hold the port.
        if _MLFLOW in died:
            self.mlflow.kill()
            self.mlflow = self.start_mlflow()
        if _PREFECT in died:
            self.prefect.process.kill()
            self.prefect = self.start_prefect()

    def stop(self) -> None:
        """Stops Prefect's server, then MLflow."""
        self.prefect.stop()
        self.mlflow.stop()

    def _states(self) -> Iterator[tuple[str, bool, Path]]:
        if self.postgres is not None:
            yield _POSTGRES, self.postgres.is_alive(), self.postgres.process.log
        yield _PREFECT, self.prefect.is_alive(), self.prefect.process.log
        yield _MLFLOW, self.mlflow.is_alive(), self.mlflow.log


@contextmanager
def running_services(home: Path, say: Callable[[str], None]) -> Iterator[Services]:
    """Starts the servers of a coordinator's home, and stops them in order at the end.

    Args:
        say: Receives one line per step.

    Raises:
        OperationError: `workdir-in-use` if they run already, `ports-disagree`, `port-in-use`, `service-died`, and those
            of the servers' own start.
    """
    settings = load_settings(CoordinatorSettings, home / "config.json")
    services = load_settings(ServiceSettings, home / "services.json")
    with ExitStack() as stack:
        # Before the ports: those of this home's own servers are in use by them.
        _hold_servers(stack, home)
        _verify_ports(settings, services)
        own = services.prefect_database_file is None or services.mlflow_database_file is None
        postgres = _start_postgres(home, say) if own else None
        if postgres is not None:
            stack.callback(postgres.stop)

        def start_prefect() -> PrefectServer:
            return start_prefect_server(
                home / "services" / "prefect",
                log=_log(home, "prefect-server"),
                database_url=_database(services.prefect_database_file)
                or (postgres.url("prefect") if postgres is not None else None),
                port=services.prefect_port,
            )

        def start_mlflow() -> ChildProcess:
            return _start_mlflow(home, settings, services, postgres)

        mlflow = stack.enter_context(_stopped_on_error(start_mlflow()))
        say("Starting the Prefect server")
        address = f"http://127.0.0.1:{services.mlflow_port}"
        running = Services(start_prefect(), mlflow, address, postgres, start_prefect, start_mlflow)
        stack.callback(running.stop)
        say("Waiting for MLflow")
        _wait(running)
        yield running


def _hold_servers(stack: ExitStack, home: Path) -> None:
    try:
        stack.enter_context(WorkdirLock(home / "services"))
    except OperationError as error:
        if error.code != "workdir-in-use":
            raise
        raise OperationError(
            error.code,
            f"This home's servers run already. {error.message}",
            "Use them (consilium coordinator status), or stop that process first.",
        ) from None


def _verify_ports(settings: CoordinatorSettings, services: ServiceSettings) -> None:
    """Refuses ports that others hold, and addresses at which the commands would find another coordinator's servers.

    An address that is not this machine's in plain HTTP is another server on purpose.
    """
    for name, port, field_name, address in (
        ("prefect_port", services.prefect_port, "prefect_api_url", settings.prefect_api_url),
        ("mlflow_port", services.mlflow_port, "mlflow_uri", settings.mlflow_uri),
    ):
        if address.startswith("http://") and is_loopback(address) and _port_of(address) != port:
            raise OperationError(
                "ports-disagree",
                f"{name} in services.json and {field_name} in config.json name different ports of this machine.",
                f"Correct one: the commands ask the server at {field_name}, whoever's it is.",
            )
        if not is_port_free(port):
            raise OperationError(
                "port-in-use",
                f"Port {port} is in use by another program.",
                f"Stop it, or name another port as {name} in services.json and in {field_name} of config.json.",
            )


def _port_of(address: str) -> int | None:
    try:
        return urlsplit(address).port or 80
    except ValueError:  # beyond 65535, or no number
        return None


@contextmanager
def _stopped_on_error(process: ChildProcess) -> Iterator[ChildProcess]:
    """Stops a process that was begun before something else failed."""
    try:
        yield process
    except BaseException:
        process.stop()
        raise


def _start_postgres(home: Path, say: Callable[[str], None]) -> Postgres | None:
    if find_postgres_programs() is None:
        say("There is no PostgreSQL here: SQLite serves a trial, not a study with many sites")
        return None
    say("Starting PostgreSQL")
    folder = home / "services" / "postgres"
    postgres = start_postgres(folder, log=_log(home, "postgres"), databases=("prefect", "mlflow"))
    if not postgres.data_folder.is_relative_to(home.resolve()):
        say(f"The database is not in the home but in {postgres.data_folder}: root's cannot be. Use another account")
    return postgres


def _start_mlflow(
    home: Path, settings: CoordinatorSettings, services: ServiceSettings, postgres: Postgres | None
) -> ChildProcess:
    """Starts MLflow's server without waiting for it: Prefect's starts meanwhile."""
    backend = _database(services.mlflow_database_file)
    if backend is None:
        local = f"sqlite:///{home / 'services' / 'mlflow.db'}"
        backend = postgres.url("mlflow", "postgresql+psycopg2") if postgres is not None else local
    artifacts = mlflow_artifacts(home, settings, services)
    # The address may hold a password: it goes through the environment, which only this user can read.
    environment = participant_environment(home, {}) | _bucket_environment(settings, artifacts)
    environment |= {
        "MLFLOW_BACKEND_STORE_URI": backend,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        # Without its job runner MLflow needs two processes instead of ten; its gateway to models has no use here.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
    }
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(services.mlflow_port), "--workers", "1"]
    return start_process("MLflow", command, log=_log(home, "mlflow"), environment=environment, folder=home)


def mlflow_artifacts(home: Path, settings: CoordinatorSettings, services: ServiceSettings) -> str:
    """Returns where MLflow keeps artifacts: as said, else where it kept them when none was said, else in the home."""
    if services.mlflow_artifacts is not None:
        return services.mlflow_artifacts
    # A home that an older `coordinator init` made: moving would lose what its runs hold.
    if settings.s3 is not None:
        return f"{settings.store.rstrip('/')}/coordinator/mlflow"
    return str(home / "services" / "mlartifacts")


def _bucket_environment(settings: CoordinatorSettings, artifacts: str) -> dict[str, str]:
    if settings.s3 is None or not artifacts.startswith("s3://"):
        return {}
    from tasks.storage.s3_client import read_credentials

    credentials = read_credentials(Path(settings.s3.credentials_file))
    given = {
        "AWS_ACCESS_KEY_ID": credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
        "AWS_DEFAULT_REGION": settings.s3.region,
        "MLFLOW_S3_ENDPOINT_URL": settings.s3.endpoint,
        "AWS_SESSION_TOKEN": credentials.session_token,
        "AWS_CA_BUNDLE": settings.s3.ca_file,
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    return {name: value for name, value in given.items() if value is not None}


def _database(file: str | None) -> str | None:
    """Returns the address in a secret file; raises OperationError `secret-unreadable`, `secret-exposed`."""
    if file is None:
        return None
    from tasks.storage.s3_client import read_secret_file

    return read_secret_file(Path(file)).strip()


def _log(home: Path, name: str) -> Path:
    return home / "services" / f"{name}.log"


def _wait(running: Services) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not is_answering(f"{running.mlflow_address}/health"):
        running.verify_alive()
        if time.monotonic() > deadline:
            raise OperationError(
                "service-slow", f"MLflow did not answer; see {running.mlflow.log}.", "Free memory and try again."
            )
        time.sleep(0.25)


def is_answering(url: str) -> bool:
    """Says whether a server of this machine answers `url` with 200."""
    # A proxy of the environment cannot reach this machine's own ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
