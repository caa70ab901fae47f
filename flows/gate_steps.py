"""The release gate as steps that never wait and may be repeated: enter decisions, and do what follows from them.

Invariant: the alias ``released`` is set only after the study log holds the entry that says so; that entry is written
only after enough signed approvals were entered, a fresh export passed every check of the audit, and the registered
model was found to be the released one. What a person writes in MLflow or Prefect without a signature is a wish.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flows.context import CoordinatorContext
from flows.release_steps import checkpoints, publish_later_entries
from schemas.envelope import envelope_digest
from schemas.errors import EvidenceError, OperationError, PeerError
from schemas.layout import release_key, review_key
from schemas.ledger import ReleaseDecided, ReviewDecided
from schemas.messages import ModelRelease
from schemas.review import ReviewDecision
from tasks.audit.export import export_evidence
from tasks.audit.keys import PublicKeys, public_keys_document
from tasks.audit.names import MANIFEST
from tasks.audit.verify import verify_evidence
from tasks.review import Outcome, decide, latest_decisions, missing_approvals, verify_decision
from tasks.storage.mailbox import Signed, read_signed
from tasks.tracking.review import (
    Version,
    find_study_version,
    point_released,
    read_mailbox,
    show_state,
    verify_tags,
    verify_weights,
    withdraw_released,
)
from tasks.tracking.target import TrackingTarget, page_address
from tasks.tracking.vocabulary import RELEASED, model_name, release_tags


@dataclass(frozen=True)
class GateState:
    """What the study log says about one release.

    Attributes:
        reviews: Entered decisions with their envelope digests, in order.
        decided: What the gate did last, or None.
        notes: What was brought or wished and does not count, in words.
        doors: What MLflow's doors showed when they were looked at.
    """

    release: Signed[ModelRelease]
    reviews: tuple[tuple[str, ReviewDecision], ...]
    decided: ReleaseDecided | None
    outcome: Outcome
    notes: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()

    @property
    def standing(self) -> dict[str, ReviewDecision]:
        """The latest decision per reviewer, by name."""
        return dict(sorted(latest_decisions(decision for _, decision in self.reviews).items()))


def tracking_target(context: CoordinatorContext) -> TrackingTarget:
    """Returns where this study's model is registered."""
    return TrackingTarget(context.settings.mlflow_uri, context.settings.artifacts)


def read_gate(context: CoordinatorContext) -> GateState:
    """Reads release and decisions from the store and the study log.

    Raises:
        OperationError: `not-a-candidate` if the study has released nothing yet; `no-reviewers`.
    """
    plan, coordinator = context.plan, context.plan.coordinator
    if not plan.reviewers:
        raise OperationError(
            "no-reviewers", "The plan names no reviewers: its model stays a candidate.", "Name reviewers in a new plan."
        )
    key = release_key(plan.study, "release.json")
    release = read_signed(context.store, key, ModelRelease, plan.study, coordinator.identity_key, coordinator.name)
    if release is None or not context.log.find(plan.study, "model-released"):
        raise OperationError("not-a-candidate", "The study has no candidate yet.", "Run the study to its end first.")
    reviews: list[tuple[str, ReviewDecision]] = []
    decided: ReleaseDecided | None = None
    for entry in context.log.entries_for(plan.study):
        if isinstance(entry.body, ReviewDecided):
            reviews.append((entry.body.review, entry.body.decision))
        elif isinstance(entry.body, ReleaseDecided):
            decided = entry.body
    return GateState(release, tuple(reviews), decided, decide(plan, (decision for _, decision in reviews)))


