"""A reviewer's side of the gate: read a candidate, sign a decision with the reviewer's own key, send it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from infra.plans import shown
from infra.settings import load_settings, save_settings
from schemas.envelope import envelope_digest, open_envelope, sign_envelope
from schemas.errors import EvidenceError, OperationError, PeerError, PlanError
from schemas.layout import release_key
from schemas.options import ReviewerSettings
from schemas.plan import StudyPlan
from schemas.review import ReviewDecision
from tasks.identity import Identity, generate_identity, load_identity, save_identity
from tasks.review import verify_decision
from tasks.tracking.review import Candidate, Version, list_versions, previous_released, read_mailbox
from tasks.tracking.target import TrackingTarget
from tasks.tracking.vocabulary import REVIEW_STATE

Verdict = Literal["approved", "rejected"]


@dataclass(frozen=True)
class Reviewer:
    """One person's home: settings and the key that nobody else holds."""

    home: Path
    settings: ReviewerSettings
    identity: Identity

    @property
    def target(self) -> TrackingTarget:
        return TrackingTarget(self.settings.mlflow_uri, self.settings.artifacts)


def init_reviewer(home: Path, name: str, mlflow_uri: str) -> Reviewer:
    """Makes a reviewer's home with a fresh key; never overwrites one.

    Raises:
        OperationError: `bad-name`, `identity-exists`.
    """
    identity = generate_identity(name)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    save_identity(identity, home / "identity.json")
    settings = ReviewerSettings(name=name, mlflow_uri=mlflow_uri)
    save_settings(settings, home / "config.json")
    return Reviewer(home, settings, identity)


def open_reviewer(home: Path) -> Reviewer:
    """Opens a reviewer's home.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`.
    """
    return Reviewer(home, load_settings(ReviewerSettings, home / "config.json"), load_identity(home / "identity.json"))


