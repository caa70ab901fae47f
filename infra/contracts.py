"""What `consilium site contract check` does and says. The report is for the steward: it holds counts of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.settings import load_settings
from schemas.canonical import digest_of
from schemas.contract import DataContract
from schemas.errors import OperationError
from schemas.options import SiteSettings
from site_agents.cohort.reader import LocalData, read_batches

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from tasks.contract.suite import CheckReport, Finding

ROWS_PER_NOTE = 1_000_000


def local_data(home: Path | None, data: str | None, mapping: Path | None) -> LocalData:
    """Returns what to check: from the hospital's settings, or as named; what is named comes first.

    Raises:
        OperationError: `nothing-to-check`.
    """
    if home is not None:
        settings = load_settings(SiteSettings, home / "config.json")
        return LocalData(data or settings.data, str(mapping) if mapping else settings.mapping)
    if data is None:
        raise OperationError("nothing-to-check", "Expected a table to check.", "Give --home, or --data and --mapping.")
    return LocalData(data, str(mapping) if mapping else "")


@dataclass(frozen=True)
class LocalCheck:
    """A check and what only the hospital knows about it.

    Attributes:
        places: Column -> the source's first row (from 1) that is not of the contract's type.
    """

    report: CheckReport
    places: dict[str, int]


def check_local(contract: DataContract, local: LocalData, notes: Console) -> LocalCheck:
    """Checks the hospital's rows as a stream; says on `notes` how far it is."""
    from tasks.contract.suite import check_batches

    places: dict[str, int] = {}
    return LocalCheck(check_batches(contract, _noted(read_batches(local, contract, places), notes)), places)


def report_as_json(contract: DataContract, check: LocalCheck) -> str:
    """Returns the report as JSON: what may leave, and what may not, apart."""
    report = check.report
    findings = [
        {"rule": f.rule, "columns": list(f.columns), "passed": f.passed, "rows": f.rows, "remedy": f.remedy}
        for f in report.findings
    ]
    plain: dict[str, Any] = {
        "contract": contract.name,
        "version": contract.version,
        "digest": digest_of(contract),
        "passed": report.verdict.passed,
        "may_leave": report.verdict.model_dump(mode="json"),
        "private": {"rows": report.rows, "patients": report.patients, "findings": findings}
        | {"first_row_of_another_type": check.places},
    }
    return json.dumps(plain, indent=2)


def print_report(contract: DataContract, check: LocalCheck, console: Console, every_rule: bool) -> None:
    """Prints the rules that did not pass, or all, with columns, rows and remedy."""
    from rich.table import Table

    from tasks.contract.pages import rule_in_words
    from tasks.contract.rules import shown_failures

    report = check.report
    shown = set(shown_failures(contract, report.verdict))
    table = Table("rule", "columns", "result", "rows", "why, and what to do", title_justify="left")
    for finding in report.findings:
        if every_rule or finding.rule in shown:
            failed = finding.rule in shown
            table.add_row(
                finding.rule,
                ", ".join(finding.columns) or "all",
                "passed" if finding.passed else "FAILED" if failed else "not judged",
                _rows(finding, check.places),
                f"expected: {rule_in_words(contract, finding.rule)}; {finding.remedy}" if failed else "",
            )
    if table.row_count:
        console.print(table)
    rules = len(report.findings)
    if report.verdict.passed:
        console.print(f"Contract {contract.name} {contract.version}: all {rules} rules passed.")
    else:
        console.print(f"Contract {contract.name} {contract.version}: {len(shown)} to correct, of {rules} rules.")
    console.print(
        f"{report.rows:,} rows of {report.patients:,} patients are in the cohort. Counts are for this hospital alone; "
        "in a study only pass or fail per rule leaves it.",
        highlight=False,
    )


def _rows(finding: Finding, places: dict[str, int]) -> str:
    if finding.rule.startswith("type:") and finding.columns[0] in places:
        return f"first: row {places[finding.columns[0]]:,}"
    return "" if finding.rows is None else f"{finding.rows:,}"


def _noted(batches: Iterable[pa.RecordBatch], notes: Console) -> Iterator[pa.RecordBatch]:
    rows = noted = 0
    for batch in batches:
        yield batch
        rows += batch.num_rows
        if rows - noted >= ROWS_PER_NOTE:
            noted = rows
            notes.print(f"{rows:,} rows read", highlight=False)
