"""The public side of a key ceremony, from the messages in an evidence folder."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from schemas.layout import ceremony_key
from schemas.ledger import KeyCeremony
from tasks.audit.registry import AuditFailure
from tasks.secure_sum.ceremony import PHASES, derive_public_epoch
from tasks.secure_sum.epoch import EpochPublic

if TYPE_CHECKING:
    from tasks.audit.context import AuditContext


def epochs_that_count(context: AuditContext, owner: str) -> set[int]:
    """Returns the epochs that an instruction names or that the log of `owner` has entered.

    Nothing was ever encrypted under any other: a ceremony that broke off, though its last message may have come since.
    """
    counted = {context.instruction(r, a).predicate.epoch for r in context.rounds for a in context.attempts(r)}
    with contextlib.suppress(AuditFailure):  # the checks of the log say so
        entries = [entry.body for _, entry in context.log(owner).about(context.study)]
        counted |= {body.epoch for body in entries if isinstance(body, KeyCeremony)}
    return counted


def derive_epoch(context: AuditContext, number: int) -> EpochPublic:
    """Returns the public side of a key ceremony, re-derived from its messages.

    Raises:
        AuditFailure: a message is missing.
        ConsiliumError: a message does not verify, or the ceremony does not follow from its messages.
    """
    envelopes: dict[tuple[str, str], bytes] = {}
    blobs: dict[tuple[str, str], bytes] = {}
    for site in context.plan.key_holders:
        for phase in (*PHASES, "transcript"):
            path = ceremony_key(context.study, number, site.name, f"{phase}.json")
            envelopes[phase, site.name] = context.evidence.read(path)
        blobs["public-share", site.name] = context.evidence.read(
            ceremony_key(context.study, number, site.name, "public-share.bin")
        )
    for item in context.select("self-test-share", epoch=number):
        blobs[f"self-test-{item.number}", str(item.site)] = context.evidence.read(item.path)
    return derive_public_epoch(context.plan, number, envelopes, blobs)
