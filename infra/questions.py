"""Writing, proposing, approving and showing a question before a study."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pydantic import ValidationError

from infra.settings import load_settings, save_settings
from schemas.canonical import canonical_bytes, parse_canonical, sha256_hex
from schemas.conditions import Condition
from schemas.envelope import sign_envelope
from schemas.errors import OperationError, PeerError, PlanError
from schemas.layout import ANSWER, approval_key, plan_key, release_key
from schemas.messages import PlanApproval, StatisticsRelease
from schemas.options import CoordinatorSettings, SiteSettings
from schemas.plan import Agreement
from schemas.statistics import StatisticsPlan, StatisticsQuery
from tasks.identity import load_identity
from tasks.storage.base import Store
from tasks.storage.mailbox import read_signed
from tasks.storage.opening import open_store

LAPLACE_BITS = 8
GAUSSIAN_BITS = 16
_OPERATIONS = {">=": "at_least", "<=": "at_most", ">": "above", "<": "below", "!=": "not_equals", "=": "equals"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
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
    data = _readable_store(home).get(plan_key(question)) if _DIGEST.fullmatch(question) else None
    if data is None:
        raise OperationError(
            "no-such-question", "There is no such question in the store.", "Give its 64 digits, as the coordinator did."
        )
    if sha256_hex(data) != question:
        raise PeerError("plan-changed", "coordinator", "the question's bytes are not those of its name.")
    return parse_canonical(StatisticsPlan, data, "the question")


def read_signed_answer(home: Path, plan: StatisticsPlan) -> StatisticsRelease | None:
    """Reads the answer that the plan's coordinator signed, or None while there is none."""
    who = plan.coordinator
    found = read_signed(
        _readable_store(home),
        release_key(plan.study, ANSWER),
        StatisticsRelease,
        plan.study,
        who.identity_key,
        who.name,
    )
    return found.predicate if found is not None else None


def _readable_store(home: Path) -> Store:
    settings: SiteSettings | CoordinatorSettings
    try:
        settings = load_settings(SiteSettings, home / "config.json")
    except OperationError:
        settings = load_settings(CoordinatorSettings, home / "config.json")
    return open_store(settings.store, "", settings.s3)


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
    store = _readable_store(home)
    return [site.name for site in plan.sites if not store.exists(approval_key(plan.study, site.name))]


def require_approvals(home: Path, question: str) -> StatisticsPlan:
    """Reads a question that every site has signed.

    Raises:
        OperationError: `approval-missing`, naming who has not.
    """
    plan = read_question(home, question)
    missing = missing_approvals(home, plan)
    if missing:
        raise OperationError(
            "approval-missing",
            f"Not approved yet by: {', '.join(missing)}.",
            f"Each of them runs `consilium statistics approve {question} --home HOME`; then ask again.",
        )
    return plan


def ask_in_process(
    home: Path, plan: StatisticsPlan, site_homes: Sequence[Path], say: Callable[[str], None]
) -> StatisticsRelease:
    """Asks with all hospitals played by this process; same keys, ledgers and encryption.

    Raises:
        OperationError: `sites-missing` unless every site of the plan has a home.
        ConsiliumError: what stopped it.
    """
    from infra.embedded_statistics import EmbeddedQuestion

    homes = {load_settings(SiteSettings, folder / "config.json").name: folder.absolute() for folder in site_homes}
    missing = [site.name for site in plan.sites if site.name not in homes]
    if missing:
        raise OperationError(
            "sites-missing", f"No folder was named for: {', '.join(missing)}.", "Give --site-home for each hospital."
        )
    say(f"{len(homes)} hospitals in this process: key ceremony, encrypted sum, answer …")
    consortium = EmbeddedQuestion(home, homes, plan.study)
    answer = consortium.run()
    consortium.close()
    return answer.predicate


def ask_agents(home: Path, plan: StatisticsPlan, say: Callable[[str], None]) -> StatisticsRelease:
    """Asks the hospitals' agents through Prefect, saying what happens.

    Raises:
        ConsiliumError: what stopped it; asking again continues.
    """
    from infra.settings import enter_participant_environment

    settings = load_settings(CoordinatorSettings, home / "config.json")
    enter_participant_environment(home.absolute(), settings.prefect_api_url)
    from flows.context import question_folder
    from flows.statistics import ask

    events, done = question_folder(home, plan.study) / "events.jsonl", threading.Event()
    follower = threading.Thread(target=_follow, args=(events, done, say), daemon=True)
    follower.start()
    try:
        return ask(home, plan.study).predicate
    finally:
        done.set()
        follower.join(2)


def _follow(path: Path, done: threading.Event, say: Callable[[str], None]) -> None:
    position = path.stat().st_size if path.exists() else 0
    while not done.wait(0.5):
        if not path.exists():
            continue
        with path.open() as source:
            source.seek(position)
            lines = [line for line in source if line.endswith("\n")]
        position += sum(len(line.encode()) for line in lines)
        for line in lines:
            text = _event_words(json.loads(line))
            if text:
                say(text)


def _event_words(event: dict[str, str]) -> str:
    words = {
        "ceremony-started": "key ceremony …",
        "ceremony-done": "key ceremony done",
        "question-answered": "answered; evidence exported",
    }
    if event["event"] == "site-state" and event["state"] in ("contributed", "refused", "silent", "invalid"):
        return f"{event['site']}: {event['state']}" + (f" ({event['code']})" if event.get("code") else "")
    return words.get(event["event"], "")
