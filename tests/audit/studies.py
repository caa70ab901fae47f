"""Small evidence made directly: a study that everybody approved and that ended before its first key ceremony."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from schemas.canonical import canonical_bytes, sha256_hex
from schemas.contract import Column, DataContract
from schemas.envelope import sign_envelope
from schemas.layout import approval_key, ledger_key, plan_key
from schemas.ledger import PlanApproved
from schemas.messages import EvidenceManifest, PlanApproval
from schemas.plan import (
    BudgetSpec,
    CoordinatorEntry,
    EvaluationSpec,
    MechanismSpec,
    ModelSpec,
    OptimizerSpec,
    SiteEntry,
    StudyPlan,
)
from schemas.threshold import default_threshold
from tasks.audit.export import export_evidence, write_derived
from tasks.audit.keys import PublicKeys, public_keys_document
from tasks.audit.names import MANIFEST
from tasks.audit.report import AuditReport
from tasks.audit.verify import verify_evidence
from tasks.identity import Identity, generate_identity
from tasks.ledger.budget import register_cohort
from tasks.ledger.store import LedgerStore
from tasks.privacy.accounting import calibrate_noise_multiplier
from tasks.storage.folder import FolderStore

SITES = ("east", "north", "south", "west")


@dataclass(frozen=True)
class AgreedStudy:
    """Evidence with the keys that a test needs to play a dishonest coordinator."""

    plan: StudyPlan
    identities: dict[str, Identity]
    store: FolderStore
    evidence: Path

    @property
    def keys(self) -> PublicKeys:
        return PublicKeys.model_validate(public_keys_document(self.plan))

    @property
    def coordinator(self) -> Identity:
        return self.identities["registry"]

    def copy(self, folder: Path) -> Path:
        """Copies the evidence so that a test may change it."""
        return Path(shutil.copytree(self.evidence, folder / "evidence"))

    def seal(self, folder: Path) -> None:
        """Signs a new manifest over whatever is in the folder: what a dishonest coordinator can always do."""
        reseal(folder, self.plan.study, self.coordinator)

    def audit(self, folder: Path) -> AuditReport:
        return verify_evidence(folder, self.keys)


def reseal(folder: Path, study: str, coordinator: Identity, derive: bool = True) -> None:
    """Signs a new manifest; `derive` also writes anew what an export derives, which anybody can."""
    if derive:
        write_derived(folder)
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = tuple((path, sha256_hex((folder / path).read_bytes())) for path in paths if path != MANIFEST)
    (folder / MANIFEST).write_bytes(sign_envelope(EvidenceManifest(files=files), study, coordinator.signing))


def make_plan(identities: dict[str, Identity]) -> StudyPlan:
    columns = (
        Column(name="patient", kind="identifier", role="patient_id"),
        Column(name="ill", kind="boolean", role="label"),
        Column(name="held_out", kind="boolean", role="held_out"),
        Column(name="age", kind="number", minimum="0", maximum="120"),
    )
    return StudyPlan(
        title="Invented study",
        purpose="Shows what the audit finds.",
        nonce="22" * 32,
        coordinator=CoordinatorEntry(name="registry", identity_key=identities["registry"].identity_key),
        sites=tuple(
            SiteEntry(
                name=name,
                identity_key=identities[name].identity_key,
                hpke_key=identities[name].hpke_key,
                declared_patients=100,
            )
            for name in SITES
        ),
        threshold=default_threshold(4),
        contract=DataContract(name="invented", version="1", columns=columns),
        model=ModelSpec(kind="logistic"),
        mechanism=MechanismSpec(
            clip_norm="1", scale_bits=14, noise_multiplier=calibrate_noise_multiplier("3", "1e-5", 2), rounds=2
        ),
        optimizer=OptimizerSpec(kind="adam", learning_rate="0.1", divisor="100"),
        budget=BudgetSpec(epsilon="3", delta="1e-5"),
        evaluation=EvaluationSpec(bins=10, noise_multiplier=calibrate_noise_multiplier("3", "1e-5", 1)),
    )


def make_agreed_study(folder: Path) -> AgreedStudy:
    """Makes the evidence of a study that everybody approved."""
    identities = {name: generate_identity(name) for name in ("registry", *SITES)}
    plan = make_plan(identities)
    store = FolderStore(folder / "store")
    store.put(plan_key(plan.study), canonical_bytes(plan))
    for name, identity in identities.items():
        coordinator = name == "registry"
        approval = PlanApproval(participant=name, role="coordinator" if coordinator else "site")
        data = sign_envelope(approval, plan.study, identity.signing)
        store.put(approval_key(plan.study, name, coordinator), data)
        ledger = LedgerStore(folder / f"{name}.sqlite", name, identity.signing)
        if not coordinator:
            register_cohort(ledger, "ab" * 32, "3", "1e-5")
        ledger.append(plan.study, PlanApproved(approval=sha256_hex(data)))
        entries = b"".join(entry + b"\n" for entry in ledger.entries())
        store.put(ledger_key(plan.study, name, coordinator, "entries-000000.jsonl"), entries)
        store.put(ledger_key(plan.study, name, coordinator, "checkpoint.json"), ledger.sign_checkpoint(plan.study))
    evidence = export_evidence(store, plan, folder / "evidence", identities["registry"].signing)
    return AgreedStudy(plan, identities, store, evidence)
