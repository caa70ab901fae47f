"""The budget report: what every site's ledger says is spent and left, from published and signed entries alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State

from flows.context import CoordinatorContext, open_coordinator
from flows.endings import failed_state
from flows.figures import read_published
from flows.notices import BUDGET_LOW, notify, site_resource
from schemas.errors import ConsiliumError, EvidenceError, PeerError
from schemas.ledger import FilterTotals, PrivacyReserved
from tasks.run_log import hide_expected_tracebacks

LOW = Fraction(1, 5)
_WORDS = {"training": "training patients", "held-out": "held-out patients"}


@dataclass(frozen=True)
class BudgetLine:
    """One part of one site's data.

    Attributes:
        left: Share of the filter's limit that remains, over all studies that the site's ledger names; None if the
            published ledger does not verify or holds no charge yet.
    """

    site: str
    data: str
    left: Fraction | None


def read_budgets(context: CoordinatorContext) -> list[BudgetLine]:
    """Reads the latest filter totals of every contributor from its published ledger."""
    lines: list[BudgetLine] = []
    for site in context.plan.contributors:
        totals: dict[str, FilterTotals] = {}
        try:
            for _, entry in read_published(context, site.name):
                if isinstance(entry.body, PrivacyReserved):
                    totals[entry.body.event.data] = entry.body.after
        except (EvidenceError, PeerError):
            totals = {}
        lines += [BudgetLine(site.name, data, _left(totals.get(data))) for data in _WORDS]
    return lines


def describe_budgets(lines: Iterable[BudgetLine]) -> str:
    """Returns the report as a Markdown table."""
    rows = [f"| {line.site} | {_WORDS[line.data]} | {_percent(line.left)} |" for line in lines]
    return "\n".join(
        [
            "| site | part of its data | budget left |",
            "|---|---|---|",
            *rows,
            "",
            "Left is a share of the site's filter limit over all studies, as its signed ledger states it. "
            "Only the site itself enforces it.",
        ]
    )


@flow(name="budget-report", persist_result=False)
async def report_budgets(home: str) -> str | State[Any]:
    """Shows what is left of every site's budget, and sends a notice for each that has less than a fifth."""
    hide_expected_tracebacks()
    try:
        return await _report(open_coordinator(Path(home)))
    except ConsiliumError as error:
        return failed_state(error)


async def _report(context: CoordinatorContext) -> str:
    lines = read_budgets(context)
    await acreate_markdown_artifact(
        key=f"budget-{context.study[:12]}", markdown=describe_budgets(lines), description="Privacy budgets by site"
    )
    low = [line for line in lines if line.left is not None and line.left < LOW]
    for line in low:
        payload = {"site": line.site, "data": line.data, "left": _percent(line.left)}
        await notify(BUDGET_LOW, context.study, site_resource(line.site), payload)
    return f"{len(low)} of {len(lines)} parts have less than a fifth of their budget left."


def _left(totals: FilterTotals | None) -> Fraction | None:
    if totals is None:
        return None
    return max(Fraction(0), 1 - Fraction(totals.spent) / Fraction(totals.limit))


def _percent(left: Fraction | None) -> str:
    return "nothing charged yet" if left is None else f"{float(left):.0%}"
