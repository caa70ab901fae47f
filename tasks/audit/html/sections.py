"""The report's sections, in the order in which a compliance officer asks."""

from __future__ import annotations

from schemas.layout import attempt_key
from tasks.audit.context import AuditContext
from tasks.audit.html.figures import draw_calibration, draw_epsilon, draw_roc, released_evaluation
from tasks.audit.html.parts import Markup, bullets, code, pairs, paragraph, section, table, text
from tasks.audit.report import AuditReport, CheckResult

NOT_PROVEN = (
    "That a site's data are real, that it drew the noise it entered, or that its values are honest: a site's software "
    "is trusted with its own patients.",
    "That no site poisoned its update: correctness against such a site is out of scope.",
    "That no more than the plan's number of participants colluded, and that no patient is in more sites than assumed.",
    "That the model is good, fair or fit for a use: only what the evaluation says, with its interval.",
    "Side channels: timing of messages, memory of the machines, and traffic analysis are not covered.",
)


def show_verdict(report: AuditReport) -> Markup:
    """The answer first, the figures after it, then what went wrong."""
    words = "Verified" if report.passed else "NOT verified"
    counts = f"{report.count('checked')} checks passed, {report.count('failed')} failed, "
    counts += f"{report.count('not-applicable')} not applicable"
    failed = [result for result in report.results if result.status == "failed"]
    parts = [Markup(f'<p class="verdict {"good" if report.passed else "bad"}">{words}</p>'), paragraph(counts)]
    if report.headline is not None:
        parts.append(bullets(report.headline.sentences()))
    if not report.keys_given:
        parts.append(paragraph("No key file from outside the evidence was given: nothing ties it to anybody.", "bad"))
    if failed:
        parts.append(bullets(_failure(result) for result in failed))
    return section("verdict", "Verdict", *parts)


def _failure(result: CheckResult) -> Markup:
    return Markup(f'<a href="#{result.check}">{result.check}</a> {text(result.title)}: {len(result.findings)} findings')


def show_study(context: AuditContext) -> Markup:
    """Who did what for which purpose."""
    plan = context.study_plan
    entries = [entry for _, entry in context.log(plan.coordinator.name).about(context.study)]
    numbers = plan.threshold
    facts = pairs(
        [
            ("Title", plan.title),
            ("Purpose", plan.purpose),
            ("Study id (digest of the signed plan)", code(plan.study)),
            ("First and last entry of the study log", f"{entries[0].time} to {entries[-1].time} (clock not trusted)"),
            ("Software", ", ".join(sorted({entry.software for entry in entries}))),
            ("Sites needed to open a sum (t)", numbers.t),
            ("Signatures needed before that (Q)", numbers.certificate_quorum),
            ("Fewest contributors in a sum (k_min)", numbers.k_min),
            ("Model", f"{plan.model.kind} {' x '.join(map(str, plan.model.hidden))}".strip()),
        ]
    )
    parties = [(plan.coordinator.name, "coordinator", "", code(plan.coordinator.identity_key))]
    for site in plan.sites:
        role = " and ".join(r for r, on in (("contributes", site.contributor), ("holds a key", site.key_holder)) if on)
        parties.append((site.name, role, str(site.declared_patients), code(site.identity_key)))
    parties += [(r.name, "reviewer", "", code(r.identity_key)) for r in plan.reviewers]
    headings = ("party", "role", "patients (declared, rounded)", "identity key")
    return section("study", "The study and who took part", facts, table(headings, parties))


def show_privacy(context: AuditContext) -> Markup:
    """What the study cost the patients, and under which assumptions."""
    plan, rows = context.study_plan, []
    release = context.release.predicate if context.released else None
    held_out = {report.site: report for report in release.evaluation_epsilon} if release is not None else {}
    for report in release.epsilon if release is not None else ():
        other = held_out.get(report.site)
        cells = [report.site, report.events, report.collusion, report.outsider, report.fallback]
        rows.append([*cells, other.collusion if other is not None else "0"])
    headings = ("site", "charges", "under collusion", "against outsiders", "if encryption broke", "held-out patients")
    mechanism = plan.mechanism
    facts = pairs(
        [
            ("Unit", f"{mechanism.unit}, {mechanism.neighboring_relation}"),
            ("Budget", f"epsilon {plan.budget.epsilon} at delta {plan.budget.delta} per site, evaluation included"),
            (
                "Mechanism",
                f"{mechanism.mode}: sum of per-patient gradients clipped to {mechanism.clip_norm}, integer noise",
            ),
            ("Noise multiplier", mechanism.noise_multiplier),
            ("Sampling probability", mechanism.sampling_probability),
            ("Assumed colluding contributors", plan.threshold.colluding_contributors),
            ("Assumed sites per patient", plan.budget.max_sites_per_patient),
        ]
    )
    note = (
        "Epsilon is not the sum of the rounds' values; it is recomputed from every site's ledger (checks C24 to C28)."
    )
    return section("privacy", "Privacy", facts, draw_epsilon(context), table(headings, rows), paragraph(note))


