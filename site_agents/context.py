"""Everything a site's step needs for one study, opened and checked once per flow run."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from schemas.canonical import encode_parts
from schemas.errors import EvidenceError, OperationError, PlanError
from schemas.layout import ledger_key, site_prefix
from schemas.ledger import PlanApproved
from schemas.messages import Instruction, LogPosition
from schemas.plan import Agreement, Plan_co, StudyPlan
from schemas.statistics import parse_agreement
from site_agents.cohort.reader import LocalData
from site_agents.compute import Compute, compute_in_child
from site_agents.home import SiteHome, open_home
from site_agents.keystore import Keystore
from site_agents.outbox import Outbox
from site_agents.policy import verify_delta, verify_member, verify_plan_bytes
from tasks.ledger.budget import register_cohort
from tasks.ledger.chain import read_entry
from tasks.ledger.store import LedgerStore
from tasks.rounds import read_plan, verify_approvals
from tasks.storage.base import Store
from tasks.storage.opening import open_store


@dataclass(frozen=True)
class SiteContext(Generic[Plan_co]):
    """One site in one study, or in one question (`SiteContext[StatisticsPlan]`)."""

    home: SiteHome
    plan: Plan_co
    store: Store
    outbox: Outbox
    keystore: Keystore
    ledger: LedgerStore
    cohort: str
    compute: Compute

    @property
    def name(self) -> str:
        return self.home.settings.name

    @property
    def study(self) -> str:
        return self.plan.study

    @property
    def data(self) -> LocalData:
        return LocalData(self.home.settings.data, self.home.settings.mapping)

    def is_participant(self, instruction: Instruction) -> bool:
        """Whether `instruction` asks this site for a contribution."""
        return self.name in instruction.participants

    def verify_member(self) -> None:
        """Refuses a study that the site's own people left, also since this flow run began.

        Raises:
            SiteDataError: `site-left`.
        """
        verify_member(open_home(self.home.folder).settings, self.study)

    @property
    def released(self) -> bool:
        """Whether this site verified the study's release, or the question's answer: it is over."""
        return any(self.ledger.find(self.study, kind) for kind in ("model-released", "statistics-answered"))

    def verify_ledger_went_on(self) -> None:
        """Refuses to work with a ledger that is shorter than what this site published: it was restored from a backup.

        Raises:
            OperationError: `ledger-restored`: spent budget would be spent again.
        """
        if self.ledger.position().size < max(self._sent_entries(), self._published_entries()):
            raise OperationError(
                "ledger-restored",
                "The ledger is shorter than what this site has published.",
                "Restore the newest ledger.sqlite; never run on an older one.",
            )

    def publish_ledger(self) -> LogPosition:
        """Sends the ledger entries that were not sent before, as one slice; returns the ledger's position.

        Once this site has closed the study's log with a checkpoint, later entries are other studies' and stay here.
        Entries hold events and digests, no counts and no values; they are on the allow-list of what may leave.
        """
        position = self.ledger.position()
        entries = self.ledger.entries()
        sent = self._sent_entries()
        checkpoint = ledger_key(self.study, self.name, False, "checkpoint.json")
        if position.size > sent and self.outbox.stored(checkpoint) is None:
            key = ledger_key(self.study, self.name, False, f"entries-{sent:06d}.jsonl")
            self.outbox.decide(key, lambda: b"".join(entry + b"\n" for entry in entries[sent : position.size]))
        for key in self._slices():
            # Also what an agent that died had decided and not sent: a slice that is missing would look like a fork.
            if not self.store.exists(key):
                self.outbox.send(key)
        return position

    def _slices(self) -> list[str]:
        prefix = ledger_key(self.study, self.name, False, "entries-")
        folder = site_prefix(self.study, self.name) + "/ledger"
        return [key for key in self.outbox.list(folder) if key.startswith(prefix)]

    def _sent_entries(self) -> int:
        return sum((self.outbox.stored(key) or b"").count(b"\n") for key in self._slices())

    def _published_entries(self) -> int:
        """Returns how far this site's own signed entries in the store reach, should outbox and ledger both be old."""
        reached = 0
        prefix = ledger_key(self.study, self.name, False, "entries-")
        for key in self.store.list(prefix.rsplit("/", 1)[0]):
            if key.startswith(prefix) and self.outbox.stored(key) is None:
                for line in (self.store.get(key) or b"").splitlines():
                    try:
                        _, entry = read_entry(line, self.name, self.home.identity.identity_key)
                    except EvidenceError:
                        break
                    reached = max(reached, entry.sequence + 1)
        return reached


def open_context(
    home: SiteHome, study: str, compute: Compute = compute_in_child, store: Store | None = None
) -> SiteContext:
    """Opens a study at a site: the approved plan, signed by everybody, and this site's part of it.

    Raises:
        PlanError, PeerError: as `open_agreement`.
    """
    return open_agreement(home, study, StudyPlan, compute, store)


def open_agreement(
    home: SiteHome, study: str, model: type[Plan_co], compute: Compute = compute_in_child, store: Store | None = None
) -> SiteContext[Plan_co]:
    """Opens a study or a question at a site; `model` says which, `Agreement` admits both.

    Raises:
        PlanError: `plan-not-approved`, `not-in-plan`, `wrong-kind`.
        PeerError: `plan-changed`, `approval-missing`.
    """
    settings = home.settings
    store = store or open_store(settings.store, f"sites/{settings.name}", settings.s3)
    data = read_plan(store, study)
    verify_plan_bytes(data, study, settings.studies)
    plan: Agreement = parse_agreement(data, "the plan")
    if not isinstance(plan, model):
        raise PlanError("wrong-kind", "The plan is of another kind than the flow that names it.", "Ask for the other.")
    entry = plan.site(settings.name)
    if (entry.identity_key, entry.hpke_key) != (home.identity.identity_key, home.identity.hpke_key):
        raise PlanError("not-in-plan", f"The plan lists other keys for {settings.name}.", "Ask for a corrected plan.")
    for delta in (plan.budget.delta, settings.delta):
        verify_delta(delta, entry.declared_patients)
    approvals = verify_approvals(store, plan)
    ledger = LedgerStore(home.ledger_path, settings.name, home.identity.signing)
    cohort = _cohort_digest(home)
    register_cohort(ledger, cohort, settings.epsilon, settings.delta)
    ledger.append_once(study, PlanApproved(approval=approvals[settings.name]))
    keystore = Keystore(home.memory_folder, study, plan.rounds_per_epoch)
    context = SiteContext(home, plan, store, Outbox(home.outbox_folder, store), keystore, ledger, cohort, compute)
    context.verify_ledger_went_on()
    return context


def _cohort_digest(home: SiteHome) -> str:
    # The budget belongs to the data source, whatever its content becomes: the digest names the source, keyed by a
    # secret of the site so that nobody outside can test a guess.
    secret = home.identity.signing.private_bytes_raw()
    name = encode_parts("cohort", str(Path(home.settings.data).resolve()))
    return hmac.new(hashlib.sha256(secret).digest(), name, hashlib.sha256).hexdigest()
