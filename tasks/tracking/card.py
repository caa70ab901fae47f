"""The model card: what a reader must know before using a model, generated from the plan and the signed release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.contract import Column
from schemas.messages import ModelRelease
from schemas.plan import StudyPlan, update_length
from tasks.tracking.rounds import RoundFacts
from tasks.tracking.story import largest, link_flow_run, show_plot
from tasks.tracking.vocabulary import model_name

CARD = "model-card.md"
LONGEST_DESCRIPTION = 4900  # MLflow's registry keeps 5000 characters


def write_card(plan: StudyPlan, release: ModelRelease, attacks: Mapping[str, float], previous: str = "") -> str:
    """Returns the card in Markdown.

    Args:
        attacks: Figures of an attack evaluation, if one was logged.
        previous: Comparison with the released version before; empty if there is none.
    """
    return "\n\n".join(
        part
        for part in (
            f"# {plan.title}",
            _use(plan),
            _quality(plan, release),
            _privacy(plan, release),
            _cohorts(plan),
            f"## Compared with the released version\n\n{previous}" if previous else "",
            _attacks(attacks),
            _limits(plan, release),
            _verify(plan, release),
        )
        if part
    )


def describe_version(card: str, summary: str, first: str = "") -> str:
    """Returns the version's description: the card if MLflow can keep it, otherwise `summary` and where the card is.

    Args:
        first: What a reviewer must see without scrolling, from `first_screen`.
    """
    whole = f"{first}\n\n{card}" if first else card
    if len(whole) <= LONGEST_DESCRIPTION:
        return whole
    rest = f"{summary}\n\nThe whole card is the artifact `{CARD}` of the study's run."
    return (f"{first}\n\n{rest}" if first else rest)[:LONGEST_DESCRIPTION]


def first_screen(result: str, plan: StudyPlan, rounds: Sequence[RoundFacts], run_id: str, flow_run: str) -> str:
    """Returns the result, who took part and the ROC, short enough for one screen (Markdown).

    Args:
        run_id: The parent run, which holds the plot; empty leaves the plot out.
        flow_run: Address of the study's page in Prefect; empty leaves the link out.
    """
    plot = show_plot("plots/roc.png", run_id) if run_id else ""
    return "\n\n".join(part for part in (result, _took_part(plan, rounds), plot, link_flow_run(flow_run)) if part)


def _took_part(plan: StudyPlan, rounds: Sequence[RoundFacts]) -> str:
    if not rounds:
        return f"**Sites:** {', '.join(site.name for site in plan.contributors)}."
    inside = {site.name: sum(site.name in facts.participants for facts in rounds) for site in plan.contributors}
    sites = ", ".join(f"{site} ({count})" for site, count in inside.items())
    return f"**Who took part**, in how many of {len(rounds)} opened sums: {sites}."


def _use(plan: StudyPlan) -> str:
    label = next((column.name for column in plan.contract.columns if column.role == "label"), "the label")
    return (
        f"## Intended use\n\n{plan.purpose}\n\nThe model gives the probability of `{label}` for one "
        f"{plan.mechanism.unit} whose data fit contract {plan.contract.name} {plan.contract.version}. It is a research "
        "result: not for clinical use without validation, approval and monitoring where it is used. Nothing is known "
        "about patients unlike the cohorts below."
    )


def _quality(plan: StudyPlan, release: ModelRelease) -> str:
    found = dict(release.metrics)
    if "auc" not in found:
        return "## Quality\n\nNo evaluation was released."
    labels = {"auc": "AUC", "brier": "Brier score", "mean_error": "predicted minus observed"}
    rows = [
        f"| {label} | {float(found[name]):.3f} | {_bound(found, name, 'low')} to {_bound(found, name, 'high')} |"
        for name, label in labels.items()
        if name in found
    ]
    return "\n".join(
        [
            f"## Quality\n\nOn held-out patients of all sites together, from one noisy histogram of "
            f"{plan.evaluation.bins} score ranges; intervals cover privacy noise and sampling.\n",
            "| figure | value | 95 % interval |\n|---|---|---|",
            *rows,
        ]
    )


def _bound(found: Mapping[str, str], name: str, end: str) -> str:
    value = found.get(f"{name}_{end}")
    return f"{float(value):.3f}" if value is not None else "?"


def _privacy(plan: StudyPlan, release: ModelRelease) -> str:
    numbers, budget = plan.threshold, plan.budget
    return (
        f"## Privacy: what ε means here\n\nUnit: one {plan.mechanism.unit} with all rows, "
        f"{plan.mechanism.neighboring_relation}. Whatever left a site would look almost the same without any one "
        f"{plan.mechanism.unit}; ε bounds how much more certain anybody can become that one was in the data, except "
        f"with probability δ = {budget.delta}. Per site, training patients, largest over the sites:\n\n"
        "| against whom | ε |\n|---|---|\n"
        f"| the coordinator and {numbers.colluding_contributors} colluding sites | "
        f"{largest(release.epsilon, 'collusion'):g} of {budget.epsilon} |\n"
        f"| outsiders who see only what was released | {largest(release.epsilon, 'outsider'):g} |\n"
        f"| anybody, if the encryption were broken | {largest(release.epsilon, 'fallback'):g} |\n\n"
        f"Held-out patients are others than training patients: at most "
        f"{largest(release.evaluation_epsilon, 'collusion'):g} under collusion. A patient in "
        f"{budget.max_sites_per_patient} sites is protected less; ε does not protect what is true of a group."
    )


def _cohorts(plan: StudyPlan) -> str:
    sites = "\n".join(f"| {site.name} | {site.declared_patients} |" for site in plan.contributors)
    inputs = "\n".join(f"| `{column.name}` | {_range(column)} |" for column in plan.contract.features)
    return (
        "## Cohorts\n\nSizes are rounded and declared by the sites; exact counts are nobody's to know.\n\n"
        f"| site | patients |\n|---|---|\n{sites}\n\nInputs, as the contract has them:\n\n"
        f"| column | values |\n|---|---|\n{inputs}"
    )


def _range(column: Column) -> str:
    if column.kind == "code":
        return ", ".join(column.codes)
    if column.kind == "number":
        return f"{column.minimum} to {column.maximum}"
    return column.kind


def _attacks(attacks: Mapping[str, float]) -> str:
    if not attacks:
        return "## Attacks\n\nNo attack evaluation was logged for this model; ε above is the bound, not a measurement."
    rows = [f"| {name.removeprefix('attack/').replace('_', ' ')} | {value:.4g} |" for name, value in attacks.items()]
    return "\n".join(["## Attacks\n\nMeasured on public or simulated data.\n\n| figure | value |\n|---|---|", *rows])


def _limits(plan: StudyPlan, release: ModelRelease) -> str:
    ended = "" if release.complete else f"\n- The study ended early: {release.reason}."
    return (
        "## Limits\n\n"
        f"- {plan.model.kind}, {update_length(plan)} parameters, {release.rounds} of {plan.mechanism.rounds} rounds."
        f"{ended}\n"
        "- Privacy noise makes small groups' predictions worse than the average; no figure per group was released.\n"
        "- A site that altered its own data or updates would not be noticed; approvals name who took part.\n"
        "- Cohorts were checked against the contract's rules (pass or fail), not for being representative."
    )


def _verify(plan: StudyPlan, release: ModelRelease) -> str:
    return (
        f"## Where the figures come from\n\nModel `{model_name(plan)}`, study (plan digest) `{plan.study}`, weights "
        f"SHA-256 `{release.weights}`. MLflow is a view: `consilium audit verify` recomputes every "
        "figure of this card but the attacks from the evidence and public keys alone."
    )
