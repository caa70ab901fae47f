"""Names of objects: which are allowed, and who owns them."""

from __future__ import annotations

import re

from schemas.errors import OperationError, PeerError

# What one read may hold in memory; larger objects are streamed (`open`).
LARGEST_READ = 1 << 30
_KEY = re.compile(r"[a-z0-9][A-Za-z0-9._-]*(/[a-z0-9][A-Za-z0-9._-]*)*")


def is_name(key: str) -> bool:
    """Says whether `key` is a relative name that cannot leave its store, whatever it is mapped to."""
    return _KEY.fullmatch(key) is not None


def verify_name(key: str, write_prefix: str | None = None) -> None:
    """Refuses a name that could leave the store, or, for a write, the writer's prefix.

    Args:
        write_prefix: For a write, the only prefix allowed; empty allows all.

    Raises:
        OperationError: `bad-object-name`, `outside-prefix`.
    """
    if not is_name(key):
        raise OperationError("bad-object-name", "Expected a relative name of letters, digits, '.', '_', '-'.")
    if write_prefix and not key.startswith(write_prefix + "/"):
        raise OperationError("outside-prefix", f"Expected a name under {write_prefix}/.")


def owner_of(key: str) -> str:
    """Returns whose prefix `key` lies in: a site's name, or the first part."""
    parts = key.split("/")
    return parts[1] if parts[0] == "sites" and len(parts) > 1 else parts[0]


def name_taken(key: str) -> PeerError:
    """Returns the refusal of other bytes under a name that exists."""
    return PeerError("name-taken", owner_of(key), f"{key} already holds other bytes.")


def too_large(key: str, limit: int) -> PeerError:
    """Returns the refusal to hold an object in memory."""
    return PeerError("too-large", owner_of(key), f"{key} is larger than {limit} bytes.")
