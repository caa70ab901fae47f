"""The object store as its users need it: small, create-only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from tasks.storage.names import LARGEST_READ


class Store(Protocol):
    """Create-only named objects (see `tasks.storage.folder.FolderStore` for the exact promises)."""

    def put(self, key: str, data: bytes) -> None: ...

    def put_file(self, key: str, source: Path) -> None: ...

    def get(self, key: str, limit: int = LARGEST_READ) -> bytes | None: ...

    def open(self, key: str) -> IO[bytes]: ...

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int: ...

    def list(self, prefix: str) -> Iterator[str]: ...
