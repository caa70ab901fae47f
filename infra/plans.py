"""Reads a plan from a file and says in words what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.canonical import parse_json
from schemas.errors import EvidenceError, PlanError
from schemas.plan import StudyPlan, update_length
from schemas.threshold import describe


def read_plan(path: Path) -> StudyPlan:
    """Reads a plan, canonical or indented.

    Raises:
        PlanError: `plan-unreadable`, or the rule that the plan breaks and the nearest plan that holds.
    """
    return make_plan(read_plan_content(path), path.name)


def read_plan_content(path: Path) -> dict[str, Any]:
    """Reads a plan's fields, whose rules are not looked at yet.

    Raises:
        PlanError: `plan-unreadable`.
    """
    try:
        content = parse_json(path.read_bytes(), path.name)
    except OSError:
        raise _unreadable(f"Expected a plan in {path}, and it cannot be read.") from None
    except EvidenceError as error:
        raise _unreadable(error.message) from None
    if not isinstance(content, dict):
        raise _unreadable(f"Expected {path.name} to be a plan.")
    return content


def make_plan(content: dict[str, Any], name: str) -> StudyPlan:
    """Makes a plan of its fields.

    Args:
        name: Where they are from, for the error.

    Raises:
        PlanError: `plan-unreadable`, or the rule that the plan breaks and the nearest plan that holds.
    """
    try:
        return StudyPlan.model_validate_json(json.dumps(content))
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(str(part) for part in item["loc"]) or "format" for item in error.errors()}))
        raise _unreadable(f"Expected {name} to be a plan; these fields do not fit: {fields}.") from None


def _unreadable(message: str) -> PlanError:
    return PlanError("plan-unreadable", message, "Correct the file, or export the plan again.")


def shown(text: str) -> str:
    """Returns somebody's text as a terminal may show it: no line of its own, nothing that hides or rewrites others."""
    return "".join(c if c.isprintable() else "�" for c in text)


def describe_plan(plan: StudyPlan) -> str:
    """Says who takes part, which numbers fit together and what is derived from them.

    Raises:
        PlanError: `plan-overspends`, and those of numbers that a mechanism or the encrypted sum cannot take.
    """
    from tasks.privacy.mechanism import verify_plan_within_budget
    from tasks.secure_sum.parameters import describe_parameters

    verify_plan_within_budget(plan)
    mechanism, budget = plan.mechanism, plan.budget
    lines = [
        f"Study    {plan.study}",
        f"Title    {shown(plan.title)}",
        f"Sites    {len(plan.sites)} ({len(plan.key_holders)} key holders, {len(plan.contributors)} contributors)",
        f"Numbers  {describe(plan.threshold)}: they fit together",
        f"Model    {plan.model.kind}, {update_length(plan)} coefficients a round, {mechanism.rounds} rounds",
        f"Privacy  epsilon {budget.epsilon}, delta {budget.delta} per site and {mechanism.unit} over the study, "
        f"evaluation included, if {plan.threshold.colluding_contributors} sites collude with the coordinator",
        *_describe_mechanism(plan),
        "",
        describe_parameters(plan),
    ]
    return "\n".join(lines)


def _describe_mechanism(plan: StudyPlan) -> list[str]:
    mechanism, local = plan.mechanism, plan.mechanism.local
    noise = f"Noise    multiplier {mechanism.noise_multiplier} at clip norm {mechanism.clip_norm}"
    batch = (
        "every patient in every batch"
        if float(mechanism.sampling_probability) == 1
        else f"a patient is in a batch with probability {mechanism.sampling_probability}"
    )
    if local is None:
        return [f"{noise}, carried by {plan.threshold.honest_noise_shares} honest sites; {batch}"]
    kind = f"FedProx (mu {local.proximal})" if float(local.proximal) > 0 else "FedAvg"
    return [
        f"Local    {local.steps} steps a round at each site, learning rate {local.learning_rate}, {kind}; the change "
        f"is bounded to norm {local.update_norm} and weighted with the declared cohort size",
        f"{noise} in each of {mechanism.releases} steps, drawn in full by every site itself; {batch}",
    ]
