"""The study log and the sites' ledgers: whole, signed, closed and witnessed."""

from __future__ import annotations

from schemas.layout import ledger_key
from schemas.ledger import ReleaseDecided, ReviewDecided
from schemas.messages import Witness
from tasks.audit.context import AuditContext
from tasks.audit.proofs import signed_positions
from tasks.audit.registry import AuditFailure, Check, Findings, NotApplicable
from tasks.ledger.verify import verify_position


def check_study_log(context: AuditContext, findings: Findings) -> str:
    """Verifies the coordinator's log: signatures, chain, rules, and that its checkpoint closes it."""
    log = context.log(context.plan.coordinator.name)
    _expect_closed(context, log.owner, findings)
    return f"{len(log.envelopes)} entries"


def check_ledgers(context: AuditContext, findings: Findings) -> str:
    """Verifies every site's ledger: signatures, chain and rules."""
    entries = 0
    for site in context.plan.sites:
        with findings.at(f"ledger of {site.name}"):
            if not context.has_log(site.name) and not _has_acted(context, site.name):
                continue
            entries += len(context.log(site.name).envelopes)
    return f"{entries} entries of {len(context.plan.sites)} sites"


def check_closing(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Compares the logs with their checkpoints, and these with the closing that at least Q sites witnessed."""
    owners = [context.plan.coordinator.name, *(site.name for site in context.plan.sites)]
    closed: list[str] = []
    for owner in owners:
        with findings.at(f"ledger of {owner}"):
            if context.has_log(owner) and context.log(owner).checkpoint is not None:
                _expect_closed(context, owner, findings)
                closed.append(owner)
    if context.released:
        closed = _expect_listed(context, findings)
        _expect_witnesses(context, findings)
    absent = [owner for owner in owners if owner not in closed]
    if absent:
        return NotApplicable(f"silent at the end, later entries unknown: {', '.join(absent)}; all others are closed")
    return f"{len(closed)} checkpoints, {len(context.select('witness'))} witnesses"


def _expect_listed(context: AuditContext, findings: Findings) -> list[str]:
    closing = context.closing
    listed = dict(closing.predicate.checkpoints)
    findings.expect(context.plan.coordinator.name in listed, closing.path, "does not list the study log")
    for owner, digest in listed.items():
        with findings.at(f"ledger of {owner}"):
            checkpoint = context.log(owner).checkpoint
            same = checkpoint is not None and checkpoint.digest == digest
            findings.expect(same, f"ledger of {owner}", "is not closed by the checkpoint that the closing lists")
    return list(listed)


def _expect_witnesses(context: AuditContext, findings: Findings) -> None:
    # A site's owner and the coordinator together could otherwise cut a log after everybody had seen it.
    closing, quorum = context.closing, context.plan.threshold.certificate_quorum
    witnesses = context.select("witness")
    for item in witnesses:
        with findings.at(item.path):
            name = item.site or context.plan.coordinator.name
            witness = context.signed(item.path, Witness, name, context.identity_key(name)).predicate
            findings.expect(witness.witness == name, item.path, "is in another name")
            same = (witness.closing, witness.seen) == (closing.digest, closing.predicate.checkpoints)
            findings.expect(same, item.path, "witnessed other checkpoints than the closing lists")
    findings.expect(len(witnesses) >= quorum, closing.path, f"was witnessed by fewer than Q = {quorum} sites")


def check_witnessing(context: AuditContext, findings: Findings) -> str:
    """Compares every log position that others signed with the published logs."""
    count = 0
    for owner, place, position in signed_positions(context, findings):
        with findings.at(place):
            verify_position(context.tree(owner), owner, position)
            count += 1
    return f"{count} positions"


def _expect_closed(context: AuditContext, owner: str, findings: Findings) -> None:
    """Checks that a checkpoint closes the log; after it only reviews may follow, under a checkpoint of their own."""
    log, tree = context.log(owner), context.tree(owner)
    place = f"ledger of {log.owner}"
    if log.checkpoint is None:
        raise AuditFailure(place, "has no closing checkpoint")
    for checkpoint in log.checkpoints:
        findings.expect(checkpoint.predicate.owner == log.owner, checkpoint.path, "is of another log")
        with findings.at(checkpoint.path):
            verify_position(tree, log.owner, checkpoint.predicate.position)
    for checkpoint in log.later:
        named = ledger_key("", "", True, f"checkpoint-{checkpoint.predicate.position.size:06d}.json")
        findings.expect(checkpoint.path.endswith(named.rpartition("/")[2]), checkpoint.path, "is of another size")
    closed = log.checkpoint.predicate.position.size
    for entry_place, _, entry in log.entries[closed:]:
        after = isinstance(entry.body, ReviewDecided | ReleaseDecided)
        findings.expect(after and bool(log.later), entry_place, "was entered after the checkpoint that closed the log")
    last = log.checkpoints[-1]
    closes = last.predicate.position.size == len(log.envelopes)
    findings.expect(closes, last.path, "does not close the log as published")


def _has_acted(context: AuditContext, site: str) -> bool:
    return any(item.site == site and (item.round or item.epoch) for item in context.items)


CHECKS = (
    Check(
        "C09",
        "The study log is signed, chained and closed",
        "The coordinator's entries are in the order in which it signed them and none is missing before its "
        "checkpoint; the log's rules hold (one record per round, no attempt after it).",
        "That entries are true: the checks on rounds recompute what they state.",
        check_study_log,
    ),
    Check(
        "C10",
        "Every site's ledger is signed and chained",
        "Each site signed its entries in this order; none was changed, left out or moved.",
        "That a site entered everything it did: it is assumed to follow the protocol.",
        check_ledgers,
    ),
    Check(
        "C11",
        "Every ledger is closed by a checkpoint",
        "No entry was cut from the end of a log: at least Q sites verified exactly these. Not applicable names sites "
        "that were gone at the end.",
        "Anything about entries that a site made after its checkpoint.",
        check_closing,
    ),
    Check(
        "C12",
        "Positions that others signed lie on the published logs",
        "No participant rewrote its log after somebody built on it: contributions, refusals and instructions "
        "carry size and root.",
        "That every entry was witnessed: those after the last position rest on the checkpoint.",
        check_witnessing,
    ),
)