def accept_decision(context: CoordinatorContext, data: bytes) -> ReviewDecision | None:
    """Enters a signed decision into the study log; None if it was entered before.

    Raises:
        PeerError: it is not a decision by a reviewer of the plan about this release, or an older one.
    """
    state = read_gate(context)
    decision = verify_decision(context.plan, state.release.digest, state.release.predicate, data)
    digest = envelope_digest(data)
    if digest in {known for known, _ in state.reviews}:
        return None
    newest = max((d.number for _, d in state.reviews if d.reviewer == decision.reviewer), default=0)
    if decision.number <= newest:
        raise PeerError("review-replayed", decision.reviewer, f"its decision {decision.number} is not its newest.")
    key = review_key(context.study, decision.reviewer, decision.number)
    stored = context.store.get(key)
    if stored is not None and stored != data:
        raise PeerError("review-forked", decision.reviewer, f"it signed two decisions with number {decision.number}.")
    context.store.put(key, data)
    context.log.append_once(context.study, ReviewDecided(review=digest, decision=decision))
    context.progress.emit("review-decided", reviewer=decision.reviewer, decision=decision.decision)
    return decision


def look_at_doors(context: CoordinatorContext, brought: tuple[bytes, ...] = ()) -> GateState:
    """Enters every signed decision found in MLflow's mailbox tags or `brought` by another door.

    Returns:
        The state after it; `notes` names what was found and does not count.
    """
    version = find_study_version(tracking_target(context), context.plan)
    found = [*read_mailbox(version, [r.name for r in context.plan.reviewers]), *(("brought", data) for data in brought)]
    notes: list[str] = []
    for place, data in found:
        try:
            accept_decision(context, data)
        except PeerError as error:
            if error.code != "review-replayed" or place == "brought":
                notes.append(f"{place}: {error.message} ({error.code})")
    state = read_gate(context)
    notes += _unsigned_wishes(version, state)
    return replace(state, notes=tuple(notes), doors=_doors(context, version))


def has_news(context: CoordinatorContext, state: GateState) -> bool:
    """Tells whether MLflow shows anything else than when the doors were looked at."""
    return _doors(context, find_study_version(tracking_target(context), context.plan)) != state.doors


def settle(context: CoordinatorContext, state: GateState) -> GateState:
    """Does what follows from the entered decisions, once: audit, entry, evidence, alias, tags.

    Raises:
        EvidenceError: `evidence-failed`, `registry-altered`: nothing was released.
    """
    target = tracking_target(context)
    version = find_study_version(target, context.plan)
    outcome = _due(state)
    if outcome is not None:
        publish_later_entries(context)
        manifest = _export(context)
        if outcome == "released":
            _verify_evidence(context)
            _verify_registry(context, target, version, state)
        body = ReleaseDecided(
            release=state.release.digest,
            outcome=outcome,
            decisions=_standing_digests(state),
            evidence=manifest,
            model_version=version.label,
        )
        context.log.append_once(context.study, body)
        context.progress.emit("release-decided", outcome=outcome, model_version=version.label)
        state = replace(read_gate(context), notes=state.notes, doors=state.doors)
    publish_later_entries(context)
    _export(context)
    _show(target, version, context, state)
    return state


def describe_gate(context: CoordinatorContext, state: GateState) -> str:
    """Says in words who decided what and what is missing (Markdown)."""
    plan = context.plan
    lines = ["| reviewer | decision | when | reason |", "|---|---|---|---|"]
    for reviewer in plan.reviewers:
        given = state.standing.get(reviewer.name)
        row = ("nothing yet", "", "") if given is None else (given.decision, given.time, " ".join(given.reason.split()))
        lines.append(f"| {reviewer.name} | {' | '.join(part.replace('|', '/') for part in row)} |")
    notes = [f"\n- {note}" for note in state.notes]
    if page := page_address(tracking_target(context), f"models/{model_name(plan)}"):
        notes.append(f"\n[The model's versions in MLflow]({page})")
    return "\n".join([f"**{state_words(context, state)}**", "", *lines, *notes])


