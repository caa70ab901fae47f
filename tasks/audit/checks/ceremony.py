"""The key ceremonies, re-derived from their messages."""

from __future__ import annotations

from schemas.layout import ceremony_key
from schemas.messages import CeremonyInstruction
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.secure_sum.parameters import derive_sid, parameters_digest


def check_ceremonies(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Re-derives every epoch: commitments, openings, self-test, transcript and sid*."""
    used = {context.instruction(r, a).predicate.epoch for r in context.rounds for a in context.attempts(r)}
    if not context.epochs and not used:
        return NotApplicable("no key ceremony was begun")
    finished = 0
    for epoch in sorted({*context.epochs, *used}):
        with findings.at(f"epoch {epoch}"):
            path = ceremony_key(context.study, epoch, None, "instruction.json")
            asked = context.from_coordinator(path, CeremonyInstruction).predicate
            expected = (epoch, derive_sid(context.plan, epoch), parameters_digest(context.plan))
            findings.expect(
                (asked.epoch, asked.sid, asked.parameters) == expected, path, "names another epoch, sid or parameters"
            )
            if epoch not in used and not context.epoch_complete(epoch):
                continue  # Abandoned before everybody signed: nothing was ever encrypted under it.
            context.epoch(epoch)
            finished += 1
    return f"{finished} ceremonies, {len(context.plan.key_holders)} key holders"


CHECKS = (
    Check(
        "C08",
        "Every key ceremony follows from its signed messages",
        "All key holders committed before they opened, saw the same messages, passed the self-test and signed the "
        "same transcript; sid* and the collective key are those that it gives.",
        "That a holder kept its share secret or erased what it should erase.",
        check_ceremonies,
    ),
)
