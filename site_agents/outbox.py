"""The site's outbox: what a site answers once, it answers for ever with the same bytes.

Invariants: bytes are durable here before they leave; a name once decided keeps its bytes, whoever asks and how often;
two agents on one folder cannot both decide (exclusive lock on the home, create-only files). So a replayed instruction,
a retried task or a restarted agent re-sends and never re-computes: a second training would be a second release, a
second decryption share could reveal the key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def stored(self, key: str) -> bytes | None:
        """Returns the decided bytes of `key`, or None."""
        return self._local.get(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the decided names under `prefix` in order."""
        return self._local.list(prefix)

    def decide(self, key: str, produce: Callable[[], bytes]) -> bytes:
        """Returns the bytes of `key`; calls `produce` only if nothing was decided before, and makes them durable."""
        existing = self._local.get(key)
        if existing is not None:
            return existing
        data = produce()
        self._local.put(key, data)
        return data

    def decide_folder(self, prefix: str, build: Callable[[Path], None]) -> bool:
        """Decides everything under `prefix` at once: all files that `build` writes into a new folder, or none.

        Returns:
            False, without calling `build`, if something was decided under `prefix` before.
        """
        target = self._folder / prefix
        if target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._folder, prefix=".deciding-") as name:
            staging = Path(name) / "all"
            staging.mkdir()
            build(staging)
            for path in staging.iterdir():
                _sync(path)
            _sync(staging)
            staging.rename(target)
        _sync(target.parent)
        return True

    def send(self, key: str) -> None:
        """Writes the decided bytes of `key` to the shared store (again)."""
        self._store.put_file(key, self._folder / key)

    def answer(self, key: str, produce: Callable[[], bytes]) -> bytes:
        """Decides and sends."""
        data = self.decide(key, produce)
        self.send(key)
        return data


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
