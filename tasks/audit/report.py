"""The audit's result as a value, and the same for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from schemas.canonical import Strict

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["checked", "failed", "not-applicable"]
_STYLE = {"checked": "green", "failed": "bold red", "not-applicable": "yellow"}


class Finding(Strict):
    """One contradiction: `place` is a path inside the evidence, or a site, round or entry of it."""

    place: str
    reason: str


class CheckResult(Strict):
    check: str
    title: str
    status: Status
    detail: str
    findings: tuple[Finding, ...]
    proves: str
    does_not_prove: str


class AuditReport(Strict):
    """Every check of docs/spec-audit.md in order, none left out.

    Attributes:
        study: Plan digest, or "" if the evidence does not even name a study.
        keys_given: Whether a public-key file from outside the evidence was used.
    """

    format: Literal["consilium/audit-report/1"] = "consilium/audit-report/1"
    study: str
    software: str
    keys_given: bool
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Whether there are results and none of them failed."""
        return bool(self.results) and all(result.status != "failed" for result in self.results)

    @property
    def exit_code(self) -> int:
        """0 only if nothing failed; 15, the code of evidence errors, otherwise."""
        return 0 if self.passed else 15

    def count(self, status: Status) -> int:
        """Returns how many checks ended with `status`."""
        return sum(result.status == status for result in self.results)

    def result(self, check: str) -> CheckResult:
        """Returns the result of one check.

        Raises:
            KeyError: no such check.
        """
        return {result.check: result for result in self.results}[check]


def render_report(report: AuditReport, console: Console) -> None:
    """Prints a table of all checks, every finding, and the verdict."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"Audit of study {report.study[:16] or '(unknown)'}", title_justify="left")
    for heading in ("check", "claim", "result", "detail"):
        table.add_column(heading, overflow="fold")
    for result in report.results:
        style = _STYLE[result.status]
        table.add_row(
            result.check, result.title, f"[{style}]{result.status.replace('-', ' ')}[/]", escape(result.detail)
        )
    console.print(table)
    for result in report.results:
        for finding in result.findings:
            console.print(f"[bold red]{result.check}[/] {escape(finding.place)}: {escape(finding.reason)}")
    counts = f"{report.count('checked')} checked, {report.count('failed')} failed, "
    counts += f"{report.count('not-applicable')} not applicable"
    verdict = "[bold green]verified[/]" if report.passed else "[bold red]NOT verified[/]"
    console.print(f"{verdict}: {counts}")
