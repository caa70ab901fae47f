"""The coordinator's part of a key ceremony: that an epoch begins, and that it ended well."""

from __future__ import annotations

from flows.context import CoordinatorContext
from schemas.envelope import sign_envelope
from schemas.layout import ceremony_key
from schemas.ledger import KeyCeremony
from schemas.messages import CeremonyInstruction
from schemas.plan import Agreement
from tasks.ceremonies import read_public_epoch
from tasks.secure_sum.epoch import EpochPublic
from tasks.secure_sum.parameters import derive_sid, parameters_digest


def sign_ceremony_instruction(context: CoordinatorContext[Agreement], epoch: int) -> None:
    """Signs and publishes the instruction that opens `epoch`; everything in it follows from the plan."""
    plan = context.plan
    message = CeremonyInstruction(epoch=epoch, sid=derive_sid(plan, epoch), parameters=parameters_digest(plan))
    key = ceremony_key(plan.study, epoch, None, "instruction.json")
    context.store.put(key, sign_envelope(message, plan.study, context.identity.signing))


def enter_ceremony(context: CoordinatorContext[Agreement], epoch: int) -> EpochPublic:
    """Verifies everything public of a complete ceremony and enters it into the study log.

    Raises:
        PeerError: naming the holder whose part does not verify.
    """
    public = read_public_epoch(context.store, context.plan, epoch)
    context.log.append_once(context.study, KeyCeremony(epoch=epoch, sid_star=public.sid_star))
    return public
