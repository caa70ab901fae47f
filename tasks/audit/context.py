"""What the checks share: the evidence, and messages verified once and then remembered.

Invariant: everything returned here was verified under a key of the plan or of a verified ceremony. What does not verify
raises `AuditFailure` with its place, again for every check that asks, so that no check silently goes without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from schemas.canonical import sha256_hex
from schemas.envelope import Predicate, open_envelope
from schemas.errors import ConsiliumError
from schemas.layout import (
    approval_key,
    attempt_key,
    ledger_key,
    plan_key,
    release_key,
    round_key,
)
from schemas.ledger import PrivacyCommitted, Refused, ReleaseDecided
from schemas.messages import (
    Closing,
    Contribution,
    DecryptionShare,
    EvidenceManifest,
    Instruction,
    ModelRelease,
    Opening,
    PlanApproval,
    Record,
    RecordSignature,
    Refusal,
    ShareRequest,
)
from schemas.plan import Agreement, ReviewerEntry, StudyPlan
from schemas.review import ReviewDecision
from schemas.statistics import StatisticsPlan, parse_agreement
from tasks.audit.epochs import derive_epoch
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import PublicKeys
from tasks.audit.logs import Log, read_log, slices_of
from tasks.audit.names import BULK_KINDS, MANIFEST, Item, parse_name
from tasks.audit.registry import AuditFailure
from tasks.audit.signed import Signed
from tasks.audit.snapshot import MlflowSnapshot
from tasks.ledger.merkle import MerkleTree
from tasks.review import verify_decision
from tasks.secure_sum.context import RoundContext
from tasks.secure_sum.epoch import EpochPublic

P = TypeVar("P", bound=Predicate)
T = TypeVar("T")


class AuditContext:
    """One evidence folder under audit."""

    def __init__(
        self, evidence: EvidenceFolder, keys: PublicKeys | None, snapshot: MlflowSnapshot | None = None
    ) -> None:
        self.keys = keys
        self.snapshot = snapshot
        self._memory: dict[Any, Any] = {}
        self._list(evidence)

    def look_again(self) -> None:
        """Lists the folder anew: files were added to it, and none was changed."""
        self._list(EvidenceFolder(self.evidence.root))

    def _list(self, evidence: EvidenceFolder) -> None:
        self.evidence = evidence
        self.items: tuple[Item, ...] = tuple(item for item in map(parse_name, evidence.paths) if item is not None)
        self._studies = sorted({item.study for item in self.items})
        self._by_kind: dict[str, list[Item]] = {}
        for item in self.items:
            self._by_kind.setdefault(item.kind, []).append(item)

    def remember(self, key: Any, compute: Callable[[], T], place: str) -> T:
        """Returns `compute()`, computed once; a refusal is remembered too and raised as `AuditFailure`."""
        if key not in self._memory:
            try:
                self._memory[key] = compute()
            except AuditFailure as failure:
                self._memory[key] = failure
            except ConsiliumError as error:
                self._memory[key] = AuditFailure(place, str(error))
        value = self._memory[key]
        if isinstance(value, AuditFailure):
            raise AuditFailure(value.place, value.reason)
        return cast(T, value)

    @property
    def omitted(self) -> dict[str, str]:
        """Path -> SHA-256 of every ciphertext that the signed manifest says was left out; empty for a whole export.

        Only kinds that an export without bulk leaves out count; check C02 refuses any other.
        """

        def read() -> dict[str, str]:
            manifest = self.from_coordinator(MANIFEST, EvidenceManifest).predicate
            named = ((path, digest, parse_name(path)) for path, digest in manifest.omitted)
            return {path: digest for path, digest, item in named if item is not None and item.kind in BULK_KINDS}

        try:
            return self.remember("omitted", read, MANIFEST)
        except AuditFailure:
            return {}

    @property
    def omitted_items(self) -> tuple[Item, ...]:
        """What the names of the ciphertexts say that were left out."""
        return tuple(item for item in map(parse_name, sorted(self.omitted)) if item is not None)

    def digest(self, path: str) -> str:
        """Returns the SHA-256 of a file; of one that was left out, what the signed manifest says."""
        return self.omitted[path] if path in self.omitted else self.evidence.digest(path)

    def exists(self, path: str) -> bool:
        """Tells whether a file is there or was left out by the signed manifest."""
        return path in self.omitted or self.evidence.exists(path)

    def select(self, kind: str, **numbers: int) -> list[Item]:
        """Returns the items of a kind (and epoch, round, attempt, number), in path order."""
        wanted = list(numbers.items())
        found = self._by_kind.get(kind, [])
        return [item for item in found if all(getattr(item, name) == value for name, value in wanted)]

    # --- plan

    @property
    def study(self) -> str:
        """The only study of the evidence, by its folder name."""
        if len(self._studies) != 1:
            raise AuditFailure("coordinator", f"expected the objects of exactly one study, found {len(self._studies)}")
        return self._studies[0]

    @property
    def plan(self) -> Agreement:
        """What everybody signed, a study's plan or a question; its digest is the study id."""
        return self.remember("plan", self._read_plan, "coordinator")

    @property
    def study_plan(self) -> StudyPlan:
        """The plan of a study."""
        if not isinstance(self.plan, StudyPlan):
            raise AuditFailure(plan_key(self.study), "is a question, not the plan of a study")
        return self.plan

    @property
    def question(self) -> StatisticsPlan | None:
        """The question that was asked, or None in a study."""
        return self.plan if isinstance(self.plan, StatisticsPlan) else None

    @property
    def reviewers(self) -> tuple[ReviewerEntry, ...]:
        """The plan's reviewers; a question has none."""
        return self.plan.reviewers if isinstance(self.plan, StudyPlan) else ()

    def _read_plan(self) -> Agreement:
        path = plan_key(self.study)
        data = self.evidence.read(path)
        if sha256_hex(data) != self.study:
            raise AuditFailure(path, "its digest is not the study id that everybody approved")
        try:
            return parse_agreement(data, "the plan")
        except ConsiliumError as error:
            raise AuditFailure(path, str(error)) from None

    def identity_key(self, name: str) -> str:
        """Returns the identity key of the coordinator or a site, from the plan."""
        plan = self.plan
        return plan.coordinator.identity_key if name == plan.coordinator.name else plan.site(name).identity_key

    # --- signed messages

    def signed(self, path: str, model: type[P], sender: str, key_hex: str) -> Signed[P]:
        """Returns the message at `path`, verified to be a `model` of this study signed with `key_hex`."""

        def read() -> Signed[P]:
            data = self.evidence.read(path)
            return Signed(path, open_envelope(model, data, self.study, key_hex, sender), data, sha256_hex(data))

        return self.remember((path, model, key_hex), read, path)

    def from_coordinator(self, path: str, model: type[P]) -> Signed[P]:
        """Returns a message that the coordinator signed."""
        return self.signed(path, model, self.plan.coordinator.name, self.plan.coordinator.identity_key)

    def from_site(self, path: str, model: type[P], site: str) -> Signed[P]:
        """Returns a message that a site signed with its identity key."""
        return self.signed(path, model, site, self.identity_key(site))

    def from_holder(self, path: str, model: type[P], holder: str, epoch: int) -> Signed[P]:
        """Returns a message that a key holder signed with its key of a verified epoch."""
        keys = self.epoch(epoch).signing_keys
        if holder not in keys:
            raise AuditFailure(path, f"{holder} holds no key in epoch {epoch}")
        return self.signed(path, model, holder, keys[holder])

    def approval(self, name: str) -> Signed[PlanApproval]:
        """Returns a participant's approval of the plan."""
        path = approval_key(self.study, name, coordinator=name == self.plan.coordinator.name)
        return self.signed(path, PlanApproval, name, self.identity_key(name))

    # --- rounds

    @property
    def rounds(self) -> tuple[int, ...]:
        """Numbers of all rounds with any object, ascending."""
        return tuple(sorted({item.round for item in self.items if item.round}))

    @property
    def opened_rounds(self) -> tuple[int, ...]:
        """Numbers of the rounds with an opening, ascending."""
        return tuple(sorted({item.round for item in self.select("opening")}))

    @property
    def recorded_rounds(self) -> tuple[int, ...]:
        """Numbers of the rounds with a record, ascending."""
        return tuple(sorted({item.round for item in self.select("record")}))

    def attempts(self, round_: int) -> tuple[int, ...]:
        """Returns the attempts of a round that have an instruction, ascending."""
        return tuple(sorted(item.attempt for item in self.select("instruction", round=round_)))

    def instruction(self, round_: int, attempt: int) -> Signed[Instruction]:
        """Returns the instruction of an attempt."""
        return self.from_coordinator(attempt_key(self.study, round_, attempt, None, "instruction.json"), Instruction)

    def record(self, round_: int) -> Signed[Record]:
        """Returns the round's record."""
        return self.from_coordinator(round_key(self.study, round_, None, "record.json"), Record)

    def opening(self, round_: int) -> Signed[Opening]:
        """Returns the round's opening."""
        return self.from_coordinator(round_key(self.study, round_, None, "opening.json"), Opening)

    def request(self, round_: int, number: int) -> Signed[ShareRequest]:
        """Returns a share request."""
        return self.from_coordinator(round_key(self.study, round_, None, f"request-{number}.json"), ShareRequest)

    def contribution(self, round_: int, attempt: int, site: str) -> Signed[Contribution]:
        """Returns a site's contribution to an attempt."""
        return self.from_site(attempt_key(self.study, round_, attempt, site, "contribution.json"), Contribution, site)

    def refusal(self, round_: int, attempt: int, site: str) -> Signed[Refusal]:
        """Returns a site's refusal of an attempt."""
        return self.from_site(attempt_key(self.study, round_, attempt, site, "refusal.json"), Refusal, site)

    def record_signature(self, round_: int, holder: str) -> Signed[RecordSignature]:
        """Returns a holder's signature on the round's record, under the key of the record's epoch."""
        path = round_key(self.study, round_, holder, "record-signature.json")
        return self.from_holder(path, RecordSignature, holder, self.record(round_).predicate.epoch)

    def share(self, round_: int, holder: str, number: int) -> Signed[DecryptionShare]:
        """Returns a holder's answer to a share request."""
        path = round_key(self.study, round_, holder, f"share-{number}.json")
        return self.from_holder(path, DecryptionShare, holder, self.record(round_).predicate.epoch)

    def recorded(self, round_: int) -> dict[str, Signed[Contribution]]:
        """Returns the contributions in the round's record, by sender; each is the one that the record names."""
        record = self.record(round_).predicate
        found: dict[str, Signed[Contribution]] = {}
        for sender, digest in record.contributions:
            contribution = self.contribution(round_, record.attempt, sender)
            if contribution.digest != digest:
                raise AuditFailure(contribution.path, f"is not the contribution in the record of round {round_}")
            found[sender] = contribution
        return found

    def round_context(self, round_: int) -> RoundContext:
        """Returns the arithmetic context of the round's recorded attempt."""
        return self.attempt_context(round_, self.record(round_).predicate.attempt)

    def attempt_context(self, round_: int, attempt: int) -> RoundContext:
        """Returns the arithmetic context of an attempt."""

        def build() -> RoundContext:
            instruction = self.instruction(round_, attempt)
            public = self.epoch(instruction.predicate.epoch)
            return RoundContext.of(self.plan, public, instruction.predicate, instruction.digest)

        return self.remember(("attempt-context", round_, attempt), build, f"round {round_}")

    def result(self, round_: int) -> NDArray[np.int64]:
        """Returns the round's published integers; their digest is the signed opening's."""
        path = round_key(self.study, round_, None, "result.bin")
        data = self.evidence.read(path)
        if sha256_hex(data) != self.opening(round_).predicate.result or len(data) % 8:
            raise AuditFailure(path, "is not the result that the opening names")
        return np.frombuffer(data, dtype="<i8").astype(np.int64)

    @property
    def release(self) -> Signed[ModelRelease]:
        """The release."""
        return self.from_coordinator(release_key(self.study, "release.json"), ModelRelease)

    @property
    def closing(self) -> Signed[Closing]:
        """The coordinator's list of the checkpoints that close the study."""
        path = ledger_key(self.study, self.plan.coordinator.name, True, "closing.json")
        return self.from_coordinator(path, Closing)

    @property
    def released(self) -> bool:
        """Whether the evidence has a release."""
        return bool(self.select("release"))

    # --- reviews

    def review(self, item: Item) -> Signed[ReviewDecision]:
        """Returns a decision, verified to be of a reviewer of the plan about this release."""

        def read() -> Signed[ReviewDecision]:
            data, release = self.evidence.read(item.path), self.release
            decision = verify_decision(self.study_plan, release.digest, release.predicate, data)
            return Signed(item.path, decision, data, sha256_hex(data))

        return self.remember(("review", item.path), read, item.path)

    @property
    def reviews(self) -> tuple[Signed[ReviewDecision], ...]:
        """All decisions, by reviewer and number."""
        found = [self.review(item) for item in self.select("review-decision")]
        return tuple(sorted(found, key=lambda signed: (signed.predicate.reviewer, signed.predicate.number)))

    @property
    def review_outcome(self) -> str:
        """What the study log says last: candidate, released, rejected or withdrawn."""
        outcome = "candidate"
        for _, entry in self.log(self.plan.coordinator.name).about(self.study):
            if isinstance(entry.body, ReleaseDecided):
                outcome = entry.body.outcome
        return outcome

    # --- key ceremonies

    @property
    def epochs(self) -> tuple[int, ...]:
        """Numbers of all epochs with any object, ascending."""
        return tuple(sorted({item.epoch for item in self.items if item.epoch}))

    def epoch(self, number: int) -> EpochPublic:
        """Returns the public side of a key ceremony, re-derived from its messages."""
        return self.remember(("epoch", number), lambda: derive_epoch(self, number), f"epoch {number}")

    # --- logs

    @property
    def participants(self) -> tuple[str, ...]:
        """The coordinator and all sites."""
        return (self.plan.coordinator.name, *(site.name for site in self.plan.sites))

    def has_log(self, owner: str) -> bool:
        """Tells whether any entry of `owner` was published."""
        return bool(slices_of(self, owner))

    def tree(self, owner: str) -> MerkleTree:
        """Returns the Merkle tree over a participant's verified log."""
        return self.remember(("tree", owner), lambda: MerkleTree(self.log(owner).envelopes), f"ledger of {owner}")

    def log(self, owner: str) -> Log:
        """Returns a participant's verified log."""
        return self.remember(("log", owner), lambda: read_log(self, owner), f"ledger of {owner}")

    # --- drop-outs

    def is_exempt(self, item: Item) -> bool:
        """Tells whether a signed record names the owner's answer to this attempt as invalid, and its ledger agrees.

        Such an answer is kept as it came and is bound by the manifest only. If the site's ledger says that it refused,
        or that it contributed and the contribution is not the one, somebody replaced its answer: no exemption.
        """
        if not item.attempt or item.site is None:
            return False
        contribution = item.kind == "contribution"
        key = ("exempt", item.site, item.round, item.attempt, contribution)
        return self.remember(key, lambda: self._is_invalid(item), item.path)

    def _is_invalid(self, item: Item) -> bool:
        if item.site is None or not self.select("record", round=item.round):
            return False
        record = self.record(item.round).predicate
        if record.attempt != item.attempt or (item.site, "invalid") not in record.dropped:
            return False
        if not self.has_log(item.site):
            return True
        answered = (Refused, PrivacyCommitted) if item.kind == "contribution" else (Refused,)
        bodies = [entry.body for _, entry in self.log(item.site).about(self.study)]
        return not any(isinstance(body, answered) and body.instruction == record.instruction for body in bodies)
