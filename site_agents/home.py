"""A site's home folder: settings, identity, ledger, outbox; one agent at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import OperationError
from schemas.options import SiteSettings
from tasks.identity import Identity, load_identity
from tasks.settings_file import read_settings


@dataclass(frozen=True)
class SiteHome:
    """An opened home: where everything is, and who the site is."""

    folder: Path
    settings: SiteSettings
    identity: Identity

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.sqlite"

    @property
    def outbox_folder(self) -> Path:
        return self.folder / "outbox"

    @property
    def scratch_folder(self) -> Path:
        return self.folder / "scratch"

    @property
    def memory_folder(self) -> Path:
        """Where epoch secrets live: memory by default, since a restored copy of them would break a round's secrecy."""
        if self.settings.memory_folder is not None:
            return Path(self.settings.memory_folder)
        base = Path("/dev/shm")  # noqa: S108  (the point is that no backup or snapshot holds it)
        if not base.is_dir():
            raise OperationError(
                "no-memory-folder", "There is no /dev/shm on this machine.", "Name memory_folder in config.json."
            )
        return base / f"consilium-{os.getuid()}-{self.identity.identity_key[:16]}"


def open_home(folder: Path) -> SiteHome:
    """Loads settings and identity of a site.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`, `wrong-identity`.
    """
    settings = read_settings(SiteSettings, folder / "config.json")
    identity = load_identity(folder / "identity.json")
    if identity.name != settings.name:
        raise OperationError("wrong-identity", "config.json and identity.json name different sites.", "Correct one.")
    return SiteHome(folder, settings, identity)


@contextmanager
def exclusive(home: SiteHome) -> Iterator[None]:
    """Holds the site's lock: two agents started on one folder must not both answer.

    Raises:
        OperationError: `agent-running`.
    """
    handle = os.open(home.folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperationError(
                "agent-running", f"An agent for {home.settings.name} already runs on this folder.", "Stop it first."
            ) from None
        yield
    finally:
        os.close(handle)