def state_words(context: CoordinatorContext, state: GateState) -> str:
    """Returns the gate's state in one line, as MLflow shows it."""
    needed = context.plan.release.reviewers_needed
    match state.outcome:
        case "released":
            return f"released: {needed} signed approval{'s' * (needed > 1)}"
        case "rejected":
            by = ", ".join(name for name, given in state.standing.items() if given.decision == "rejected")
            withdrawn = state.decided is not None and state.decided.outcome == "withdrawn"
            return f"{'withdrawn' if withdrawn else 'rejected'}: by {by}"
    missing = missing_approvals(context.plan, state.standing.values())
    return f"waiting: {missing} of {needed} signed approval{'s' * (needed > 1)} missing"


def _due(state: GateState) -> Literal["released", "rejected", "withdrawn"] | None:
    """Returns the entry that the decisions demand and the log does not hold yet."""
    last = state.decided.outcome if state.decided is not None else None
    if state.outcome == "released":
        return "released" if last != "released" else None
    if state.outcome == "rejected":
        if last == "released":
            return "withdrawn"
        same = state.decided is not None and state.decided.decisions == _standing_digests(state)
        return None if same or last == "withdrawn" else "rejected"
    return None


def _standing_digests(state: GateState) -> tuple[str, ...]:
    by_decision = {(d.reviewer, d.number): digest for digest, d in state.reviews}
    return tuple(by_decision[name, given.number] for name, given in state.standing.items())


def _export(context: CoordinatorContext) -> str:
    """Exports the evidence anew and returns the envelope digest of its manifest."""
    folder = export_evidence(context.store, context.plan, context.home / "evidence", context.identity.signing)
    return envelope_digest((Path(folder) / MANIFEST).read_bytes())


def _verify_evidence(context: CoordinatorContext) -> None:
    # The plan is the one that this home is pinned to: its keys are what the coordinator itself relied on.
    keys = PublicKeys.model_validate(public_keys_document(context.plan))
    report = verify_evidence(context.home / "evidence", keys)
    failed = [result.check for result in report.results if result.status == "failed"]
    if failed:
        raise EvidenceError(
            "evidence-failed",
            f"The model is not released: its evidence fails {', '.join(failed)}.",
            "Run `consilium audit verify` on the evidence; it names the places.",
        )


def _verify_registry(context: CoordinatorContext, target: TrackingTarget, version: Version, state: GateState) -> None:
    positions = {owner: found.predicate.position for owner, found in checkpoints(context).items()}
    verify_tags(version, release_tags(context.plan, state.release.predicate, positions, state.release.digest))
    verify_weights(target, version, state.release.predicate)


def _show(target: TrackingTarget, version: Version, context: CoordinatorContext, state: GateState) -> None:
    """Makes MLflow say what the log says. An alias is moved when the log's word is new, never merely because somebody
    else moved it since: that is for the audit to find and for people to settle."""
    words = state_words(context, state)
    known = version.tags.get("consilium.review_state", "")
    last = state.decided.outcome if state.decided is not None else ""
    if last == "released" and not known.startswith("released"):
        point_released(target, version)
    if last == "withdrawn" and not known.startswith("withdrawn"):
        withdraw_released(target, version)
    show_state(target, version, words)


def _doors(context: CoordinatorContext, version: Version) -> tuple[str, ...]:
    mailbox = read_mailbox(version, [reviewer.name for reviewer in context.plan.reviewers])
    return (version.wish, str(RELEASED in version.aliases), *(envelope_digest(data) for _, data in mailbox))


def _unsigned_wishes(version: Version, state: GateState) -> list[str]:
    notes = []
    if version.wish:
        notes.append(f'MLflow: somebody wrote "{version.wish}" as tag consilium.review; it takes a signature to count')
    released = state.decided is not None and state.decided.outcome == "released"
    if RELEASED in version.aliases and not released:
        notes.append("MLflow: the alias released points here without a release in the study log; somebody moved it")
    if released and RELEASED not in version.aliases:
        notes.append("MLflow: the alias released does not point here though the study log released this version")
    return notes
