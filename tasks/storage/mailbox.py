"""Signed messages in the store: read one and verify it, or None while it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from schemas.canonical import MAX_JSON_BYTES, sha256_hex
from schemas.envelope import Predicate, open_envelope
from schemas.errors import OperationError, PeerError
from tasks.storage.base import Store

_BLOCK_BYTES = 1 << 20
P = TypeVar("P", bound=Predicate)


@dataclass(frozen=True)
class Signed(Generic[P]):
    """A verified message, its envelope bytes and the digest by which others refer to it."""

    predicate: P
    data: bytes
    digest: str


def read_signed(store: Store, key: str, model: type[P], study: str, key_hex: str, sender: str) -> Signed[P] | None:
    """Reads and verifies the message at `key`.

    Args:
        key_hex: The sender's pinned public key.

    Returns:
        None if the object does not exist yet.

    Raises:
        PeerError: the message is not what `sender` should have signed, or larger than any message.
    """
    data = store.get(key, MAX_JSON_BYTES)
    if data is None:
        return None
    return Signed(open_envelope(model, data, study, key_hex, sender), data, sha256_hex(data))


def read_blob(store: Store, key: str, digest: str, sender: str, largest_bytes: int) -> bytes:
    """Reads the object at `key` and checks its SHA-256 against a signed digest.

    Args:
        largest_bytes: Whoever signed the digest may have signed that of anything: no more than this is read.

    Raises:
        PeerError: `blob-missing`, `blob-digest` or `too-large`, naming `sender`.
    """
    data = store.get(key, largest_bytes)
    if data is None:
        raise PeerError("blob-missing", sender, f"{key.rsplit('/', 1)[-1]} is not in the store.")
    if sha256_hex(data) != digest:
        raise PeerError("blob-digest", sender, f"{key.rsplit('/', 1)[-1]} is not what was signed.")
    return data


def fetch_blob(store: Store, key: str, target: Path, size_bytes: int, sender: str) -> Path:
    """Streams the object at `key` into the file `target`, which fills no more than the signed size.

    The writer of an object may replace it after its size was looked at, where the store's server lets it.

    Raises:
        PeerError: `blob-missing` or `blob-size`, naming `sender`.
    """
    left, name = size_bytes, key.rsplit("/", 1)[-1]
    try:
        source = store.open(key)
    except OperationError as error:
        if error.code != "object-missing":
            raise
        raise PeerError("blob-missing", sender, f"{name} is not in the store.") from None
    with source, target.open("wb") as out:
        while left >= 0 and (block := source.read(min(_BLOCK_BYTES, left + 1))):
            left -= len(block)
            out.write(block[:left] if left < 0 else block)
    if left:
        target.unlink()
        raise PeerError("blob-size", sender, f"{name} does not have the {size_bytes} bytes that were signed.")
    return target
