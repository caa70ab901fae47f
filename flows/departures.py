"""Sites that left a study for good or lost their share of its key, by what they published themselves, sums that do not
open, and whether the others can go on."""

from __future__ import annotations

import contextlib

from flows.active_sets import ActiveSet, choose_active_set
from flows.context import CoordinatorContext
from flows.figures import read_published
from flows.opening_steps import OpeningSteps, Shares
from flows.round_steps import EpochLost, SumSpoiled, SumSteps
from schemas.errors import EvidenceError, OperationError, PeerError
from schemas.ledger import NO_STUDY, KeyCeremony, LedgerEntry, Refused
from schemas.messages import Record
from schemas.plan import Agreement
from tasks.ceremonies import ALL_PHASES, missing_messages, read_public_epoch
from tasks.rounds import (
    MAXIMUM_REQUESTS,
    is_anything_opened,
    read_instruction,
    read_opening,
    read_record,
)
from tasks.storage.mailbox import Signed

_REMEDY = "Make a new plan without them; what was opened so far is released."


class TooFewRemain(OperationError):
    """So many sites left for good, or lost their share again and again, that the study ends with what it has."""


def sites_that_left(context: CoordinatorContext[Agreement]) -> set[str]:
    """Returns the sites whose published ledger says, under their own signature, that they left this study."""
    return _sites_that_said(context, Refused(instruction=context.study, code="site-left"))


def _sites_that_said(context: CoordinatorContext[Agreement], said: Refused) -> set[str]:
    published = _published(context).items()
    return {site for site, entries in published if any(s == NO_STUDY and entry.body == said for s, entry in entries)}


def holders_that_lost(context: CoordinatorContext[Agreement], sid_star: str) -> set[str]:
    """Returns the key holders whose published ledger says that they lost their secrets of this epoch.

    A holder that has contributed before can say it nowhere else: a contribution is never followed by a refusal. It is
    never taken back: a site that said it gives up a share that comes to light again (`site_agents.epoch`).
    """
    lost = Refused(instruction=sid_star, code="epoch-lost")
    return _sites_that_said(context, lost) & {site.name for site in context.plan.key_holders}


def verify_shares_remain(steps: SumSteps) -> None:
    """Refuses to wait for key holders that lost their share of this epoch's key: they never answer again.

    What a holder signed or shared before it lost its share counts.

    Raises:
        EpochLost: those who are left cannot open this round; it is dead.
    """
    lost = holders_that_lost(steps.context, steps.public.sid_star)
    if lost and not _can_open(steps, set(steps.public.signing_keys) - lost - sites_that_left(steps.context)):
        names = ", ".join(sorted(lost))
        raise EpochLost("epoch-lost", f"Round {steps.round}: key shares are lost at {names}.")


def _can_open(steps: SumSteps, left: set[str]) -> bool:
    numbers = steps.plan.threshold
    record = read_record(steps.context.store, steps.plan, steps.round)
    if record is None:
        return len(left) >= numbers.certificate_quorum
    for members, given, opens in _asked(steps, record):
        complete = set(members) <= set(given)
        if opens or (not complete and set(members) <= left | set(given)):
            return True
    signed = set(OpeningSteps(steps).read_signatures(record))
    return len(signed | left) >= numbers.certificate_quorum and len(left) >= numbers.t


def _asked(steps: SumSteps, record: Signed[Record]) -> list[tuple[ActiveSet, Shares, bool]]:
    instruction = read_instruction(steps.context.store, steps.plan, steps.round, record.predicate.attempt)
    return OpeningSteps(steps).asked(instruction, record) if instruction is not None else []


def verify_sets_remain(steps: SumSteps) -> None:
    """Refuses to ask again for shares of a sum that no active set opens, of all that can be asked.

    Not while so many holders are merely silent that no certificate would come without them: with them there are further
    sets. Those that lost their share or left are not waited for.

    Raises:
        SumSpoiled: naming whose contribution is wrong, or who answered with wrong shares; the round is dead.
    """
    record = read_record(steps.context.store, steps.plan, steps.round)
    asked = _asked(steps, record) if record is not None else []
    failed = [members for members, given, _ in asked if set(members) <= set(given)]
    if record is None or not failed or any(opens for _, _, opens in asked):
        return
    numbers, holders = steps.plan.threshold, set(steps.public.signing_keys)
    silent = {holder for members, given, _ in asked for holder in members if holder not in given}
    answering = set(OpeningSteps(steps).read_signatures(record)) - silent
    gone = holders_that_lost(steps.context, steps.public.sid_star) | sites_that_left(steps.context)
    another = choose_active_set(answering, numbers.t, failed) is not None and len(asked) < MAXIMUM_REQUESTS
    if another or len(holders - answering - gone) > len(holders) - numbers.certificate_quorum:
        return
    senders = ", ".join(sender for sender, _ in record.predicate.contributions)
    raise SumSpoiled(
        "sum-spoiled",
        f"Round {steps.round} does not open with the shares of any of {len(failed)} active sets: a contribution of one "
        f"of {senders} does not fit together, or several of {', '.join(sorted(answering))} answer with wrong shares.",
        "Find out which with these hospitals; what they sent stays charged.",
    )


