"""Everything a coordinator's step needs: home, keys, plan, store, study log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from pydantic import ValidationError

from flows.progress import Progress
from schemas.canonical import parse_canonical, sha256_hex
from schemas.errors import OperationError, PlanError
from schemas.ledger import PlanApproved
from schemas.options import CoordinatorSettings, RunOptions
from schemas.plan import Plan_co, StudyPlan
from tasks.identity import Identity, load_identity
from tasks.ledger.store import LedgerStore
from tasks.rounds import read_plan, verify_approvals
from tasks.storage.base import Store
from tasks.storage.opening import open_store


@dataclass(frozen=True)
class CoordinatorContext(Generic[Plan_co]):
    """The coordinator of one study, or of one question (`CoordinatorContext[StatisticsPlan]`).

    Its state is the store and the study log; nothing else has to survive a crash.
    """

    home: Path
    settings: CoordinatorSettings
    identity: Identity
    plan: Plan_co
    store: Store
    log: LedgerStore
    progress: Progress

    @property
    def study(self) -> str:
        return self.plan.study

    @property
    def options(self) -> RunOptions:
        return self.settings.options


def open_coordinator(home: Path) -> CoordinatorContext:
    """Opens the coordinator's home and its study.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`, `no-study`, and those of `open_store`.
        PlanError: `plan-changed`, `not-in-plan`.
        PeerError: `approval-missing`.
    """
    try:
        settings = CoordinatorSettings.model_validate(json.loads((home / "config.json").read_text()))
    except (OSError, ValueError, ValidationError):
        raise OperationError(
            "settings-unreadable", f"Expected a coordinator's config.json in {home.name}.", "Prepare the home first."
        ) from None
    identity = load_identity(home / "identity.json")
    if not settings.study:
        raise OperationError("no-study", "This coordinator has no study yet.", "Propose one: coordinator propose.")
    store = open_store(settings.store, "coordinator", settings.s3)
    data = read_plan(store, settings.study)
    if sha256_hex(data) != settings.study:
        raise PlanError("plan-changed", "The plan in the store is not the study's plan.", "Restore the signed plan.")
    plan = parse_canonical(StudyPlan, data, "the plan")
    if plan.coordinator.identity_key != identity.identity_key:
        raise PlanError("not-in-plan", "The plan names another coordinator key.", "Use the identity that signed it.")
    approvals = verify_approvals(store, plan)
    log = LedgerStore(home / "study-log.sqlite", plan.coordinator.name, identity.signing)
    context = CoordinatorContext(home, settings, identity, plan, store, log, Progress(home / "events.jsonl"))
    log.append_once(plan.study, PlanApproved(approval=approvals[plan.coordinator.name]))
    return context
