"""Writing, proposing, approving and showing a question before a study."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pydantic import ValidationError

from infra.settings import load_settings, save_settings
from schemas.canonical import canonical_bytes, parse_canonical, sha256_hex
from schemas.conditions import Condition
from schemas.envelope import sign_envelope
from schemas.errors import OperationError, PeerError, PlanError
from schemas.layout import approval_key, plan_key
from schemas.messages import PlanApproval, StatisticsRelease
from schemas.options import CoordinatorSettings, SiteSettings
from schemas.plan import Agreement
from schemas.statistics import StatisticsPlan, StatisticsQuery
from tasks.identity import load_identity
from tasks.storage.opening import open_store

LAPLACE_BITS = 8
GAUSSIAN_BITS = 16
_OPERATIONS = {">=": "at_least", "<=": "at_most", ">": "above", "<": "below", "!=": "not_equals", "=": "equals"}
_CONDITION = re.compile(r"\s*([a-z][a-z0-9_]{0,63})\s*(>=|<=|!=|>|<|=)\s*(.+?)\s*")


@dataclass(frozen=True)
class Question:
    """What somebody asks.

    Attributes:
        column: A number of the contract, "" to count only; its public range is the contract's.
        where: Conditions like ``age>=65`` or ``sex=female,other``.
        noise: ``gaussian`` or ``laplace``.
        epsilon, delta: What it may cost each site's patients; delta plays no part with ``laplace``.
    """

    name: str
    purpose: str
    epsilon: str
    delta: str
    column: str = ""
    bins: int = 8
    where: tuple[str, ...] = ()
    noise: str = "gaussian"


def write_question(plan: Agreement, question: Question) -> StatisticsPlan:
    """Writes a question to the sites of `plan`, with its numbers and its contract, and just enough noise for epsilon.

    Raises:
        PlanError: the question does not fit the contract, or no noise fits the budget.
    """
    from tasks.privacy.accounting import calibrate_noise_multiplier as calibrate
    from tasks.privacy.accounting import ceil_sqrt, exact, format_decimal
    from tasks.privacy.statistics import verify_question_within_budget

    column = next((c for c in plan.contract.columns if c.name == question.column), None)
    if question.column and (column is None or column.minimum is None or column.maximum is None):
        raise PlanError(
            "question-column", f"Expected {question.column} to be a number of the contract.", "See the plan."
        )
    laplace = question.noise == "laplace"
    multiplier = (
        format_decimal(ceil_sqrt(Fraction(1) / exact(question.epsilon) ** 2, 6))
        if laplace
        else calibrate(question.epsilon, question.delta, 1)
    )
    patient = plan.contract.column_with_role("patient_id")
    assert patient is not None
    content = {
        "name": question.name,
        "purpose": question.purpose,
        "id_column": patient.name,
        "noise_multiplier": multiplier,
        "scale_bits": LAPLACE_BITS if laplace else GAUSSIAN_BITS,
        "honest_noise_shares": plan.threshold.honest_noise_shares,
        "k_min": plan.threshold.k_min,
        "max_sites_per_patient": plan.budget.max_sites_per_patient,
        "noise": question.noise,
        "conditions": tuple(parse_condition(text) for text in question.where),
    }
    if column is not None:
        content |= {"column": column.name, "minimum": column.minimum, "maximum": column.maximum, "bins": question.bins}
    try:
        written = StatisticsPlan(
            title=question.name,
            purpose=question.purpose,
            nonce=secrets.token_hex(32),
            coordinator=plan.coordinator,
            sites=plan.sites,
            threshold=plan.threshold,
            contract=plan.contract,
            budget=plan.budget.model_copy(update={"epsilon": question.epsilon, "delta": question.delta}),
            query=StatisticsQuery.model_validate(content),
        )
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()}))
        raise PlanError(
            "question-malformed", f"These parts of the question do not fit: {fields}.", "Correct it."
        ) from None
    verify_question_within_budget(written)
    return written


def parse_condition(text: str) -> Condition:
    """Parses ``column>=value`` (also <=, >, <, =, !=) or ``column=code,code``.

    Raises:
        PlanError: `question-condition`.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise PlanError(
            "question-condition", f"Expected a condition like age>=65 or sex=female, got {text!r}.", "Correct it."
        )
    column, sign, value = found.groups()
    codes = tuple(part.strip() for part in value.split(","))
    if sign == "=" and len(codes) > 1:
        return Condition(column=column, op="one_of", values=codes)
    return Condition.model_validate({"column": column, "op": _OPERATIONS[sign], "value": value})


def propose_question(home: Path, plan: StatisticsPlan) -> None:
    """Publishes a question with the coordinator's signature; the sites decide next.

    Raises:
        PlanError: `not-in-plan`.
    """
    settings = load_settings(CoordinatorSettings, home / "config.json")
    identity = load_identity(home / "identity.json")
    if plan.coordinator.identity_key != identity.identity_key:
        raise PlanError("not-in-plan", "The plan names another coordinator key.", "Use the identity that signed it.")
    store = open_store(settings.store, "coordinator", settings.s3)
    store.put(plan_key(plan.study), canonical_bytes(plan))
    approval = PlanApproval(participant=plan.coordinator.name, role="coordinator")
    key = approval_key(plan.study, plan.coordinator.name, coordinator=True)
    store.put(key, sign_envelope(approval, plan.study, identity.signing))


