"""The two privacy filters behind one face: what an event costs in a filter's own unit, and what a budget admits.

Invariant: a data part has one filter for ever, fixed with its first charge, when nothing had yet been released from it.
A filter chosen later could be chosen after seeing results, and neither filter's theorem covers that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from schemas.ledger import FilterState, FilterTotals, PrivacyEvent, RenyiState
from tasks.privacy.accounting import (
    epsilon_of_cost,
    format_decimal,
    gdp_cost,
    gdp_limit,
    is_sampled,
    limit_is_honest,
    renyi_cost,
    round_epsilon,
)
from tasks.privacy.renyi import choose_order, epsilon_of_renyi, renyi_limit

Part: TypeAlias = Literal["training", "held-out"]


@dataclass(frozen=True)
class GdpFilter:
    """Totals of mu^2: full batches only."""

    unit = "mu^2"

    def cost(self, event: PrivacyEvent) -> Fraction:
        """Derives the cost of `event`, rounded up; raises BudgetError `sampling-unsupported`, `event-inconsistent`."""
        return gdp_cost(event)

    def limit(self, epsilon: str, delta: str) -> Fraction:
        """Derives what (`epsilon`, `delta`) admits, rounded down."""
        return gdp_limit(epsilon, delta)

    def admits_limit(self, stated: Fraction, epsilon: str, delta: str) -> bool:
        """Tells whether a stated limit is within that of the budget."""
        return limit_is_honest(stated, epsilon, delta)

    def epsilon(self, total: Fraction, delta: str) -> str:
        """Returns what `total` stands for, rounded up."""
        return epsilon_of_cost(total, delta)

    def state(self, data: Part, spent: Fraction, limit: Fraction) -> FilterState:
        """Returns totals as they stand in a ledger entry."""
        return FilterState(data=data, spent=format_decimal(spent), limit=format_decimal(limit))


@dataclass(frozen=True)
class RenyiFilter:
    """Totals of Renyi divergence at one `order`: sampled and full batches."""

    order: int

    @property
    def unit(self) -> str:
        return f"Renyi divergence of order {self.order}"

    def cost(self, event: PrivacyEvent) -> Fraction:
        """Derives the cost of `event`, rounded up; raises BudgetError `event-inconsistent`."""
        return renyi_cost(event, self.order)

    def limit(self, epsilon: str, delta: str) -> Fraction:
        """Derives what (`epsilon`, `delta`) admits at the order, rounded down."""
        gdp_limit(epsilon, delta)  # Refuses a budget that means nothing.
        return renyi_limit(epsilon, delta, self.order)

    def admits_limit(self, stated: Fraction, epsilon: str, delta: str) -> bool:
        """Tells whether a stated limit is within that of the budget; exact arithmetic needs no tolerance."""
        return stated <= self.limit(epsilon, delta)

    def epsilon(self, total: Fraction, delta: str) -> str:
        """Returns what `total` stands for at the order, rounded up; "0" for nothing."""
        return round_epsilon(epsilon_of_renyi(total, delta, self.order)) if total else "0"

    def state(self, data: Part, spent: Fraction, limit: Fraction) -> RenyiState:
        """Returns totals as they stand in a ledger entry."""
        return RenyiState(order=self.order, data=data, spent=format_decimal(spent), limit=format_decimal(limit))


PrivacyFilter: TypeAlias = GdpFilter | RenyiFilter


def choose_filter(events: Iterable[PrivacyEvent], epsilon: str, delta: str) -> PrivacyFilter:
    """Chooses the filter of a data part that has none: GDP, or Renyi at the budget's order if batches are sampled."""
    if any(is_sampled(event) for event in events):
        gdp_limit(epsilon, delta)  # Refuses a budget that means nothing.
        return RenyiFilter(choose_order(epsilon, delta))
    return GdpFilter()


def filter_of(state: FilterTotals) -> PrivacyFilter:
    """Returns the filter that stated totals belong to."""
    return RenyiFilter(state.order) if isinstance(state, RenyiState) else GdpFilter()
