"""What a check is: a number, what it proves and what it does not, and a function that collects findings.

A check never passes by accident: anything it cannot read is a finding, and so is any error it did not foresee.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.errors import ConsiliumError
from tasks.audit.report import CheckResult, Finding, Status

if TYPE_CHECKING:
    from tasks.audit.context import AuditContext

MAXIMUM_FINDINGS = 50


class AuditFailure(Exception):
    """Evidence that is missing or contradicts itself, and where."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


@dataclass(frozen=True)
class NotApplicable:
    """Why a check has nothing to say about this evidence."""

    reason: str


@dataclass
class Findings:
    """What a check found wrong, each with the place: a file, or an entry, round or site inside it."""

    items: list[Finding] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Notes one contradiction."""
        finding = Finding(place=place, reason=reason)
        if finding not in self.items:
            self.items.append(finding)

    def expect(self, holds: bool, place: str, reason: str) -> None:
        """Notes a contradiction unless `holds`."""
        if not holds:
            self.add(place, reason)

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Turns a refusal raised inside into a finding: at its own place if it knows one, at `place` otherwise."""
        try:
            yield
        except AuditFailure as failure:
            self.add(failure.place, failure.reason)
        except ConsiliumError as error:
            self.add(place, str(error))


@dataclass(frozen=True)
class Check:
    """One numbered check.

    Attributes:
        number: Stable identifier, e.g. ``C07``; never reused for another meaning.
        title: The claim, in a few words.
        proves: What holds if the check passes.
        does_not_prove: What a reader might think it proves.
        run: Returns what was looked at (a few words with figures) or `NotApplicable`.
    """

    number: str
    title: str
    proves: str
    does_not_prove: str
    run: Callable[[AuditContext, Findings], str | NotApplicable]


def run_check(check: Check, context: AuditContext) -> CheckResult:
    """Runs one check; whatever goes wrong inside is a finding, so that hostile evidence still gets a report."""
    findings = Findings()
    outcome: str | NotApplicable = ""
    try:
        with findings.at("evidence"):
            outcome = check.run(context, findings)
    except Exception as error:
        findings.add("evidence", f"could not be evaluated ({type(error).__name__})")
    return _result(check, findings.items, outcome)


def _result(check: Check, found: list[Finding], outcome: str | NotApplicable) -> CheckResult:
    status: Status = "failed" if found else "not-applicable" if isinstance(outcome, NotApplicable) else "checked"
    detail = outcome.reason if isinstance(outcome, NotApplicable) else outcome
    if found:
        detail = f"{len(found)} contradiction(s)"
    return CheckResult(
        check=check.number,
        title=check.title,
        status=status,
        detail=detail,
        findings=tuple(found[:MAXIMUM_FINDINGS]),
        proves=check.proves,
        does_not_prove=check.does_not_prove,
    )
