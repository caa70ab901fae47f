"""Checks a site's rows against the contract, batch by batch: structure in Arrow, values with Great Expectations.

What leaves this module for others is pass or fail per rule. Counts of rows stay with the steward who asked. A rule that
could not be checked, because a column is absent or of another type in any batch, has not passed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from schemas.contract import ContractVerdict, ContractViolation, DataContract, RuleVerdict
from tasks.contract.arrow import conform_table
from tasks.contract.distinct import RowCounter
from tasks.contract.engine import count_violations, latest_moment, warm_engine
from tasks.contract.rules import GATES, columns_of, describe_failures, remedy_of, suite_description, suite_digest
from tasks.contract.selection import sound_columns

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "CheckReport", "Finding", "check_batches", "check_table", "describe_failures", "suite_description",
    "suite_digest", "verify_report", "verify_table", "warm_engine",
]  # fmt: skip

ROWS_AT_ONCE = 262_144


@dataclass(frozen=True)
class Finding:
    """What the check found for one rule; private, it never leaves the site.

    Attributes:
        rule: As in the verdict.
        columns: The columns that the rule is about.
        passed: As in the verdict.
        rows: Rows that break it; None where that cannot be said or no row could be judged.
        remedy: What the steward can do if it did not pass.
    """

    rule: str
    columns: tuple[str, ...]
    passed: bool
    rows: int | None
    remedy: str


@dataclass(frozen=True)
class CheckReport:
    """A check's outcome.

    Attributes:
        verdict: Pass or fail per rule: all that may leave the site.
        rows, patients: Of the cohort; private, they never leave the site.
        findings: Per rule; private.
    """

    verdict: ContractVerdict
    rows: int
    patients: int
    findings: tuple[Finding, ...]


def check_batches(contract: DataContract, batches: Iterable[pa.RecordBatch | pa.Table]) -> CheckReport:
    """Checks canonical batches, holding one batch of rows and 16 bytes per row and key; never raises for their sake.

    Args:
        contract: The plan's contract.
        batches: The site's rows (`site_agents.cohort.mapping.map_batches`); batches may differ in type.
    """
    import great_expectations as gx

    check = _Check(contract, latest_moment())
    for table in _joined(batches):
        check.add(conform_table(contract, table))
    findings = check.findings()
    return CheckReport(
        verdict=ContractVerdict(
            suite_digest=suite_digest(contract),
            engine_version=f"great-expectations {gx.__version__}",
            rules=tuple(RuleVerdict(rule=f.rule, passed=f.passed) for f in findings),
        ),
        rows=check.rows,
        patients=check.patients,
        findings=findings,
    )


def check_table(contract: DataContract, table: pa.Table) -> ContractVerdict:
    """Checks a table against the contract and reports pass or fail per rule; never raises for the data's sake.

    Args:
        contract: The plan's contract.
        table: The site's table as read (`site_agents.cohort.reader`).
    """
    return check_batches(contract, [table]).verdict


def verify_table(contract: DataContract, table: pa.Table) -> ContractVerdict:
    """Checks a table and refuses it unless every rule passes.

    Raises:
        ContractViolation: `contract-violated`, naming rule, column and remedy, quoting no value and no count.
    """
    return verify_report(contract, check_batches(contract, [table])).verdict


def verify_report(contract: DataContract, report: CheckReport) -> CheckReport:
    """Refuses a report in which a rule did not pass.

    Raises:
        ContractViolation: `contract-violated`, naming rule, column and remedy, quoting no value and no count.
    """
    if not report.verdict.passed:
        failures = describe_failures(contract, report.verdict)
        raise ContractViolation(
            report.verdict,
            f"The table does not satisfy contract {contract.name} {contract.version}: {'; '.join(failures)}.",
            "Nothing was charged. Correct the table or the mapping, see consilium site contract check, and start the "
            "agent again.",
        )
    return report


class _Check:
    """The running state of one check."""

    def __init__(self, contract: DataContract, now: dt.datetime) -> None:
        self.rows = 0
        self._contract = contract
        self._now = now
        self._seen = False
        self._present = {c.name for c in contract.columns}
        self._typed = set(self._present)
        self._finite = set(self._present)
        self._broken: dict[str, int] = {}
        self._unknown: set[str] = set()
        self._counter = RowCounter(contract)

    def add(self, table: pa.Table) -> None:
        """Judges further rows in the contract's columns."""
        self._seen = True
        self.rows += table.num_rows
        sound = sound_columns(self._contract, table)
        self._present &= set(table.column_names)
        self._typed &= sound
        sound -= self._not_finite(table, sound)
        if not table.num_rows:
            return
        self._counter.add(table, sound)
        frame = table.select([c.name for c in self._contract.columns if c.name in sound]).to_pandas()
        for rule, rows in count_violations(self._contract, frame, sound, self._now).items():
            if rows < 0:
                self._unknown.add(rule)
            self._broken[rule] = self._broken.get(rule, 0) + max(rows, 0)

    @property
    def patients(self) -> int:
        """Distinct patients; 0 if the id could not be used."""
        return self._counter.patients if self._counter.complete else 0

    def findings(self) -> tuple[Finding, ...]:
        """Returns what was found per rule, in the order of the verdict."""
        found = []
        broken = self._broken | self._counter.repeated()
        for rule in (str(described["rule"]) for described in suite_description(self._contract)):
            columns = columns_of(self._contract, rule)
            rows = broken.get(rule)
            finding = Finding(rule, columns, self._passed(rule, columns, rows), rows, remedy_of(rule))
            gated = rule.split(":")[0] in (*GATES, "cohort") or not self._sound(columns)
            found.append(replace(finding, rows=None) if gated or rule in self._unknown else finding)
        return tuple(found)

    def _passed(self, rule: str, columns: tuple[str, ...], rows: int | None) -> bool:
        kind = rule.split(":", maxsplit=1)[0]
        if kind == "cohort":
            return self.rows > 0
        if kind in GATES:
            # A column that is absent has no type and is not finite: it has passed neither rule.
            steps = (self._present, self._typed, self._finite)[: GATES.index(kind) + 1]
            return self._seen and all(columns[0] in step for step in steps)
        if not self._sound(columns) or rule in self._unknown or rows is None or not self.rows:
            return False
        if kind == "missing":
            allowed = next(c.max_missing for c in self._contract.columns if c.name == columns[0])
            return Fraction(rows) <= Fraction(allowed) * self.rows
        return rows == 0

    def _sound(self, columns: tuple[str, ...]) -> bool:
        return self._seen and set(columns) <= self._present & self._typed & self._finite

    def _not_finite(self, table: pa.Table, sound: set[str]) -> set[str]:
        import pyarrow.compute as pc

        numbers = [c.name for c in self._contract.columns if c.kind == "number" and c.name in sound]
        bad = {
            name
            for name in numbers
            if not pc.all(pc.is_finite(table.column(name)), skip_nulls=True, min_count=0).as_py()
        }
        self._finite -= bad
        return bad


def _joined(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[pa.Table]:
    """Yields tables of up to about `ROWS_AT_ONCE` rows: the engine's cost per call is shared by many rows."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    rows = 0
    for batch in batches:
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        if waiting and (table.schema != waiting[0].schema or rows + table.num_rows > ROWS_AT_ONCE):
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
        if table.num_rows > ROWS_AT_ONCE:
            yield from (table.slice(at, ROWS_AT_ONCE) for at in range(0, table.num_rows, ROWS_AT_ONCE))
            continue
        waiting.append(table)
        rows += table.num_rows
    if waiting:
        yield pa.concat_tables(waiting)
