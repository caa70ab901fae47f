"""Sites that left a study for good, by what they published themselves, and whether the others can go on."""

from __future__ import annotations

from flows.context import CoordinatorContext
from flows.figures import read_published
from schemas.errors import EvidenceError, OperationError
from schemas.ledger import NO_STUDY, Refused
from schemas.plan import Agreement

_REMEDY = "Make a new plan without them; what was opened so far is released."


class TooFewRemain(OperationError):
    """So many sites left for good that no further round can be opened: the study ends with what it has."""


def sites_that_left(context: CoordinatorContext[Agreement]) -> set[str]:
    """Returns the sites whose published ledger says, under their own signature, that they left this study."""
    left: set[str] = set()
    for site in context.plan.sites:
        try:
            entries = read_published(context, site.name)
        except EvidenceError:
            continue
        said = (entry.body for study, entry in entries if study == NO_STUDY)
        if any(isinstance(b, Refused) and (b.instruction, b.code) == (context.study, "site-left") for b in said):
            left.add(site.name)
    return left


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
