"""How a study stands by what its parties signed: who agreed, the newest round at each site, who left, what became of
the model.

Invariant: what is said here was read from an envelope under a key that the plan pins, and follows from it by the rule
that the audit applies. What does not verify is named by its code, never passed over. Codes and names only: no value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from schemas.canonical import sha256_hex
from schemas.errors import EvidenceError, PeerError
from schemas.layout import approval_key, attempt_key, release_key, review_key
from schemas.ledger import NO_STUDY, LedgerEntry, Refused, ReleaseDecided, ReviewDecided
from schemas.messages import Instruction, ModelRelease, PlanApproval, Record
from schemas.plan import SiteEntry, StudyPlan
from schemas.review import ReviewDecision
from tasks.review import MAXIMUM_BYTES, decide, missing_approvals, verify_decision
from tasks.rounds import MAXIMUM_ATTEMPTS, read_contribution, read_instruction, read_record, read_refusal
from tasks.storage.base import Store
from tasks.storage.mailbox import Signed, read_signed
from tasks.study_log import PublishedLog

UNVERIFIED = "unverified"


def sites_not_agreed(store: Store, plan: StudyPlan) -> list[str]:
    """Returns the sites whose signature on the plan is not in the store, in name order."""
    return [site.name for site in plan.sites if not _has_agreed(store, plan, site)]


def _has_agreed(store: Store, plan: StudyPlan, site: SiteEntry) -> bool:
    try:
        key = approval_key(plan.study, site.name)
        found = read_signed(store, key, PlanApproval, plan.study, site.identity_key, site.name)
    except PeerError:
        return False
    return found is not None and (found.predicate.participant, found.predicate.role) == (site.name, "site")


def newest_round(store: Store, plan: StudyPlan) -> dict[str, Any] | None:
    """Returns the newest round that the coordinator asked for and how each participant answered it.

    Returns:
        ``round``, ``kind``, ``attempt`` and ``answers``: site -> ``answer`` (``contributed``, ``refused``, ``silent``,
        ``invalid``, or ``waiting`` until the round is recorded) and ``code``, of the refusal or of what is wrong.
        ``unverified``: the code of a coordinator's message that does not verify. None before the first round.
    """
    try:
        asked = _newest_instruction(store, plan)
        if asked is None:
            return None
        record = read_record(store, plan, asked.predicate.round)
        if record is not None and record.predicate.attempt != asked.predicate.attempt:
            asked = read_instruction(store, plan, record.predicate.round, record.predicate.attempt) or asked
    except PeerError as error:
        return {UNVERIFIED: error.code, "answers": {}}
    told = asked.predicate
    answers = {site: _answer(store, plan, asked, record, site) for site in told.participants if _is_site(plan, site)}
    return {"round": told.round, "kind": told.kind, "attempt": told.attempt, "answers": answers}


def _newest_instruction(store: Store, plan: StudyPlan) -> Signed[Instruction] | None:
    # From behind: a study that ended early goes from its last training round to the evaluation, which is numbered last.
    for round_ in range(plan.mechanism.rounds + 1, 0, -1):
        if store.exists(attempt_key(plan.study, round_, 1, None, "instruction.json")):
            newest = read_instruction(store, plan, round_, 1)
            for attempt in range(2, MAXIMUM_ATTEMPTS + 1):
                later = read_instruction(store, plan, round_, attempt)
                if later is None:
                    break
                newest = later
            return newest
    return None


def _is_site(plan: StudyPlan, name: str) -> bool:
    return any(site.name == name for site in plan.sites)


def _answer(
    store: Store, plan: StudyPlan, asked: Signed[Instruction], record: Signed[Record] | None, site: str
) -> dict[str, str]:
    if record is None:
        return _own_answer(store, plan, asked, site)
    if site in dict(record.predicate.contributions):
        return {"answer": "contributed", "code": ""}
    reason = dict(record.predicate.dropped).get(site, "silent")
    if reason == "silent":
        return {"answer": "silent", "code": ""}
    own = _own_answer(store, plan, asked, site)
    return {"answer": reason, "code": own["code"]}


def _own_answer(store: Store, plan: StudyPlan, asked: Signed[Instruction], site: str) -> dict[str, str]:
    """Returns what the site itself signed, whatever the coordinator made of it."""
    try:
        if read_contribution(store, plan, site, asked) is not None:
            return {"answer": "contributed", "code": ""}
        refusal = read_refusal(store, plan, site, asked)
    except PeerError as error:
        return {"answer": "invalid", "code": error.code}
    if refusal is None:
        return {"answer": "waiting", "code": ""}
    return {"answer": "refused", "code": refusal.predicate.code}


def departures(store: Store, plan: StudyPlan) -> dict[str, str]:
    """Returns per site ``left`` if its published ledger says so, ``unverified`` if that does not verify, or nothing."""
    return {site.name: _departure(store, plan, site) for site in plan.sites}


def _departure(store: Store, plan: StudyPlan, site: SiteEntry) -> str:
    try:
        entries = PublishedLog(store, plan.study, site.name, site.identity_key).read()
    except (EvidenceError, PeerError):
        return UNVERIFIED
    said = Refused(instruction=plan.study, code="site-left")
    return "left" if any(about == NO_STUDY and entry.body == said for about, entry in entries) else ""


def model_state(store: Store, plan: StudyPlan) -> dict[str, Any] | None:
    """Returns what became of the study's model, as the audit derives it; None before the study is over.

    Returns:
        ``complete``: whether no planned round is missing; ``model``: ``candidate``, ``released``, ``rejected``,
        ``withdrawn``, or ``unverified`` with the ``code`` of why; ``approvals_missing`` and ``approvals_needed``, 0
        where the plan names no reviewer.
    """
    needed = plan.release.reviewers_needed if plan.reviewers else 0
    found = {"complete": False, "model": UNVERIFIED, "code": "", "approvals_needed": needed, "approvals_missing": 0}
    owner = plan.coordinator
    try:
        key = release_key(plan.study, "release.json")
        release = read_signed(store, key, ModelRelease, plan.study, owner.identity_key, owner.name)
        if release is None:
            return None
        found["complete"] = release.predicate.complete
        entries = PublishedLog(store, plan.study, owner.name, owner.identity_key, coordinator=True).read()
        outcome, decisions = _follow(store, plan, release, entries)
    except (EvidenceError, PeerError) as error:
        return found | {"code": error.code}
    missing = missing_approvals(plan, decisions) if plan.reviewers else 0
    return found | {"model": outcome, "approvals_missing": missing}


def _follow(
    store: Store, plan: StudyPlan, release: Signed[ModelRelease], entries: Iterable[tuple[str, LedgerEntry]]
) -> tuple[str, list[ReviewDecision]]:
    """Replays what the study log says of reviews.

    Raises:
        PeerError: `review-missing`, `review-outcome`: it says what no reviewer signed, or what does not follow.
    """
    outcome, decisions = "candidate", list[ReviewDecision]()
    for about, entry in entries:
        body = entry.body
        if about == plan.study and isinstance(body, ReviewDecided):
            decisions.append(_signed_decision(store, plan, release, body))
        elif about == plan.study and isinstance(body, ReleaseDecided):
            follows: str = decide(plan, decisions)
            if follows == "rejected" and outcome == "released":
                follows = "withdrawn"
            if (body.release, body.outcome) != (release.digest, follows):
                raise PeerError("review-outcome", plan.coordinator.name, "its log says what no reviewer decided.")
            outcome = body.outcome
    return outcome, decisions


def _signed_decision(
    store: Store, plan: StudyPlan, release: Signed[ModelRelease], entered: ReviewDecided
) -> ReviewDecision:
    told = entered.decision
    data = store.get(review_key(plan.study, told.reviewer, told.number), MAXIMUM_BYTES)
    if data is None or sha256_hex(data) != entered.review:
        raise PeerError("review-missing", plan.coordinator.name, "a decision that its log names is not in the store.")
    signed = verify_decision(plan, release.digest, release.predicate, data)
    if signed != told:
        raise PeerError("review-missing", plan.coordinator.name, "its log states another decision than was signed.")
    return signed


def say_model(found: dict[str, Any]) -> str:
    """Says in words what became of the model; `released` is what reviewers released and nothing else."""
    over = "finished" if found["complete"] else "ended early"
    if found["model"] == UNVERIFIED:
        return f"{over}; model NOT VERIFIED ({found['code']}): see consilium audit verify"
    if found["model"] != "candidate":
        return f"{over}; model {found['model']}"
    missing, needed = found["approvals_missing"], found["approvals_needed"]
    why = f"{missing} of {needed} signed approvals missing" if needed else "the plan names no reviewer"
    return f"{over}; model a candidate ({why})"
