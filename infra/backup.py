"""A coordinator's backup: what cannot be read from the store again. It holds the signing key: guard it."""

from __future__ import annotations

import io
import os
import re
import sqlite3
import tarfile
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from infra.settings import load_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings

_FILES = ("config.json", "services.json", "identity.json", "plan.json", "public-keys.json", "events.jsonl")
_LOG = "study-log.sqlite"
_ARCHIVE = re.compile(r"coordinator-\d{8}T\d{6}Z\.tar\.gz")


def back_up(home: Path, target: Path) -> tuple[str, ...]:
    """Writes settings, keys and a consistent copy of the study log to a new archive that only its owner reads.

    The store is not in it: it has its own replication. Prefect and MLflow are views that are written anew.

    Returns:
        The names inside the archive.

    Raises:
        OperationError: `backup-exists`, `backup-unwritable`, `backup-in-store`, `settings-unreadable`.
    """
    _verify_outside_store(load_settings(CoordinatorSettings, home / "config.json"), target)
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


def back_up_into(folder: Path, home: Path, keep: int) -> tuple[Path, list[Path]]:
    """Writes a new archive named after the present time into `folder` and removes all but the newest `keep`.

    Only archives with such a name are removed, and only once the new one is on disk.

    Returns:
        The new archive, and those that were removed.

    Raises:
        OperationError: `backup-exposed`, and those of `back_up`.
    """
    _verify_outside_store(load_settings(CoordinatorSettings, home / "config.json"), folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperationError(
            "backup-unwritable", f"Cannot make {folder} ({error.strerror}).", "Choose another."
        ) from None
    if folder.stat().st_mode & 0o077:
        raise OperationError("backup-exposed", f"Others can look into {folder}.", f"Run chmod 700 {folder}.")
    target = folder / f"coordinator-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz"
    back_up(home, target)
    archives = sorted(path for path in folder.iterdir() if _ARCHIVE.fullmatch(path.name))
    for old in archives[:-keep]:
        old.unlink()
    return target, archives[:-keep]


def _verify_outside_store(settings: CoordinatorSettings, target: Path) -> None:
    # Every hospital reads the store, and the archive holds the signing key.
    if settings.s3 is None and target.resolve().is_relative_to(Path(settings.store).resolve()):
        raise OperationError("backup-in-store", "A backup in the store would show everybody the keys.", "Move it.")


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
