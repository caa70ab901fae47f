"""A coordinator's backup: what cannot be read from the store again. It holds the signing key: guard it."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

from infra.settings import load_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings

_FILES = ("config.json", "services.json", "identity.json", "plan.json", "public-keys.json", "events.jsonl")
_LOG = "study-log.sqlite"


def back_up(home: Path, target: Path) -> tuple[str, ...]:
    """Writes settings, keys and a consistent copy of the study log to a new archive that only its owner reads.

    The store is not in it: it has its own replication. Prefect and MLflow are views that are written anew.

    Returns:
        The names inside the archive.

    Raises:
        OperationError: `backup-exists`, `backup-unwritable`, `settings-unreadable`.
    """
    load_settings(CoordinatorSettings, home / "config.json")
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OperationError("backup-exists", f"{target} exists.", "Choose another file.") from None
    except OSError as error:
        raise OperationError(
            "backup-unwritable", f"Cannot write {target} ({error.strerror}).", "Choose another."
        ) from None
    names: list[str] = []
    with os.fdopen(handle, "wb") as out:
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name in _FILES:
                if (home / name).is_file():
                    _add(archive, name, (home / name).read_bytes(), names)
            if (home / _LOG).is_file():
                _add(archive, _LOG, _copy_log(home / _LOG), names)
        out.flush()
        os.fsync(out.fileno())
    return tuple(names)


def _add(archive: tarfile.TarFile, name: str, data: bytes, names: list[str]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    archive.addfile(entry, io.BytesIO(data))
    names.append(name)


def _copy_log(path: Path) -> bytes:
    # SQLite's own copy: a file copied while somebody writes may be torn.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return copy.read_bytes()
