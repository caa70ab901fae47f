"""Which attempt a round is in.

A signed refusal stands for its attempt and is never taken back. A round that too few sites answered because some
declined for a while (a pause, a table that breaks its contract) is therefore asked again, as its next attempt: sites
that contributed before send the same integers and are charged nothing, sites that declined decide anew.
"""

from __future__ import annotations

from datetime import UTC, datetime

from flows.context import CoordinatorContext
from schemas.errors import PeerError
from schemas.layout import attempt_key
from schemas.ledger import InstructionIssued
from schemas.messages import Instruction
from schemas.plan import Agreement
from tasks.rounds import MAXIMUM_ATTEMPTS, read_instruction, read_record, read_refusal
from tasks.storage.mailbox import Signed

# Asked again, these sites would answer the same.
LASTING_CODES = frozenset({"budget-exceeded", "study-budget-exceeded", "epoch-lost", "site-left"})


def choose_attempt(context: CoordinatorContext[Agreement], round_: int) -> int:
    """Returns the attempt in which `round_` goes on: its newest, or the next one if only that can hold.

    Each further attempt waits twice as long as the one before, from `attempt_pause_seconds` on: there are 16 of them,
    and a schedule must not use them up while a site is paused over a holiday.
    """
    newest, found = 0, read_instruction(context.store, context.plan, round_, 1)
    asked = found
    while found is not None and newest < MAXIMUM_ATTEMPTS:
        newest, asked = newest + 1, found
        found = read_instruction(context.store, context.plan, round_, newest + 1)
    if asked is None:
        return 1
    closed = context.store.exists(attempt_key(context.study, round_, newest, None, "collected.json"))
    if closed or newest == MAXIMUM_ATTEMPTS or read_record(context.store, context.plan, round_) is not None:
        return newest
    return newest + 1 if _helps(context, asked) and _rested(context, asked.predicate) else newest


def _helps(context: CoordinatorContext[Agreement], asked: Signed[Instruction]) -> bool:
    """Whether too few have contributed, some declined for a while, and with them there may be enough."""
    codes = _refusals(context, asked)
    people, k_min = set(asked.predicate.participants), context.plan.threshold.k_min
    lasting = {site for site, code in codes.items() if code in LASTING_CODES}
    there = [site for site in people if _contributed(context, asked.predicate, site)]
    return len(there) < k_min <= len(people - lasting) and bool(set(codes) - lasting)


def _refusals(context: CoordinatorContext[Agreement], asked: Signed[Instruction]) -> dict[str, str]:
    codes: dict[str, str] = {}
    for site in asked.predicate.participants:
        try:
            refusal = read_refusal(context.store, context.plan, site, asked)
        except PeerError:
            continue
        if refusal is not None:
            codes[site] = refusal.predicate.code
    return codes


def _contributed(context: CoordinatorContext[Agreement], asked: Instruction, site: str) -> bool:
    return context.store.exists(attempt_key(context.study, asked.round, asked.attempt, site, "contribution.json"))


def _rested(context: CoordinatorContext[Agreement], asked: Instruction) -> bool:
    pause = context.options.attempt_pause_seconds * float(2 ** (asked.attempt - 1))
    for entry in context.log.find(context.study, "instruction-issued"):
        body = entry.body
        if isinstance(body, InstructionIssued) and (body.round, body.attempt) == (asked.round, asked.attempt):
            issued = datetime.strptime(entry.time, "%Y-%m-%dT%H:%M:%S%z")
            return (datetime.now(UTC) - issued).total_seconds() >= pause
    return False
