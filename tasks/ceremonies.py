"""A finished key ceremony, read back from the store and verified."""

from __future__ import annotations

from schemas.canonical import MAX_JSON_BYTES
from schemas.errors import OperationError
from schemas.layout import ceremony_key
from schemas.plan import Agreement
from schemas.wire import Kind
from tasks.secure_sum.ceremony import ceremony_blob_bytes, derive_public_epoch
from tasks.secure_sum.epoch import EpochPublic
from tasks.secure_sum.transcript import PHASES, own_tests
from tasks.storage.base import Store

ALL_PHASES = (*PHASES, "transcript")


def missing_messages(store: Store, plan: Agreement, epoch: int, phase: str) -> tuple[str, ...]:
    """Returns the key holders whose message of `phase` is not in the store."""
    return tuple(
        site.name
        for site in plan.key_holders
        if not store.exists(ceremony_key(plan.study, epoch, site.name, f"{phase}.json"))
    )


def is_complete(store: Store, plan: Agreement, epoch: int) -> bool:
    """Tells whether every key holder signed the epoch's transcript."""
    return not missing_messages(store, plan, epoch, "transcript")


def read_public_epoch(store: Store, plan: Agreement, epoch: int) -> EpochPublic:
    """Reads and verifies everything public of a ceremony.

    Raises:
        OperationError: `ceremony-incomplete`, naming who is missing.
        PeerError: naming the holder whose part does not verify.
    """
    envelopes: dict[tuple[str, str], bytes] = {}
    blobs: dict[tuple[str, str], bytes] = {}
    for site in plan.key_holders:
        for phase in ALL_PHASES:
            envelopes[phase, site.name] = _required(store, plan, epoch, site.name, f"{phase}.json", MAX_JSON_BYTES)
        tests = [f"self-test-{k}" for k in range(1, len(own_tests(plan, site.name)) + 1)]
        for kind, items in ((Kind.PUBLIC_SHARE, ["public-share"]), (Kind.SELF_TEST, tests)):
            size = ceremony_blob_bytes(plan, kind, site.name)
            for item in items:
                blobs[item, site.name] = _required(store, plan, epoch, site.name, f"{item}.bin", size)
    return derive_public_epoch(plan, epoch, envelopes, blobs)


def _required(store: Store, plan: Agreement, epoch: int, site: str, item: str, largest_bytes: int) -> bytes:
    data = store.get(ceremony_key(plan.study, epoch, site, item), largest_bytes)
    if data is None:
        raise OperationError("ceremony-incomplete", f"Epoch {epoch}: {item} of {site} is missing.", "Start its agent.")
    return data
