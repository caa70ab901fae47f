"""Small objects that were read from a store whose names keep their bytes: they need no second request."""

from __future__ import annotations

import threading
from collections import OrderedDict

LARGEST_BYTES = 1 << 20
TOTAL_BYTES = 64 << 20


class KnownObjects:
    """A bounded memory of objects by name; the one that was not asked for longest goes first."""

    def __init__(self, total_bytes: int = TOTAL_BYTES) -> None:
        self._total = total_bytes
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """Returns the bytes of `key` if they were read before."""
        with self._lock:
            data = self._objects.get(key)
            if data is not None:
                self._objects.move_to_end(key)
            return data

    def remember(self, key: str, data: bytes) -> None:
        """Keeps `data` for `key` unless it is large."""
        if len(data) > LARGEST_BYTES:
            return
        with self._lock:
            if key in self._objects:
                return
            self._objects[key] = data
            self._bytes += len(data)
            while self._bytes > self._total:
                _, gone = self._objects.popitem(last=False)
                self._bytes -= len(gone)
