"""What must hold after chaos: nothing lost, nothing charged twice, one record, and the model that the record says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.context import open_coordinator
from schemas.ledger import PrivacyCommitted, PrivacyReserved, RecordSigned, SumOpened
from schemas.plan import StudyPlan
from site_agents.home import open_home
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.identity import load_identity
from tasks.ledger.store import LedgerStore
from tasks.rounds import read_instruction, read_opening, read_record
from tasks.server_step import apply_step, initial_state, state_digest
from tasks.storage.base import Store
from tests.consortium.parties import Place


@dataclass(frozen=True)
class Verdict:
    """What one run left.

    Attributes:
        rounds: Training rounds whose sum was opened, of those planned.
        dead: Rounds that were begun and never opened.
        dropped: Contributions that an opened round went on without.
        charges: Reservations in all ledgers.
    """

    rounds: int
    dead: int
    dropped: int
    charges: int


def verify_study(place: Place, store: Store) -> Verdict:
    """Checks a finished study against what every party holds.

    Raises:
        AssertionError: naming what does not hold.
    """
    plan = open_coordinator(place.coordinator).plan
    report = verify_evidence(place.coordinator / "evidence", read_public_keys(place.coordinator / "public-keys.json"))
    failed = [check.check for check in report.results if check.status == "failed"]
    assert not failed, f"the audit failed {failed}"
    charges = sum(_verify_site(place.sites()[site.name], plan, site.name) for site in plan.contributors)
    opened, dropped = _replay(place, plan, store)
    begun = [r for r in range(1, plan.mechanism.rounds + 1) if read_instruction(store, plan, r, 1) is not None]
    return Verdict(opened, len(begun) - opened, dropped, charges)


def _verify_site(folder: Path, plan: StudyPlan, site: str) -> int:
    """One charge per executed mechanism and one record per round; returns the number of charges."""
    home = open_home(folder)
    entries = LedgerStore(home.ledger_path, site, load_identity(folder / "identity.json").signing)
    bodies = [entry.body for kind in _KINDS for entry in entries.find(plan.study, kind)]
    reserved = [body.round for body in bodies if isinstance(body, PrivacyReserved)]
    signed = [body.round for body in bodies if isinstance(body, RecordSigned)]
    assert len(reserved) == len(set(reserved)), f"{site} was charged twice for a round"
    assert len(signed) == len(set(signed)), f"{site} signed two records of a round"
    executed = {int(path.name.rsplit("-", 1)[1]) for path in _values(home.outbox_folder, plan.study)}
    assert executed <= set(reserved), f"{site} computed something that was not charged"
    committed = {body.round for body in bodies if isinstance(body, PrivacyCommitted)}
    assert committed <= executed, f"{site} committed a round that was never computed"
    return len(reserved)


_KINDS = ("privacy-reserved", "privacy-committed", "record-signed")


def _values(outbox: Path, study: str) -> list[Path]:
    return [path for path in outbox.rglob("values-*") if study in str(path) and path.name[-4:].isdecimal()]


def _replay(place: Place, plan: StudyPlan, store: Store) -> tuple[int, int]:
    """Adds up what the recorded sites drew, noise included, and steps the model: it must be the released one."""
    state, opened, dropped = initial_state(plan), 0, 0
    for number in range(1, plan.mechanism.rounds + 1):
        opening = read_opening(store, plan, number)
        if opening is None:
            continue
        record = read_record(store, plan, number)
        assert record is not None
        total = sum(_drawn(place, plan, site, number) for site, _ in record.predicate.contributions)
        state = apply_step(plan, state, np.asarray(total, dtype=np.int64))
        assert state_digest(state) == opening.predicate.model, f"round {number} does not replay"
        opened, dropped = opened + 1, dropped + len(record.predicate.dropped)
    log = LedgerStore(
        place.coordinator / "study-log.sqlite",
        plan.coordinator.name,
        load_identity(place.coordinator / "identity.json").signing,
    )
    sums = [entry.body.round for entry in log.find(plan.study, "sum-opened") if isinstance(entry.body, SumOpened)]
    assert len(sums) == len(set(sums)), "a round was opened twice"
    return opened, dropped


def _drawn(place: Place, plan: StudyPlan, site: str, number: int) -> np.ndarray:
    outbox = open_home(place.sites()[site]).outbox_folder
    found = [path for path in _values(outbox, plan.study) if path.name.endswith(f"-{number:04d}")]
    assert len(found) == 1, f"{site} keeps {len(found)} vectors of round {number}"
    stored = found[0].read_bytes()
    return np.frombuffer(stored, dtype="<i8", offset=64).astype(np.int64)
