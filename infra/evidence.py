"""Exports a study's evidence from the coordinator's home, whenever somebody asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.settings import load_settings
from schemas.canonical import parse_canonical, sha256_hex
from schemas.errors import OperationError, PlanError
from schemas.options import CoordinatorSettings
from schemas.plan import StudyPlan
from tasks.identity import Identity, load_identity
from tasks.rounds import read_plan
from tasks.storage.base import Store
from tasks.storage.opening import open_store


@dataclass(frozen=True)
class PublishedStudy:
    """What an export needs: no log is opened, so that a running coordinator is not disturbed."""

    settings: CoordinatorSettings
    identity: Identity
    plan: StudyPlan
    store: Store


def open_published_study(home: Path) -> PublishedStudy:
    """Opens the study of a coordinator's home, or of a demo's folder, for reading.

    Raises:
        OperationError: `not-a-coordinator`, `settings-unreadable`, `identity-unreadable`.
        PlanError: `plan-changed`, `not-in-plan`.
    """
    folder = next((f for f in (home, home / "coordinator") if (f / "config.json").is_file()), None)
    if folder is None or not (folder / "identity.json").is_file():
        raise OperationError(
            "not-a-coordinator",
            f"Expected a coordinator's home at {home.name}: config.json and identity.json.",
            "Name the coordinator's home, or the folder of a demo.",
        )
    settings = load_settings(CoordinatorSettings, folder / "config.json")
    identity = load_identity(folder / "identity.json")
    store = open_store(settings.store, "coordinator", settings.s3)
    data = read_plan(store, settings.study)
    if sha256_hex(data) != settings.study:
        raise PlanError("plan-changed", "The plan in the store is not the study's plan.", "Restore the signed plan.")
    plan = parse_canonical(StudyPlan, data, "the plan")
    if plan.coordinator.identity_key != identity.identity_key:
        raise PlanError("not-in-plan", "The plan names another coordinator key.", "Use the identity that signed it.")
    return PublishedStudy(settings, identity, plan, store)
