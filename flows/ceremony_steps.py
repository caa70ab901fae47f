"""The coordinator's only decision in a key ceremony: that epoch `epoch` begins."""

from __future__ import annotations

from flows.context import CoordinatorContext
from schemas.envelope import sign_envelope
from schemas.layout import ceremony_key
from schemas.messages import CeremonyInstruction
from tasks.secure_sum.parameters import derive_sid, parameters_digest


def sign_ceremony_instruction(context: CoordinatorContext, epoch: int) -> None:
    """Signs and publishes the instruction that opens `epoch`; everything in it follows from the plan."""
    plan = context.plan
    message = CeremonyInstruction(epoch=epoch, sid=derive_sid(plan, epoch), parameters=parameters_digest(plan))
    key = ceremony_key(plan.study, epoch, None, "instruction.json")
    context.store.put(key, sign_envelope(message, plan.study, context.identity.signing))