def show_quality(context: AuditContext) -> Markup:
    """What the one released histogram says about the model."""
    metrics = released_evaluation(context)
    if metrics is None:
        return section("quality", "Quality", paragraph("No evaluation was opened: nothing is known about the quality."))
    named = (("AUC", metrics.auc), ("Brier score", metrics.brier), ("mean error", metrics.mean_error))
    rows = [(name, f"{e.value:.3f}", f"{e.low:.3f} to {e.high:.3f}") for name, e in named]
    note = "From one histogram of held-out patients with privacy noise; no other figure about patients was released."
    figures = table(("figure", "value", "95 % interval"), rows)
    return section("quality", "Quality", figures, draw_roc(metrics), draw_calibration(metrics), paragraph(note))


def show_rounds(context: AuditContext) -> Markup:
    """Who was in which sum, who was not and why."""
    rows = []
    for round_ in context.rounds:
        attempts = len(context.attempts(round_))
        if round_ not in context.recorded_rounds:
            rows.append([round_, attempts, "no record", "", "not opened"])
            continue
        record = context.record(round_).predicate
        dropped = (
            ", ".join(f"{site}: {_reason(context, round_, site, why)}" for site, why in record.dropped) or "nobody"
        )
        opened = "opened" if round_ in context.opened_rounds else "not opened"
        rows.append([round_, attempts, ", ".join(site for site, _ in record.contributions), dropped, opened])
    headings = ("round", "attempts", "in the sum", "not in the sum", "result")
    if not rows:
        return section("rounds", "Rounds", paragraph("No round was begun."))
    return section("rounds", "Rounds", table(headings, rows))


def _reason(context: AuditContext, round_: int, site: str, why: str) -> str:
    attempt = context.record(round_).predicate.attempt
    path = attempt_key(context.study, round_, attempt, site, "refusal.json")
    if why != "refused" or not context.evidence.exists(path):
        return why
    return f"refused ({context.refusal(round_, attempt, site).predicate.code})"


def show_contract(context: AuditContext) -> Markup:
    """What the tables had to look like, and what each site said of its own."""
    contract = context.study_plan.contract
    columns = [
        (c.name, c.role, c.kind, c.unit, _allowed(c.minimum, c.maximum, c.codes), c.max_missing)
        for c in contract.columns
    ]
    verdicts: dict[str, list[bool]] = {}
    for item in context.select("contribution"):
        if not context.is_exempt(item):
            given = context.contribution(item.round, item.attempt, str(item.site)).predicate
            verdicts.setdefault(str(item.site), []).append(given.verdict.passed)
    rows = [(site, len(passed), "passed" if all(passed) else "NOT passed") for site, passed in sorted(verdicts.items())]
    headings = ("column", "role", "kind", "unit", "allowed", "missing at most")
    said = table(("site", "contributions", "rules of the contract"), rows)
    name = paragraph(f"{contract.name}, version {contract.version}; {contract.rows_per_patient} row(s) per patient.")
    return section("contract", "Data contract", name, table(headings, columns), said)


def _allowed(minimum: str | None, maximum: str | None, codes: tuple[str, ...]) -> str:
    if codes:
        return ", ".join(codes)
    return f"{minimum} to {maximum}" if minimum is not None and maximum is not None else ""


def show_reviews(context: AuditContext) -> Markup:
    """Who decided about the release, and why."""
    if not context.study_plan.reviewers:
        words = "The plan names no reviewer; the model stays a candidate."
        return section("reviews", "Review", paragraph(words))
    needed = context.study_plan.release.reviewers_needed
    outcome = paragraph(f"Outcome by the study log: {context.review_outcome}. The plan asks for {needed} approvals.")
    rows = [
        (d.predicate.reviewer, d.predicate.number, d.predicate.decision, d.predicate.reason, d.predicate.time)
        for d in context.reviews
    ]
    headings = ("reviewer", "number", "decision", "reason", "time (not trusted)")
    return section("reviews", "Review", outcome, table(headings, rows) if rows else paragraph("Nobody has decided."))


def show_checks(report: AuditReport) -> Markup:
    """Every check, none left out."""
    rows = []
    for result in report.results:
        findings = (
            bullets(f"{finding.place}: {finding.reason}" for finding in result.findings) if result.findings else ""
        )
        told = Markup(
            f'<details id="{result.check}"{" open" if result.findings else ""}><summary>{text(result.title)}</summary>'
            f"<p><b>Proves.</b> {text(result.proves)}</p><p><b>Does not prove.</b> {text(result.does_not_prove)}</p>"
            f"{findings}</details>"
        )
        status = Markup(f'<span class="status {result.status}">{result.status.replace("-", " ")}</span>')
        rows.append([result.check, told, status, result.detail])
    return section("checks", "All checks", table(("check", "claim", "result", "detail"), rows, "checks"))


def show_limits(report: AuditReport) -> Markup:
    """Negative results, and what nobody checked."""
    negative = [f"{r.check} {r.title}: {r.detail}" for r in report.results if r.status != "checked"]
    return section(
        "limits",
        "Negative results and what is not covered",
        paragraph("Checks that failed or did not apply:") if negative else paragraph("No check failed; all applied."),
        bullets(negative),
        paragraph("What no check proves:"),
        bullets(NOT_PROVEN),
    )
