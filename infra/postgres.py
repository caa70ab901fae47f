"""A private PostgreSQL cluster in a folder, reachable only through a Unix socket that only its owner can open.

Prefect's server stalls on SQLite with several writers; a local PostgreSQL is used where its programs are installed.
There is no TCP port and no password: the socket's folder has mode 0700, so the file system is the access control.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from infra.processes import Account, ChildProcess, start_process
from schemas.errors import OperationError

_ROLE: Final = "consilium"
_START_SECONDS: Final = 60.0
_SOCKET_PREFIX: Final = "consilium-pg-"
_LONGEST_SOCKET_PATH: Final = 100  # the kernel allows 107 bytes; the file name is part of them
_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "autovacuum_max_workers": "1",
    "jit": "off",
    # A crash of the machine may lose the last moments of Prefect's view, never the ledger, which is not stored here.
    "synchronous_commit": "off",
}


@dataclass(frozen=True)
class Postgres:
    """A running cluster."""

    socket_folder: Path
    data_folder: Path
    process: ChildProcess

    def url(self, database: str = "prefect", driver: str = "postgresql+asyncpg") -> str:
        """Returns an SQLAlchemy address of `database`, which holds no secret."""
        return f"{driver}://{_ROLE}@/{database}?host={quote(str(self.socket_folder), safe='/')}"

    def is_alive(self) -> bool:
        """Says whether the cluster runs."""
        return self.process.is_alive()

    def stop(self) -> None:
        """Shuts the cluster down: connections are closed, data are flushed."""
        self.process.stop(grace_seconds=20.0)
        shutil.rmtree(self.socket_folder, ignore_errors=True)


def find_postgres_programs() -> Path | None:
    """Returns the folder that holds `initdb` and `postgres`, newest version first, or None."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda folder: _version_number(folder.parent.name), reverse=True)
    return next((folder for folder in candidates if _has_programs(folder)), None)


def _version_number(name: str) -> int:
    return int(name) if name.isdecimal() else 0


def _has_programs(folder: Path) -> bool:
    return (folder / "initdb").exists() and (folder / "postgres").exists()


def start_postgres(folder: Path, *, log: Path, databases: Sequence[str] = ("prefect",)) -> Postgres:
    """Starts the cluster of `folder`, made on the first call, continued on the next, also after a kill.

    Run as root, the cluster belongs to another user, since PostgreSQL refuses root; where that user cannot reach
    `folder`, the data go to a private folder under the system's temporary folder.

    Raises:
        OperationError: `postgres-missing`, `postgres-no-account`, `postgres-init-failed`, `postgres-not-started`,
            `postgres-folder-unsafe`.
    """
    programs = find_postgres_programs()
    if programs is None:
        raise OperationError("postgres-missing", "Expected initdb and postgres.", "Install PostgreSQL 13 or newer.")
    account = _database_account()
    data = _data_folder(folder, account)
    if not (data / "PG_VERSION").exists():
        _create_cluster(programs, data, account)
    socket_folder = _socket_folder(account)
    _clear_stale_lock(data)
    process = _start_and_wait(programs, data, socket_folder, account, log)
    running = Postgres(socket_folder, data, process)
    try:
        for name in databases:
            _create_database(running, name)
    except BaseException:
        running.stop()
        raise
    return running


def _database_account() -> Account | None:
    """Chooses the user for the cluster: ourselves, or with root somebody else."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise OperationError(
        "postgres-no-account", "PostgreSQL refuses to run as root and there is no user postgres.", "Add such a user."
    )


def _data_folder(folder: Path, account: Account | None) -> Path:
    """Returns an existing private folder for the data that the account can reach."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / "data").resolve()
    if account and not _can_traverse(data.parent, account):
        # Named after the work folder, so that a resumed demo finds it again.
        name = f"consilium-postgres-{sha256(str(data).encode()).hexdigest()[:16]}"
        data = Path(tempfile.gettempdir()).resolve() / name
    _make_private(data, account)
    return data


def _can_traverse(folder: Path, account: Account) -> bool:
    """Says whether the account may pass through `folder` and all its parents."""
    for step in (folder, *folder.parents):
        facts = step.stat()
        if facts.st_uid == account.uid:
            allowed = facts.st_mode & stat.S_IXUSR
        elif facts.st_gid == account.gid:
            allowed = facts.st_mode & stat.S_IXGRP
        else:
            allowed = facts.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def _make_private(folder: Path, account: Account | None) -> None:
    """Makes `folder` with mode 0700 for the account, or refuses one that somebody else prepared."""
    owner = account.uid if account else os.geteuid()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if account:
            os.chown(folder, account.uid, account.gid)
    facts = folder.lstat()
    # In a shared temporary folder anybody can guess the name and be there first.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != owner or facts.st_mode & 0o077:
        raise OperationError(
            "postgres-folder-unsafe",
            f"Expected a private folder at {folder}.",
            "Remove it or choose another --workdir.",
        )


