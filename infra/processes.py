"""Child processes of a one-machine consortium: started with a log file, gone when their parent is gone.

A child is told by the kernel (Linux) when its parent dies, so a coordinator that is killed leaves no server, no
database and no agent behind, and `--resume` finds free ports and an unlocked work folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from schemas.errors import OperationError

_PR_SET_PDEATHSIG: Final = 1
_LOCK_NAME: Final = "consilium.lock"


@dataclass(frozen=True)
class Account:
    """The operating system's user that a child process runs as."""

    name: str
    uid: int
    gid: int


class ChildProcess:
    """One running child with its log file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path, stop_signal: int) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._stop_signal = stop_signal

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the child's process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit status (negative: killed by that signal), or None while the child runs."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Says whether the child still runs."""
        return self.exit_code is None

    def wait(self, timeout_seconds: float) -> bool:
        """Waits for the end of the child and says whether it ended."""
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Asks the child to end, waits `grace_seconds`, then kills its whole process group."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self._stop_signal)
            self.wait(grace_seconds)
        self.kill()

    def kill(self) -> None:
        """Kills the child's process group at once and reaps the child."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """Returns the last `lines` lines of the child's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def start_process(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    folder: Path | None = None,
    account: Account | None = None,
    stop_signal: int = signal.SIGTERM,
    death_signal: int = signal.SIGTERM,
) -> ChildProcess:
    """Starts `command` in its own process group, output appended to `log`.

    Args:
        environment: The child's whole environment; nothing is inherited besides.
        account: User to run as; needs root.
        stop_signal: What `ChildProcess.stop` sends first.
        death_signal: What the kernel sends when this process dies (Linux).

    Raises:
        OperationError: `process-not-started`; `not-main-thread`, because the kernel ties the child's life to the
            thread that started it.
    """
    if threading.current_thread() is not threading.main_thread():
        raise OperationError("not-main-thread", f"Expected {name} to be started from the main thread.")
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as out:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                preexec_fn=_die_with_parent(death_signal),  # noqa: PLW1509  main thread only, checked above
            )
    except OSError as error:
        raise OperationError(
            "process-not-started", f"Could not start {name} ({error.strerror}).", "Check the installation and the disk."
        ) from None
    return ChildProcess(name, process, log, stop_signal)


def _die_with_parent(death_signal: int) -> Callable[[], None] | None:
    """Returns what the child runs between fork and exec, or None where the kernel offers no such thing.

    `subprocess` changes the user before it calls this: a change of user clears the setting, so the order matters.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def preexec() -> None:
        prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the setting took effect
            os._exit(1)

    return preexec


def find_free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_port_free(port: int) -> bool:
    """Says whether a server could bind `port` of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class WorkdirLock:
    """Holds a work folder for one process; the kernel releases it however that process ends.

    A lock on an open file, not the presence of a file: a killed demo leaves nothing to clean up by hand.
    """

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / _LOCK_NAME
        self._handle: int | None = None

    def __enter__(self) -> WorkdirLock:
        """Takes the lock.

        Raises:
            OperationError: `workdir-in-use` (names the process that holds it), `workdir-unusable`.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OperationError(
                "workdir-unusable",
                f"Expected a folder that can be written at {self._path.parent} ({error.strerror}).",
                "Choose another --workdir.",
            ) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise OperationError(
                "workdir-in-use",
                f"The work folder {self._path.parent} is in use by process {holder}.",
                "Stop that process or choose another --workdir.",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock; the file stays."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