def verify_rounds_live(context: CoordinatorContext[Agreement], round_: int, epoch: int) -> None:
    """Refuses to ask a further round when the ones before it all died with their key: each of them was charged.

    Args:
        epoch: The present one.

    Raises:
        TooFewRemain: `rounds-keep-dying`, naming the holders that said they lost their share, or who contributed.
    """
    dead: list[int] = []
    said: set[str] = set()
    senders: list[set[str]] = []
    for number in range(round_ - 1, 0, -1):
        asked = read_instruction(context.store, context.plan, number, 1)
        opened = read_opening(context.store, context.plan, number) is not None
        if asked is None or opened or asked.predicate.epoch >= epoch:
            break
        dead.append(number)
        said |= holders_that_lost(context, asked.predicate.sid_star)
        record = read_record(context.store, context.plan, number)
        senders += [{sender for sender, _ in record.predicate.contributions}] if record is not None else []
    limit = context.options.dead_rounds_in_a_row
    if len(dead) >= limit and read_instruction(context.store, context.plan, round_, 1) is None:
        why = f"key shares were lost at {', '.join(sorted(said))}" if said else _spoiled(senders)
        raise TooFewRemain(
            "rounds-keep-dying",
            f"The last {len(dead)} rounds died, charged and not opened; {why}.",
            "Find out why with these hospitals; options.dead_rounds_in_a_row (config.json) allows more.",
        )


def verify_ceremonies_complete(context: CoordinatorContext[Agreement], epoch: int) -> None:
    """Refuses to begin `epoch` when too many ceremonies before it broke off, and something can be released.

    Before anything was opened there is nothing to end with: it goes on being tried.

    Raises:
        TooFewRemain: `ceremonies-keep-breaking`, naming whom the last one waited for.
    """
    entered = [entry.body for entry in context.log.find(context.study, "key-ceremony")]
    broken = epoch - 1 - max((body.epoch for body in entered if isinstance(body, KeyCeremony)), default=0)
    if broken >= context.options.broken_ceremonies_in_a_row and is_anything_opened(context.store, context.plan):
        raise TooFewRemain(
            "ceremonies-keep-breaking",
            f"Key ceremonies broke off, in a row: {broken}; the last one for want of {_broken_by(context, epoch - 1)}.",
            "Find out why with these hospitals; options.broken_ceremonies_in_a_row (config.json) allows more.",
        )


def _broken_by(context: CoordinatorContext[Agreement], epoch: int) -> str:
    for phase in ALL_PHASES:
        if missing := missing_messages(context.store, context.plan, epoch, phase):
            return ", ".join(missing)
    try:
        read_public_epoch(context.store, context.plan, epoch)
    except PeerError as error:
        return error.peer
    return "nobody in time"


def _spoiled(senders: list[set[str]]) -> str:
    """Says what killed rounds without a lost share: in each of them somebody sent what does not open."""
    suspects = set.intersection(*senders) if senders else set()
    return (
        "nobody said that a key share was lost: contributions did not fit together, or shares were wrong "
        f"(in all of these sums: {', '.join(sorted(suspects)) or 'nobody'})"
    )


def _published(context: CoordinatorContext[Agreement]) -> dict[str, tuple[tuple[str, LedgerEntry], ...]]:
    """Returns the published entries of every site whose ledger verifies."""
    found: dict[str, tuple[tuple[str, LedgerEntry], ...]] = {}
    for site in context.plan.sites:
        with contextlib.suppress(EvidenceError, PeerError):
            found[site.name] = read_published(context, site.name)
    return found


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


def verify_round_survives(steps: SumSteps) -> None:
    """Refuses to try a round again that can no longer be opened because too many sites left.

    What a holder signed or shared before it left counts, as with those that lost their share.

    Raises:
        TooFewRemain: `sites-left`.
    """
    remain = set(steps.public.signing_keys) - sites_that_left(steps.context)
    decided = read_record(steps.context.store, steps.plan, steps.round) is not None
    if not (decided and _can_open(steps, remain)):
        verify_enough_remain(steps.context)


def verify_holders_remain(context: CoordinatorContext[Agreement]) -> None:
    """Refuses a key ceremony that cannot complete: every key holder takes part in it.

    Raises:
        TooFewRemain: `holder-left`.
    """
    left = sites_that_left(context) & {site.name for site in context.plan.key_holders}
    if left:
        names = ", ".join(sorted(left))
        raise TooFewRemain("holder-left", f"No key ceremony can complete: {names} left the study.", _REMEDY)