def _socket_folder(account: Account | None) -> Path:
    """Makes a new folder with a short, unpredictable path that only the account opens."""
    folder = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX))
    if len(str(folder)) > _LONGEST_SOCKET_PATH - len("/.s.PGSQL.5432"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir="/tmp"))
    if account:
        os.chown(folder, account.uid, account.gid)
    return folder


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _create_cluster(programs: Path, data: Path, account: Account | None) -> None:
    """Runs initdb in `data`; what an interrupted attempt left there is removed first."""
    for leftover in data.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    command = [programs / "initdb", "-D", data, "-U", _ROLE, "--auth=trust", "--encoding=UTF8", "--no-locale"]
    done = subprocess.run(
        [str(part) for part in [*command, "--no-sync", "--no-instructions"]],
        env=_environment(),
        cwd="/",
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OperationError("postgres-init-failed", f"initdb failed: {reason}", "Check the disk, or use SQLite.")


def _clear_stale_lock(data: Path) -> None:
    """Removes the lock file of a cluster that was killed, after its last process has gone.

    PostgreSQL looks only whether the recorded process id exists; after a kill or a reboot that number may belong to
    somebody else, and the cluster would refuse to start for ever.
    """
    lock = data / "postmaster.pid"
    deadline = time.monotonic() + 20.0
    while lock.exists():
        lines = [*lock.read_text().splitlines(), "", "", "", "", ""]
        recorded, old_sockets = lines[0].strip(), Path(lines[4].strip())
        if not recorded.isdecimal() or not _is_postgres(int(recorded)):
            lock.unlink(missing_ok=True)
            if old_sockets.name.startswith(_SOCKET_PREFIX):
                shutil.rmtree(old_sockets, ignore_errors=True)
            return
        if time.monotonic() > deadline:
            raise OperationError(
                "postgres-not-started",
                f"Another PostgreSQL (process {recorded}) still uses {data}.",
                "Stop it or choose another --workdir.",
            )
        time.sleep(0.1)


def _is_postgres(pid: int) -> bool:
    """Says whether process `pid` is a PostgreSQL server; where that cannot be seen, whether it exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() in {"postgres", "postmaster"}
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def _start_and_wait(
    programs: Path, data: Path, socket_folder: Path, account: Account | None, log: Path
) -> ChildProcess:
    """Starts the server and waits until it answers; tries again while a killed one's last processes go away."""
    settings = _SETTINGS | {"unix_socket_directories": str(socket_folder)}
    command = [str(programs / "postgres"), "-D", str(data)]
    command += [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    deadline = time.monotonic() + _START_SECONDS
    while True:
        process = start_process(
            "PostgreSQL",
            command,
            log=log,
            environment=_environment(),
            folder=Path("/"),
            account=account,
            stop_signal=signal.SIGINT,  # the fast shutdown; SIGTERM would wait for every client
            death_signal=signal.SIGINT,
        )
        if _wait_until_ready(process, data, deadline):
            return process
        if process.is_alive() or time.monotonic() > deadline or "shared memory block" not in process.log_tail():
            process.kill()
            shutil.rmtree(socket_folder, ignore_errors=True)
            raise OperationError(
                "postgres-not-started", f"PostgreSQL did not start; see {log}.", "Mend the cause or use SQLite."
            )
        time.sleep(0.2)


def _wait_until_ready(process: ChildProcess, data: Path, deadline: float) -> bool:
    """Waits until the server's own lock file says ready; False once the process has ended or time is up."""
    lock = data / "postmaster.pid"
    while process.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            lines = lock.read_text().splitlines()
            if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                return True
        time.sleep(0.02)
    return False


def _create_database(cluster: Postgres, name: str) -> None:
    """Makes the database with the extension that Prefect's search needs, unless it exists."""
    import psycopg2  # type: ignore[import-untyped]
    from psycopg2 import sql

    def connect(database: str) -> Any:
        connection = psycopg2.connect(host=str(cluster.socket_folder), user=_ROLE, dbname=database)
        connection.autocommit = True
        return connection

    with contextlib.closing(connect("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
        if cursor.fetchone() is None:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with contextlib.closing(connect(name)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
