"""What everybody agreed to: the plan, its numbers, and the approvals."""

from __future__ import annotations

from schemas.layout import plan_key
from schemas.threshold import broken_rules
from tasks.audit.context import AuditContext
from tasks.audit.registry import Check, Findings
from tasks.privacy.mechanism import verify_plan_within_budget
from tasks.privacy.statistics import verify_question_within_budget
from tasks.secure_sum.parameters import derive_parameters


def check_plan(context: AuditContext, findings: Findings) -> str:
    """Recomputes the plan's digest, the rules between its numbers, its budget and its cipher parameters."""
    plan = context.plan
    place = plan_key(context.study)
    for rule in broken_rules(plan.threshold, len(plan.key_holders), len(plan.contributors)):
        findings.add(place, f"breaks {rule}")
    with findings.at(place):
        if context.question is not None:
            verify_question_within_budget(context.question)
        else:
            verify_plan_within_budget(context.study_plan)
    with findings.at(place):
        derive_parameters(plan)
    numbers = plan.threshold
    return f"t = {numbers.t}, Q = {numbers.certificate_quorum}, k_min = {numbers.k_min}, {len(plan.sites)} sites"


def check_approvals(context: AuditContext, findings: Findings) -> str:
    """Verifies the signature of every participant on the plan's digest."""
    for name in context.participants:
        with findings.at(f"approval of {name}"):
            approval = context.approval(name)
            role = "coordinator" if name == context.plan.coordinator.name else "site"
            said = (approval.predicate.participant, approval.predicate.role)
            findings.expect(said == (name, role), approval.path, "approves in another name or role")
    return f"{len(context.participants)} approvals"


CHECKS = (
    Check(
        "C06",
        "The plan is the approved one and its numbers fit together",
        "The study id is the plan's digest; threshold, quorum, minimum contributors, collusion bounds, budget and "
        "cipher parameters satisfy the published rules.",
        "That the plan is a good idea, or that no more than the assumed number of sites colluded.",
        check_plan,
    ),
    Check(
        "C07",
        "The coordinator and every site approved the plan",
        "Each of them signed this plan's digest with its identity key.",
        "Who at the institution decided, or on what ground.",
        check_approvals,
    ),
)
