"""The slices of a coordinator's log in the store."""

from __future__ import annotations

import re

from schemas.layout import ledger_key
from tasks.storage.base import Store

_SLICE = re.compile(r"entries-\d{6,9}\.jsonl")


def slice_keys(store: Store, study: str, coordinator: str) -> list[str]:
    """Returns the names of the published slices in order."""
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
