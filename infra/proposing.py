"""The coordinator proposes a study: enters the sites that asked into a plan, signs it and publishes it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.homes import changing, coordinator_store, read_identity
from infra.joining import entry_of
from infra.plans import make_plan, read_plan, read_plan_content
from infra.settings import load_settings, save_settings
from schemas.canonical import canonical_bytes, parse_canonical, sha256_hex
from schemas.envelope import sign_envelope
from schemas.errors import PlanError
from schemas.joining import JoinRequest
from schemas.layout import approval_key, coordinator_prefix, plan_key, site_prefix
from schemas.messages import PlanApproval
from schemas.options import CoordinatorSettings
from schemas.plan import CoordinatorEntry, StudyPlan

STUDY_FILES = (".yaml", ".yml")
_EVENTS = "events.jsonl"
_OF_A_STUDY = ("study-log.sqlite", "summary.json", "evidence")


def enter_sites(draft: Path, coordinator: CoordinatorEntry, requests: Sequence[JoinRequest]) -> StudyPlan:
    """Returns the plan of a new study of these sites.

    Args:
        draft: A plan, whose own sites, coordinator and nonce are left out; or a study file (.yaml), from which
            everything else follows too.

    Raises:
        PlanError: the rule that the sites and the draft's numbers break, and the nearest plan that holds; what the
            study file's reader raises; `study-sites`, the file declares other sites.
    """
    content = _from_study(draft, requests) if draft.suffix in STUDY_FILES else read_plan_content(draft)
    content |= {
        "nonce": secrets.token_hex(32),
        "coordinator": coordinator.model_dump(mode="json"),
        "sites": [entry_of(request).model_dump(mode="json") for request in requests],
    }
    return make_plan(content, draft.name)


def _from_study(path: Path, requests: Sequence[JoinRequest]) -> dict[str, Any]:
    from infra.studies.study_file import choose_numbers, derive_parts, read_study
    from site_agents.policy import verify_delta

    study, contract = read_study(path)
    asked = {request.site: request.declared_patients for request in requests}
    if study.sites and study.sites != asked:
        raise PlanError(
            "study-sites",
            f"{path.name} declares other sites or numbers of patients than those that asked.",
            "Leave `sites` out of the file, or write down what coordinator sites shows.",
        )
    for patients in asked.values():
        verify_delta(study.budget.delta, patients)
    holders, contributors = (sum(getattr(r, part) for r in requests) for part in ("key_holder", "contributor"))
    numbers = choose_numbers(study.model_copy(update={"committee": holders}), contributors)
    parts = derive_parts(study, contract, [r.declared_patients for r in requests if r.contributor])
    named = {name: getattr(parts, name) for name in parts.__dataclass_fields__} | {"threshold": numbers}
    return {
        "format": "consilium/plan/1",
        "title": study.title,
        "purpose": study.purpose,
        "reviewers": [reviewer.model_dump(mode="json") for reviewer in study.reviewers],
        "release": study.release.model_dump(mode="json"),
        **{name: part.model_dump(mode="json") for name, part in named.items()},
    }


def warn_of(plan: StudyPlan) -> str:
    """Says what a plan that holds lets people regret later; empty if nothing."""
    if plan.reviewers:
        return ""
    return (
        "The plan names no reviewer: its model stays a candidate and is never released. To have it reviewed, add "
        "`reviewers` (what consilium review init prints) to the study file or plan, and propose again before any "
        "hospital approves."
    )


def propose(home: Path, draft: Path, requests: Sequence[JoinRequest]) -> StudyPlan:
    """Signs and publishes a plan and makes it the study of the coordinator's home.

    A plan that no hospital has approved yet gives way to the new one; what was published of it stays as it is.

    Args:
        draft: A plan, or a study file. With `requests` a plan's sites, coordinator and nonce are replaced; without, it
            is taken as it is.
        requests: Verified requests of the sites that take part, by name.

    Raises:
        PlanError: `plan-unreadable`, `not-in-plan`, `plan-overspends`, `home-has-study`, `study-sites`, and broken
            rules.
        OperationError: the store's refusals.
    """
    from tasks.audit.keys import public_keys_document
    from tasks.privacy.mechanism import verify_plan_within_budget

    with changing(home):
        settings = load_settings(CoordinatorSettings, home / "config.json")
        if settings.study and not _is_mere_proposal(home, settings):
            # Its log, figures and evidence are in this folder: another study here would be taken for finished.
            raise PlanError(
                "home-has-study",
                f"This home is that of study {settings.study[:12]}.",
                'Make another home, as "The next study" in docs/deployment.md says: coordinator init.',
            )
        identity = read_identity(home, settings.name)
        if draft.suffix in STUDY_FILES and not requests:
            raise PlanError(
                "study-sites", "A study file names nobody's keys.", "Name the sites that asked with --site."
            )
        if requests:
            entry = CoordinatorEntry(name=settings.name, identity_key=identity.identity_key)
            plan = enter_sites(draft, entry, requests)
        else:
            plan = read_plan(draft)
        if (plan.coordinator.name, plan.coordinator.identity_key) != (settings.name, identity.identity_key):
            raise PlanError("not-in-plan", "The plan names another coordinator.", "Name the sites that asked.")
        verify_plan_within_budget(plan)
        store, study = coordinator_store(settings), plan.study
        store.put(plan_key(study), canonical_bytes(plan))
        approval = PlanApproval(participant=settings.name, role="coordinator")
        store.put(approval_key(study, settings.name, True), sign_envelope(approval, study, identity.signing))
        for name, document in (
            ("plan.json", plan.model_dump(mode="json")),
            ("public-keys.json", public_keys_document(plan)),
        ):
            (home / name).write_text(json.dumps(document, indent=2) + "\n")
        if settings.study and (home / _EVENTS).exists():  # what stopped the other one is no news of this one
            (home / _EVENTS).rename(home / f"events-{settings.study[:12]}.jsonl")
        save_settings(settings.model_copy(update={"study": study}), home / "config.json")
    return plan


def _is_mere_proposal(home: Path, settings: CoordinatorSettings) -> bool:
    """Says whether nothing but the plan and the coordinator's own signature exists of the home's study.

    A hospital that signs the forgotten plan at this moment has agreed to a study that nobody runs: nothing is charged.
    """
    if any((home / name).exists() for name in _OF_A_STUDY):
        return False
    store, study = coordinator_store(settings), settings.study
    data = store.get(plan_key(study))
    if data is None or sha256_hex(data) != study:
        return False
    own = {plan_key(study), approval_key(study, settings.name, True)}
    if not own.issuperset(store.list(coordinator_prefix(study))):
        return False
    plan = parse_canonical(StudyPlan, data, "the plan")
    return not any(next(iter(store.list(site_prefix(study, site.name))), None) for site in plan.sites)
