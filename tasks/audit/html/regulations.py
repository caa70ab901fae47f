"""What regulations and guidance ask for, pre-filled from the plan; what the evidence cannot know is said to be open."""

from __future__ import annotations

from tasks.audit.context import AuditContext
from tasks.audit.html.parts import Markup, paragraph, section, table

OPEN = "not in the evidence: the institution states it"
Rows = list[tuple[str, str]]


def show_regulations(context: AuditContext) -> Markup:
    """Returns the content lists with what the evidence says to each item."""
    lists = (
        ("NIST SP 800-226, evaluating differential privacy guarantees", _nist(context)),
        ("GDPR Article 30, record of processing", _processing(context)),
        ("GDPR Article 35, data protection impact assessment", _impact(context)),
        ("HIPAA 45 CFR 164.312(b), audit controls", _hipaa()),
        ("EHDS Regulation, Article 73, secure processing environment", _ehds(context)),
        ("EU AI Act, Article 12, record-keeping", _ai_act(context)),
    )
    warning = "A lawyer must check this section: it says which facts the evidence holds, not which duty they meet."
    parts = [paragraph(warning, "warning")]
    for title, rows in lists:
        parts += [Markup(f"<h3>{title}</h3>"), table(("item", "what the evidence says"), rows)]
    return section("regulations", "What regulations ask for", *parts)


def _nist(context: AuditContext) -> Rows:
    plan = context.study_plan
    budget, mechanism, numbers = plan.budget, plan.mechanism, plan.threshold
    return [
        ("Privacy unit", f"{mechanism.unit}, however many rows"),
        ("Neighbouring relation", mechanism.neighboring_relation),
        ("Privacy parameters", f"epsilon {budget.epsilon}, delta {budget.delta}, per site, all rounds and evaluation"),
        (
            "Trust model",
            f"no trusted party; up to {numbers.colluding_contributors} contributing sites collude with it all",
        ),
        (
            "Mechanism",
            f"discrete Gaussian on integers, noise multiplier {mechanism.noise_multiplier}, {mechanism.mode}",
        ),
        (
            "Contribution bound",
            f"L2 norm {mechanism.clip_norm} per patient; {plan.contract.rows_per_patient} row(s) each",
        ),
        ("Composition", "privacy filter over all studies of a data source; recomputed by independent accountants"),
        ("Patients in several sites", f"up to {budget.max_sites_per_patient} assumed; cost grows with that number"),
        ("Side channels", "exact integer sampler; timing of messages is public; memory and traffic are not covered"),
        ("Data collection, security, access", OPEN),
    ]


def _processing(context: AuditContext) -> Rows:
    plan = context.study_plan
    columns = ", ".join(column.name for column in plan.contract.columns)
    return [
        (
            "Controllers",
            ", ".join([plan.coordinator.name, *(site.name for site in plan.sites)]) + "; contacts: " + OPEN,
        ),
        ("Purposes", plan.purpose),
        ("Categories of data subjects", "patients of the sites in the data contract's cohort"),
        ("Categories of personal data", f"columns of contract {plan.contract.name}: {columns}"),
        ("Recipients", "of rows: none. Of noised sums and the model: all parties and whoever the model is released to"),
        ("Transfers to third countries", OPEN),
        ("Time limits for erasure", OPEN),
        ("Technical measures", "rows stay at the site; threshold encryption; differential privacy; signed ledgers"),
    ]


def _impact(context: AuditContext) -> Rows:
    plan, numbers = context.study_plan, context.study_plan.threshold
    risks = f"a patient's presence is inferred: bounded by epsilon {plan.budget.epsilon}, delta {plan.budget.delta}"
    return [
        ("Description of the processing", f"{plan.title} {plan.purpose}"),
        ("Necessity and proportionality", OPEN),
        ("Risks to data subjects", f"{risks}; a site's update is read: needs {numbers.t} key holders to cooperate"),
        (
            "Measures",
            "clipping and noise at the site, budget gate before data is touched, certificate before decryption",
        ),
        ("Residual risk", "sites trusted with their own patients; more colluders than assumed; see limits below"),
        ("Advice of the data protection officer, views of data subjects", OPEN),
    ]


def _hipaa() -> Rows:
    return [
        (
            "Record activity in systems with health information",
            "each site's ledger: every use of patients' data, signed",
        ),
        ("Examine activity", "this audit; each site's ledger is chained, checkpointed and witnessed by other sites"),
        ("Access by persons inside a site", OPEN),
    ]


def _ehds(context: AuditContext) -> Rows:
    refused = len(context.select("refusal"))
    return [
        ("Only authorised processing", f"every party signed the plan; {refused} refusals are in the evidence"),
        ("Least privilege", "the coordinator gets noised sums only; no single update can be opened by one party"),
        (
            "Identifiable logs of access and activity",
            "ledgers and study log; kept as long as the institution keeps them",
        ),
        ("Only non-personal output is taken out", "what left is differentially private; review decisions are below"),
        ("Data permit, health data access body", OPEN),
    ]


def _ai_act(context: AuditContext) -> Rows:
    reviewers = ", ".join(reviewer.name for reviewer in context.study_plan.reviewers) or "none named in the plan"
    log = context.log(context.study_plan.coordinator.name)
    return [
        ("Automatic recording of events over the lifetime", f"study log with {len(log.envelopes)} signed entries"),
        ("Identification of risk situations", "drop-outs, refusals and violated contracts are entered by code"),
        ("Reference data and input data", "data contract and its verdicts; rows never leave a site"),
        ("Persons involved in verification", reviewers),
        ("Recording during use of the model", "not covered: this evidence ends with the release"),
    ]
