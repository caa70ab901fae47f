"""The release rule: who may decide about a candidate, and what follows from it. Pure; gate and audit share it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from schemas.envelope import envelope_signer, open_envelope
from schemas.errors import EvidenceError, PeerError
from schemas.messages import ModelRelease
from schemas.plan import StudyPlan
from schemas.review import ReviewDecision

Outcome: TypeAlias = Literal["waiting", "released", "rejected"]
MAXIMUM_BYTES = 16 * 1024


def verify_decision(plan: StudyPlan, release_digest: str, release: ModelRelease, data: bytes) -> ReviewDecision:
    """Verifies a decision that somebody brought: signed by a reviewer of the plan, about exactly this release.

    Args:
        release_digest: Envelope digest of ``release.json``.
        release: Its content.
        data: Envelope bytes, from whichever door.

    Raises:
        PeerError: `not-a-reviewer`, `bad-signature`, `wrong-statement`, `malformed`, `wrong-release`.
    """
    reviewer = _claimed_reviewer(plan, data)
    keys = {entry.name: entry.identity_key for entry in plan.reviewers}
    decision = open_envelope(ReviewDecision, data, plan.study, keys[reviewer], reviewer)
    if decision.reviewer != reviewer:
        raise PeerError("not-a-reviewer", reviewer, "the decision is in another reviewer's name.")
    if (decision.release, decision.weights) != (release_digest, release.weights):
        raise PeerError("wrong-release", reviewer, "the decision is about another release.")
    return decision


def latest_decisions(decisions: Iterable[ReviewDecision]) -> dict[str, ReviewDecision]:
    """Returns the standing decision per reviewer: the one with the highest number."""
    latest: dict[str, ReviewDecision] = {}
    for decision in decisions:
        known = latest.get(decision.reviewer)
        if known is None or decision.number > known.number:
            latest[decision.reviewer] = decision
    return latest


def decide(plan: StudyPlan, decisions: Iterable[ReviewDecision]) -> Outcome:
    """Decides what follows from verified decisions about one release.

    One standing rejection is enough to reject. To release takes standing approvals under as many *distinct keys* as the
    plan asks for: however often one key signs, it counts once.
    """
    keys = {entry.name: entry.identity_key for entry in plan.reviewers}
    standing = {name: decision for name, decision in latest_decisions(decisions).items() if name in keys}
    if any(decision.decision == "rejected" for decision in standing.values()):
        return "rejected"
    approvals = {keys[name] for name in standing}
    return "released" if len(approvals) >= plan.release.reviewers_needed else "waiting"


def missing_approvals(plan: StudyPlan, decisions: Iterable[ReviewDecision]) -> int:
    """Returns how many approvals are still needed, rejections aside."""
    approved = [d for d in latest_decisions(decisions).values() if d.decision == "approved"]
    return max(0, plan.release.reviewers_needed - len(approved))


def _claimed_reviewer(plan: StudyPlan, data: bytes) -> str:
    """Returns which reviewer's key the envelope claims to be signed with; proves nothing yet."""
    if len(data) > MAXIMUM_BYTES:
        raise PeerError("malformed", "somebody", f"a decision is larger than {MAXIMUM_BYTES} bytes.")
    try:
        signer = envelope_signer(data)
    except EvidenceError as error:
        raise PeerError("malformed", "somebody", error.message) from None
    for entry in plan.reviewers:
        if entry.identity_key == signer:
            return entry.name
    raise PeerError("not-a-reviewer", "somebody", "the decision is not signed with the key of a reviewer of the plan.")
