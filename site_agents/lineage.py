"""The model at a site: recomputed from published openings, remembered per round so that each is recomputed once."""

from __future__ import annotations

from site_agents.context import SiteContext
from site_agents.epoch import public_epoch
from site_agents.past import past_of
from tasks.lineage import Lineage, extend_lineage, first_lineage
from tasks.rounds import read_opening
from tasks.server_step import parse_state, state_bytes


def model_before(context: SiteContext, round_: int) -> Lineage:
    """Returns the model that this site holds before `round_`; rounds that were never opened change nothing.

    A coordinator that hides an opening from one site gains nothing: the site then holds an older model and refuses.

    Raises:
        PeerError: a published opening does not verify; names who is at fault.
    """
    lineage = first_lineage(context.plan)
    start = 1
    for known in range(round_ - 1, 0, -1):
        stored = context.outbox.stored(_key(context, known))
        if stored is not None:
            digest, state = stored[:64].decode(), stored[64:]
            lineage, start = Lineage(parse_state(context.plan, state), digest), known + 1
            break
    for number in range(start, round_):
        extended = _extend(context, lineage, number)
        if extended is not None:
            lineage = extended
            remember(context, number, lineage)
    return lineage


def _extend(context: SiteContext, before: Lineage, number: int) -> Lineage | None:
    past, opening = past_of(context), read_opening(context.store, context.plan, number)
    key = (context.study, number, before.opening, opening.digest if opening is not None else "")
    if past.shared and key in past.openings:
        return past.openings[key]
    processes = context.home.settings.options.bulk_processes
    extended = extend_lineage(
        context.store, context.plan, lambda epoch: public_epoch(context, epoch), before, number, processes
    )
    if past.shared and extended is not None and extended.opening == key[-1]:
        past.openings[key] = extended
    return extended


def remember(context: SiteContext, round_: int, lineage: Lineage) -> None:
    """Keeps the model after a recomputed round in the site's private folder."""
    assert lineage.opening is not None
    content = lineage.opening.encode() + state_bytes(lineage.state)
    context.outbox.decide(_key(context, round_), lambda: content)


def _key(context: SiteContext, round_: int) -> str:
    return f"private/{context.study}/after-round-{round_:04d}"
