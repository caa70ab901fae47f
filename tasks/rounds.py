"""What a round published, read back and verified: the one way in which coordinator and sites look at the past.

Rules live in `schemas` and `site_agents.policy`; this module only fetches signed messages under their names and checks
that they refer to each other. The auditor does not use it: it re-derives the same on its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.errors import PeerError
from schemas.layout import approval_key, attempt_key, plan_key, round_key
from schemas.messages import (
    Contribution,
    DecryptionShare,
    Instruction,
    Opening,
    PlanApproval,
    Record,
    RecordSignature,
    Refusal,
    ShareRequest,
)
from schemas.plan import Agreement
from schemas.statistics import StatisticsPlan
from tasks.storage.base import Store
from tasks.storage.mailbox import Signed, read_signed

MAXIMUM_ATTEMPTS = 16
MAXIMUM_REQUESTS = 16


def read_instruction(store: Store, plan: Agreement, round_: int, attempt: int) -> Signed[Instruction] | None:
    """Reads the instruction of (round, attempt), verified to be the coordinator's."""
    key = attempt_key(plan.study, round_, attempt, None, "instruction.json")
    return read_signed(store, key, Instruction, plan.study, plan.coordinator.identity_key, plan.coordinator.name)


def is_anything_opened(store: Store, plan: Agreement) -> bool:
    """Tells whether any round was opened; rounds are asked one after another."""
    round_ = 1
    while store.exists(attempt_key(plan.study, round_, 1, None, "instruction.json")):
        if store.exists(round_key(plan.study, round_, None, "opening.json")):
            return True
        round_ += 1
    return False


def read_contribution(
    store: Store, plan: Agreement, site: str, instruction: Signed[Instruction]
) -> Signed[Contribution] | None:
    """Reads a site's contribution to `instruction`; its header must equal the instruction's.

    Raises:
        PeerError: `bad-signature`, `malformed`, `contribution-mismatch`, naming the site.
    """
    asked = instruction.predicate
    key = attempt_key(plan.study, asked.round, asked.attempt, site, "contribution.json")
    found = read_signed(store, key, Contribution, plan.study, plan.site(site).identity_key, site)
    if found is None:
        return None
    given = found.predicate
    header = (given.sid_star, given.round, given.attempt, given.instruction, given.sender)
    if header != (asked.sid_star, asked.round, asked.attempt, instruction.digest, site):
        raise PeerError("contribution-mismatch", site, "the contribution answers another instruction.")
    if [holder for holder, _ in given.shamir] != [s.name for s in plan.key_holders]:
        raise PeerError("contribution-mismatch", site, "the contribution does not name a share for every key holder.")
    return found


def read_refusal(store: Store, plan: Agreement, site: str, instruction: Signed[Instruction]) -> Signed[Refusal] | None:
    """Reads a site's refusal of `instruction`."""
    asked = instruction.predicate
    key = attempt_key(plan.study, asked.round, asked.attempt, site, "refusal.json")
    found = read_signed(store, key, Refusal, plan.study, plan.site(site).identity_key, site)
    if found is not None and (found.predicate.sender, found.predicate.instruction) != (site, instruction.digest):
        raise PeerError("contribution-mismatch", site, "the refusal answers another instruction.")
    return found


def read_record(store: Store, plan: Agreement, round_: int) -> Signed[Record] | None:
    """Reads the record proposed for a round, verified to be the coordinator's."""
    key = round_key(plan.study, round_, None, "record.json")
    return read_signed(store, key, Record, plan.study, plan.coordinator.identity_key, plan.coordinator.name)


def read_record_signature(
    store: Store, plan: Agreement, holder: str, epoch_key: str, record: Signed[Record]
) -> Signed[RecordSignature] | None:
    """Reads a holder's signature on `record`.

    Raises:
        PeerError: `signature-mismatch`, naming the holder: it signed something else for this round.
    """
    key = round_key(plan.study, record.predicate.round, holder, "record-signature.json")
    found = read_signed(store, key, RecordSignature, plan.study, epoch_key, holder)
    if found is None:
        return None
    given = found.predicate
    expected = (record.predicate.sid_star, record.predicate.round, holder, record.digest)
    if (given.sid_star, given.round, given.holder, given.record) != expected:
        raise PeerError("signature-mismatch", holder, "the record signature is for another record.")
    return found


