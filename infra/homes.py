"""A participant's home folder: made once, private, with keys that never leave it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.settings import save_settings
from schemas.errors import OperationError
from schemas.options import CoordinatorSettings, S3Settings, SiteSettings
from tasks.identity import Identity, generate_identity, load_identity, save_identity
from tasks.storage.base import Store
from tasks.storage.opening import open_store

FINGERPRINT_GROUPS = 16


def make_home(home: Path, settings: SiteSettings | CoordinatorSettings) -> Identity:
    """Makes a home with settings and fresh keys.

    Raises:
        OperationError: `home-exists`, `bad-name`, `home-unwritable`.
    """
    identity = generate_identity(settings.name)
    if any((home / name).exists() for name in ("config.json", "identity.json")):
        raise OperationError(
            "home-exists",
            f"{home} is somebody's home already.",
            "Keep it: its keys are in plans. Correct its config.json, or choose another folder.",
        )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        save_identity(identity, home / "identity.json")
        save_settings(settings, home / "config.json")
    except OSError as error:
        raise OperationError(
            "home-unwritable", f"Cannot write to {home} ({error.strerror}).", "Check the folder and the disk."
        ) from None
    return identity


def read_identity(home: Path, name: str) -> Identity:
    """Reads the keys of the participant `name`.

    Raises:
        OperationError: `identity-unreadable`, `wrong-identity`.
    """
    identity = load_identity(home / "identity.json")
    if identity.name != name:
        raise OperationError(
            "wrong-identity", "config.json and identity.json name different participants.", "Correct one."
        )
    return identity


def fingerprint(identity_key: str) -> str:
    """Returns a key in groups of four, to be read out over the telephone."""
    return " ".join(identity_key[start : start + 4] for start in range(0, 4 * FINGERPRINT_GROUPS, 4))


def make_s3(
    address: str, credentials: Path | None, endpoint: str | None, region: str, ca_file: Path | None
) -> S3Settings | None:
    """Returns how to reach the store at `address`; None for a folder.

    Raises:
        OperationError: `credentials-missing`.
    """
    if "://" not in address:
        return None
    if credentials is None:
        raise OperationError(
            "credentials-missing", "A bucket needs --credentials.", "Name the file with this participant's keys."
        )
    return S3Settings(
        credentials_file=str(credentials.absolute()),
        endpoint=endpoint,
        region=region,
        ca_file=str(ca_file.absolute()) if ca_file else None,
    )


def store_address(text: str) -> str:
    """Returns a store's address with a folder made absolute."""
    return text if "://" in text else str(Path(text).absolute())


def site_store(settings: SiteSettings) -> Store:
    """Opens the store as the site sees it."""
    return open_store(settings.store, f"sites/{settings.name}", settings.s3)


def coordinator_store(settings: CoordinatorSettings) -> Store:
    """Opens the store as the coordinator sees it."""
    return open_store(settings.store, "coordinator", settings.s3)


@contextmanager
def changing(home: Path) -> Iterator[None]:
    """Holds a home's settings for this process while they are read, changed and written."""
    import fcntl

    handle = os.open(home / "config.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
