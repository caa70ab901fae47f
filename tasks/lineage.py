"""The model that follows from the published openings: recomputed, never accepted as bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.canonical import sha256_hex
from schemas.errors import PeerError
from schemas.layout import round_key
from schemas.messages import ShareRequest
from schemas.plan import Agreement, StudyPlan
from tasks.rounds import (
    MAXIMUM_REQUESTS,
    read_certificate,
    read_instruction,
    read_opening,
    read_record,
    read_request,
    read_share,
)
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.epoch import EpochPublic
from tasks.secure_sum.opening import open_sum, share_blob_bytes
from tasks.secure_sum.record import key_sum_bytes, verify_certificate
from tasks.server_step import ModelState, apply_step, initial_state, state_digest
from tasks.storage.base import Store
from tasks.storage.mailbox import Signed, read_blob

PublicFor = Callable[[int], EpochPublic]


@dataclass(frozen=True)
class Lineage:
    """A model state and the envelope digest of the opening that led to it (None before the first)."""

    state: ModelState
    opening: str | None


def first_lineage(plan: StudyPlan) -> Lineage:
    """Returns the model before the first round."""
    return Lineage(initial_state(plan), None)


def extend_lineage(
    store: Store, plan: StudyPlan, public_for: PublicFor, before: Lineage, round_: int, processes: int = 1
) -> Lineage | None:
    """Recomputes a published opening and the server step after it.

    Args:
        public_for: Epoch number -> verified public side of that epoch.
        before: The lineage before `round_`.
        processes: Over how many processes bulk work is spread.

    Returns:
        The lineage after the round, or None if nothing was opened yet.

    Raises:
        PeerError: the opening, or the model it names, does not follow from certified messages.
    """
    opening = read_opening(store, plan, round_)
    if opening is None:
        return None
    opened = recompute_opening(store, plan, public_for, round_, processes)
    name = plan.coordinator.name
    if opening.predicate.result != sha256_hex(opened.astype("<i8").tobytes()):
        raise PeerError("wrong-opening", name, f"the published sum of round {round_} is not what the shares open.")
    instruction = read_instruction(store, plan, round_, opening.predicate.attempt)
    if instruction is None or instruction.predicate.model != state_digest(before.state):
        raise PeerError("wrong-model", name, f"round {round_} was not asked for the model before it.")
    train = instruction.predicate.kind == "train"
    after = apply_step(plan, before.state, opened) if train else before.state
    if opening.predicate.model != state_digest(after):
        raise PeerError("wrong-model", name, f"the model after round {round_} does not follow from its sum.")
    return Lineage(after, opening.digest)


def recompute_opening(
    store: Store, plan: Agreement, public_for: PublicFor, round_: int, processes: int = 1
) -> NDArray[np.int64]:
    """Opens a round's certified sum again from the published shares.

    Returns:
        The opened int64 sum.

    Raises:
        PeerError: something is missing or does not verify; names the coordinator, a holder or the active set.
    """
    name = plan.coordinator.name
    opening, record = read_opening(store, plan, round_), read_record(store, plan, round_)
    if opening is None or record is None or opening.predicate.record != record.digest:
        raise PeerError("wrong-opening", name, f"the opening of round {round_} is not of its record.")
    instruction = read_instruction(store, plan, round_, record.predicate.attempt)
    request = _find_request(store, plan, round_, opening.predicate.request)
    if instruction is None or record.predicate.instruction != instruction.digest:
        raise PeerError("wrong-opening", name, f"the record of round {round_} is not of its instruction.")
    public = public_for(record.predicate.epoch)
    certificate = read_certificate(store, plan, public.signing_keys, record, request)
    context = RoundContext.of(plan, public, instruction.predicate, instruction.digest, processes)
    verify_certificate(context, record.digest, request.predicate, certificate)
    shares: dict[str, bytes] = {}
    for holder, digest in opening.predicate.shares:
        key_hex = public.signing_keys.get(holder)
        found = read_share(store, plan, holder, key_hex, request) if key_hex is not None else None
        if found is None or found.digest != digest:
            raise PeerError("wrong-opening", name, f"the share of {holder} is not in the store.")
        key = round_key(plan.study, round_, holder, f"share-{request.predicate.number}.bin")
        shares[holder] = read_blob(store, key, found.predicate.share, holder, share_blob_bytes(context, holder))
    place = round_key(plan.study, round_, None, "key-sum.bin")
    key_sum = read_blob(store, place, record.predicate.key_sum, name, key_sum_bytes(context))
    place, signed = round_key(plan.study, round_, None, "bulk-sum.bin"), opening.predicate.bulk_sum
    if not store.exists(place):
        raise PeerError("blob-missing", name, f"the bulk sum of round {round_} is not in the store.")
    with store.open(place) as bulk_sum:
        return open_sum(context, record.predicate, record.digest, request.predicate, key_sum, bulk_sum, shares, signed)


def _find_request(store: Store, plan: Agreement, round_: int, digest: str) -> Signed[ShareRequest]:
    for number in range(1, MAXIMUM_REQUESTS + 1):
        request = read_request(store, plan, round_, number)
        if request is None:
            break
        if request.digest == digest:
            return request
    raise PeerError("wrong-opening", plan.coordinator.name, f"the share request of round {round_} is not in the store.")
