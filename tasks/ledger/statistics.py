"""Charging a question about the cohort, before any study: to both parts of the data, before it is touched."""

from __future__ import annotations

from schemas.canonical import canonical_bytes, derive_digest
from schemas.ledger import NO_STUDY, FilterTotals
from schemas.statistics import StatisticsQuery
from tasks.ledger.budget import reserve, would_admit
from tasks.ledger.rules import PARTS
from tasks.ledger.store import LedgerStore
from tasks.privacy.statistics import statistics_mechanism

STATISTICS_ROUND = 0


def reserve_statistics(store: LedgerStore, cohort: str, query: StatisticsQuery) -> tuple[FilterTotals, ...]:
    """Charges `query` to training and held-out patients; the same query again finds its charge and spends nothing.

    The site's budget alone decides: there is no study yet whose plan could have one.

    Returns:
        The totals after it, per part.

    Raises:
        BudgetExceeded, BudgetError: as `tasks.ledger.budget.reserve`; if either part refuses, neither is charged.
    """
    events = {part: statistics_mechanism(query, part).event() for part in PARTS}
    digests = {part: derive_digest("statistics/1", canonical_bytes(query), part) for part in PARTS}
    known = store.read_rules().reservations
    for part in PARTS:
        if (NO_STUDY, digests[part]) not in known:
            would_admit(store, cohort, events[part])
    return tuple(reserve(store, cohort, digests[p], STATISTICS_ROUND, events[p], NO_STUDY) for p in PARTS)
