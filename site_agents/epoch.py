"""The current epoch at a site: public side re-derived from the signed ceremony, secrets from the keystore."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import OperationError, PeerError
from schemas.ledger import NO_STUDY, Refused
from schemas.plan import Agreement
from site_agents.context import SiteContext
from site_agents.past import past_of
from tasks.ceremonies import read_public_epoch
from tasks.secure_sum.epoch import EpochPublic, EpochSecrets

EPOCH_LOST = "epoch-lost"


def said_lost(sid_star: str) -> Refused:
    """Returns the ledger entry by which a key holder says that it lost its secrets of an epoch."""
    return Refused(instruction=sid_star, code=EPOCH_LOST)


@dataclass(frozen=True)
class SiteEpoch:
    """Public side of an epoch and, at a key holder, its secrets."""

    public: EpochPublic
    secrets: EpochSecrets | None


def load_epoch(context: SiteContext[Agreement], epoch: int, sid_star: str) -> SiteEpoch:
    """Loads the epoch that an instruction names.

    Raises:
        PeerError: `study-released`; `wrong-epoch` if the signed ceremony in the store has another sid*.
        OperationError: `epoch-lost` if this key holder has no secrets of it, or has said so before.
    """
    public = public_epoch(context, epoch)
    if public.sid_star != sid_star or epoch < context.keystore.newest_epoch():
        raise PeerError("wrong-epoch", context.plan.coordinator.name, "the instruction is not for the current epoch.")
    holders = [site.name for site in context.plan.key_holders]
    if context.name not in holders:
        return SiteEpoch(public, None)
    if context.released:
        raise PeerError(
            "study-released", context.plan.coordinator.name, "the study was released: this site erased its key share."
        )
    if any(entry.body == said_lost(sid_star) for entry in context.ledger.entries_for(NO_STUDY)):
        # Others go on without this share since it was said to be lost; a folder that comes back changes nothing.
        raise OperationError(
            EPOCH_LOST, f"This site has given up its share of epoch {epoch}.", "The coordinator starts a new ceremony."
        )
    return SiteEpoch(public, EpochSecrets.from_bytes(context.keystore.load_secrets(epoch, sid_star)))


def public_epoch(context: SiteContext[Agreement], epoch: int) -> EpochPublic:
    """Returns the verified public side of an epoch."""
    # Re-deriving it verifies every ceremony message again; within one process once per epoch is enough.
    known = past_of(context).epochs
    key = (context.study, epoch)
    if key not in known:
        known[key] = read_public_epoch(context.store, context.plan, epoch)
    return known[key]
