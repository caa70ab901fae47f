"""Whose proxy a folder holds: one serves the hospitals of one coordinator, and nobody else's may take its place."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from schemas.errors import OperationError

_MARK = "coordinator"


def verify_owner(folder: Path, identity_key: str, sites: Collection[str], default: bool) -> None:
    """Refuses the folder of another coordinator's proxy, whose hospitals a new password file would lock out.

    Args:
        identity_key: The coordinator's public key (hex); a home that was restored from its backup has the same.
        sites: Who would be let in.
        default: It is the folder in the coordinator's own home.

    Raises:
        OperationError: `proxy-of-another`.
    """
    if (folder / _MARK).exists():
        foreign = (folder / _MARK).read_text().strip() != identity_key
    else:
        # Written by an older version, which did not say whose it is: nobody may lose his way in.
        foreign = not default and not _let_in(folder) <= set(sites)
    if foreign:
        raise OperationError(
            "proxy-of-another",
            f"{folder} holds the proxy of another coordinator; its hospitals would be locked out.",
            "Name another --out, and another port in --listen.",
        )


def mark_owner(folder: Path, identity_key: str) -> None:
    """Writes down whose proxy the folder holds."""
    (folder / _MARK).write_text(identity_key + "\n")


def _let_in(folder: Path) -> set[str]:
    users = folder / "users"
    return {line.partition(":")[0] for line in users.read_text().splitlines()} if users.exists() else set()
