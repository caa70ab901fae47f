"""Sites that left a study for good or lost their share of its key, by what they published themselves, and whether the
others can go on."""

from __future__ import annotations

from flows.context import CoordinatorContext
from flows.figures import read_published
from flows.round_steps import EpochLost
from schemas.errors import EvidenceError, OperationError
from schemas.ledger import NO_STUDY, Refused
from schemas.plan import Agreement
from tasks.secure_sum.epoch import EpochPublic

_REMEDY = "Make a new plan without them; what was opened so far is released."


class TooFewRemain(OperationError):
    """So many sites left for good that no further round can be opened: the study ends with what it has."""


def sites_that_left(context: CoordinatorContext[Agreement]) -> set[str]:
    """Returns the sites whose published ledger says, under their own signature, that they left this study."""
    return _sites_that_said(context, context.study, "site-left")


def holders_that_lost(context: CoordinatorContext[Agreement], public: EpochPublic) -> set[str]:
    """Returns the key holders whose published ledger says that they lost their secrets of this epoch.

    A holder that has contributed before can say it nowhere else: a contribution is never followed by a refusal.
    """
    return _sites_that_said(context, public.sid_star, "epoch-lost") & set(public.signing_keys)


def _sites_that_said(context: CoordinatorContext[Agreement], about: str, code: str) -> set[str]:
    found: set[str] = set()
    for site in context.plan.sites:
        try:
            entries = read_published(context, site.name)
        except EvidenceError:
            continue
        said = (entry.body for study, entry in entries if study == NO_STUDY)
        if any(isinstance(body, Refused) and (body.instruction, body.code) == (about, code) for body in said):
            found.add(site.name)
    return found


def verify_shares_remain(context: CoordinatorContext[Agreement], public: EpochPublic, needed: int) -> None:
    """Refuses to wait for key holders that lost their share of this epoch's key: they never answer again.

    Args:
        needed: Q before the record is certified, t afterwards.

    Raises:
        EpochLost: fewer than `needed` holders are left; the round is dead.
    """
    lost = holders_that_lost(context, public)
    if lost and len(set(public.signing_keys) - lost - sites_that_left(context)) < needed:
        raise EpochLost("epoch-lost", f"Epoch {public.epoch}: key shares are lost at {', '.join(sorted(lost))}.")


def verify_enough_remain(context: CoordinatorContext[Agreement]) -> None:
    """Refuses to try again what can no longer succeed because too many sites left.

    Raises:
        TooFewRemain: `sites-left`.
    """
    left, numbers = sites_that_left(context), context.plan.threshold
    holders = {site.name for site in context.plan.key_holders} - left
    contributors = {site.name for site in context.plan.contributors} - left
    if len(holders) < numbers.certificate_quorum or len(contributors) < numbers.k_min:
        names = ", ".join(sorted(left))
        raise TooFewRemain("sites-left", f"Too few hospitals remain: {names} left the study.", _REMEDY)


def verify_holders_remain(context: CoordinatorContext[Agreement]) -> None:
    """Refuses a key ceremony that cannot complete: every key holder takes part in it.

    Raises:
        TooFewRemain: `holder-left`.
    """
    left = sites_that_left(context) & {site.name for site in context.plan.key_holders}
    if left:
        names = ", ".join(sorted(left))
        raise TooFewRemain("holder-left", f"No key ceremony can complete: {names} left the study.", _REMEDY)
