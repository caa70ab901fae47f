"""MLflow's pages, compared with the evidence: people read and click there, and everybody with access can edit."""

from __future__ import annotations

from schemas.errors import ConsiliumError
from schemas.messages import EpsilonReport, ModelRelease
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings, NotApplicable
from tasks.audit.snapshot import MlflowSnapshot, VersionView
from tasks.review import verify_decision
from tasks.tracking.vocabulary import (
    CANDIDATE,
    FREE_TAGS,
    RELEASED,
    REVIEW_STATE,
    is_known_tag,
    mailbox_tag,
    model_name,
    release_tags,
)

STUDY = "consilium.study"


def check_mlflow(context: AuditContext, findings: Findings) -> str | NotApplicable:
    """Compares the versions' tags, aliases and weights and the run's figures with what the evidence gives."""
    snapshot = context.snapshot
    if snapshot is None:
        return NotApplicable("MLflow was not looked at: give a snapshot or its address with --mlflow")
    if not context.released:
        for version in snapshot.versions:
            findings.expect(version.tags.get(STUDY) != context.study, version.label, "is of a study without a release")
        return NotApplicable("no model was released")
    findings.expect(snapshot.study == context.study, "snapshot", "is about another study")
    ours = [version for version in snapshot.versions if version.tags.get(STUDY) == context.study]
    findings.expect(bool(ours), "MLflow", "has no version of this study's model")
    for version in ours:
        _check_tags(context, findings, version)
        _check_mailbox(context, findings, version)
        held = snapshot.weights.get(version.label)
        findings.expect(
            held in (None, context.release.predicate.weights), version.label, "holds other weights than were released"
        )
    _check_aliases(context, findings, snapshot, ours)
    _check_metrics(context, findings, snapshot)
    unread = [version.label for version in ours if version.label not in snapshot.weights]
    note = f"; its weights could not be read from MLflow ({', '.join(unread)})" if unread else ""
    return f"{', '.join(version.label for version in ours)}: tags, aliases, {len(snapshot.run.metrics)} metrics{note}"


def _check_tags(context: AuditContext, findings: Findings, version: VersionView) -> None:
    roots = {
        owner: closed.predicate.position
        for owner in context.participants
        if context.has_log(owner) and (closed := context.log(owner).checkpoint) is not None
    }
    release = context.release
    expected = release_tags(context.study_plan, release.predicate, roots, release.digest)
    findings.expect(version.name == model_name(context.study_plan), version.label, "is registered under another name")
    for name, value in expected.items():
        shown = version.tags.get(name)
        findings.expect(shown is not None, version.label, f"has lost its tag {name}")
        findings.expect(shown in (None, value), version.label, f"has another value in its tag {name} than the evidence")
    for name in sorted(set(version.tags) - set(expected)):
        if name == REVIEW_STATE:
            continue
        free = any(name == known or (known.endswith(".") and name.startswith(known)) for known in FREE_TAGS)
        findings.expect(free, version.label, f"has a tag {name} that does not follow from the evidence")
        findings.expect(is_known_tag(name), version.label, f"has a tag {name} that is not in the vocabulary")
    state = version.tags.get(REVIEW_STATE)
    word = {"candidate": "waiting"}.get(context.review_outcome, context.review_outcome)
    same = state is None or state.split(" ")[0].rstrip(":,;") == word
    findings.expect(same, version.label, f"says in {REVIEW_STATE} what the study log does not ({word})")


def _check_mailbox(context: AuditContext, findings: Findings, version: VersionView) -> None:
    """A signed rejection that a reviewer left in MLflow and that never reached the log of a released model."""
    entered = {signed.digest for signed in context.reviews}
    for reviewer in context.study_plan.reviewers:
        text = version.tags.get(mailbox_tag(reviewer.name))
        if text is None or context.review_outcome != RELEASED:
            continue
        try:
            release = context.release
            decision = verify_decision(context.study_plan, release.digest, release.predicate, text.encode())
        except ConsiliumError:
            continue  # Unsigned or foreign: believed by nobody, the release gate included.
        latest = [d.predicate.number for d in context.reviews if d.predicate.reviewer == decision.reviewer]
        newer = decision.number > max(latest, default=0) and decision.decision == "rejected"
        findings.expect(not newer, version.label, f"carries a signed rejection by {reviewer.name} that was not entered")
    findings.expect(len(entered) == len(context.reviews), "reviews", "a decision is in the evidence twice")


def _check_aliases(
    context: AuditContext, findings: Findings, snapshot: MlflowSnapshot, ours: list[VersionView]
) -> None:
    outcome = context.review_outcome
    name = model_name(context.study_plan)
    for alias in (RELEASED, CANDIDATE):
        holders = [version for version in snapshot.versions if version.name == name and alias in version.aliases]
        for version in holders:
            findings.expect(STUDY in version.tags, version.label, f"has the alias {alias} and is of no study")
            if version in ours and alias == RELEASED:
                signed = outcome == RELEASED
                findings.expect(signed, version.label, f"has the alias {alias}, and no signed decision put it there")
            if version not in ours and outcome == RELEASED and alias == RELEASED:
                newer = bool(ours) and _number(version) > max(_number(mine) for mine in ours)
                findings.expect(newer, version.label, f"has the alias {alias}, which belongs to this study's version")
        needed = alias == CANDIDATE or outcome == RELEASED
        findings.expect(bool(holders) or not needed, name, f"has no version with the alias {alias}")


def _check_metrics(context: AuditContext, findings: Findings, snapshot: MlflowSnapshot) -> None:
    expected = released_metrics(context.release.predicate)
    for name, value in expected.items():
        shown = snapshot.run.metrics.get(name)
        findings.expect(shown is not None, "MLflow run", f"has lost its metric {name}")
        findings.expect(shown in (None, value), "MLflow run", f"shows another value of {name} than was released")
    for name in sorted(snapshot.run.metrics):
        extra = name.startswith("released/") and name not in expected
        findings.expect(not extra, "MLflow run", f"shows {name}, which was not released")


def released_metrics(release: ModelRelease) -> dict[str, float]:
    """Returns what the study's run in MLflow must show under ``released/``."""
    values = {f"released/{name}": float(value) for name, value in release.metrics}
    parts: tuple[tuple[str, tuple[EpsilonReport, ...]], ...] = (
        ("epsilon", release.epsilon),
        ("evaluation_epsilon", release.evaluation_epsilon),
    )
    for prefix, reports in parts:
        for reading in ("collusion", "outsider", "fallback"):
            if reports:
                values[f"released/{prefix}_{reading}_max"] = max(float(getattr(r, reading)) for r in reports)
    return values


def _number(version: VersionView) -> int:
    return int(version.version) if version.version.isdigit() else 0


CHECKS = (
    Check(
        "C33",
        "MLflow shows what the evidence says",
        "The tags, aliases, weights and released figures that people see in MLflow are those of the evidence; the "
        "alias released stands only where signed decisions put it.",
        "What MLflow shows a moment later: it has no history that anybody signed. Free text such as descriptions.",
        check_mlflow,
    ),
)
