"""Charging a question about the cohort, before any study: to both parts of the data, before it is touched."""

from __future__ import annotations

from schemas.canonical import canonical_bytes, derive_digest
from schemas.ledger import NO_STUDY, FilterTotals, PrivacyEvent
from schemas.statistics import QUESTION_ROUND, StatisticsQuery
from tasks.ledger.budget import reserve_all, would_admit
from tasks.ledger.rules import PARTS, Part
from tasks.ledger.store import LedgerStore
from tasks.privacy.statistics import statistics_mechanism

STATISTICS_ROUND = 0


def reserve_statistics(
    store: LedgerStore, cohort: str, query: StatisticsQuery, study: str = NO_STUDY, asked: str = ""
) -> tuple[FilterTotals, ...]:
    """Charges `query` to training and held-out patients; the same query again finds its charge and spends nothing.

    The site's budget alone decides: there is no study yet whose plan could have one.

    Args:
        study: The question's plan digest; none for a query outside any plan.
        asked: Envelope digest of the instruction, in a question.

    Returns:
        The totals after it, per part.

    Raises:
        BudgetExceeded, BudgetError: as `tasks.ledger.budget.reserve`; if either part refuses, neither is charged.
    """
    digests = {part: part_digest(query, part, asked) for part in PARTS}
    charges = [(digests[part], statistics_event(query, part)) for part in PARTS]
    return reserve_all(store, cohort, charges, QUESTION_ROUND if asked else STATISTICS_ROUND, study)


def would_admit_statistics(store: LedgerStore, cohort: str, query: StatisticsQuery, study: str) -> None:
    """Refuses what `reserve_statistics` would refuse now, without charging.

    Raises:
        BudgetExceeded, BudgetError: as `reserve_statistics`.
    """
    for part in PARTS:
        would_admit(store, cohort, statistics_event(query, part), study=study)


def statistics_event(query: StatisticsQuery, part: Part) -> PrivacyEvent:
    """Derives what one part of the data is charged for `query`."""
    return statistics_mechanism(query, part).event()


def part_digest(query: StatisticsQuery, part: Part, asked: str = "") -> str:
    """Derives under which digest a part is charged: of the instruction in a question, of the query alone otherwise."""
    if asked:
        return derive_digest("question/1", asked, part)
    return derive_digest("statistics/1", canonical_bytes(query), part)
