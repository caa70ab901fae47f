"""The report's sections about a question before a study: what was asked, the answer, what it cost."""

from __future__ import annotations

from schemas.layout import ANSWER, release_key
from schemas.ledger import PrivacyReserved
from schemas.messages import StatisticsRelease
from schemas.statistics import StatisticsPlan
from tasks.audit.context import AuditContext
from tasks.audit.html.parts import Markup, code, pairs, paragraph, section, table
from tasks.audit.registry import AuditFailure
from tasks.audit.report import AuditReport


def show_question(context: AuditContext) -> Markup:
    """What was asked of whom, for which purpose."""
    plan = _question(context)
    query, numbers = plan.query, plan.threshold
    who = " and ".join(condition.in_words() for condition in query.conditions) or "everybody of the contract's cohort"
    column = f"; mean and histogram of {query.column}" if query.column else ""
    facts = pairs(
        [
            ("Question", query.name),
            ("Purpose", query.purpose),
            ("Question id (digest of what everybody signed)", code(plan.study)),
            ("Patients counted", who),
            ("Figures", f"number of patients{column}"),
            ("Sites needed to open a sum (t)", numbers.t),
            ("Fewest sites in the sum (k_min)", numbers.k_min),
        ]
    )
    parties = [(plan.coordinator.name, "coordinator", code(plan.coordinator.identity_key))]
    parties += [(site.name, "site", code(site.identity_key)) for site in plan.sites]
    heading = "The question and who took part"
    return section("question", heading, facts, table(("party", "role", "identity key"), parties))


def show_answer(context: AuditContext, report: AuditReport) -> Markup:
    """The answer, if the check that derives it again passed."""
    if not context.select("answer"):
        return section("answer", "Answer", paragraph("The question was not answered."))
    if report.result("C34").status != "checked":
        raise AuditFailure(release_key(context.study, ANSWER), "its check C34 did not pass")
    answer = context.from_coordinator(release_key(context.study, ANSWER), StatisticsRelease).predicate
    note = (
        f"From one opened sum over {len(answer.participants)} sites, with privacy noise; intervals are for that noise."
    )
    figures = table(("figure", "value", "from", "to (95 %)"), answer.figures)
    return section("answer", "Answer", figures, paragraph(note))


def show_charges(context: AuditContext) -> Markup:
    """What the question cost each site's patients, by the sites' own ledgers."""
    plan, rows = _question(context), []
    for site in plan.contributors:
        entries = context.log(site.name).about(context.study) if context.has_log(site.name) else ()
        charged = [entry.body.event for _, entry in entries if isinstance(entry.body, PrivacyReserved)]
        rows.append([site.name, len(charged), ", ".join(f"{event.data} patients" for event in charged) or "nobody"])
    kind = "discrete Laplace" if plan.query.noise == "laplace" else "discrete Gaussian"
    said = f"Noise: {kind}. The question may cost at most epsilon {plan.budget.epsilon} at delta {plan.budget.delta}; "
    said += "both parts of a site's patients are charged, once."
    return section("charges", "Privacy", paragraph(said), table(("site", "charges", "whom"), rows))


def _question(context: AuditContext) -> StatisticsPlan:
    if context.question is None:
        raise AuditFailure("coordinator", "is not the evidence of a question")
    return context.question