def read_request(store: Store, plan: Agreement, round_: int, number: int) -> Signed[ShareRequest] | None:
    """Reads the share request `number` of a round, verified to be the coordinator's."""
    key = round_key(plan.study, round_, None, f"request-{number}.json")
    found = read_signed(store, key, ShareRequest, plan.study, plan.coordinator.identity_key, plan.coordinator.name)
    if found is not None and found.predicate.number != number:
        raise PeerError("request-mismatch", plan.coordinator.name, "the request carries another number than its name.")
    return found


def read_certificate(
    store: Store, plan: Agreement, epoch_keys: Mapping[str, str], record: Signed[Record], request: Signed[ShareRequest]
) -> dict[str, bytes]:
    """Returns (holder -> RecordSignature envelope) of the signatures that a request names.

    Args:
        epoch_keys: Holder name -> epoch Ed25519 public key (hex), from the signed transcript.

    Raises:
        PeerError: `no-certificate`, naming the coordinator, or a fault of the named holder. Quorum and order are
            checked by `tasks.secure_sum.record.verify_certificate`.
    """
    certificate: dict[str, bytes] = {}
    for holder, digest in request.predicate.certificate:
        key_hex = epoch_keys.get(holder)
        found = read_record_signature(store, plan, holder, key_hex, record) if key_hex is not None else None
        if found is None or found.digest != digest:
            raise PeerError("no-certificate", plan.coordinator.name, "a named record signature is not in the store.")
        certificate[holder] = found.data
    return certificate


def read_share(
    store: Store, plan: Agreement, holder: str, epoch_key: str, request: Signed[ShareRequest]
) -> Signed[DecryptionShare] | None:
    """Reads a holder's answer to `request` (the envelope; the blob lies beside it)."""
    asked = request.predicate
    key = round_key(plan.study, asked.round, holder, f"share-{asked.number}.json")
    found = read_signed(store, key, DecryptionShare, plan.study, epoch_key, holder)
    if found is None:
        return None
    given = found.predicate
    if (given.sid_star, given.round, given.holder, given.record, given.request) != (
        asked.sid_star,
        asked.round,
        holder,
        asked.record,
        request.digest,
    ):
        raise PeerError("share-mismatch", holder, "the decryption share answers another request.")
    return found


def read_opening(store: Store, plan: Agreement, round_: int) -> Signed[Opening] | None:
    """Reads the opening of a round, verified to be the coordinator's."""
    key = round_key(plan.study, round_, None, "opening.json")
    return read_signed(store, key, Opening, plan.study, plan.coordinator.identity_key, plan.coordinator.name)


def read_plan(store: Store, study: str) -> bytes:
    """Reads the plan's bytes, unverified.

    Raises:
        PeerError: `plan-missing`.
    """
    data = store.get(plan_key(study))
    if data is None:
        raise PeerError("plan-missing", "coordinator", "the plan is not in the store.")
    return data


def verify_approvals(store: Store, plan: Agreement) -> dict[str, str]:
    """Checks that the coordinator and every site signed the plan; returns name -> envelope digest of the approval.

    Raises:
        PeerError: `approval-missing`, naming who has not approved.
    """
    people = [(plan.coordinator.name, plan.coordinator.identity_key, "coordinator")]
    people += [(site.name, site.identity_key, "site") for site in plan.sites]
    digests: dict[str, str] = {}
    for name, key_hex, role in people:
        key = approval_key(plan.study, name, coordinator=role == "coordinator")
        found = read_signed(store, key, PlanApproval, plan.study, key_hex, name)
        if found is None or (found.predicate.participant, found.predicate.role) != (name, role):
            raise PeerError("approval-missing", name, "the plan is not approved.", _how_to_approve(plan, role))
        digests[name] = found.digest
    return digests


def _how_to_approve(plan: Agreement, role: str) -> str:
    if role == "coordinator":
        return "The coordinator proposes it again."
    command = "statistics approve" if isinstance(plan, StatisticsPlan) else "site approve"
    return f"There: consilium {command} --home HOME {plan.study}. Then run again."
