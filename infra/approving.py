"""What a hospital decides about studies: approve a plan, pause, go on, leave."""

from __future__ import annotations

import json
from pathlib import Path

from infra.homes import changing, read_identity, site_store
from infra.plans import describe_plan, shown
from infra.settings import load_settings, save_settings
from schemas.canonical import parse_canonical, sha256_hex
from schemas.envelope import sign_envelope
from schemas.errors import OperationError, PeerError, PlanError
from schemas.layout import approval_key, plan_key
from schemas.ledger import NO_STUDY, Refused
from schemas.messages import PlanApproval
from schemas.options import SiteSettings
from schemas.plan import StudyPlan


def read_proposed(home: Path, study: str) -> StudyPlan:
    """Reads a plan from the store and checks what this site can check: its bytes, its entry, its budget.

    Args:
        study: The plan's digest, all 64 digits: the one thing that the coordinator must tell by a safe way.

    Raises:
        PlanError: `not-in-plan`, `delta-too-large`, `split-changed`, `plan-overspends`, `epsilon-above-site`,
            `plan-unreadable`.
        PeerError: `plan-changed`.
        OperationError: `no-such-plan`.
    """
    from site_agents.policy import SPLIT_KEY, verify_delta, verify_split
    from tasks.privacy.mechanism import verify_plan_within_budget

    settings = load_settings(SiteSettings, home / "config.json")
    identity = read_identity(home, settings.name)
    data = site_store(settings).get(plan_key(study))
    if data is None:
        raise OperationError(
            "no-such-plan",
            f"There is no plan {study[:12]} in the store.",
            "Give all 64 digits of its digest, as the coordinator told them.",
        )
    if sha256_hex(data) != study:
        raise PeerError("plan-changed", "coordinator", "the plan's bytes are not those of its name.")
    plan = parse_canonical(StudyPlan, data, "the plan")
    entry = plan.site(settings.name)
    if (entry.identity_key, entry.hpke_key) != (identity.identity_key, identity.hpke_key):
        raise PlanError("not-in-plan", f"The plan lists other keys for {settings.name}.", "Ask for a corrected plan.")
    for delta in (plan.budget.delta, settings.delta):
        verify_delta(delta, entry.declared_patients)
    fixed = home / "outbox" / SPLIT_KEY
    verify_split(fixed.read_bytes() if fixed.is_file() else None, plan.contract)
    verify_plan_within_budget(plan)
    if float(plan.budget.epsilon) > float(settings.epsilon):
        raise PlanError(
            "epsilon-above-site",
            f"The plan asks for epsilon {plan.budget.epsilon}, this site's whole budget is {settings.epsilon}.",
            "Ask for a plan with a smaller epsilon.",
        )
    return plan


def describe_decision(home: Path, plan: StudyPlan) -> str:
    """Says in words what approving would mean: the plan, and what it does to this site's budget."""
    settings = load_settings(SiteSettings, home / "config.json")
    features = ", ".join(column.name for column in plan.contract.features)
    lines = [
        describe_plan(plan),
        "",
        f"Purpose  {shown(plan.purpose)}",
        f"With     {', '.join(site.name for site in plan.sites)}; coordinator {plan.coordinator.name}",
        f"Contract {shown(plan.contract.name)}: {features}",
        "",
    ]
    if (home / "ledger.sqlite").is_file():
        from infra.budget import describe_home_budget

        plan_file = home / "scratch-plan.json"
        try:
            plan_file.write_text(json.dumps(plan.model_dump(mode="json")))
            lines.append(describe_home_budget(home, plan_file, False))
        finally:
            plan_file.unlink(missing_ok=True)
    else:
        lines.append(
            f"Nothing was charged to this data source before; its budget is epsilon {settings.epsilon} at delta "
            f"{settings.delta}. This study may take up to epsilon {plan.budget.epsilon} at delta {plan.budget.delta}."
        )
    return "\n".join(lines)


def approve(home: Path, plan: StudyPlan) -> None:
    """Signs the plan, publishes the approval and lets the site's agent run the study.

    Raises:
        OperationError: the store's refusals.
        PlanError: `site-left` if the site left the study before.
    """
    with changing(home):
        settings = load_settings(SiteSettings, home / "config.json")
        if plan.study in settings.left:
            raise PlanError("site-left", "This site has left the study.", "A new study needs a new plan.")
        identity = read_identity(home, settings.name)
        approval = PlanApproval(participant=settings.name, role="site")
        signed = sign_envelope(approval, plan.study, identity.signing)
        site_store(settings).put(approval_key(plan.study, settings.name), signed)
        if plan.study not in settings.studies:
            update = {"studies": (*settings.studies, plan.study)}
            save_settings(settings.model_copy(update=update), home / "config.json")


def set_paused(home: Path, paused: bool) -> bool:
    """Pauses the site or ends its pause; returns whether that changed anything. A running agent follows at once."""
    with changing(home):
        settings = load_settings(SiteSettings, home / "config.json")
        if settings.paused == paused:
            return False
        save_settings(settings.model_copy(update={"paused": paused}), home / "config.json")
        return True


def leave(home: Path, study: str) -> None:
    """Takes the site out of a study for good: no contribution, no ceremony, no share; its charges stay.

    The decision is an entry of the site's ledger, published with it. The key share of the study is erased.

    Raises:
        PlanError: `plan-not-approved`.
        OperationError: the store's refusals.
    """
    from site_agents.context import open_context
    from site_agents.home import open_home

    with changing(home):
        settings = load_settings(SiteSettings, home / "config.json")
        if study not in settings.studies:
            raise PlanError("plan-not-approved", "This site takes no part in that study.", "See consilium site status.")
        if study not in settings.left:
            # The agent refuses from here on, whatever fails below.
            settings = settings.model_copy(update={"left": (*settings.left, study)})
            save_settings(settings, home / "config.json")
        context = open_context(open_home(home), study)
        # Outside the study's own entries: nothing in it was refused. What it names as refused is the plan.
        context.ledger.append_once(NO_STUDY, Refused(instruction=study, code="site-left"))
        context.keystore.erase_secrets()
        context.publish_ledger()


def find_study(settings: SiteSettings, text: str) -> str:
    """Returns the approved study whose digest begins with `text`.

    Raises:
        OperationError: `no-such-study`.
    """
    found = [study for study in settings.studies if len(text) >= 8 and study.startswith(text)]
    if len(found) != 1:
        raise OperationError(
            "no-such-study", "Expected the first 8 or more digits of one approved study.", "See consilium site status."
        )
    return found[0]
