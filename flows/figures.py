"""Figures of a round and of a study, from published messages only: cumulative epsilon per site, bytes, times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime

from flows.context import CoordinatorContext
from flows.round_steps import RoundOutcome
from schemas.errors import BudgetError, EvidenceError, PeerError
from schemas.layout import attempt_key, round_key
from schemas.ledger import LedgerEntry, PrivacyEvent, PrivacyReserved, SumOpened
from schemas.messages import EpsilonReport, Record
from schemas.plan import Agreement, StudyPlan
from tasks.contract.rules import suite_description
from tasks.privacy.accounting import epsilon_report
from tasks.rounds import read_contribution, read_refusal
from tasks.storage.mailbox import Signed


def read_published(context: CoordinatorContext[Agreement], site: str) -> tuple[tuple[str, LedgerEntry], ...]:
    """Returns (study, entry) of everything that `site` has published so far, verified as a whole.

    Raises:
        EvidenceError: the ledger does not verify.
        PeerError: it is larger than any, or the store refuses to read it.
    """
    return context.published[site].read()


def epsilon_of_sites(
    context: CoordinatorContext, data: str, up_to_round: int | None = None
) -> tuple[EpsilonReport, ...]:
    """Returns the cumulative cost per site of one data part (``training`` or ``held-out``), in name order.

    A site whose published ledger does not verify, or charges what has no cost, has no report; the audit will name it.
    """
    reports: list[EpsilonReport] = []
    for site in context.plan.contributors:
        with contextlib.suppress(EvidenceError, PeerError, BudgetError, ArithmeticError):
            events = _charged(context, site.name, data, up_to_round)
            if events:
                reports.append(epsilon_report(context.plan, site.name, events))
    return tuple(reports)


def _charged(context: CoordinatorContext, site: str, data: str, up_to_round: int | None) -> list[PrivacyEvent]:
    bodies = [entry.body for study, entry in read_published(context, site) if study == context.study]
    return [
        body.event
        for body in bodies
        if isinstance(body, PrivacyReserved)
        and body.event.data == data
        and (up_to_round is None or body.round <= up_to_round)
    ]


def refusal_codes(context: CoordinatorContext, outcome: RoundOutcome) -> dict[str, str]:
    """Returns the code that each site which refused the round has signed."""
    codes: dict[str, str] = {}
    for site, reason in outcome.record.predicate.dropped:
        if reason != "refused":
            continue
        with contextlib.suppress(PeerError):
            refusal = read_refusal(context.store, context.plan, site, outcome.instruction)
            codes |= {site: refusal.predicate.code} if refusal is not None else {}
    return codes


def contract_verdicts(context: CoordinatorContext, outcome: RoundOutcome) -> dict[str, str]:
    """Returns what each site signed about its table in this round: ``passed``, or ``failed`` with the rules' names.

    A rule that the plan's contract does not have is ``unknown rule``: its name is any text that the site chose.
    """
    known = {str(described["rule"]) for described in suite_description(context.plan.contract)}
    verdicts: dict[str, str] = {}
    for site in outcome.instruction.predicate.participants:
        with contextlib.suppress(PeerError):
            given = read_contribution(context.store, context.plan, site, outcome.instruction)
            refused = (
                None if given is not None else read_refusal(context.store, context.plan, site, outcome.instruction)
            )
            verdict = given.predicate.verdict if given is not None else refused.predicate.verdict if refused else None
            if verdict is not None:
                failed = [r.rule if r.rule in known else "unknown rule" for r in verdict.rules if not r.passed]
                verdicts[site] = "passed" if verdict.passed else f"failed: {', '.join(dict.fromkeys(failed))}"
    return verdicts


def opened_at_ms(context: CoordinatorContext, round_: int) -> int:
    """Returns when the round's opening entered the study log, in unix milliseconds; the same after a resume."""
    for entry in context.log.find(context.study, "sum-opened"):
        if isinstance(entry.body, SumOpened) and entry.body.round == round_:
            return int(datetime.fromisoformat(entry.time).timestamp() * 1000)
    return 0


def bytes_up(context: CoordinatorContext, record: Signed[Record]) -> int:
    """Returns the bytes that all sites wrote to the store for a round, under the names that the protocol has."""
    asked, requests = record.predicate, 0
    while context.store.exists(round_key(context.study, asked.round, None, f"request-{requests + 1}.json")):
        requests += 1
    keys = (key for site in context.plan.sites for key in _names_of_site(context.plan, asked, site.name, requests))
    return sum(map(context.store.size, keys))


def _names_of_site(plan: StudyPlan, record: Record, site: str, requests: int) -> Iterator[str]:
    holders = [holder.name for holder in plan.key_holders]
    items = ["contribution.json", "refusal.json", "key.bin", "bulk.bin", *(f"shamir-{name}.bin" for name in holders)]
    for attempt in range(1, record.attempt + 1):
        yield from (attempt_key(plan.study, record.round, attempt, site, item) for item in items)
        if site in holders:
            yield attempt_key(plan.study, record.round, attempt, site, "shares-checked.json")
    if site in holders:
        answers = [f"share-{number}.{kind}" for number in range(1, requests + 1) for kind in ("json", "bin")]
        yield from (round_key(plan.study, record.round, site, item) for item in ("record-signature.json", *answers))


def bytes_down(context: CoordinatorContext, record: Signed[Record]) -> int:
    """Returns the bytes that all sites read for a round: every key ciphertext, the sealed shares addressed to them, the
    published sums and shares, the coordinator's messages."""
    store, plan, asked = context.store, context.plan, record.predicate
    folder = round_key(context.study, asked.round, None, "x").rsplit("/", 1)[0]
    published = sum(store.size(key) for key in store.list(folder)) * len(plan.sites)
    senders = [sender for sender, _ in asked.contributions]

    def size(sender: str, item: str) -> int:
        return store.size(attempt_key(context.study, asked.round, asked.attempt, sender, item))

    keys = sum(size(sender, "key.bin") for sender in senders) * len(plan.key_holders)
    sealed = sum(size(s, f"shamir-{h.name}.bin") for s in senders for h in plan.key_holders)
    return published + keys + sealed
