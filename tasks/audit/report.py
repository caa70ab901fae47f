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


class Headline(Strict):
    """The main figures of a release, each recomputed by its check; None where that check did not pass.

    Attributes:
        epsilon: Largest over sites, training patients, under the plan's collusion.
        recomputed_by: Accountants that agreed.
        review: candidate, released, rejected or withdrawn, as signed decisions give.
    """

    title: str
    rounds: int
    planned_rounds: int
    complete: bool
    epsilon: str | None
    epsilon_limit: str
    delta: str
    unit: str
    recomputed_by: tuple[str, ...]
    auc: str | None
    auc_low: str | None
    auc_high: str | None
    review: str | None

    def sentences(self) -> tuple[str, ...]:
        """Returns the figures in words."""
        rounds = f"{self.rounds} of {self.planned_rounds} rounds, {'complete' if self.complete else 'ended early'}"
        said = [f"{self.title} {rounds}; {self.review or 'its reviews did not verify'}."]
        if self.epsilon is not None:
            said.append(
                f"Privacy: epsilon {self.epsilon} of {self.epsilon_limit} at delta {self.delta}, per {self.unit}, the "
                f"largest of all sites under the plan's collusion (recomputed by {_join(self.recomputed_by)})."
            )
        if self.auc is not None:
            low, high = self.auc_low, self.auc_high
            said.append(
                f"Quality: AUC {self.auc} on held-out patients, 95 % interval {low} to {high} (with its noise)."
            )
        return tuple(said)


def _join(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


class AuditReport(Strict):
    """Every check of docs/spec-audit.md in order, none left out.

    Attributes:
        study: Plan digest, or "" if the evidence does not even name a study.
        keys_given: Whether a public-key file from outside the evidence was used.
        headline: Main figures, or None if no verified release states any.
    """

    format: Literal["consilium/audit-report/1"] = "consilium/audit-report/1"
    study: str
    software: str
    keys_given: bool
    results: tuple[CheckResult, ...]
    headline: Headline | None = None

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
    for sentence in report.headline.sentences() if report.headline is not None else ():
        console.print(escape(sentence), highlight=False)
    if not report.passed:
        console.print("`consilium audit explain CHECK` says what a failed check means and who should act.")
