"""The figures that a reader wants first, taken only from what a check recomputed."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.audit.context import AuditContext
from tasks.audit.registry import AuditFailure
from tasks.audit.report import CheckResult, Headline

# Figure -> the check that must have recomputed it.
_PRIVACY, _QUALITY, _RELEASE, _REVIEWS = "C26", "C23", "C29", "C32"
_ACCOUNTANTS = (("C25", "this software's filter"), ("C27", "dp-accounting"), ("C28", "Opacus"))


def derive_headline(context: AuditContext, results: Sequence[CheckResult]) -> Headline | None:
    """Returns the study's main figures; None where there is no release or its checks failed.

    A figure whose own check did not pass is left out, so that nothing unverified is printed next to a verdict.
    """
    status = {result.check: result.status for result in results}
    if status.get(_RELEASE) != "checked":
        return None
    try:
        release, plan = context.release.predicate, context.study_plan
        metrics = dict(release.metrics) if status.get(_QUALITY) == "checked" else {}
        epsilon = None
        if status.get(_PRIVACY) == "checked" and release.epsilon:
            epsilon = max((report.collusion for report in release.epsilon), key=float)
        outcome = context.review_outcome if status.get(_REVIEWS) != "failed" else None
    except AuditFailure:
        return None
    return Headline(
        title=plan.title,
        rounds=release.rounds,
        planned_rounds=plan.mechanism.rounds,
        complete=release.complete,
        epsilon=epsilon,
        epsilon_limit=plan.budget.epsilon,
        delta=plan.budget.delta,
        unit=plan.mechanism.unit,
        recomputed_by=tuple(name for check, name in _ACCOUNTANTS if status.get(check) == "checked"),
        auc=metrics.get("auc"),
        auc_low=metrics.get("auc_low"),
        auc_high=metrics.get("auc_high"),
        review=outcome,
    )
