"""What a hospital's own ledger says of its budget and of what it refused; read, never written."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from schemas.errors import BudgetError, EvidenceError, OperationError
from schemas.ledger import PrivacyCommitted, Refused
from schemas.options import SiteSettings
from tasks.identity import Identity
from tasks.ledger.budget import budget_state
from tasks.ledger.store import LedgerStore

NO_LEDGER = "none"
VERIFIED = "verified"
_UNKNOWN = "The agent's log says more."
_REMEDIES = {
    "contract-violated": "See which rules fail: consilium site approve --home HOME {study} --out plan.json, then "
    "consilium site contract check --home HOME --contract plan.json.",
    "site-paused": "End the pause: consilium site resume --home HOME.",
    "cohort-size": "Correct the data source, or declare the rounded cohort size anew in the next plan.",
    "budget-exceeded": "See consilium site budget --home HOME; ask for a plan that fits what is left.",
    "study-budget-exceeded": "The plan's own budget is used up; a new plan is needed.",
    "delta-fixed": "Write the first delta into config.json again.",
    "model-not-allowed": "Read the package, install the plan's version, and add it to models in config.json.",
    "epoch-lost": "Nothing: a new key ceremony follows.",
}


class OwnLedger:
    """The ledger of a home, verified as a whole.

    Attributes:
        state: ``verified``, ``none`` before the first study, or the code of why it cannot be read or believed.
    """

    def __init__(self, home: Path, settings: SiteSettings, identity: Identity) -> None:
        self._settings = settings
        self._store: LedgerStore | None = None
        self.state = NO_LEDGER
        path = home / "ledger.sqlite"
        if not path.is_file():
            return
        try:
            store = LedgerStore(path, settings.name, identity.signing)
            store.position()
        except (EvidenceError, OperationError) as error:
            self.state = error.code
            return
        self._store, self.state = store, VERIFIED

    def budget(self) -> dict[str, Any]:
        """Returns the budget that counts, and what to do where config.json says otherwise.

        Returns:
            ``epsilon`` and ``delta``: of the ledger; of config.json while none is registered (``registered`` says so);
            None where the ledger is not to be believed. ``ledger``: its state. ``advice``: sentences.
        """
        asked = {"epsilon": self._settings.epsilon, "delta": self._settings.delta}
        if self.state not in (VERIFIED, NO_LEDGER):
            return {"epsilon": None, "delta": None, "registered": False, "ledger": self.state, "advice": []}
        try:
            state = budget_state(self._store) if self._store is not None else None
        except BudgetError:
            state = None
        if state is None:
            return asked | {"registered": False, "ledger": self.state, "advice": []}
        advice = []
        if not _equal(asked["epsilon"], state.epsilon):
            advice.append(
                f"config.json says epsilon {asked['epsilon']}: it counts once the agent opens its ledger again; "
                "restart the agent."
            )
        if not _equal(asked["delta"], state.delta):
            advice.append(
                f"config.json says delta {asked['delta']}: delta is fixed for the data's lifetime, and whatever is "
                f"asked will be refused (delta-fixed); write {state.delta} there again."
            )
        return {"epsilon": state.epsilon, "delta": state.delta} | {
            "registered": True,
            "ledger": self.state,
            "advice": advice,
        }

    def last_refusal(self, study: str) -> dict[str, Any] | None:
        """Returns what this hospital refused last in a study, None if nothing.

        Returns:
            ``time``, ``code``, ``remedy``, and ``contributed_since``: whether it has contributed after that.
        """
        entries = self._store.entries_for(study) if self._store is not None else []
        since = False
        for entry in reversed(entries):
            if isinstance(entry.body, PrivacyCommitted):
                since = True
            if isinstance(entry.body, Refused):
                code = entry.body.code
                remedy = _REMEDIES.get(code, _UNKNOWN).format(study=study)
                return {"time": entry.time, "code": code, "remedy": remedy, "contributed_since": since}
        return None


def _equal(left: str, right: str) -> bool:
    try:
        return Decimal(left) == Decimal(right)
    except InvalidOperation:
        return left == right


def say_budget(budget: dict[str, Any]) -> str:
    """Says which budget counts."""
    if budget["epsilon"] is None:
        return f"UNKNOWN: ledger.sqlite cannot be read or does not verify ({budget['ledger']}); see site budget"
    later = "" if budget["registered"] else " (config.json; counts from the first use)"
    return f"epsilon {budget['epsilon']}, delta {budget['delta']}{later}; see site budget"


def say_refusal(refusal: dict[str, Any], home: Path) -> list[str]:
    """Says what was refused last and what to do, in lines; nothing is to be done once it contributed again."""
    line = f"last refusal {refusal['time'][:19]} {refusal['code']}"
    if refusal["contributed_since"]:
        return [f"{line}; contributed since"]
    return [line, f"Remedy: {refusal['remedy'].replace('HOME', str(home))}"]
