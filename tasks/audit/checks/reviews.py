"""What reviewers decided about the release, and whether what followed is the plan's rule."""

from __future__ import annotations

from schemas.layout import review_key
from schemas.ledger import ReleaseDecided, ReviewDecided
from schemas.review import ReviewDecision
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.review import decide, latest_decisions


def check_reviews(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Verifies every decision and derives what follows from those entered, by the plan's rule."""
    decisions = context.select("review-decision")
    for item in decisions:
        with findings.at(item.path):
            given = context.review(item).predicate
            named = review_key(context.study, given.reviewer, given.number)
            findings.expect(named == item.path, item.path, "is of another reviewer or has another number")
    outcomes = _follow_log(context, findings)
    if not context.reviewers:
        return NotApplicable("the plan names no reviewer: its model stays a candidate")
    if not decisions:
        return NotApplicable("no reviewer has decided: the model is a candidate")
    needed = context.study_plan.release.reviewers_needed
    return f"{len(decisions)} decisions, {needed} approvals needed; {outcomes[-1] if outcomes else 'waiting'}"


def _follow_log(context: AuditContext, findings: Findings) -> list[str]:
    """Replays the study log's entries about reviews; returns the outcomes entered."""
    entered: list[ReviewDecision] = []
    digests: dict[tuple[str, int], str] = {}
    outcomes: list[str] = []
    for place, entry in context.log(context.plan.coordinator.name).about(context.study):
        body = entry.body
        if isinstance(body, ReviewDecided):
            earlier = latest_decisions(entered).get(body.decision.reviewer)
            number = body.decision.number
            findings.expect(earlier is None or number > earlier.number, place, "repeats an older decision")
            stated = [signed for signed in context.reviews if signed.digest == body.review]
            same = bool(stated) and stated[0].predicate == body.decision
            findings.expect(same, place, "states another decision than its reviewer signed")
            entered.append(body.decision)
            digests[body.decision.reviewer, number] = body.review
        elif isinstance(body, ReleaseDecided):
            _check_outcome(context, findings, place, body, entered, digests, outcomes)
            outcomes.append(body.outcome)
    return outcomes


def _check_outcome(
    context: AuditContext,
    findings: Findings,
    place: str,
    body: ReleaseDecided,
    entered: list[ReviewDecision],
    digests: dict[tuple[str, int], str],
    outcomes: list[str],
) -> None:
    findings.expect(body.release == context.release.digest, place, "is about another release")
    latest = latest_decisions(entered)
    rests_on = tuple(digests[name, latest[name].number] for name in sorted(latest))
    findings.expect(body.decisions == rests_on, place, "does not rest on the latest decision of every reviewer")
    standing = bool(outcomes) and outcomes[-1] == "released"
    follows: str = decide(context.study_plan, entered)
    if follows == "rejected" and standing:
        follows = "withdrawn"
    findings.expect(body.outcome == follows, place, f"says {body.outcome}, and the decisions before it give {follows}")


CHECKS = (
    Check(
        "C32",
        "Every review decision is signed, entered, and led to what the plan's rule gives",
        "Whatever the log says became of the model follows from decisions that reviewers named in the plan signed over "
        "exactly this release; approvals count by key, and one standing rejection stops a release.",
        "That a reviewer looked at the evidence, or that the coordinator entered a decision that it alone received.",
        check_reviews,
    ),
)
