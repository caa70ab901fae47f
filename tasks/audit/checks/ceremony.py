"""The key ceremonies, re-derived from their messages."""

from __future__ import annotations

from schemas.layout import ceremony_key
from schemas.messages import CeremonyInstruction
from tasks.audit.context import AuditContext
from tasks.audit.epochs import epochs_that_count
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.secure_sum.parameters import derive_sid, parameters_digest


def check_ceremonies(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Re-derives every epoch that an instruction or the study log names: commitments, openings, self-test, sid*."""
    counted = epochs_that_count(context, context.plan.coordinator.name)
    if not context.epochs and not counted:
        return NotApplicable("no key ceremony was begun")
    finished = 0
    for epoch in sorted({*context.epochs, *counted}):
        with findings.at(f"epoch {epoch}"):
            path = ceremony_key(context.study, epoch, None, "instruction.json")
            asked = context.from_coordinator(path, CeremonyInstruction).predicate
            expected = (epoch, derive_sid(context.plan, epoch), parameters_digest(context.plan))
            findings.expect(
                (asked.epoch, asked.sid, asked.parameters) == expected, path, "names another epoch, sid or parameters"
            )
            if epoch not in counted:
                continue
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
