"""What `consilium site contract check` does and says. The report is for the steward: it holds counts of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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

    from tasks.contract.suite import CheckReport

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


def check_local(contract: DataContract, local: LocalData, notes: Console) -> CheckReport:
    """Checks the hospital's rows as a stream; says on `notes` how far it is."""
    from tasks.contract.suite import check_batches

    return check_batches(contract, _noted(read_batches(local, contract), notes))


def report_as_json(contract: DataContract, report: CheckReport) -> str:
    """Returns the report as JSON: what may leave, and what may not, apart."""
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
        "private": {"rows": report.rows, "patients": report.patients, "findings": findings},
    }
    return json.dumps(plain, indent=2)


def print_report(contract: DataContract, report: CheckReport, console: Console, every_rule: bool) -> None:
    """Prints the rules that did not pass, or all, with columns, rows and remedy."""
    from rich.table import Table

    from tasks.contract.rules import shown_failures

    shown = set(shown_failures(contract, report.verdict))
    table = Table("rule", "columns", "result", "rows", "remedy", title_justify="left")
    for finding in report.findings:
        if every_rule or finding.rule in shown:
            failed = finding.rule in shown
            table.add_row(
                finding.rule,
                ", ".join(finding.columns) or "all",
                "passed" if finding.passed else "FAILED" if failed else "not judged",
                "" if finding.rows is None else f"{finding.rows:,}",
                finding.remedy if failed else "",
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


def _noted(batches: Iterable[pa.RecordBatch], notes: Console) -> Iterator[pa.RecordBatch]:
    rows = noted = 0
    for batch in batches:
        yield batch
        rows += batch.num_rows
        if rows - noted >= ROWS_PER_NOTE:
            noted = rows
            notes.print(f"{rows:,} rows read", highlight=False)