def read_question(home: Path, question: str) -> StatisticsPlan:
    """Reads a question from the store as a site or the coordinator sees it.

    Raises:
        OperationError: `no-such-question`.
        PeerError: `plan-changed`.
    """
    settings: SiteSettings | CoordinatorSettings
    try:
        settings = load_settings(SiteSettings, home / "config.json")
    except OperationError:
        settings = load_settings(CoordinatorSettings, home / "config.json")
    data = open_store(settings.store, "", settings.s3).get(plan_key(question))
    if data is None:
        raise OperationError("no-such-question", f"There is no question {question[:12]} in the store.", "Check it.")
    if sha256_hex(data) != question:
        raise PeerError("plan-changed", "coordinator", "the question's bytes are not those of its name.")
    return parse_canonical(StatisticsPlan, data, "the question")


def approve_question(home: Path, question: str) -> StatisticsPlan:
    """Signs a question in a site's name and lets the site's agent answer it.

    Raises:
        PlanError: `not-in-plan`, `delta-too-large`, `question-overspends`.
        OperationError, PeerError: as `read_question`.
    """
    from site_agents.policy import verify_delta
    from tasks.privacy.statistics import verify_question_within_budget

    plan = read_question(home, question)
    settings = load_settings(SiteSettings, home / "config.json")
    identity = load_identity(home / "identity.json")
    entry = plan.site(settings.name)
    if (entry.identity_key, entry.hpke_key) != (identity.identity_key, identity.hpke_key):
        raise PlanError("not-in-plan", f"The plan lists other keys for {settings.name}.", "Ask for a corrected plan.")
    for delta in (plan.budget.delta, settings.delta):
        verify_delta(delta, entry.declared_patients)
    verify_question_within_budget(plan)
    store = open_store(settings.store, f"sites/{settings.name}", settings.s3)
    approval = PlanApproval(participant=settings.name, role="site")
    store.put(approval_key(question, settings.name), sign_envelope(approval, question, identity.signing))
    if question not in settings.studies:
        update = {"studies": (*settings.studies, question)}
        save_settings(settings.model_copy(update=update), home / "config.json")
    return plan


def missing_approvals(home: Path, plan: StatisticsPlan) -> list[str]:
    """Returns the sites that have not signed the question."""
    settings = load_settings(CoordinatorSettings, home / "config.json")
    store = open_store(settings.store, "", settings.s3)
    return [site.name for site in plan.sites if not store.exists(approval_key(plan.study, site.name))]


def describe_question(plan: StatisticsPlan) -> str:
    """Says in words what is asked, of whom, and what it costs."""
    from tasks.privacy.statistics import question_epsilon

    query, cost = plan.query, question_epsilon(plan)
    who = " and ".join(condition.in_words() for condition in query.conditions) or "everybody of the contract's cohort"
    pure = query.noise == "laplace"
    lines = [
        f"Question  {plan.study}",
        f"Asked     {query.name}: {query.purpose}",
        f"Who       {who}",
        f"Figures   number of patients{_column_words(query)}",
        f"Sites     {len(plan.sites)}, opened only as a sum over at least {query.k_min}",
        f"Noise     discrete {'Laplace' if pure else 'Gaussian'}, carried by {query.honest_noise_shares} honest sites",
        f"Costs     epsilon {cost}{'' if pure else f' at delta {plan.budget.delta}'} for training and for held-out "
        "patients of every site, once; the same question under another name is charged again",
    ]
    return "\n".join(lines)


def describe_answer(plan: StatisticsPlan, answer: StatisticsRelease) -> str:
    """Says an answer in words, each figure with its 95 % interval for the noise."""
    query = plan.query
    lines = [f"{query.name} ({len(answer.participants)} of {len(plan.sites)} hospitals)"]
    lines += [_figure(query, name, value, low, high) for name, value, low, high in answer.figures]
    if query.column and not any(name == "mean" for name, *_ in answer.figures):
        lines.append(f"  mean {query.column:<22} hidden by the noise")
    cost = f"epsilon {answer.epsilon}" + ("" if answer.pure else f" at delta {plan.budget.delta}")
    lines.append(f"Intervals cover 95 % of the noise. Charged to each hospital's patients: {cost}.")
    return "\n".join(lines)


def answer_as_json(plan: StatisticsPlan, answer: StatisticsRelease) -> dict[str, object]:
    """Returns an answer for other programs; numbers stay decimal strings."""
    figures: Iterable[tuple[str, str, str, str]] = answer.figures
    return {
        "question": plan.study,
        "name": plan.query.name,
        "participants": list(answer.participants),
        "figures": [{"name": n, "value": v, "low": low, "high": high} for n, v, low, high in figures],
        "epsilon": answer.epsilon,
        "pure": answer.pure,
        "delta": None if answer.pure else plan.budget.delta,
    }


def _column_words(query: StatisticsQuery) -> str:
    if not query.column:
        return ""
    return f"; mean and histogram of {query.column} in {query.bins} bins from {query.minimum} to {query.maximum}"


def _figure(query: StatisticsQuery, name: str, value: str, low: str, high: str) -> str:
    label, digits = name, 0
    if name == "patients":
        label = "patients who qualify"
    elif name == "recorded":
        label = f"with {query.column} recorded"
    elif name == "mean":
        label, digits = f"mean {query.column}", 2
    elif name.startswith("bin "):
        start, width = float(query.minimum), (float(query.maximum) - float(query.minimum)) / query.bins
        edge = start + (int(name[4:]) - 1) * width
        label = f"{query.column} {edge:g} to {edge + width:g}"
    return f"  {label:<28}{float(value):>10.{digits}f}   ({float(low):.{digits}f} to {float(high):.{digits}f})"
