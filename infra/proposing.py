"""The coordinator proposes a study: enters the sites that asked into a plan, signs it and publishes it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from infra.homes import changing, coordinator_store, read_identity
from infra.joining import entry_of
from infra.plans import read_plan
from infra.settings import load_settings, save_settings
from schemas.canonical import canonical_bytes
from schemas.envelope import sign_envelope
from schemas.errors import PlanError
from schemas.joining import JoinRequest
from schemas.layout import approval_key, plan_key
from schemas.messages import PlanApproval
from schemas.options import CoordinatorSettings
from schemas.plan import CoordinatorEntry, StudyPlan


def enter_sites(draft: StudyPlan, coordinator: CoordinatorEntry, requests: Sequence[JoinRequest]) -> StudyPlan:
    """Returns the draft as a new study of these sites.

    Raises:
        PlanError: the rule that the sites and the draft's numbers break, and the nearest plan that holds.
    """
    content = draft.model_dump(mode="json") | {
        "nonce": secrets.token_hex(32),
        "coordinator": coordinator.model_dump(mode="json"),
        "sites": [entry_of(request).model_dump(mode="json") for request in requests],
    }
    try:
        return StudyPlan.model_validate_json(json.dumps(content))
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(str(part) for part in item["loc"]) for item in error.errors()}))
        raise PlanError("plan-unreadable", f"The sites do not fit the draft: {fields}.", "Correct the draft.") from None


def propose(home: Path, draft: Path, requests: Sequence[JoinRequest]) -> StudyPlan:
    """Signs and publishes a plan and makes it the study of the coordinator's home.

    Args:
        draft: A plan. With `requests` its sites, coordinator and nonce are replaced; without, it is taken as it is.
        requests: Verified requests of the sites that take part, by name.

    Raises:
        PlanError: `plan-unreadable`, `not-in-plan`, `plan-overspends`, `study-unfinished`, and broken rules.
        OperationError: the store's refusals.
    """
    from tasks.audit.keys import public_keys_document
    from tasks.privacy.mechanism import verify_plan_within_budget

    with changing(home):
        settings = load_settings(CoordinatorSettings, home / "config.json")
        if settings.study and not (home / "summary.json").is_file():
            raise PlanError(
                "study-unfinished",
                f"This home runs study {settings.study[:12]}.",
                "Make another home for another study: coordinator init.",
            )
        identity = read_identity(home, settings.name)
        plan = read_plan(draft)
        if requests:
            entry = CoordinatorEntry(name=settings.name, identity_key=identity.identity_key)
            plan = enter_sites(plan, entry, requests)
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
        save_settings(settings.model_copy(update={"study": study}), home / "config.json")
    return plan
