"""Logs in the store: slices, each named by its first entry.

Invariant: another party's log is read from entry 0 on, and no further than the first slice that is missing, the first
entry that does not verify, or `LARGEST_LOG`. Nothing else that its owner wrote is listed or read.
"""

from __future__ import annotations

import re
import threading

from schemas.errors import EvidenceError
from schemas.layout import ledger_key
from schemas.ledger import LedgerEntry
from schemas.messages import Checkpoint
from tasks.ledger.verify import LogState, verify_checkpoint
from tasks.storage.base import Store

# Some 40,000 entries: a hospital enters four or five in a round.
LARGEST_LOG = 64 << 20
_SLICE = re.compile(r"entries-\d{6,9}\.jsonl")


class PublishedLog:
    """One participant's log as far as it was read; what was verified once is not read again.

    Args:
        study: Under whose names it was published.
        coordinator: Whether `owner` is the coordinator.
        limit: The most bytes that are read of it.
    """

    def __init__(
        self, store: Store, study: str, owner: str, key_hex: str, coordinator: bool = False, limit: int = LARGEST_LOG
    ) -> None:
        self._store, self._study, self._owner, self._coordinator = store, study, owner, coordinator
        self._state = LogState(owner, key_hex)
        self._left = limit
        self._refusal: EvidenceError | None = None
        self._lock = threading.Lock()

    def read(self) -> tuple[tuple[str, LedgerEntry], ...]:
        """Verifies what was published since the last time; returns (study, entry) of everything, in order.

        Raises:
            EvidenceError: names the entry and the rule, from then on every time.
            PeerError: `too-large`, and what the store refuses to read.
        """
        with self._lock:
            self._read_to(None)
            return tuple(self._state.entries)

    def verify(self, checkpoint: Checkpoint) -> None:
        """Verifies the log up to a checkpoint whose envelope was opened by the caller; reads no slice after it.

        Raises:
            EvidenceError: as `read`; `wrong-owner`, `truncated`, `position-mismatch`.
            PeerError: as `read`.
        """
        with self._lock:
            self._read_to(checkpoint.position.size)
            verify_checkpoint(self._state.tree, self._owner, checkpoint)

    def _read_to(self, size: int | None) -> None:
        while size is None or self._state.size < size:
            if self._refusal is not None:
                raise self._refusal.with_traceback(None)
            key = ledger_key(self._study, self._owner, self._coordinator, f"entries-{self._state.size:06d}.jsonl")
            data = self._store.get(key, self._left)
            if data is None:
                return
            self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        self._left -= len(data)
        try:
            if not data.endswith(b"\n"):
                raise EvidenceError("malformed", f"A slice of {self._owner}'s log does not end with a whole entry.")
            self._state.accept_all(data[:-1].split(b"\n"))
        except EvidenceError as error:
            self._refusal = error


def slice_keys(store: Store, study: str, coordinator: str) -> list[str]:
    """Returns the names of the published slices of a coordinator's log in order."""
    folder = ledger_key(study, coordinator, True, "")
    found = [key for key in store.list(folder.rstrip("/")) if _SLICE.fullmatch(key.removeprefix(folder))]
    return sorted(found, key=_first)


def published_size(store: Store, study: str, coordinator: str) -> int:
    """Returns how many entries are published; reads the last slice only."""
    keys = slice_keys(store, study, coordinator)
    return _first(keys[-1]) + (store.get(keys[-1]) or b"").count(b"\n") if keys else 0


def read_slices(store: Store, study: str, coordinator: str) -> list[bytes]:
    """Returns the published entries in order, unverified."""
    return b"".join(store.get(key) or b"" for key in slice_keys(store, study, coordinator)).splitlines()


def _first(key: str) -> int:
    return int(key.rpartition("entries-")[2].removesuffix(".jsonl"))
