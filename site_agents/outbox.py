"""The site's outbox: what a site answers once, it answers for ever with the same bytes.

Invariants: bytes are durable here before they leave; a name once decided keeps its bytes, whoever asks and how often;
two agents on one folder cannot both decide (exclusive lock on the home, create-only files). So a replayed instruction,
a retried task or a restarted agent re-sends and never re-computes: a second training would be a second release, a
second decryption share could reveal the key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.storage.base import Store
from tasks.storage.folder import FolderStore


class Outbox:
    """Durable replies under `folder`, mirrored into the shared store.

    Args:
        folder: Private folder of the site.
        store: The shared store, with the site's own write prefix.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._local = FolderStore(folder)
        self._folder = folder
        self._store = store

    def stored(self, key: str) -> bytes | None:
        """Returns the decided bytes of `key`, or None."""
        return self._local.get(key)

    def decide(self, key: str, produce: Callable[[], bytes]) -> bytes:
        """Returns the bytes of `key`; calls `produce` only if nothing was decided before, and makes them durable."""
        existing = self._local.get(key)
        if existing is not None:
            return existing
        data = produce()
        self._local.put(key, data)
        return data

    def decide_file(self, key: str, source: Path) -> Path:
        """Makes the content of the local file `source` the decided bytes of `key`, unless there are some already."""
        if not self._local.exists(key):
            self._local.put_file(key, source)
        return self._folder / key

    def send(self, key: str) -> None:
        """Writes the decided bytes of `key` to the shared store (again)."""
        self._store.put_file(key, self._folder / key)

    def answer(self, key: str, produce: Callable[[], bytes]) -> bytes:
        """Decides and sends."""
        data = self.decide(key, produce)
        self.send(key)
        return data
