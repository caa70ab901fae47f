"""The release: one signed statement, entered last into the study log, that agrees with everything before it."""

from __future__ import annotations

from schemas.ledger import ModelReleased, ReleaseDecided, ReviewDecided
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings, NotApplicable


def check_release(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Compares the release with its log entries, the rounds and the plan."""
    log = context.log(context.plan.coordinator.name)
    about = list(log.about(context.study))
    entered = [(place, entry.body) for place, entry in about if isinstance(entry.body, ModelReleased)]
    if not context.released:
        for place, _ in entered:
            findings.add(place, "enters a release that is not in the evidence")
        return NotApplicable("no model was released")
    release = context.release
    given = release.predicate
    findings.expect(len(entered) == 1, release.path, f"is entered {len(entered)} times in the study log")
    for place, body in entered:
        findings.expect(body.release == given, place, "enters another release than the signed one")
    before = [entry.body for _, entry in about if not isinstance(entry.body, ReviewDecided | ReleaseDecided)]
    last = bool(before) and isinstance(before[-1], ModelReleased)
    findings.expect(last, release.path, "is not the study log's last entry before reviewers decided")
    trained = [r for r in context.opened_rounds if r <= context.study_plan.mechanism.rounds]
    findings.expect(given.rounds == max(trained, default=0), release.path, "states another number of rounds")
    whole = given.rounds == context.study_plan.mechanism.rounds
    findings.expect(whole or not given.complete, release.path, "claims to be complete though rounds are missing")
    findings.expect(given.complete != bool(given.reason), release.path, "does not say why it ended early")
    _check_site_entries(context, findings)
    ended = "complete" if given.complete else given.reason
    return f"{given.rounds} of {context.study_plan.mechanism.rounds} rounds, {ended}"


def _check_site_entries(context: AuditContext, findings: Findings) -> None:
    """Compares the release with what the sites entered after recomputing it."""
    given = context.release.predicate
    for site in context.plan.sites:
        with findings.at(f"ledger of {site.name}"):
            if not context.has_log(site.name):
                continue
            for place, entry in context.log(site.name).about(context.study):
                if isinstance(entry.body, ModelReleased):
                    findings.expect(entry.body.release == given, place, "enters another release than the signed one")


CHECKS = (
    Check(
        "C29",
        "The release agrees with its log entries and the rounds",
        "What was released is what the study log and the sites that recomputed it entered; it says how many rounds "
        "it took and whether the study was complete.",
        "That a reviewer accepted the model.",
        check_release,
    ),
)
