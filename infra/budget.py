"""Says what a hospital's patients have been charged, without starting an agent."""

from __future__ import annotations

import json
from pathlib import Path

from infra.plans import read_plan
from infra.settings import load_settings
from schemas.errors import OperationError
from schemas.options import SiteSettings
from tasks.identity import load_identity


def describe_home_budget(home: Path, plan_file: Path | None, as_json: bool) -> str:
    """Describes the budget of the site in `home`, in words or as JSON.

    Args:
        plan_file: A plan whose study is asked for as well, or None.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`, `no-ledger`.
        PlanError: `plan-unreadable`.
    """
    from tasks.ledger.budget import budget_state, describe_budget
    from tasks.ledger.store import LedgerStore

    settings = load_settings(SiteSettings, home / "config.json")
    ledger = home / "ledger.sqlite"
    if not ledger.is_file():
        raise OperationError("no-ledger", f"{settings.name} has not been charged anything yet.", "Run its agent first.")

    store = LedgerStore(ledger, settings.name, load_identity(home / "identity.json").signing)
    plan = read_plan(plan_file) if plan_file is not None else None
    if not as_json:
        return describe_budget(store, plan)
    state = budget_state(store)
    return json.dumps(
        {
            "site": settings.name,
            "epsilon": state.epsilon,
            "delta": state.delta,
            "training": state.training.model_dump(mode="json"),
            "held_out": state.held_out.model_dump(mode="json"),
        },
        indent=2,
    )
