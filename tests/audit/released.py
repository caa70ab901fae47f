"""Small evidence with a release and reviewers: a study that ended before its first round and released its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from schemas.canonical import canonical_bytes, sha256_hex
from schemas.envelope import sign_envelope
from schemas.layout import approval_key, ledger_key, plan_key, release_key, review_key
from schemas.ledger import ModelReleased, PlanApproved, ReleaseDecided, ReviewDecided
from schemas.messages import Closing, ModelRelease, PlanApproval, Witness
from schemas.plan import ReleaseSpec, ReviewerEntry, StudyPlan
from schemas.review import ReviewDecision
from tasks.audit.export import export_evidence
from tasks.identity import generate_identity
from tasks.ledger.budget import register_cohort
from tasks.ledger.store import LedgerStore
from tasks.review import decide, latest_decisions
from tasks.server_step import initial_state, state_digest, weights_safetensors
from tasks.storage.folder import FolderStore
from tests.audit.studies import SITES, AgreedStudy, make_plan

REVIEWERS = ("ada", "ben")


@dataclass(frozen=True)
class ReleasedStudy(AgreedStudy):
    """A released candidate, its study log still open for reviewers."""

    log: LedgerStore
    folder: Path

    @property
    def release(self) -> tuple[str, ModelRelease]:
        data = self.store.get(release_key(self.plan.study, "release.json"))
        entry = next(e.body for e in self.log.find(self.plan.study, "model-released"))
        assert data is not None
        assert isinstance(entry, ModelReleased)
        return sha256_hex(data), entry.release

    def sign(self, reviewer: str, decision: str, number: int = 1, by: str = "", **changes: str) -> bytes:
        digest, release = self.release
        fields = {
            "reviewer": reviewer,
            "number": number,
            "decision": decision,
            "release": digest,
            "weights": release.weights,
            "model_version": "invented-logistic/1",
            "evidence": None,
            "reason": "The figures are what the plan promised.",
            "time": "2026-01-02T03:04:05Z",
        }
        return sign_envelope(
            ReviewDecision.model_validate(fields | changes), self.plan.study, self.identities[by or reviewer].signing
        )

    def enter(self, data: bytes, reviewer: str, decision: str, number: int = 1) -> None:
        """Publishes a decision and enters it."""
        self.store.put(review_key(self.plan.study, reviewer, number), data)
        digest, release = self.release
        given = ReviewDecision(
            reviewer=reviewer,
            number=number,
            decision=decision,  # type: ignore[arg-type]
            release=digest,
            weights=release.weights,
            model_version="invented-logistic/1",
            evidence=None,
            reason="The figures are what the plan promised.",
            time="2026-01-02T03:04:05Z",
        )
        self.log.append(self.plan.study, ReviewDecided(review=sha256_hex(data), decision=given))

    def conclude(self, outcome: str = "") -> None:
        """Enters what follows from the decisions (or `outcome`, whatever they say) and publishes the log."""
        entered = [e.body for e in self.log.find(self.plan.study, "review-decided")]
        digests = {(b.decision.reviewer, b.decision.number): b.review for b in entered if isinstance(b, ReviewDecided)}
        decisions = [b.decision for b in entered if isinstance(b, ReviewDecided)]
        follows = outcome or decide(self.plan, decisions)
        if follows != "waiting":
            latest = latest_decisions(decisions)
            body = ReleaseDecided(
                release=self.release[0],
                outcome=follows,  # type: ignore[arg-type]
                decisions=tuple(digests[name, latest[name].number] for name in sorted(latest)),
                evidence="ef" * 32,
                model_version="invented-logistic/1",
            )
            self.log.append(self.plan.study, body)
        self.publish()

    def publish(self) -> None:
        """Publishes the entries since the last slice and a checkpoint over the whole log."""
        name = self.plan.coordinator.name
        prefix = ledger_key(self.plan.study, name, True, "entries-")
        slices = [self.store.get(key) or b"" for key in self.store.list(prefix.rpartition("/")[0]) if "entries-" in key]
        done = sum(data.count(b"\n") for data in slices)
        entries = list(self.log.entries())[done:]
        data = b"".join(entry + b"\n" for entry in entries)
        self.store.put(ledger_key(self.plan.study, name, True, f"entries-{done:06d}.jsonl"), data)
        size = done + len(entries)
        checkpoint = self.log.sign_checkpoint(self.plan.study)
        self.store.put(ledger_key(self.plan.study, name, True, f"checkpoint-{size:06d}.json"), checkpoint)

    def export(self, name: str = "reviewed") -> Path:
        return export_evidence(self.store, self.plan, self.folder / name, self.coordinator.signing)


def make_released_study(folder: Path) -> ReleasedStudy:
    """Makes a candidate: agreed, ended before its first round, released, closed and witnessed."""
    identities = {name: generate_identity(name) for name in ("registry", *SITES, *REVIEWERS)}
    reviewers = tuple(ReviewerEntry(name=name, identity_key=identities[name].identity_key) for name in REVIEWERS)
    plan = make_plan(identities).model_copy(
        update={"reviewers": reviewers, "release": ReleaseSpec(reviewers_needed=2), "nonce": "33" * 32}
    )
    plan = StudyPlan.model_validate(plan.model_dump())
    store = FolderStore(folder / "store")
    store.put(plan_key(plan.study), canonical_bytes(plan))
    logs = {
        name: LedgerStore(folder / f"{name}.sqlite", name, identities[name].signing) for name in ("registry", *SITES)
    }
    weights = weights_safetensors(plan, initial_state(plan))
    store.put(release_key(plan.study, "weights.safetensors"), weights)
    release = ModelRelease(
        rounds=0,
        model=state_digest(initial_state(plan)),
        weights=sha256_hex(weights),
        evaluation=None,
        metrics=(),
        epsilon=(),
        evaluation_epsilon=(),
        complete=False,
        reason="ended by the coordinator",
    )
    signed = sign_envelope(release, plan.study, identities["registry"].signing)
    store.put(release_key(plan.study, "release.json"), signed)
    checkpoints = []
    for name, log in logs.items():
        coordinator = name == "registry"
        approval = PlanApproval(participant=name, role="coordinator" if coordinator else "site")
        data = sign_envelope(approval, plan.study, identities[name].signing)
        store.put(approval_key(plan.study, name, coordinator), data)
        if not coordinator:
            register_cohort(log, "ab" * 32, "3", "1e-5")
        log.append(plan.study, PlanApproved(approval=sha256_hex(data)))
        log.append(plan.study, ModelReleased(release=release))
        entries = b"".join(entry + b"\n" for entry in log.entries())
        store.put(ledger_key(plan.study, name, coordinator, "entries-000000.jsonl"), entries)
        checkpoint = log.sign_checkpoint(plan.study)
        store.put(ledger_key(plan.study, name, coordinator, "checkpoint.json"), checkpoint)
        checkpoints.append((name, sha256_hex(checkpoint)))
    closing = sign_envelope(Closing(checkpoints=tuple(sorted(checkpoints))), plan.study, identities["registry"].signing)
    store.put(ledger_key(plan.study, "registry", True, "closing.json"), closing)
    for name in SITES:
        witness = Witness(witness=name, closing=sha256_hex(closing), seen=tuple(sorted(checkpoints)))
        data = sign_envelope(witness, plan.study, identities[name].signing)
        store.put(ledger_key(plan.study, name, False, "witness.json"), data)
    evidence = export_evidence(store, plan, folder / "evidence", identities["registry"].signing)
    return ReleasedStudy(plan, identities, store, evidence, logs["registry"], folder)