def sign_decision(
    reviewer: Reviewer, candidate: Candidate, decision: Verdict, reason: str, evidence: str | None
) -> bytes:
    """Signs the reviewer's next decision about a candidate and keeps it in the reviewer's home.

    Args:
        reason: Why, for everybody who reads the study log; no patient's data.
        evidence: Envelope digest of the manifest that the reviewer audited, or None.

    Returns:
        Envelope bytes, durable in ``decisions/`` of the home before anybody else sees them.

    Raises:
        PlanError: `not-a-reviewer` if the plan does not name this key.
        OperationError: `bad-reason`.
    """
    name = reviewer_name(reviewer, candidate.plan)
    text = " ".join(reason.split())
    if not 1 <= len(text) <= 1000:
        raise OperationError("bad-reason", "Expected a reason of 1 to 1000 characters.", "Say why, with --reason.")
    number = 1 + max((given.number for given in own_decisions(reviewer, candidate)), default=0)
    message = ReviewDecision(
        reviewer=name,
        number=number,
        decision=decision,
        release=candidate.release_digest,
        weights=candidate.release.weights,
        model_version=candidate.version.label,
        evidence=evidence,
        reason=text,
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    data = sign_envelope(message, candidate.plan.study, reviewer.identity.signing)
    _keep(reviewer.home / "decisions" / f"{candidate.release_digest[:16]}-{number:04d}.json", data)
    return data


def reviewer_name(reviewer: Reviewer, plan: StudyPlan) -> str:
    """Returns the name under which the plan knows this reviewer's key.

    Raises:
        PlanError: `not-a-reviewer`.
    """
    for entry in plan.reviewers:
        if entry.identity_key == reviewer.identity.identity_key:
            return entry.name
    named = ", ".join(entry.name for entry in plan.reviewers) or "nobody"
    raise PlanError("not-a-reviewer", f"The plan's reviewers are {named}; this key is not one of theirs.")


def own_decisions(reviewer: Reviewer, candidate: Candidate) -> list[ReviewDecision]:
    """Returns what this reviewer signed about the candidate's release before, from the home's own copies."""
    folder = reviewer.home / "decisions"
    found = sorted(folder.glob(f"{candidate.release_digest[:16]}-*.json")) if folder.is_dir() else []
    study, key = candidate.plan.study, reviewer.identity.identity_key
    return [open_envelope(ReviewDecision, path.read_bytes(), study, key, reviewer.identity.name) for path in found]


def audit_for_review(folder: Path, keys_file: Path, candidate: Candidate) -> str:
    """Audits evidence offline and checks that it is the candidate's; returns the manifest's envelope digest.

    Raises:
        EvidenceError: `evidence-failed`, `wrong-evidence`.
    """
    from tasks.audit.keys import read_public_keys
    from tasks.audit.names import MANIFEST
    from tasks.audit.verify import verify_evidence

    report = verify_evidence(folder, read_public_keys(keys_file))
    failed = [result.check for result in report.results if result.status == "failed"]
    if failed:
        raise EvidenceError(
            "evidence-failed",
            f"The evidence fails {', '.join(failed)}; nothing was signed.",
            "`consilium audit verify` names the places. To reject the model, use `consilium review reject`.",
        )
    release = folder / release_key(candidate.plan.study, "release.json")
    if report.study != candidate.plan.study or release.read_bytes() != candidate.release_data:
        raise EvidenceError(
            "wrong-evidence", "The evidence is not of this model version.", "Ask the coordinator for the right export."
        )
    return envelope_digest((folder / MANIFEST).read_bytes())


def list_candidates(target: TrackingTarget) -> list[dict[str, Any]]:
    """Returns every registered version with what a reviewer looks for first; as MLflow shows it."""
    names = ("rounds", "auc", "auc_low", "auc_high", "epsilon_collusion", "epsilon_limit", "delta")
    return [
        {"model": v.name, "version": v.version, "aliases": list(v.aliases), "review": v.tags.get(REVIEW_STATE, "")}
        | {name: v.tags.get(f"consilium.{name}", "") for name in names}
        | {"study": v.study}
        for v in list_versions(target)
    ]


def show_candidate(reviewer: Reviewer, candidate: Candidate) -> dict[str, Any]:
    """Returns a verified candidate, its review and its predecessor, for display."""
    plan, version = candidate.plan, candidate.version
    decisions = []
    for entry in plan.reviewers:
        for _, data in read_mailbox(version, [entry.name]):
            decisions.append(_shown(candidate, entry.name, data))
    previous = previous_released(reviewer.target, plan)
    return {
        "model": version.name,
        "version": version.version,
        "study": plan.study,
        "title": shown(plan.title),
        "purpose": shown(plan.purpose),
        "aliases": list(version.aliases),
        "review": version.tags.get(REVIEW_STATE, ""),
        "reviewers": [entry.name for entry in plan.reviewers],
        "reviewers_needed": plan.release.reviewers_needed,
        "sites": [site.name for site in plan.sites],
        "rounds": candidate.release.rounds,
        "complete": candidate.release.complete,
        "reason": candidate.release.reason,
        "metrics": dict(candidate.release.metrics),
        "epsilon": {r.site: {"collusion": r.collusion, "outsider": r.outsider} for r in candidate.release.epsilon},
        "epsilon_limit": plan.budget.epsilon,
        "delta": plan.budget.delta,
        "unit": f"{plan.mechanism.unit}, {plan.mechanism.neighboring_relation}",
        "decisions": decisions,
        "wish": version.wish,
        "previous": None if previous is None else _previous(previous),
    }


def describe_candidate(shown: dict[str, Any]) -> str:
    """Returns `show_candidate` in words."""
    metrics = shown["metrics"]
    auc = "no evaluation was released"
    if {"auc", "auc_low", "auc_high"} <= set(metrics):
        auc = f"{float(metrics['auc']):.3f}, 95 % interval {float(metrics['auc_low']):.3f} to "
        auc += f"{float(metrics['auc_high']):.3f}"
    largest = max((float(value["collusion"]) for value in shown["epsilon"].values()), default=0.0)
    rows = [
        ("Model", f"{shown['model']} {shown['version']} ({', '.join(shown['aliases']) or 'no alias'})"),
        ("Study", f"{shown['title']} [{shown['study'][:12]}]"),
        ("Purpose", shown["purpose"]),
        ("Sites", ", ".join(shown["sites"])),
        ("Rounds", f"{shown['rounds']} ({'complete' if shown['complete'] else shown['reason']})"),
        ("AUC", auc),
        (
            "Epsilon",
            f"at most {largest:g} of {shown['epsilon_limit']} per site at delta {shown['delta']} ({shown['unit']})",
        ),
        ("Review", shown["review"] or "nobody has decided"),
        ("Rule", f"{shown['reviewers_needed']} of {', '.join(shown['reviewers']) or 'nobody: stays a candidate'}"),
    ]
    if shown["previous"]:
        before = shown["previous"]
        rows.append(
            ("Before", f"version {before['version']} is released: AUC {before['auc']}, epsilon {before['epsilon']}")
        )
    for given in shown["decisions"]:
        rows.append(("Decision", given["problem"] or f"{given['reviewer']} {given['decision']}: {given['reason']}"))
    if shown["wish"]:
        rows.append(("Wish", f'"{shown["wish"]}" in MLflow, unsigned: it does not count'))
    return "\n".join(f"{name:<9} {text}" for name, text in rows)


def read_envelopes(files: Sequence[Path]) -> tuple[bytes, ...]:
    """Reads signed decisions from files, as `consilium review approve --print` wrote them.

    Raises:
        OperationError: `not-found`.
    """
    try:
        return tuple(path.read_bytes().strip() for path in files)
    except OSError:
        raise OperationError("not-found", "A file with a decision cannot be read.", "Check the path.") from None


def _shown(candidate: Candidate, name: str, data: bytes) -> dict[str, Any]:
    try:
        given = verify_decision(candidate.plan, candidate.release_digest, candidate.release, data)
    except PeerError as error:
        return {"reviewer": name, "decision": "", "reason": "", "problem": f"not valid: {error.message}"}
    return {"reviewer": given.reviewer, "decision": given.decision, "reason": given.reason, "problem": ""}


def _previous(version: Version) -> dict[str, str]:
    tags = version.tags
    names = {"auc": "auc", "epsilon": "epsilon_collusion", "rounds": "rounds", "study": "study"}
    return {"version": version.version} | {key: tags.get(f"consilium.{name}", "") for key, name in names.items()}


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
