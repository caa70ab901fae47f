"""What the export adds to the protocol's own files: consistency proofs, and the crate's description."""

from __future__ import annotations

import json

from schemas.canonical import canonical_bytes, parse_canonical
from schemas.messages import LogPosition
from tasks.audit.context import AuditContext
from tasks.audit.crate import derive_crate
from tasks.audit.names import CRATE, proofs_name, proofs_owner
from tasks.audit.proofs import ConsistencyProofs, collect_positions
from tasks.audit.registry import AuditFailure, Check, Findings, NotApplicable
from tasks.ledger.merkle import verify_consistency

EARLIER = "exported by a version that did not write it"


def check_proofs(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Verifies the proofs between the signed positions of every log, without reading an entry."""
    if not _has_container(context):
        return NotApplicable(EARLIER)
    steps = 0
    signed = collect_positions(context)
    for owner in context.participants:
        if not context.has_log(owner):
            continue
        place = proofs_name(owner)
        with findings.at(place):
            given = parse_canonical(ConsistencyProofs, context.evidence.read(place), "the consistency proofs")
            positions = signed.get(owner, ())
            same = (given.format, given.owner, given.positions) == ("consilium/consistency/1", owner, positions)
            findings.expect(same, place, "is not about the positions that were signed")
            findings.expect(len(given.proofs) == max(len(positions) - 1, 0), place, "has not one proof for each step")
            between = [found.position for found in given.positions]
            for old, new, proof in zip(between, between[1:], given.proofs, strict=False):
                findings.expect(_follows(old, new, proof), place, f"does not lead from size {old.size} to {new.size}")
                steps += 1
    return f"{steps} steps between signed positions of {len(signed)} logs"


def _follows(old: LogPosition, new: LogPosition, proof: tuple[str, ...]) -> bool:
    return verify_consistency(old.size, old.root, new.size, new.root, proof)


def check_crate(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Derives the crate's description from the evidence and compares it with the one that is there."""
    if not _has_container(context):
        return NotApplicable(EARLIER)
    given = context.evidence.read(CRATE)
    try:
        stated = json.loads(given)
    except (ValueError, RecursionError):
        raise AuditFailure(CRATE, "is not JSON") from None
    derived = derive_crate(context)
    findings.expect(canonical_bytes(derived) == given, CRATE, "says something else than the evidence gives")
    graph = stated.get("@graph") if isinstance(stated, dict) else None
    return f"{len(graph) if isinstance(graph, list) else 0} entities"


def _has_container(context: AuditContext) -> bool:
    return any(path == CRATE or proofs_owner(path) for path in context.evidence.paths)


CHECKS = (
    Check(
        "C30",
        "Consistency proofs lead from each signed log position to the next",
        "Whoever kept one signed position of a log (a hospital: that of an instruction) can check by these proofs "
        "alone that today's log still begins with the log of that day.",
        "Anything about the entries: C09 to C12 read them.",
        check_proofs,
    ),
    Check(
        "C31",
        "The crate says what the evidence says",
        "ro-crate-metadata.json, which other tools read, was derived again from the signed messages and is the same "
        "byte for byte.",
        "Anything that the messages do not say: the crate adds no fact of its own.",
        check_crate,
    ),
)
